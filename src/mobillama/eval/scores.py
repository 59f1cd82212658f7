"""From items to a table: metrics of tasks as the harness aggregates them, benchmarks, averages, standard errors.

A benchmark of several tasks is their unweighted mean; its standard error takes the tasks as independent. A share is
shown in per cent, every other metric as the harness gives it (metrics.py).
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm_eval.api.metrics import mean, stderr_for_metric
from lm_eval.api.registry import aggregation_registry

from mobillama.errors import InputError
from mobillama.eval.averages import average
from mobillama.eval.metrics import OTHER, in_unit, metric_of, show_value
from mobillama.eval.suite import Benchmark

__all__ = ["average", "score_benchmark", "score_task", "table"]

BOOTSTRAPS = 1000  # draws for the standard error of a metric that is no mean

Aggregate = Callable[[Sequence[Any]], float]


def score_task(
    metric: str,
    items: Sequence[Mapping[str, Any]],
    aggregation: Mapping[str, Aggregate],
    higher_is_better: Mapping[str, bool | None] | None = None,
) -> dict[str, Any]:
    """A task's value, as the harness gives it, and standard error (None for one item) from the `metrics` of its items.

    metric: a name, or `name,filter`. higher_is_better: by metric, what the task says where metrics.py says nothing.
    Errors: InputError if the task does not give the metric, or it is no number over these items.
    """
    keys = list(items[0]["metrics"])
    key = metric if "," in metric else next((key for key in keys if key.partition(",")[0] == metric), metric)
    if key not in keys:
        raise InputError(f"the task gives no metric {metric!r}; expected one of {', '.join(keys)}")
    values = [item["metrics"][key] for item in items]
    aggregate = aggregation.get(key.partition(",")[0], mean)
    names = (name for name, known in aggregation_registry.items() if known is aggregate)
    error_of = stderr_for_metric(aggregate, BOOTSTRAPS) if len(values) > 1 else None
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # it counts its draws
        value = float(aggregate(values))
        error = None if error_of is None else float(error_of(values))
    if not math.isfinite(value):
        raise InputError(f"the metric {key} is {value} over these {len(values)} items; choose another")
    known = metric_of(key)
    return {
        "metric": key,
        "aggregation": next(names, None),  # the harness's name; None where the task brings its own
        "higher_is_better": (higher_is_better or {}).get(key.partition(",")[0], known.higher_is_better)
        if known is OTHER
        else known.higher_is_better,
        "value": value,
        "stderr": error if error is None or math.isfinite(error) else None,
        "items": len(values),
        "cut": sum(any(request.get("cut") for request in item["requests"]) for item in items),
    }


def score_benchmark(
    benchmark: Benchmark, tasks: Mapping[str, dict[str, Any]], lacking: Sequence[str]
) -> dict[str, Any]:
    """A benchmark's row from those of its tasks, in the unit of its metric."""
    rows = list(tasks.values())
    metric = metric_of(rows[0]["metric"])
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
        "unit": metric.unit,
        "higher_is_better": None if benchmark.unbiased_at is not None else rows[0]["higher_is_better"],
        "value": metric.scale * value,
        "stderr": None if error is None else metric.scale * error,
        "items": sum(row["items"] for row in rows),
        "cut": sum(row["cut"] for row in rows),
        "tasks": dict(tasks),
        "lacking": list(lacking),
    }
    if benchmark.unbiased_at is not None:
        row["from_unbiased"] = abs(metric.scale * value - benchmark.unbiased_at)
    return row


def table(result: Mapping[str, Any]) -> str:
    """The scores of a model as text, one benchmark a line."""
    lines = [("benchmark", "shots", "metric", "value", "+-", "unit", "items", "cut", "")]
    for row in result["benchmarks"]:
        notes, unit = [], in_unit(row)
        if row.get("higher_is_better") is False:
            notes.append("lower is better")
        if "from_unbiased" in row:
            notes.append(f"|value - unbiased| = {show_value(row['from_unbiased'], unit)}")
        if row["cut"]:
            notes.append(f"{row['cut']:,} prompts cut to the context")
        if marks := found_in_training(result, row["benchmark"]):
            notes.append(marks)
        if row["lacking"]:
            notes.append(f"no item of {', '.join(row['lacking'])}")
        numbers = (
            show_value(row["value"], unit),
            _error(row["stderr"], unit),
            unit,
            f"{row['items']:,}",
            str(row["cut"]),
        )
        lines.append((row["benchmark"], str(row["shots"]), row["metric"], *numbers, "; ".join(notes)))
    for key, name in (("average", "average"), ("average_without_bias", "average of those where more is better")):
        if (found := result[key]) is not None:
            unit = in_unit(found)
            shown = (show_value(found["value"], unit), _error(found["stderr"], unit), unit)
            lines.append((name, "", "", *shown, "", "", ""))
    widths = [max(len(line[column]) for line in lines) for column in range(9)]
    left = (0, 2, 5, 8)
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


def _error(found: float | None, unit: str) -> str:
    return "" if found is None else show_value(found, unit)
