"""A run that is killed at any moment, again and again, ends as if nothing had happened."""

import random
import time
from pathlib import Path

import pytest
import tiny

from mobillama import manifest
from mobillama.train.ledger import FILE, read_ledger
from mobillama.train.loop import train

KILLS = 10
STEPS = {"steps": 60, "checkpoint_every": 3, "validate_every": 7, "warmup_steps": 5}
PATIENCE = 240.0  # seconds for one process to start, compile and do something


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_ten_kills_change_no_bit(tmp_path, shards, compiled):
    """Half the kills fall at a random moment of a process's work, half while a checkpoint is being written."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    dice = random.Random(seed)
    settings = STEPS | {"compile": compiled}
    whole = tmp_path / "whole"
    assert tiny.start_process(shards, whole, tmp_path / "whole.log", **settings).wait() == 0
    lines = [line for line in read_ledger(whole) if line.kind == "step"]
    working = sum(line.circumstance["seconds"] for line in lines[1:]) * 1.5  # seconds that the steps take

    run, log = tmp_path / "run", tmp_path / "run.log"
    kills, halves = dict.fromkeys(("random moment", "checkpoint"), 0), 0
    while sum(kills.values()) < KILLS:
        how = "checkpoint" if sum(kills.values()) % 2 else "random moment"
        process = tiny.start_process(shards, run, log, **settings)
        if how == "checkpoint":
            _wait_for_checkpoint(run, process, dice.randrange(1, 3))
        else:
            _wait_for_work(run, process)
            time.sleep(dice.uniform(0, working / 3))
        process.kill()
        if process.wait() == 0:  # it was finished before the kill
            pytest.fail(f"the run ended after {kills}; make it longer. {log.read_text()[-2000:]}")
        kills[how] += 1
        halves += any((run / "checkpoints").glob("*.partial"))
    assert halves, "no kill fell into the writing of a checkpoint"
    assert tiny.start_process(shards, run, log, **settings).wait() == 0, log.read_text()[-4000:]

    assert tiny.weights(run) == tiny.weights(whole)
    for kind in ("step", "validation", "checkpoint", "end"):
        assert _results(run, kind) == _results(whole, kind)
    for folder in (run / "checkpoints").iterdir():
        manifest.check(folder)
    starts = [line for line in read_ledger(run) if line.kind in ("start", "resumed")]
    print(f"{kills}, {halves} with a checkpoint half written; {len(starts)} processes that trained")


def test_a_kill_while_a_checkpoint_is_written_changes_no_bit(tmp_path, shards, whole_run):
    """One kill, while a checkpoint is being written: the short form of the test above."""
    run, log = tmp_path / "run", tmp_path / "log"
    process = tiny.start_process(shards, run, log)
    _wait_for_checkpoint(run, process, 1)
    process.kill()
    process.wait()
    train(tiny.recipe(), shards, run)
    assert tiny.weights(run) == tiny.weights(whole_run)


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
