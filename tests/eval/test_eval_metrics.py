"""Facts: every metric is shown in its own unit, from the items to the last page, and no average mixes two."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lm_eval.api.metrics  # noqa: F401 - registers the metrics
import numpy as np
import pytest
from lm_eval.api.registry import (
    aggregation_registry,
    get_metric_aggregation,
    higher_is_better_registry,
    metric_registry,
)
from tests.model.twins import new_seed

from mobillama import manifest
from mobillama.errors import InputError
from mobillama.eval.averages import average
from mobillama.eval.checkpoints import collect
from mobillama.eval.comparison import compare
from mobillama.eval.metrics import METRICS, PER_CENT, metric_of
from mobillama.eval.results import ITEMS, SCORES, read_results, seal_results, write_tree
from mobillama.eval.scores import score_benchmark, score_task, table
from mobillama.eval.suite import Benchmark, Suite
from mobillama.report.comparison import latex, markdown
from mobillama.report.evaluation import write_curves_page

REGISTERED = sorted(metric_registry)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard errors of metrics that are no mean come from few draws, in this process: their size is not looked at."""
    monkeypatch.setattr("mobillama.eval.scores.BOOTSTRAPS", 4)
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")


Draw = Callable[[np.random.Generator], Any]
SHARE: Draw = lambda generator: float(generator.integers(2))  # noqa: E731
ITEMS_OF: dict[str, Draw] = {  # what the harness keeps of an item, where it is no share
    "bits_per_byte": lambda generator: [-float(generator.uniform(50, 90)), int(generator.integers(20, 40))],
    "byte_perplexity": lambda generator: [-float(generator.uniform(50, 90)), int(generator.integers(20, 40))],
    "word_perplexity": lambda generator: [-float(generator.uniform(50, 90)), int(generator.integers(20, 40))],
    "perplexity": lambda generator: -float(generator.uniform(1, 3)),
    "f1": lambda generator: [int(generator.integers(2)), int(generator.integers(2))],
    "mcc": lambda generator: [int(generator.integers(2)), int(generator.integers(2))],
    "brier_score": lambda generator: [int(generator.integers(2)), [0.25, 0.75]],
    "bleu": lambda generator: [
        "the cat sat on the mat",
        "the cat sat on the " + ["mat", "dog"][generator.integers(2)],
    ],
    "chrf": lambda generator: [
        "the cat sat on the mat",
        "the cat sat on the " + ["mat", "dog"][generator.integers(2)],
    ],
    "chrf++": lambda generator: [
        "the cat sat on the mat",
        "a cat sat on the " + ["mat", "dog"][generator.integers(2)],
    ],
    "ter": lambda generator: [
        "the cat sat on the mat",
        "the cat sat on the " + ["mat", "dog"][generator.integers(2)],
    ],
}
ADDED_UP = {"bits_per_byte", "byte_perplexity", "word_perplexity", "perplexity"}  # from sums over items


def lines_of(metric: str, generator: np.random.Generator, count: int = 40) -> list[dict[str, Any]]:
    draw = ITEMS_OF.get(metric, SHARE)
    return [
        {
            "benchmark": metric,
            "task": metric,
            "item": number,
            "context": str(number),
            "requests": [],
            "metrics": {f"{metric},none": draw(generator)},
        }
        for number in range(count)
    ]


def results(folder: Path, metrics: list[str], seed: int, *, older: bool = False) -> Path:
    """Results of a suite of one benchmark a metric; older: as a version that knew no units wrote them."""
    suite = Suite(
        name="s",
        about="a",
        benchmarks=tuple(Benchmark(name=one, tasks=(one,), shots=0, metric=one) for one in metrics),
    )
    generator = np.random.default_rng(seed)
    lines = {one: lines_of(one, generator) for one in metrics}
    rows = []
    for one in suite.benchmarks:
        scored = score_task(one.name, lines[one.name], {one.name: get_metric_aggregation(one.name)})
        rows.append(score_benchmark(one, {one.name: scored}, []))
    averages: Mapping[str, Any] = average(suite, rows)
    if older:
        for row in rows:
            raw = row["tasks"][row["benchmark"]]
            row |= {"value": 100 * raw["value"], "stderr": raw["stderr"] and 100 * raw["stderr"]}
            del row["unit"], row["higher_is_better"], raw["higher_is_better"]
        mean = sum(row["value"] for row in rows) / len(rows)
        averages = {"average": {"value": mean, "stderr": None, "benchmarks": len(rows)}, "average_without_bias": None}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with manifest.building(folder) as partial:
        every = [line for mine in lines.values() for line in mine]
        (partial / ITEMS).write_text("".join(json.dumps(line) + "\n" for line in every))
        scores = {"model": folder.name, "suite": "s", "benchmarks": rows, **averages, "rows": {}}
        scores["trained"] = {"tokens": seed}
        made = [{"kind": "model", "name": "m", "digest": "0" * 64}]
        seal_results(partial, folder, scores, {"suite": suite.tree(), "share": [0, 1]}, made, {})
    return folder


def test_every_metric_of_the_harness_has_a_unit_and_a_direction() -> None:
    assert set(REGISTERED) <= set(METRICS)
    assert set(METRICS) - set(REGISTERED) == {"pct_stereotype"}
    for name in REGISTERED:
        assert METRICS[name].higher_is_better == (None if name == "bypass" else higher_is_better_registry.get(name)), (
            name
        )
    shares = {name for name in REGISTERED if METRICS[name].unit == PER_CENT}
    assert shares == {"acc", "acc_all", "acc_bytes", "acc_mutual_info", "acc_norm", "exact_match"}
    assert all(get_metric_aggregation(name) is aggregation_registry.get("mean") for name in shares)
    assert metric_of("rouge1").scale == 1  # nobody's share: as the task gives it


@pytest.mark.parametrize("name", REGISTERED)
def test_a_metric_keeps_the_harnesss_number_unless_it_is_a_share(name: str) -> None:
    """Of every registered metric: the harness's aggregation, times 100 of a share, once, with its unit in the table."""
    generator = np.random.default_rng(new_seed())
    lines, aggregate = lines_of(name, generator), get_metric_aggregation(name)
    row = score_benchmark(
        Benchmark(name="b", tasks=("t",), shots=0, metric=name), {"t": score_task(name, lines, {name: aggregate})}, []
    )
    given = float(aggregate([line["metrics"][f"{name},none"] for line in lines]))
    assert row["value"] == pytest.approx(given * (100 if METRICS[name].unit == PER_CENT else 1))
    assert row["unit"] == METRICS[name].unit
    assert row["higher_is_better"] is METRICS[name].higher_is_better
    shown = table({"benchmarks": [row], "average": None, "average_without_bias": None})
    digits = 2 if row["unit"] == PER_CENT else 4
    assert f" {row['value']:.{digits}f} " in shown
    assert row["unit"] in shown
    assert ("lower is better" in shown) == (row["higher_is_better"] is False)


def test_bits_per_byte_are_shown_as_bits(tmp_path: Path) -> None:
    lines = lines_of("bits_per_byte", np.random.default_rng(1), 2)
    for line in lines:
        line["metrics"] = {"bits_per_byte,none": [-3.4286 * math.log(2) * 50, 50]}
    scored = score_task("bits_per_byte", lines, {"bits_per_byte": get_metric_aggregation("bits_per_byte")})
    row = score_benchmark(
        Benchmark(name="roll", tasks=("roll",), shots=0, metric="bits_per_byte"), {"roll": scored}, []
    )
    assert " 3.4286 " in table({"benchmarks": [row], "average": None, "average_without_bias": None})


def test_an_average_holds_one_unit(tmp_path: Path) -> None:
    def of(*metrics: str) -> Any:
        return read_results(results(tmp_path / "-".join(metrics), list(metrics), 3)).scores

    mixed = of("acc", "word_perplexity", "acc_norm", "f1")
    accuracies = [row["value"] for row in mixed["benchmarks"] if row["unit"] == PER_CENT]
    assert mixed["average"]["value"] == pytest.approx(sum(accuracies) / 2)
    assert mixed["average"]["benchmarks"] == 2
    assert of("f1", "word_perplexity")["average"] is None
    alone = of("bits_per_byte")
    assert alone["average"]["unit"] == "bits per byte"
    assert alone["average"]["value"] == alone["benchmarks"][0]["value"]


@pytest.mark.parametrize("name", REGISTERED)
def test_a_metric_is_compared_and_drawn_in_its_unit_or_refused_in_words(tmp_path: Path, name: str) -> None:
    folders = [results(tmp_path / "run" / f"step_{number:06d}", [name], number) for number in (1, 2)]
    curves = collect(tmp_path / "run", tmp_path / "run")
    page = write_curves_page(tmp_path / "run").read_text()
    assert {row["unit"] for point in curves["points"] for row in point["benchmarks"]} == {METRICS[name].unit}
    assert METRICS[name].unit in page
    assert ("lower is better" in page) == (METRICS[name].higher_is_better is False)
    if get_metric_aggregation(name) is not aggregation_registry.get("mean") and name not in ADDED_UP:
        with pytest.raises(InputError, match=f"{re.escape(name)}: the metric .* is no mean over items"):
            compare(folders)
        return
    found = compare(folders)
    (pair,) = found["pairs"]
    one, other = (row["scores"][name]["value"] for row in found["models"])
    difference = pair["differences"][name]
    assert difference["difference"] == pytest.approx(one - other)
    assert difference["low"] < difference["difference"] < difference["high"]
    for text in (markdown(found), latex(found).replace(r"\_", "_")):
        assert f"{one:.{2 if METRICS[name].unit == PER_CENT else 4}f}" in text
        assert (METRICS[name].unit in text) == (METRICS[name].unit != PER_CENT)
        assert ("lower is better" in text) == (METRICS[name].higher_is_better is False)


def test_the_spread_of_a_sums_metric_is_that_of_the_items(tmp_path: Path) -> None:
    """An oracle: the delta method's standard error of a difference of two ratios over the same items."""
    generator = np.random.default_rng(new_seed())
    weights = generator.integers(20, 60, 400).astype(float)
    a, b = (-generator.normal(2.5, 0.4, 400) * weights for _ in range(2))
    from mobillama.eval.comparison import OF_SUMS, _draw_sums

    pairs = [np.stack([values, weights], axis=1) for values in (a, b)]
    difference, drawn = _draw_sums(pairs[0], pairs[1], OF_SUMS["bits_per_byte"], generator)
    assert difference == pytest.approx(-(a.sum() - b.sum()) / weights.sum() / math.log(2))
    residual = (a - b) - (a.sum() - b.sum()) / weights.sum() * weights
    error = residual.std(ddof=1) * math.sqrt(400) / weights.sum() / math.log(2)
    assert drawn.std() == pytest.approx(error, rel=0.08)
    assert drawn.mean() == pytest.approx(difference, abs=4 * error / 100)


def test_older_results_are_read_in_todays_units(tmp_path: Path) -> None:
    metrics = ["acc", "bits_per_byte", "perplexity"]
    older, today = (results(tmp_path / name, metrics, 5, older=name == "older") for name in ("older", "today"))
    assert json.loads((older / SCORES).read_text())["benchmarks"][1]["value"] > 100
    for one, other in zip(
        read_results(older).scores["benchmarks"], read_results(today).scores["benchmarks"], strict=True
    ):
        assert one["value"] == pytest.approx(other["value"])
        assert (one["unit"], one["higher_is_better"]) == (other["unit"], other["higher_is_better"])
    assert read_results(older).scores["average"] == pytest.approx(read_results(today).scores["average"])
    (pair,) = compare([older, today])["pairs"]
    assert {one["difference"] for one in pair["differences"].values()} == {0.0}


def test_a_metric_that_is_no_number_is_refused(tmp_path: Path) -> None:
    lines = lines_of("acc", np.random.default_rng(1), 2)
    with pytest.raises(InputError, match="is nan over these 2 items"):
        score_task("acc", lines, {"acc": lambda values: float("nan")})


def test_curves_of_an_older_version_are_still_drawn(tmp_path: Path) -> None:
    row = {"benchmark": "piqa", "metric": "acc", "shots": 0, "value": 51.25, "stderr": 1.5, "items": 9}
    point = {"step": 1, "tokens": 10, "results": "r", "digest": "0" * 64, "suite": "s", "benchmarks": [row]}
    point |= {"average": {"value": 51.25, "stderr": 1.5, "benchmarks": 1}, "average_without_bias": None}
    write_tree(
        tmp_path / "curves.json", {"format": "mobillama.curves", "format_version": 1, "run": "r", "points": [point]}
    )
    assert "acc, per cent" in write_curves_page(tmp_path).read_text()
