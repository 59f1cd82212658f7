"""Tasks on a Ray cluster that is running already (`ray start`), as plain Ray tasks.

Not datatrove's own Ray executor: there an error of a task is only logged at debug level and the run ends as if all were
well, and a task that is lost four times is left out with a warning. Here the first error of a task is raised as it is;
a task whose worker or node was lost is run again on another, at most `retries` times.

Options: `address` (empty = RAY_ADDRESS, else the cluster on this machine), `cpus` and `memory` (GB; 0 = not asked for)
of one task, `retries`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loguru import logger

from mobillama.data.executor import Stage, Watch, read_options
from mobillama.errors import InputError, missing_extra

TYPES: dict[str, type] = {"address": str, "cpus": float, "memory": float, "retries": int}
WAIT_SECONDS = 0.5
# Tasks handed to Ray at once where the user sets no limit: enough for any cluster, few enough for its scheduler.
MOST_WAITING = 10_000


class RayExecutor:
    """Runs at most `workers` tasks at a time (0 = as many as the cluster takes)."""

    def __init__(self, workers: int, options: Mapping[str, str]) -> None:
        values = read_options("ray", options, TYPES)
        self.workers = workers or MOST_WAITING
        self.address: str = values.get("address", "")
        self.lost = 0  # how often a task was lost with its worker or node, and run again
        self.retries: int = values.get("retries", 3)
        self.resources: dict[str, float] = {"num_cpus": values.get("cpus", 1.0)}
        if gigabytes := values.get("memory", 0.0):
            self.resources["memory"] = gigabytes * 1e9

    def run(self, stage: Stage, watch: Watch) -> None:
        """Run every open task. Errors: a task's own; InputError if no cluster is there or a task is lost too often."""
        waiting = stage.get_incomplete_ranks()
        watch(stage.tasks - len(waiting))
        if not waiting:
            return
        ray = self._connect()
        remote = ray.remote(_run_task).options(max_retries=0, **self.resources)
        held, environment = ray.put(stage), _environment()
        waiting.reverse()
        lost: dict[int, int] = {}
        running: dict[Any, int] = {}
        finished = stage.tasks - len(waiting)
        try:
            while waiting or running:
                while waiting and len(running) < self.workers:
                    rank = waiting.pop()
                    running[remote.remote(held, rank, environment)] = rank
                done, _ = ray.wait(list(running), num_returns=1, timeout=WAIT_SECONDS)
                for reference in done:
                    rank = running.pop(reference)
                    try:
                        ray.get(reference)
                        finished += 1
                    except ray.exceptions.RayTaskError as error:
                        raise error.cause if isinstance(error.cause, Exception) else error from None
                    except ray.exceptions.RayError as error:
                        self.lost += 1
                        lost[rank] = lost.get(rank, 0) + 1
                        if lost[rank] > self.retries:
                            raise InputError(
                                f"task {rank} of stage {stage.name} was lost {lost[rank]} times, last: "
                                f"{str(error).strip().splitlines()[0]}; mend the cluster or give the task more room "
                                "(--executor-option memory=GB). The same command goes on where this one stopped"
                            ) from None
                        waiting.append(rank)
                watch(finished)
        except BaseException:
            for reference in running:
                ray.cancel(reference, force=True)
            raise

    def _connect(self) -> Any:
        try:
            import ray
        except ImportError as error:
            raise missing_extra("ray", error) from None
        if not ray.is_initialized():
            try:
                address = self.address or os.environ.get("RAY_ADDRESS") or "auto"
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                why = str(error).strip().splitlines()[0]
                raise InputError(
                    f"no Ray cluster can be reached ({why}); start one with `ray start --head` or name it with "
                    "--executor-option address=HOST:PORT"
                ) from None
        return ray


def _environment() -> dict[str, str]:
    """What the workers' processes, started before this one, must know of its environment."""
    return {key: value for key, value in os.environ.items() if key.startswith("MOBILLAMA_")}


def _run_task(stage: Stage, rank: int, environment: dict[str, str]) -> None:
    logger.disable("datatrove")
    os.environ.update(environment)
    see_folder(stage.folder)
    stage.run_task(rank)


def see_folder(folder: Path) -> None:
    """Error: InputError if a worker does not see the folder of the build."""
    if not folder.is_dir():
        raise InputError(
            f"{os.uname().nodename} does not see {folder}; put --out on a file system that every node shares under the "
            "same path"
        )
