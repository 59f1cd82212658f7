"""Averages over the benchmarks of a suite, of one unit each: a perplexity and a share have no mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mobillama.eval.metrics import PER_CENT, in_unit
from mobillama.eval.suite import Suite

Rows = Sequence[Mapping[str, Any]]


def groups(suite: Suite, rows: Rows) -> dict[str, list[Mapping[str, Any]]]:
    """The rows of each average: as the paper takes it, and without those in which more is no better.

    Where units differ it is over those in per cent; without any, of one direction and unit, or of none.
    """
    counted = {one.name: one for one in suite.benchmarks if one.in_average}
    mine = [row for row in rows if row["benchmark"] in counted]
    if any(in_unit(row) == PER_CENT for row in mine):
        mine = [row for row in mine if in_unit(row) == PER_CENT]
    elif len({(in_unit(row), row["higher_is_better"]) for row in mine}) > 1:
        mine = []
    plain = [row for row in mine if counted[row["benchmark"]].unbiased_at is None]
    return {"average": mine, "average_without_bias": plain if len(plain) < len(mine) else []}


def average(suite: Suite, rows: Rows) -> dict[str, Any]:
    """The averages of `groups` with their standard errors; None where there is none."""
    return {name: _mean(group) for name, group in groups(suite, rows).items()}


def _mean(rows: Rows) -> dict[str, Any] | None:
    if not rows:
        return None
    errors = [row["stderr"] for row in rows]
    error = None if None in errors else math.sqrt(sum(found**2 for found in errors)) / len(rows)
    value = sum(row["value"] for row in rows) / len(rows)
    return {"value": value, "stderr": error, "benchmarks": len(rows), "unit": in_unit(rows[0])}
