"""Results beside each other: how sure each difference is, on the same items, with correction for how many there are.

For every pair of models and every benchmark, in its unit, and for the averages: a bootstrap over items, drawn anew
within each task as the benchmark weighs tasks; a p-value for "no difference" (how often a draw lies as far from its
centre as the centre from 0); Holm's correction over all of them. That items are the same is told by the hash of what
was asked.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mobillama.errors import InputError
from mobillama.eval.averages import groups
from mobillama.eval.metrics import metric_of
from mobillama.eval.results import DECIDED_BY, Items, Results, read_results
from mobillama.eval.suite import Benchmark

DRAWS = 10_000
COUNTS = 4_000_000  # of items drawn, held at a time
LEVEL = 0.05
NAMED = 3  # items that differ, named in an error
LIKE = ("backend", "dtype", "bos", "empty_context", "context_length", "harness", "task_files", "allowed_code")

Floats = npt.NDArray[np.float64]

OF_SUMS: Mapping[str, Callable[[Floats], Floats]] = {  # the harness's aggregations, from the weighted mean over items
    "perplexity": lambda mean: np.exp(-mean),
    "weighted_perplexity": lambda mean: np.exp(-mean),
    "bits_per_byte": lambda mean: -mean / math.log(2),
}


def compare(folders: Sequence[Path], names: Sequence[str] = (), *, seed: int = 1234) -> dict[str, Any]:
    """Compare results pair by pair; gives plain JSON types: `models`, `benchmarks`, `pairs`, `notes`.

    names: what to call the models, in order [the model names in the results].
    Errors: InputError for results of other items or contexts, or of a metric that is no mean over items, nor follows
    from sums over them.
    """
    results = [read_results(folder) for folder in folders]
    if names and len(names) != len(results):
        raise InputError(f"--names gives {len(names)} names for {len(results)} results; give one for each")
    items = [result.items() for result in results]
    _same_items(results, items)
    suite = results[0].suite
    shown = [_row(result, name) for result, name in zip(results, names or _names(results), strict=True)]
    benchmarks = [
        {
            "name": one.name,
            **{key: results[0].scores["benchmarks"][at][key] for key in ("metric", "unit", "higher_is_better")},
            "shots": one.shots,
            "in_average": one.in_average,
            "unbiased_at": one.unbiased_at,
        }
        for at, one in enumerate(suite.benchmarks)
    ]
    generator = np.random.default_rng(seed)
    pairs = []
    for a, b in itertools.combinations(range(len(results)), 2):
        draws = {one.name: _draws(one, results, items, a, b, generator) for one in suite.benchmarks}
        for name, group in groups(suite, results[a].scores["benchmarks"]).items():
            if group:
                found = [draws[row["benchmark"]] for row in group]
                draws[name] = (
                    float(np.mean([difference for difference, _ in found])),
                    np.mean([drawn for _, drawn in found], axis=0),
                )
        said = {name: _test(difference, drawn) for name, (difference, drawn) in draws.items()}
        pairs.append({"models": [a, b], "differences": said})
    correct(pairs)
    return {
        "suite": suite.name,
        "models": shown,
        "benchmarks": benchmarks,
        "pairs": pairs,
        "tests": sum(len(pair["differences"]) for pair in pairs),
        "draws": DRAWS,
        "level": LEVEL,
        "notes": _notes(results, shown),
    }


def correct(pairs: Sequence[Mapping[str, Any]]) -> None:
    """Add Holm's corrected p-value (`p_holm`) and `significant` to every difference, over all of them together."""
    tests = sorted((found for pair in pairs for found in pair["differences"].values()), key=lambda found: found["p"])
    highest = 0.0
    for place, found in enumerate(tests):
        highest = max(highest, min(1.0, found["p"] * (len(tests) - place)))
        found["p_holm"] = highest
        found["significant"] = highest < LEVEL


def bootstrap(tasks: Sequence[Floats], generator: np.random.Generator, draws: int = DRAWS) -> Floats:
    """Unweighted means over tasks of means over items drawn anew: (draws,), their spread that of independent items.

    tasks: per task what each item gives. A task of one item has no spread of its own: then tasks are drawn, not items.
    """
    if any(len(values) < 2 for values in tasks):
        tasks = [np.array([values.mean() for values in tasks])]
    total = np.zeros(draws)
    for values in tasks:
        found, counts = np.unique(values, return_counts=True)
        size = len(values)
        means = generator.multinomial(size, counts / size, draws) @ found / size
        # A bootstrap's variance is (n - 1) / n of what an unbiased estimate gives: it shows where tasks are small.
        widen = math.sqrt(size / (size - 1)) if size > 1 else 1.0
        total += values.mean() + (means - values.mean()) * widen
    return total / len(tasks)


def _draws(
    one: Benchmark,
    results: Sequence[Results],
    items: Sequence[Items],
    a: int,
    b: int,
    generator: np.random.Generator,
) -> tuple[float, Floats]:
    """The difference of two models on a benchmark, in its unit, and what it would be on items drawn anew."""
    tasks = _benchmark(results[a], one.name)["tasks"]
    found, of_sums = [], []
    for name, row in tasks.items():
        numbers = sorted(number for task, number in items[a] if task == name)
        values = [[mine[name, number]["metrics"][row["metric"]] for number in numbers] for mine in (items[a], items[b])]
        if row["aggregation"] == "mean":
            scale = metric_of(row["metric"]).scale
            scaled = [[scale * float(value) for value in each] for each in values]
            found.append(np.array(scaled[0]) - np.array(scaled[1]))
        elif row["aggregation"] in OF_SUMS:
            a_terms, b_terms = map(_terms, values)
            of_sums.append(_draw_sums(a_terms, b_terms, OF_SUMS[row["aggregation"]], generator))
        else:
            raise InputError(
                f"{one.name}: the metric {row['metric']} of {name} is no mean over items, so it cannot be compared here"
            )
    if of_sums and found:
        raise InputError(f"{one.name}: its tasks add their items up in different ways, so they cannot be compared here")
    if of_sums:
        differences = [difference for difference, _ in of_sums]
        return float(np.mean(differences)), np.mean([drawn for _, drawn in of_sums], axis=0)
    return float(np.mean([values.mean() for values in found])), bootstrap(found, generator)


def _terms(values: Sequence[Any]) -> Floats:
    """What a metric sums up over items, (items, 2): a log-likelihood and its weight, which is 1 where none is given."""
    return np.array([[*value] if isinstance(value, (list, tuple)) else [value, 1.0] for value in values], np.float64)


def _draw_sums(
    a: Floats, b: Floats, of_mean: Callable[[Floats], Floats], generator: np.random.Generator, draws: int = DRAWS
) -> tuple[float, Floats]:
    """The difference of two models in a function of a weighted mean over the same items, and over items drawn anew.

    a, b: (items, 2). The draws' spread is widened as in `bootstrap`.
    """
    size = len(a)

    def difference(mine: Floats, theirs: Floats) -> Floats:
        return of_mean(mine[..., 0] / mine[..., 1]) - of_mean(theirs[..., 0] / theirs[..., 1])

    middle = float(difference(a.sum(0), b.sum(0)))
    block = max(1, COUNTS // size)
    drawn = []
    for at in range(0, draws, block):
        counts = generator.multinomial(size, np.full(size, 1 / size), min(block, draws - at))
        drawn.append(difference(counts @ a, counts @ b))
    widen = math.sqrt(size / (size - 1)) if size > 1 else 1.0
    return middle, middle + (np.concatenate(drawn) - middle) * widen


def _test(difference: float, drawn: Floats) -> dict[str, Any]:
    """A difference with its 95% interval and the p-value of there being none."""
    low, high = np.quantile(drawn, [LEVEL / 2, 1 - LEVEL / 2])
    # Sums in another order differ in the last bits: what is equal up to them counts as as far.
    far = np.abs(drawn - difference) >= abs(difference) * (1 - 1e-9) - 1e-12
    p = (1 + int(far.sum())) / (1 + len(drawn))
    return {"difference": difference, "low": float(low), "high": float(high), "p": p}


def _same_items(results: Sequence[Results], items: Sequence[Items]) -> None:
    """Raise InputError, naming what differs, unless all results ask the same of the same items."""
    first, mine = results[0], items[0]
    names = [row["benchmark"] for row in first.scores["benchmarks"]]
    for result, other in zip(results[1:], items[1:], strict=True):
        theirs = [row["benchmark"] for row in result.scores["benchmarks"]]
        if names != theirs or names != [one.name for one in first.suite.benchmarks]:
            raise InputError(
                f"{result.folder} holds {', '.join(theirs)}; {first.folder} holds {', '.join(names)}: evaluate both on"
                " the same suite, whole"
            )
        only = sorted(mine.keys() ^ other.keys())
        asked = sorted(key for key in mine.keys() & other.keys() if mine[key]["context"] != other[key]["context"])
        for keys, words in ((only, "are in one of them only"), (asked, "were asked in another way")):
            if keys:
                named = ", ".join(f"{task} {number}" for task, number in keys[:NAMED])
                raise InputError(
                    f"{first.folder} and {result.folder} cannot be compared: {len(keys)} items {words} ({named}"
                    f"{', ...' if len(keys) > NAMED else ''}); evaluate both with the same suite, data and --limit"
                )
        for one in first.suite.benchmarks:
            metrics = [_benchmark(each, one.name)["metric"] for each in (first, result)]
            if metrics[0] != metrics[1]:
                raise InputError(
                    f"{one.name} is scored by {metrics[0]} in {first.folder}, by {metrics[1]} in the other"
                )
    if any(result.share != (0, 1) for result in results):
        raise InputError("a share of an evaluation cannot be compared; put all shares together first")


def _benchmark(result: Results, name: str) -> dict[str, Any]:
    return next(dict(row) for row in result.scores["benchmarks"] if row["benchmark"] == name)


def _names(results: Sequence[Results]) -> list[str]:
    """The models' names, or their folders', where two models have one."""
    names = [str(result.scores["model"]) for result in results]
    return names if len(set(names)) == len(names) else [str(result.folder) for result in results]


def _row(result: Results, name: str) -> dict[str, Any]:
    """A model's line of the table."""
    scores = result.scores
    kept = ("value", "stderr", "items", "cut", "from_unbiased")
    return {
        "name": name,
        "results": str(result.folder),
        "digest": result.manifest.digest(),
        "scores": {row["benchmark"]: {key: row[key] for key in kept if key in row} for row in scores["benchmarks"]},
        "average": scores["average"],
        "average_without_bias": scores["average_without_bias"],
        "training_text": scores.get("training_text", {}),
    }


def _other_files(recipes: Sequence[Mapping[str, Any]], shown: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which files that decide prompts or scores are not the same, as far as the results say."""
    told = [recipe[DECIDED_BY] for recipe in recipes if DECIDED_BY in recipe]
    notes = []
    if other := [
        name for name in sorted({name for one in told for name in one}) if len({one.get(name) for one in told}) > 1
    ]:
        said = ", ".join(other[:NAMED]) + (f" and {len(other) - NAMED} more" if len(other) > NAMED else "")
        notes.append(f"not evaluated alike: what decides prompts and scores differs in {said}")
    if told and (
        silent := [row["name"] for row, recipe in zip(shown, recipes, strict=True) if DECIDED_BY not in recipe]
    ):
        notes.append(f"{', '.join(silent)}: an older version kept no hashes of the harness's task files")
    return notes


def _notes(results: Sequence[Results], shown: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to know before believing the table: settings that differ, cut prompts, training text."""
    notes = []
    recipes = [result.manifest.recipe for result in results]
    for key in LIKE:
        if len({str(recipe.get(key)) for recipe in recipes}) > 1:
            said = ", ".join(f"{row['name']}: {recipe.get(key)}" for row, recipe in zip(shown, recipes, strict=True))
            notes.append(f"not evaluated alike: {key} is {said}")
    notes += _other_files(recipes, shown)
    for row in shown:
        cut = {name: found["cut"] for name, found in row["scores"].items() if found["cut"]}
        if cut:
            said = ", ".join(f"{name} {count:,}" for name, count in cut.items())
            notes.append(f"{row['name']}: items with prompts cut to the context: {said}")
        known = row["training_text"]
        held = {name: found["training"] for name, found in known.get("documents", {}).items() if found["training"]}
        if held:
            said = ", ".join(f"{name} {count:,}" for name, count in held.items())
            notes.append(f"{row['name']}: training documents with text of a benchmark: {said}")
        elif "unknown" in known:
            notes.append(f"{row['name']}: benchmark text in its training data is not known ({known['unknown']})")
    return notes
