"""From items to a table: metrics of tasks as the harness aggregates them, benchmarks, averages, standard errors.

A benchmark of several tasks is their unweighted mean; its standard error takes the tasks as independent. The suite's
average takes benchmarks as independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm_eval.api.metrics import mean, stderr_for_metric
from lm_eval.api.registry import aggregation_registry

from mobillama.errors import InputError
from mobillama.eval.suite import Benchmark, Suite

BOOTSTRAPS = 1000  # draws for the standard error of a metric that is no mean

Aggregate = Callable[[Sequence[Any]], float]


def score_task(metric: str, items: Sequence[Mapping[str, Any]], aggregation: Mapping[str, Aggregate]) -> dict[str, Any]:
    """A task's value and standard error (None for one item) from the `metrics` of its items.

    metric: a name, or `name,filter`. Error: InputError if the task does not give it.
    """
    keys = list(items[0]["metrics"])
    key = metric if "," in metric else next((key for key in keys if key.partition(",")[0] == metric), metric)
    if key not in keys:
        raise InputError(f"the task gives no metric {metric!r}; expected one of {', '.join(keys)}")
    values = [item["metrics"][key] for item in items]
    aggregate = aggregation.get(key.partition(",")[0], mean)
    names = (name for name, known in aggregation_registry.items() if known is aggregate)
    error = stderr_for_metric(aggregate, BOOTSTRAPS) if len(values) > 1 else None
    return {
        "metric": key,
        "aggregation": next(names, None),  # the harness's name; None where the task brings its own
        "value": float(aggregate(values)),
        "stderr": None if error is None else float(error(values)),
        "items": len(values),
        "cut": sum(any(request.get("cut") for request in item["requests"]) for item in items),
    }


def score_benchmark(
    benchmark: Benchmark, tasks: Mapping[str, dict[str, Any]], lacking: Sequence[str]
) -> dict[str, Any]:
    """A benchmark's row from those of its tasks, in per cent where its metric is a share."""
    rows = list(tasks.values())
    errors = [row["stderr"] for row in rows]
    error = None
    if None not in errors:
        error = math.sqrt(sum(found**2 for found in errors)) / len(rows)
    elif len(rows) > 1:  # tasks of one item each: their spread is all there is
        values = [row["value"] for row in rows]
        middle = sum(values) / len(values)
        error = math.sqrt(sum((value - middle) ** 2 for value in values) / (len(values) - 1) / len(values))
    value = sum(row["value"] for row in rows) / len(rows)
    row = {
        "benchmark": benchmark.name,
        "metric": rows[0]["metric"].removesuffix(",none"),
        "shots": benchmark.shots,
        "value": 100 * value,
        "stderr": None if error is None else 100 * error,
        "items": sum(row["items"] for row in rows),
        "cut": sum(row["cut"] for row in rows),
        "tasks": dict(tasks),
        "lacking": list(lacking),
    }
    if benchmark.unbiased_at is not None:
        row["from_unbiased"] = abs(100 * value - benchmark.unbiased_at)
    return row


def average(suite: Suite, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Averages over the benchmarks of a suite: as the paper takes it, and without those in which more is no better."""
    counted = {one.name: one for one in suite.benchmarks if one.in_average}
    mine = [row for row in rows if row["benchmark"] in counted]
    plain = [row for row in mine if counted[row["benchmark"]].unbiased_at is None]
    return {"average": _mean(mine), "average_without_bias": _mean(plain) if len(plain) < len(mine) else None}


def _mean(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if not rows:
        return None
    errors = [row["stderr"] for row in rows]
    error = None if None in errors else math.sqrt(sum(found**2 for found in errors)) / len(rows)
    return {"value": sum(row["value"] for row in rows) / len(rows), "stderr": error, "benchmarks": len(rows)}


def table(result: Mapping[str, Any]) -> str:
    """The scores of a model as text, one benchmark a line."""
    lines = [("benchmark", "shots", "metric", "value", "+-", "items", "cut", "")]
    for row in result["benchmarks"]:
        notes = []
        if "from_unbiased" in row:
            notes.append(f"|value - unbiased| = {row['from_unbiased']:.2f}")
        if row["cut"]:
            notes.append(f"{row['cut']:,} prompts cut to the context")
        if marks := found_in_training(result, row["benchmark"]):
            notes.append(marks)
        if row["lacking"]:
            notes.append(f"no item of {', '.join(row['lacking'])}")
        numbers = (f"{row['value']:.2f}", _error(row["stderr"]), f"{row['items']:,}", str(row["cut"]))
        lines.append((row["benchmark"], str(row["shots"]), row["metric"], *numbers, "; ".join(notes)))
    for key, name in (("average", "average"), ("average_without_bias", "average of those where more is better")):
        if (found := result[key]) is not None:
            lines.append((name, "", "", f"{found['value']:.2f}", _error(found["stderr"]), "", "", ""))
    widths = [max(len(line[column]) for line in lines) for column in range(8)]
    left = (0, 2, 7)
    return "\n".join(
        "  ".join(
            text.ljust(width) if column in left else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def found_in_training(result: Mapping[str, Any], benchmark: str) -> str:
    """What is known of a benchmark's text in what the model was trained on, in words; "" if nothing is known."""
    known = result.get("training_text") or {}
    count = known.get("documents", {}).get(benchmark)
    return "" if count is None else f"{count['training']:,} training documents hold text of it"


def _error(found: float | None) -> str:
    return "" if found is None else f"{found:.2f}"
