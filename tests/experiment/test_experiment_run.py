"""An experiment really trains, goes on after a kill, and repeats nothing that is done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mobillama.errors import InputError, TrainingError
from mobillama.experiment import DESIGNS, arm_trials, perform, run
from mobillama.experiment.design import Arm, Comparison, Experiment, Sizes, Tuning, schedule
from mobillama.experiment.queue import Progress, carry_out
from mobillama.experiment.trial import make_trial
from mobillama.train.loop import train

SIZES = Sizes(vocab_size=300, seq_len=32, hidden_size=16, intermediate_size=24, layers=2, heads=2)


def design(centre: float = 3e-3) -> Experiment:
    """Two models, one learning rate, eager."""
    shared, dense = SIZES.model("shared"), SIZES.model("dense", num_ffn_blocks=0)
    how = {"compile": False, "dtype": "float32"}
    arms = tuple(Arm(model.name, model.name, model, 30, ("lr",), schedule(30, **how)) for model in (shared, dense))
    tuning = Tuning("lr", shared, 10, centre=centre, train=how)
    return Experiment("small", "Small", "Which?", arms, (tuning,), (Comparison("shared", "dense", "pair"),))


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "scores").glob("*.json")}


@pytest.mark.slow
def test_an_experiment_that_is_killed_goes_on_and_repeats_nothing(documented: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, __file__, str(documented), str(out)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
        while len(times(out)) < 2:
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    time.sleep(2)  # the trainings notice that nobody waits for them
    before = times(out)
    page = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    results = json.loads((out / "results.json").read_text())
    assert before and before.items() <= times(out).items()
    assert len(results["tunings"]["lr"]["tried"]) >= 3
    assert [len(arm["runs"]) for arm in results["arms"]] == [2, 2]
    assert results["arms"][0]["train"]["learning_rate"] == results["tunings"]["lr"]["value"]
    rows = [
        [
            json.loads(line)["result"].get("rows")
            for line in (out / run["run"] / "ledger.jsonl").read_text().splitlines()
        ]
        for arm in results["arms"]
        for run in arm["runs"]
        if run["seed"] == 1
    ]
    steps = [[digest for digest in found if digest] for found in rows]
    assert steps[0] == steps[1] and len(steps[0]) >= 30  # the same rows, step by step
    assert Path(page).is_file() and (out / "picture.svg").is_file()
    done, finished = times(out), time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    assert times(out) == done and time.monotonic() - finished < 60


@pytest.mark.slow
def test_learning_rates_that_all_diverge_end_the_experiment_with_the_reason(documented: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no learning_rate of .* trains shared: the .* of step \d+ is nan"):
        perform(design(centre=1e30), documented, tmp_path / "out", seeds=1)


def test_a_training_that_fails_is_named_with_the_end_of_its_log(documented: Path, tmp_path: Path) -> None:
    lost = make_trial(tmp_path, "lost", SIZES.model("m").tree(), {**schedule(5), "compile": False}, 4)
    progress = Progress(1.0, 1, print, {lost.recipe.model.digest(): 0.1})
    with pytest.raises(TrainingError, match=r"(?s)lost-\w{8} failed with exit status 1.*manifest\.json"):
        carry_out([lost], tmp_path / "nowhere", progress)
    assert not lost.done


@pytest.mark.parametrize("name", DESIGNS)
def test_every_arm_of_every_design_can_be_trained(name: str, documented: Path, tmp_path: Path) -> None:
    sizes = Sizes(300, 32, hidden_size=32, intermediate_size=24, layers=4, shallow_layers=2, heads=2, steps=2)
    experiment = DESIGNS[name](sizes)
    chosen = {
        tuning.name: {"field": tuning.setting, "value": tuning.centre, "edge": False} for tuning in experiment.tunings
    }
    eager = replace(
        experiment,
        arms=tuple(replace(arm, train={**arm.train, "compile": False, "dtype": "float32"}) for arm in experiment.arms),
    )
    for seeds in arm_trials(eager, range(1, 2), chosen, tmp_path).values():
        trial = seeds[1]
        result = train(trial.recipe, documented, trial.run, on_progress=lambda shown: None)
        assert result["finished"] and result["loss"] < 7


def test_what_cannot_be_an_experiment_is_said_first(documented: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no experiment 'table6'"):
        run("table6", documented, tmp_path / "out")
    with pytest.raises(InputError, match="seeds=0"):
        perform(design(), documented, tmp_path / "out", seeds=0)
    assert not (tmp_path / "out").exists()


if __name__ == "__main__":
    print(perform(design(), Path(sys.argv[1]), Path(sys.argv[2]), seeds=2, jobs=2)["page"])
