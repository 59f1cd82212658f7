"""Stages and where their tasks run: on this machine, on a Ray cluster, or under Slurm.

A stage is a list of datatrove steps and a number of tasks that its input fixes, so that any executor and any number of
workers gives the same files. The process that builds stays alive and runs stage after stage; a task that is done leaves
datatrove's completion mark in the stage's folder, which every worker must see under the same path. Beyond datatrove's
own executors: the errors of a task come through, and progress is read while tasks run.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from datatrove.executor.base import DistributedEnvVars, PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from mobillama.data.clocks import with_clocks
from mobillama.errors import InputError

POLL_SECONDS = 0.2
FLUSH_SECONDS = 1.0


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
Watch = Callable[[int], None]


class Counter:
    """Documents and bytes done per task: files in a folder, one a task, that its worker writes once a second."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known, self._asked = (0, 0), 0.0

    def totals(self, *, fresh: bool = False) -> tuple[int, int]:
        """Documents and bytes of all tasks: now, or a second ago (ten thousand tasks are ten thousand files)."""
        if fresh or time.monotonic() - self._asked > FLUSH_SECONDS:
            pairs = [pair for path in self.folder.glob("*.count") if len(pair := np.fromfile(path, np.int64)) == 2]
            self._known = (sum(int(pair[0]) for pair in pairs), sum(int(pair[1]) for pair in pairs))
            self._asked = time.monotonic()
        return self._known

    @contextmanager
    def of(self, task: int) -> Iterator[NDArray[np.int64]]:
        """The two numbers of one task, to be added to."""
        done, ended = np.zeros(2, np.int64), threading.Event()
        path = self.folder / f"{task:05d}.count"

        def flush() -> None:
            with contextlib.suppress(OSError):  # counts are for the eye: no build stops for them
                done.tofile(path)

        def keep_flushing() -> None:
            while not ended.wait(FLUSH_SECONDS):
                flush()

        thread = threading.Thread(target=keep_flushing, daemon=True)
        thread.start()
        try:
            yield done
        finally:
            ended.set()
            thread.join()
            flush()


class Stage(PipelineExecutor):  # type: ignore[misc]
    """One stage, as every executor hands it to its workers: which tasks are open, and how to run one."""

    def __init__(self, name: str, steps: Sequence[PipelineStep], tasks: int, folder: Path) -> None:
        super().__init__(list(steps), logging_dir=str(folder))
        self.name, self.tasks, self.folder = name, tasks, folder

    @property
    def world_size(self) -> int:
        """All tasks of the stage."""
        return self.tasks

    def run(self) -> None:
        """Not this way: an executor calls `run_task`."""
        raise NotImplementedError("a Stage is run by an executor")

    def run_task(self, rank: int) -> None:
        """Run one task in this process, unless it is marked as done. Its errors come through."""
        quiet = 1  # datatrove prints the log of local rank 0
        self._run_for_rank(rank, quiet)

    def get_distributed_env(self, node_rank: int = -1) -> DistributedEnvVars:
        """What datatrove puts into the environment; no step here reads it."""
        return DistributedEnvVars(
            datatrove_node_ips="localhost",
            datatrove_cpus_per_task="-1",
            datatrove_mem_per_cpu="-1",
            datatrove_gpus_on_node="-1",
            datatrove_executor="mobillama",
        )


class Executor(Protocol):
    """Runs the tasks of a stage that are not done yet."""

    workers: int

    def run(self, stage: Stage, watch: Watch) -> None:
        """Run every open task; `watch(done)` is called now and then. The first error of a task is raised as it is."""


def make_executor(name: str, workers: int = 0, options: Mapping[str, str] | None = None) -> Executor:
    """The executor `name`: local, ray or slurm. `workers` 0 = all cores here, no limit of ours on a cluster.

    Errors: InputError for a name or an option that is not known, or a value that is not of its type.
    """
    options = options or {}
    if name == "local":
        from mobillama.data.local_executor import LocalExecutor

        if options:
            raise InputError(f"--executor local has no options; found {', '.join(options)}: leave them out")
        return LocalExecutor(workers)
    if name == "ray":
        from mobillama.data.ray_executor import RayExecutor

        return RayExecutor(workers, options)
    if name == "slurm":
        from mobillama.data.slurm_executor import SlurmExecutor

        return SlurmExecutor(workers, options)
    raise InputError(f"no executor {name!r}; use local, ray or slurm")


def read_pairs(pairs: Sequence[str]) -> dict[str, str]:
    """Options given as `key=value`. Error: InputError naming one that is not of this form."""
    for pair in pairs:
        if not pair.partition("=")[1]:
            raise InputError(f"--executor-option {pair!r} is not of the form key=value")
    return {key: text for key, _, text in (pair.partition("=") for pair in pairs)}


def read_options(executor: str, options: Mapping[str, str], types: Mapping[str, type]) -> dict[str, Any]:
    """Options as values of their types. Error: InputError naming one that is not known or cannot be read."""
    values: dict[str, Any] = {}
    for key, text in options.items():
        if key not in types:
            raise InputError(f"--executor {executor} has no option {key!r}; it knows {', '.join(types)}")
        try:
            values[key] = types[key](text)
        except ValueError:
            kind = types[key].__name__.replace("_", " ")
            raise InputError(f"--executor-option {key}={text}: expected {kind}") from None
    return values


def run_stage(
    name: str,
    steps: Sequence[PipelineStep],
    tasks: int,
    work: Path,
    workers: int | Executor,
    on_progress: OnProgress | None,
) -> float:
    """Run one stage to its end and return its seconds. Tasks completed by an earlier, broken run are not repeated.

    `workers` is the executor, or a number of processes of this machine.
    """
    start = time.monotonic()
    executor = make_executor("local", workers) if isinstance(workers, int) else workers
    folder = (work / name).absolute()
    counts = folder / f"progress.{os.getpid()}"
    counts.mkdir(parents=True, exist_ok=True)
    counter = Counter(counts)
    for step in steps:
        step.counter = counter

    def watch(done: int) -> None:
        if on_progress is not None:
            totals = counter.totals(fresh=done == tasks)
            on_progress(Progress(name, done, tasks, *totals, time.monotonic() - start))

    try:
        executor.run(Stage(name, with_clocks(steps, folder), tasks, folder), watch)
    finally:
        for path in counts.glob("*"):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a worker that was given up may still write into it
            counts.rmdir()
    return time.monotonic() - start
