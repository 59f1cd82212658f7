"""A run that is killed at any moment, again and again, ends as if nothing had happened."""

import random
import time
from datetime import datetime
from pathlib import Path

import pytest
import tiny

from mobillama import manifest
from mobillama.train.ledger import FILE, read_ledger
from mobillama.train.loop import train

KILLS = 10
STEPS = {"steps": 90, "checkpoint_every": 3, "validate_every": 7, "warmup_steps": 5}
PATIENCE = 240.0  # seconds for one process to start, compile and do something


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_ten_kills_change_no_bit(tmp_path, shards, compiled):
    """Half the kills fall at a random moment of a process's work, half while a checkpoint is being written."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    dice = random.Random(seed)
    settings = STEPS | {"compile": compiled}
    whole, log = tmp_path / "whole", tmp_path / "log"
    assert tiny.start_process(shards, whole, log, **settings).wait() == 0, log.read_text()[-4000:]
    working = _seconds_of_work(whole)

    runs = [tmp_path / "run0"]
    kills, halves = {"random moment": 0, "checkpoint": 0}, 0
    while sum(kills.values()) < KILLS:
        how = "checkpoint" if sum(kills.values()) % 2 else "random moment"
        process = tiny.start_process(shards, runs[-1], log, **settings)
        if how == "checkpoint":
            _wait_for_checkpoint(runs[-1], process, dice.randrange(1, 3))
        else:
            _wait_for_work(runs[-1], process)
            time.sleep(dice.uniform(0, working / 3))
        process.kill()
        if process.wait() == 0:  # it was finished before the kill: the other kills fall on another run
            runs.append(tmp_path / f"run{len(runs)}")
            continue
        kills[how] += 1
        halves += any((runs[-1] / "checkpoints").glob("*.partial"))
    assert halves, "no kill fell into the writing of a checkpoint"
    assert tiny.start_process(shards, runs[-1], log, **settings).wait() == 0, log.read_text()[-4000:]

    for run in runs:
        assert tiny.weights(run) == tiny.weights(whole)
        for kind in ("step", "validation", "checkpoint", "end"):
            assert _results(run, kind) == _results(whole, kind)
        for folder in (run / "checkpoints").iterdir():
            manifest.check(folder)
    resumed = [line.step for line in read_ledger(runs[-1]) if line.kind == "resumed"]
    print(f"{kills}, {halves} with a checkpoint half written; went on from steps {resumed}")


def test_a_kill_while_a_checkpoint_is_written_changes_no_bit(tmp_path, shards, whole_run):
    """One kill, while a checkpoint is being written: the short form of the test above."""
    run, log = tmp_path / "run", tmp_path / "log"
    process = tiny.start_process(shards, run, log)
    _wait_for_checkpoint(run, process, 1)
    process.kill()
    process.wait()
    train(tiny.recipe(), shards, run)
    assert tiny.weights(run) == tiny.weights(whole_run)


def _seconds_of_work(run: Path) -> float:
    """From the first step's line to the last line: start-up and compilation apart."""
    lines = read_ledger(run)
    first, last = (datetime.fromisoformat(lines[place].circumstance["time"]) for place in (1, -1))
    return (last - first).total_seconds()


def _results(run: Path, kind: str) -> set[str]:
    """Each distinct result once: repeated steps must have repeated."""
    return {str(line.result) for line in read_ledger(run) if line.kind == kind}


def _wait_for_work(run: Path, process) -> None:
    """Until the process has written a line of its own."""
    size = _size(run)
    _wait(process, lambda: _size(run) > size)


def _wait_for_checkpoint(run: Path, process, count: int) -> None:
    """Until the `count`-th folder of a checkpoint being written is seen, since now."""
    seen: set[str] = {path.name for path in (run / "checkpoints").glob("*.partial")}
    already = len(seen)

    def enough() -> bool:
        seen.update(path.name for path in (run / "checkpoints").glob("*.partial"))
        return len(seen) >= already + count

    _wait(process, enough)


def _size(run: Path) -> int:
    return (run / FILE).stat().st_size if (run / FILE).exists() else 0


def _wait(process, ready) -> None:
    end = time.monotonic() + PATIENCE
    while not ready() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.0005)
