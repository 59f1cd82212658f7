"""datatrove's local executor on short-lived worker processes that start at once and never outlive the build.

The tasks of a stage are fixed by its input, so any number of workers gives the same files. Changed against datatrove's
own `run`: workers are forked where the system can (no second import of the libraries, no demand on `__main__`), one
that dies is an error instead of an endless wait, and progress is read from a small shared file while tasks run.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger

from mobillama.errors import InputError

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Progress:
    """How far one stage is; `documents` and `text_bytes` count what its tasks have worked through."""

    stage: str
    tasks_done: int
    tasks: int
    documents: int
    text_bytes: int
    seconds: float


OnProgress = Callable[[Progress], None]


class Counter:
    """Documents and bytes done per task, in a small file that every worker maps."""

    def __init__(self, path: Path, tasks: int) -> None:
        self.path = path
        np.zeros((tasks, 2), np.int64).tofile(path)

    def totals(self) -> tuple[int, int]:
        """Documents and bytes of all tasks so far."""
        documents, text_bytes = np.fromfile(self.path, np.int64).reshape(-1, 2).sum(axis=0)
        return int(documents), int(text_bytes)

    @contextmanager
    def of(self, task: int) -> Iterator[np.ndarray[Any, np.dtype[np.int64]]]:
        """The two numbers of one task, to be added to."""
        place = np.memmap(self.path, np.int64, "r+")[2 * task : 2 * task + 2]
        place[:] = 0
        yield place


class Executor(LocalPipelineExecutor):  # type: ignore[misc]
    """Runs the tasks of one stage that are not complete yet."""

    def run(self, watch: Callable[[int], None] = lambda done: None) -> None:
        """Run every incomplete task; `watch(done)` is called a few times a second. Errors of a task come through."""
        waiting = self.get_incomplete_ranks()
        finished = self.tasks - len(waiting)
        watch(finished)
        if not waiting:
            return
        method = "fork" if sys.platform == "linux" else "spawn"
        context = multiprocessing.get_context(method)
        workers = min(self.workers, len(waiting))
        logger.disable("datatrove")
        with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(self, os.getpid())) as pool:
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
                    f"a worker of stage {self.pipeline} was killed from outside; most often memory ran out: "
                    "use fewer workers. The same command goes on where this one stopped"
                ) from None
            except BaseException:
                for process in list((getattr(pool, "_processes", None) or {}).values()):
                    process.kill()
                raise
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
                logger.enable("datatrove")


def run_stage(
    name: str,
    steps: Sequence[PipelineStep],
    tasks: int,
    work: Path,
    workers: int,
    on_progress: OnProgress | None,
) -> float:
    """Run one stage to its end and return its seconds. Tasks completed by an earlier, broken run are not repeated."""
    start = time.monotonic()
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    counter = Counter(folder / f"progress.{os.getpid()}", tasks)
    for step in steps:
        step.counter = counter

    def watch(done: int) -> None:
        if on_progress is not None:
            on_progress(Progress(name, done, tasks, *counter.totals(), time.monotonic() - start))

    executor = Executor(list(steps), tasks=tasks, workers=workers, logging_dir=str(folder))
    try:
        executor.run(watch)
    finally:
        counter.path.unlink(missing_ok=True)
    return time.monotonic() - start


# In a worker: the stage it works for, handed over once.
_stage: list[Executor] = []


def _run_task(rank: int) -> None:
    quiet = 1  # datatrove prints the log of local rank 0
    _stage[0]._run_for_rank(rank, quiet)


def _begin(stage: Executor, parent: int) -> None:
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
