"""Tasks as job arrays under Slurm: datatrove's launcher, and the waiting that it leaves out.

The submitted script is datatrove's. Changed: the process that builds waits for the jobs, so that stage can follow
stage; the error of a task is kept in a file and raised here as it is; no job is added that merges statistics; no QOS is
asked for unless given (datatrove asks for "normal", which not every cluster has); the jobs run this Python, whatever
PATH the nodes have; a build started inside a Slurm job is not taken for a task; no `scontrol` is needed on the nodes.

Options: `partition` (required), `time`, `cpus` and `memory` (GB per CPU) of one task, `qos`, `setup` (a shell command
before each task), `max_array` (the cluster's MaxArraySize), `tasks_per_job`, `srun` (yes or no), `poll` (seconds), and
any `sbatch.NAME`, which becomes a line `#SBATCH --NAME=value`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from datatrove.executor.base import DistributedEnvVars
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.utils.stats import PipelineStats

from mobillama import errors, manifest
from mobillama.data.executor import Stage, Watch, read_options
from mobillama.errors import InputError, MobillamaError

POLL_SECONDS = 10.0
# How often a job that is gone may be looked for once more: marks of finished tasks can come late over a network.
GRACE_POLLS = 3


def yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError
    return text == "yes"


TYPES: dict[str, Any] = {
    "partition": str,
    "time": str,
    "cpus": int,
    "memory": int,
    "qos": str,
    "setup": str,
    "max_array": int,
    "tasks_per_job": int,
    "srun": yes_or_no,
    "poll": float,
}


class SlurmExecutor:
    """Submits at most `workers` tasks to run at a time (0 = no limit of ours) and waits for them."""

    def __init__(self, workers: int, options: Mapping[str, str]) -> None:
        more = {key.removeprefix("sbatch."): text for key, text in options.items() if key.startswith("sbatch.")}
        values = read_options("slurm", {k: v for k, v in options.items() if not k.startswith("sbatch.")}, TYPES)
        if "partition" not in values:
            raise InputError("--executor slurm needs --executor-option partition=NAME; `sinfo` lists the names")
        self.workers = workers
        self.poll: float = values.get("poll", POLL_SECONDS)
        self.settings: dict[str, Any] = {
            "partition": values["partition"],
            "time": values.get("time", "24:00:00"),
            "cpus_per_task": values.get("cpus", 1),
            "mem_per_cpu_gb": values.get("memory", 2),
            "qos": values.get("qos", ""),
            "tasks_per_job": values.get("tasks_per_job", 1),
            "max_array_size": values.get("max_array", 1001),
            "with_srun": values.get("srun", True),
            "sbatch_args": more,
            "workers": workers or -1,
            "env_command": "\n".join(
                line for line in (values.get("setup", ""), f"export PATH={Path(sys.executable).parent}:$PATH") if line
            ),
        }

    def run(self, stage: Stage, watch: Watch) -> None:
        """Submit every open task and wait. Errors: a task's own; InputError naming the log of one that just ended."""
        waiting = stage.get_incomplete_ranks()
        watch(stage.tasks - len(waiting))
        if not waiting:
            return
        failures = stage.folder / "failures"
        failures.mkdir(exist_ok=True)
        for path in failures.iterdir():
            path.unlink()
        jobs: list[str] = []
        job = Job(stage, failures, jobs, **self.settings)
        try:
            job.launch_job()
            self._wait(stage, job, jobs, waiting, watch)
        except BaseException as error:
            if jobs and shutil.which("scancel"):
                subprocess.run(["scancel", *jobs], check=False, capture_output=True)
            if isinstance(error, FileNotFoundError) and error.filename in ("sbatch", "squeue"):
                raise InputError(
                    f"{error.filename} is not on PATH; run this on a machine that submits to Slurm"
                ) from None
            if isinstance(error, subprocess.CalledProcessError):
                command = " ".join(map(str, error.cmd))
                raise InputError(
                    f"{command} failed with status {error.returncode}; what it said stands above"
                ) from None
            raise

    def _wait(self, stage: Stage, job: Job, jobs: list[str], waiting: list[int], watch: Watch) -> None:
        grace = GRACE_POLLS
        while True:
            open_tasks = stage.get_incomplete_ranks(waiting)
            watch(stage.tasks - len(open_tasks))
            for path in sorted(job.failures.glob("*.json")):
                raise _rebuilt(json.loads(path.read_text(encoding="utf-8")))
            if not open_tasks:
                return
            if not _alive(jobs):
                grace -= 1
                if grace < 0:
                    rank = open_tasks[0]
                    array, index = divmod(waiting.index(rank) // job.tasks_per_job, job.max_array_size)
                    log = Path(job.slurm_logs_folder) / f"{jobs[array]}_{index}.out"
                    raise InputError(
                        f"task {rank} of stage {stage.name} ended without a result; its log is {log}. Out of time or "
                        "memory? Give more with --executor-option time=... or memory=GB. The same command goes on "
                        "where this one stopped"
                    )
            time.sleep(self.poll)


class Job(SlurmPipelineExecutor):  # type: ignore[misc]
    """What is pickled beside the stage and run by `launch_pickled_pipeline` on the nodes."""

    def __init__(self, stage: Stage, failures: Path, jobs: list[str], **settings: Any) -> None:
        self.stage, self.failures = stage, failures
        super().__init__(
            stage.pipeline,
            stage.tasks,
            job_name=f"mobillama-{stage.name}",
            logging_dir=str(stage.folder),
            job_id_retriever=partial(_note, jobs),
            **settings,
        )

    def launch_merge_stats(self) -> None:
        """No further job: nobody reads the statistics."""

    def save_executor_as_json(self, indent: int = 4) -> None:
        """No JSON beside the pickle: nobody reads it, and not every step can be written so."""

    def get_distributed_env(self, node_rank: int = -1) -> DistributedEnvVars:
        """Without asking scontrol for the nodes."""
        return self.stage.get_distributed_env(node_rank)

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        """In a job: run one task; what goes wrong is told in a file as well as in the log."""
        try:
            return super()._run_for_rank(rank, local_rank, node_rank)
        except Exception as error:
            told = {
                "type": type(error).__name__,
                "message": str(error),
                "errno": getattr(error, "errno", None),
                "task": f"task {rank} of stage {self.stage.name}",
                "log": str(self.stage.folder / "logs" / f"task_{rank:05d}.log"),
            }
            manifest.write_file(self.failures / f"{rank:05d}.json", json.dumps(told).encode())
            raise


def _note(jobs: list[str], output: str) -> str:
    """The id in what sbatch printed ("Submitted batch job 17"), noted."""
    jobs.append(output.split()[-1])
    return jobs[-1]


def _alive(jobs: list[str]) -> bool:
    """Whether Slurm still has one of the jobs waiting or running. A question that goes unanswered counts as yes."""
    asked = subprocess.run(
        ["squeue", "--noheader", "--format=%i", "--jobs", ",".join(jobs)], capture_output=True, text=True
    )
    if asked.returncode:
        return "invalid job id" not in asked.stderr.lower()
    return bool(asked.stdout.strip())


def _rebuilt(told: dict[str, Any]) -> Exception:
    """The error of a task: of its own type where a user can meet it, else one that names the log."""
    kind = getattr(errors, told["type"], None)
    if isinstance(kind, type) and issubclass(kind, MobillamaError):
        return kind(told["message"])
    if told["errno"]:
        return OSError(told["errno"], os.strerror(told["errno"]) + f" ({told['task']}; its log is {told['log']})")
    return InputError(f"{told['task']} failed with {told['type']}: {told['message']}; its log is {told['log']}")
