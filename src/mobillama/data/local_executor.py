"""Tasks on short-lived worker processes of this machine, which start at once and never outlive the build.

Changed against datatrove's own local executor: workers are forked where the system can (no second import of the
libraries, no demand on `__main__`), and one that dies is an error instead of an endless wait.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from loguru import logger

from mobillama.cores import cores
from mobillama.data.executor import POLL_SECONDS, Stage, Watch
from mobillama.errors import InputError


class LocalExecutor:
    """Runs tasks on `workers` processes; 0 = one per core."""

    def __init__(self, workers: int = 0) -> None:
        self.workers = workers or cores()

    def run(self, stage: Stage, watch: Watch) -> None:
        """Run every open task; `watch(done)` is called a few times a second. Errors of a task come through."""
        waiting = stage.get_incomplete_ranks()
        finished = stage.tasks - len(waiting)
        watch(finished)
        if not waiting:
            return
        method = "fork" if sys.platform == "linux" else "spawn"
        context = multiprocessing.get_context(method)
        workers = min(self.workers, len(waiting))
        logger.disable("datatrove")
        with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(stage, os.getpid())) as pool:
            try:
                pending: set[Future[Any]] = {pool.submit(_run_task, rank) for rank in waiting}
                while pending:
                    done, pending = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_EXCEPTION)
                    for future in done:
                        future.result()
                    finished += len(done)
                    watch(finished)
            except BrokenProcessPool:
                raise InputError(
                    f"a worker of stage {stage.name} was killed from outside; most often memory ran out: "
                    "use fewer workers. The same command goes on where this one stopped"
                ) from None
            except BaseException:
                for process in list((getattr(pool, "_processes", None) or {}).values()):
                    process.kill()
                raise
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
                logger.enable("datatrove")


# In a worker: the stage it works for, handed over once.
_stage: list[Stage] = []


def _run_task(rank: int) -> None:
    _stage[0].run_task(rank)


def _begin(stage: Stage, parent: int) -> None:
    """Make this a worker of `stage` that ends when the process that started it does, however that ended."""
    _stage[:] = [stage]
    logger.disable("datatrove")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
