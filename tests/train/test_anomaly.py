"""The rule for losses and gradients that are not to be trusted: pure, and as the loop applies it."""

import math

import pytest
import tiny

from mobillama.config import TrainConfig
from mobillama.errors import TrainingError
from mobillama.train import anomaly
from mobillama.train.anomaly import SKIPS, WINDOW, Watch
from mobillama.train.ledger import Line, read_ledger
from mobillama.train.loop import train
from mobillama.train.step import TrainStep

STEADY = [1.0, 3.0] * (WINDOW // 2)


def step_line(step, norm, **more):
    return Line("step", {"step": step, "grad_norm": norm, **more}, {})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_an_anomaly(value):
    watch = Watch(TrainConfig())
    assert watch.judge(3, value, 1.0).startswith(f"the loss of step 3 is {value}; expected a finite number")
    assert watch.judge(3, 1.0, value).startswith(f"the gradient norm of step 3 is {value}; expected a finite number")
    assert watch.judge(3, 1.0, 1e9) == ""


def test_a_spike_is_measured_by_the_median_of_a_full_window():
    watch = Watch(TrainConfig(spike_factor=4.0), STEADY[1:])
    assert watch.limit == math.inf
    watch.note(3.0, skipped=False)
    assert watch.limit == 4.0 * 3.0  # 51 threes, 49 ones
    assert watch.judge(9, 2.0, 12.0) == ""
    assert "is 12.01, 4 times the median 3 of the 100 steps before" in watch.judge(9, 2.0, 12.01)
    for _ in range(WINDOW):
        watch.note(1.0, skipped=False)
    assert watch.limit == 4.0


def test_skipped_steps_are_counted_and_leave_the_median_alone():
    watch = Watch(TrainConfig(spike_factor=4.0), [1.0] * WINDOW)
    for count in range(1, 4):
        watch.note(1000.0, skipped=True)
        assert (watch.skips, watch.limit) == (count, 4.0)
    watch.note(1.0, skipped=False)
    assert watch.skips == 0


def test_the_ledger_tells_a_run_that_goes_on_what_it_knew():
    lines = [step_line(step, float(step)) for step in range(1, 8)]
    lines += [step_line(5, 50.0), step_line(6, None, skipped=True), step_line(7, 70.0, skipped=True)]
    lines += [step_line(8, 8.0)]
    watch = Watch.after(TrainConfig(), lines, 7)
    assert (list(watch.norms), watch.skips) == ([1.0, 2.0, 3.0, 4.0, 50.0], 2)
    assert Watch.after(TrainConfig(), lines, 8).skips == 0


@pytest.fixture
def short_window(monkeypatch):
    """Three norms are enough for a median."""
    monkeypatch.setattr(anomaly, "WINDOW", 3)


def spoiled(monkeypatch, steps, factor):
    """Multiply the gradients of some steps (counted from 1 in this process)."""
    update, taken = TrainStep.update, []

    def spoil(trainer, lr, most):
        taken.append(lr)
        if len(taken) in steps:
            for gradient in trainer.optimizer.gradients:
                gradient.mul_(factor)
        return update(trainer, lr, most)

    monkeypatch.setattr(TrainStep, "update", spoil)


def results(run):
    return {line.step: line.result for line in read_ledger(run) if line.kind == "step"}


@pytest.mark.parametrize("factor", [math.inf, 1e4], ids=["no-number", "spike"])
def test_a_skipped_step_counts_and_changes_no_weight(tmp_path, shards, monkeypatch, short_window, factor, capsys):
    with monkeypatch.context() as patch:
        spoiled(patch, {7}, factor)
        assert train(tiny.recipe(anomaly="skip", spike_factor=20.0), shards, tmp_path / "run")["finished"]
    found = results(tmp_path / "run")
    assert [step for step, result in found.items() if result.get("skipped")] == [7]
    assert (found[7]["grad_norm"] is None) == (factor == math.inf)
    assert found[8]["tokens"] == 8 * 4 * tiny.SEQ_LEN
    assert "step 7 was skipped: the gradient norm of step 7 is" in capsys.readouterr().err

    kept = {}
    update = TrainStep.update

    def leave_out(trainer, lr, most):  # the same by hand: step 7 does nothing
        kept[len(kept) + 1] = lr
        return update(trainer, lr, 0.0 if len(kept) == 7 else most)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "update", leave_out)
        patch.setattr(Watch, "judge", lambda watch, step, loss, norm: "left out" if step == 7 else "")
        train(tiny.recipe(anomaly="skip"), shards, tmp_path / "by-hand")
    assert tiny.weights(tmp_path / "run") == tiny.weights(tmp_path / "by-hand")


def test_a_spike_ends_the_run_where_the_recipe_says_stop(tmp_path, shards, monkeypatch, short_window):
    with monkeypatch.context() as patch:
        spoiled(patch, {7}, 1e4)
        with pytest.raises(TrainingError, match=r"times the median .*checkpoint of step 5 is intact.*--step 7"):
            train(tiny.recipe(spike_factor=20.0), shards, tmp_path / "run")
    assert max(results(tmp_path / "run")) == 6
    assert train(tiny.recipe(spike_factor=20.0), shards, tmp_path / "run")["finished"]


def test_ten_skips_in_a_row_end_the_run(tmp_path, shards, monkeypatch):
    spoiled(monkeypatch, range(2, 100), math.nan)
    with pytest.raises(TrainingError, match=rf"of step 11 is nan.*this and the {SKIPS - 1} steps before were skipped"):
        train(tiny.recipe(anomaly="skip"), shards, tmp_path / "run")
    found = results(tmp_path / "run")
    assert [step for step, result in found.items() if result.get("skipped")] == list(range(2, 12))
