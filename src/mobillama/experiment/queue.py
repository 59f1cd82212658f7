"""Many trainings, as many at once as there are cores, each in a process of its own; progress over all of them."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mobillama.errors import TrainingError
from mobillama.experiment.speed import PROCESS, child_environment
from mobillama.experiment.trial import Trial
from mobillama.train.interruption import interruption

EVERY_SECONDS = 60.0  # between lines of progress
POLL_SECONDS = 0.2
Say = Callable[[str], None]


@dataclass
class Progress:
    """What is done of all that an experiment trains, and how long the rest takes."""

    expected: float  # thread-seconds of everything, by the measured speeds
    jobs: int
    say: Say
    step_seconds: Mapping[str, float]  # by the digest of a model's shape
    reused: float = 0.0  # expected seconds of what was there already
    finished: float = 0.0  # expected seconds of what this process trained
    took: float = 0.0  # thread-seconds that it really took
    count: int = 0
    began: float = field(default_factory=time.monotonic)

    def cost(self, trial: Trial) -> float:
        """Expected thread-seconds of a trial."""
        return self.step_seconds[trial.recipe.model.digest()] * trial.recipe.train.steps

    def reuse(self, trial: Trial) -> None:
        """Count one that was done before."""
        self.reused += self.cost(trial)

    def finish(self, trial: Trial, seconds: float) -> None:
        """Count and say one that has just been done."""
        self.finished += self.cost(trial)
        self.took += seconds
        self.count += 1
        self.say(f"done: {trial.name} in {seconds:.0f} s; {self.words()}")

    def words(self, running: Mapping[Trial, float] | None = None) -> str:
        """How much is done and how much time is left, as fast as it went so far; `running`: seconds of each by now."""
        partly = {trial: self.cost(trial) * share_done(trial) for trial in running or {}}
        trained = self.finished + sum(partly.values())
        done = self.reused + trained
        share = min(1.0, done / self.expected) if self.expected else 1.0
        slower = (self.took + sum((running or {}).values())) / trained if trained else 1.0
        minutes = max(0.0, self.expected - done) * slower / self.jobs / 60
        return f"{share:.0%} of all training, about {minutes:.0f} minutes left"


def carry_out(trials: Sequence[Trial], shards: Path, progress: Progress) -> None:
    """Carry out what is not done yet, longest first.

    Errors: TrainingError with the end of the log of one that failed (the others are stopped and go on next time);
    KeyboardInterrupt if asked to stop: those running save their state first.
    """
    waiting = []
    for trial in {trial.name: trial for trial in trials}.values():
        if trial.done:
            progress.reuse(trial)
        else:
            waiting.append(trial)
    waiting.sort(key=progress.cost)
    running: dict[subprocess.Popen[bytes], tuple[Trial, float]] = {}
    said = time.monotonic()
    try:
        with interruption() as asked:
            while waiting or running:
                while waiting and len(running) < progress.jobs:
                    trial = waiting.pop()
                    running[_start(trial, shards)] = (trial, time.monotonic())
                time.sleep(POLL_SECONDS)
                if asked.wanted:
                    raise KeyboardInterrupt
                for process in [process for process in running if process.poll() is not None]:
                    trial, started = running.pop(process)
                    if process.returncode or not trial.done:
                        raise TrainingError(
                            f"the training {trial.name} failed with exit status {process.returncode}; the end of "
                            f"{trial.log}:\n{_tail(trial.log)}\nThe same command goes on with what is left"
                        )
                    progress.finish(trial, time.monotonic() - started)
                if time.monotonic() - said > EVERY_SECONDS:
                    said = time.monotonic()
                    now = {trial: said - started for trial, started in running.values()}
                    progress.say(f"{len(running)} running, {len(waiting)} waiting; {progress.words(now)}")
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def _start(trial: Trial, shards: Path) -> subprocess.Popen[bytes]:
    trial.describe(shards)
    command = [sys.executable, *PROCESS, "train", str(trial.description)]
    with trial.log.open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=child_environment())


def share_done(trial: Trial) -> float:
    """What part of its steps a running trial has taken, by its log."""
    steps = re.findall(r"^step (\d+)/", trial.log.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return int(steps[-1]) / trial.recipe.train.steps if steps else 0.0


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
