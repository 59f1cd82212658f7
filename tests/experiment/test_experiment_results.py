"""What is said follows from the numbers: a planted difference is found, none is called none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobillama.errors import DamagedFileError, InputError
from mobillama.experiment.design import Arm as Planned
from mobillama.experiment.design import Comparison, Experiment, Sizes, Tuning, schedule
from mobillama.experiment.results import gather
from mobillama.experiment.trial import Trial, make_trial
from mobillama.experiment.tuning import next_values
from mobillama.report.experiment import read_experiment, write_experiment_page, write_experiment_picture

SIZES = Sizes(vocab_size=64, seq_len=16, hidden_size=16, intermediate_size=24, layers=2, heads=2)
CHOSEN: dict[str, Any] = {
    "lr": {
        "field": "learning_rate",
        "value": 0.01,
        "edge": False,
        "seed": 777,
        "steps": 5,
        "tried": [{"value": 0.01, "bits_per_byte": 2.0, "run": "tune"}],
    }
}


def plant(folder: Path, shifts: dict[str, float], noise: float, seeds: int = 3) -> dict[str, Any]:
    """Results of arms whose bits per byte are 2 + shift, with a noise of their own per seed and document."""
    print("seed", 9)
    numbers = np.random.default_rng(9)
    model = SIZES.model("m")
    arms = tuple(Planned(name, name.title(), model, 5, ("lr",), schedule(5)) for name in shifts)
    first, *others = shifts
    pairs = tuple(Comparison(name, first, "planted") for name in others)
    experiment = Experiment("planted", "Planted", "Is it found?", arms, (Tuning("lr", model, 5),), pairs)
    hardness = numbers.normal(0, 0.2, 40)
    trials: dict[str, dict[int, Trial]] = {}
    for name, shift in shifts.items():
        for seed in range(1, seeds + 1):
            trial = make_trial(folder, f"{name}-seed{seed}", model.tree(), {**schedule(5), "seed": seed}, 4)
            per_byte = 2 + shift + hardness + numbers.normal(0, noise) + numbers.normal(0, 0.01, 40)
            documents = [
                {
                    "document": n,
                    "source": ["book", "web"][n % 2],
                    "nats": b * math.log(2) * 100,
                    "tokens": 30,
                    "bytes": 100,
                }
                for n, b in enumerate(per_byte)
            ]
            score = {
                "documents": documents,
                "rows": 8,
                "run": f"runs/{trial.name}",
                "recipe_digest": "d",
                "weights": "w",
            }
            score |= {"loss": 3.0, "tokens": 320, "tokens_per_second": 1.0, "processor_seconds": {}}
            trial.scores.parent.mkdir(parents=True, exist_ok=True)
            trial.scores.write_text(json.dumps({**score, "environment": {"words": "a machine"}}))
            trials.setdefault(name, {})[seed] = trial
    return gather(experiment, trials, CHOSEN, {"path": "p", "digest": "d"}, {})


def test_a_planted_difference_is_found_and_has_its_size(tmp_path: Path) -> None:
    results = plant(tmp_path, {"plain": 0.0, "good": -0.3, "bad": 0.3}, noise=0.005)
    good, bad = results["comparisons"]
    assert (good["verdict"], bad["verdict"]) == ("better", "worse")
    assert good["difference"] == pytest.approx(-0.3, abs=0.03)
    assert good["seeds"][0] < good["difference"] < good["seeds"][1]
    assert "Good is better, beyond the spread" in results["found"][0]
    assert "Bad is worse" in results["found"][1]


def test_no_difference_is_said_in_plain_words(tmp_path: Path) -> None:
    results = plant(tmp_path, {"plain": 0.0, "same": 0.001}, noise=0.05)
    assert results["comparisons"][0]["verdict"] == "none"
    assert results["found"][0].endswith("no difference beyond the seed spread.")


def test_one_seed_concludes_nothing(tmp_path: Path) -> None:
    results = plant(tmp_path, {"plain": 0.0, "good": -0.3}, noise=0.001, seeds=1)
    assert results["comparisons"][0]["verdict"] == "unknown"
    assert "nothing is concluded" in results["found"][0]


def test_the_page_and_the_picture_show_what_was_found(tmp_path: Path) -> None:
    results = plant(tmp_path, {"plain": 0.0, "good": -0.3}, noise=0.005)
    (tmp_path / "results.json").write_text(json.dumps(results))
    page = write_experiment_page(tmp_path, tmp_path / "index.html").read_text()
    assert page.count('data-verdict="better"') == 1 and "Good is better" in page
    assert "<script" not in page and "http-equiv" in page
    picture = write_experiment_picture(tmp_path, tmp_path / "picture.svg").read_text()
    assert picture.startswith("<svg xmlns") and picture.count("<circle") == 3 and "var(--" not in picture


def test_a_folder_without_results_and_a_damaged_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no results\.json"):
        read_experiment(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(DamagedFileError, match="not an experiment's results"):
        read_experiment(tmp_path)


def test_the_grid_grows_while_the_best_is_at_its_edge_and_then_stops() -> None:
    tuning = Tuning("x", SIZES.model("x"), 10, centre=4.0, wider=2)
    found = {2.0: 3.0, 4.0: 2.0, 8.0: 1.0}
    assert next_values(tuning, found) == [16.0]
    assert next_values(tuning, found | {16.0: 1.5}) == []
    assert next_values(tuning, found | {16.0: 0.5}) == [32.0]
    assert next_values(tuning, found | {16.0: 0.5, 32.0: 0.1}) == []
    assert next_values(tuning, {2.0: 1.0, 4.0: 2.0, 8.0: 3.0}) == [1.0]


def test_another_setting_is_another_trial(tmp_path: Path) -> None:
    model, train = SIZES.model("m").tree(), {**schedule(5), "seed": 1}
    trials = [
        make_trial(tmp_path, "a", model, train, 4),
        make_trial(tmp_path, "a", model, {**train, "learning_rate": 0.5}, 4),
        make_trial(tmp_path, "a", model, train, 5),
    ]
    trials.append(make_trial(tmp_path, "a", model, train, 4, source=trials[0]))
    assert len({trial.name for trial in trials}) == 4
    moved = make_trial(tmp_path / "elsewhere", "a", model, train, 4, source=trials[0])
    assert moved.name == trials[-1].name


def test_a_trial_of_a_version_that_knew_fewer_recipe_keys_keeps_its_name(tmp_path: Path) -> None:
    model, train = SIZES.model("m").tree(), {**schedule(5), "seed": 1}
    first = make_trial(tmp_path, "a", model, train, 4)
    second = make_trial(tmp_path, "b", model, train, 4, source=first)
    for trial, name in ((first, "a-01234567"), (second, "b-01234567")):
        trial.describe(tmp_path / "shards")
        tree = json.loads(trial.description.read_text())
        tree["recipe"] = trial.recipe.model_dump(mode="json", exclude_defaults=True)
        trial.description.unlink()
        trial.description.with_name(f"{name}.json").write_text(json.dumps({**tree, "name": name}))
    assert make_trial(tmp_path, "a", model, train, 4).name == "a-01234567"
    assert make_trial(tmp_path, "b", model, train, 4, source=first).name == "b-01234567"
    assert make_trial(tmp_path, "a", model, {**train, "learning_rate": 0.5}, 4).name != "a-01234567"
    assert make_trial(tmp_path, "a", model, train, 5).name != "a-01234567"
