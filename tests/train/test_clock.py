"""Law: what a run leaves does not depend on the clock, however it jumps between steps, checkpoints and restarts."""

import itertools
import json
import os
import time

import pytest
import tiny

from mobillama import manifest
from mobillama.train.check import check_run
from mobillama.train.ledger import read_ledger
from mobillama.train.loop import train

YEAR = 365 * 24 * 3600.0
JUMPS = (0.0, 30.0, -40.0, 0.001, -1.5, 70.0)  # years
NOW, UTC = time.time, time.gmtime


class Crash(Exception):
    """Stands for anything that ends a process."""


@pytest.fixture
def jumping(monkeypatch):
    """Every look at the clock finds another year. (Modules ask by the module `time`; `datetime` is used by none.)"""
    jumps = itertools.cycle(JUMPS)

    def clock():
        return NOW() + YEAR * next(jumps)

    monkeypatch.setattr(time, "time", clock)
    monkeypatch.setattr(time, "time_ns", lambda: int(clock() * 1e9))
    monkeypatch.setattr(time, "gmtime", lambda seconds=None: UTC(clock() if seconds is None else seconds))


@pytest.fixture
def disturbed(tmp_path, shards, jumping):
    """A run that was ended after step 11 and goes on, its newest checkpoint dated a century before the older one."""
    run = tmp_path / "run"

    def leave(shown):
        if shown["step"] == 11:
            raise Crash

    with pytest.raises(Crash):
        train(tiny.recipe(), shards, run, on_progress=leave)
    for step, seconds in ((5, NOW() + 60 * YEAR), (10, NOW() - 40 * YEAR)):
        folder = run / "checkpoints" / f"step_{step:06d}"
        for path in (*folder.iterdir(), folder):
            os.utime(path, (seconds, seconds))
    train(tiny.recipe(), shards, run, on_progress=lambda _: None)
    return run


def durations(tree, name=""):
    """Every number below a key `seconds`, `..._seconds`."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from durations(value, key if "seconds" in key else name)
    elif isinstance(tree, list):
        for value in tree:
            yield from durations(value, name)
    elif name:
        yield tree


def test_a_run_whose_clock_jumps_is_the_run_of_a_clock_that_does_not(disturbed, whole_run):
    lines = read_ledger(disturbed)
    times = [line.circumstance["time"] for line in lines]
    assert times != sorted(times) and len({text[:4] for text in times}) >= 4  # it did jump
    assert [line.result["checkpoint"] for line in lines if line.kind == "resumed"] == ["step_000010"]
    assert {path.name for path in (disturbed / "checkpoints").iterdir()} == {"step_000010", "step_000012"}
    assert tiny.weights(disturbed) == tiny.weights(whole_run)
    for kind in ("step", "validation", "checkpoint", "end"):
        found, expected = (
            {json.dumps(line.result) for line in all_ if line.kind == kind} for all_ in (lines, read_ledger(whole_run))
        )
        assert found == expected
    assert (found := check_run(disturbed)).differences == found.not_checked == []


def test_no_duration_comes_from_the_clock(disturbed):
    told = [line.circumstance for line in read_ledger(disturbed)]
    told += [manifest.read(path.parent).circumstance for path in disturbed.rglob(manifest.FILE)]
    seconds = [*durations(told)]
    assert len(seconds) > 20
    assert min(seconds) >= 0 and max(seconds) < 600


def test_curves_are_drawn_in_the_order_of_the_steps(disturbed):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert len([*(disturbed / "tensorboard").iterdir()]) == 2
    drawn = EventAccumulator(str(disturbed / "tensorboard")).Reload().Scalars("loss")
    assert [point.step for point in drawn] == [*range(1, 13)]
    first, last = (
        [point.wall_time for point in drawn if start < point.step <= end] for start, end in ((0, 10), (10, 12))
    )
    assert first == sorted(first) and last == sorted(last)
