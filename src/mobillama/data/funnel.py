"""The funnel of a corpus: documents, bytes and tokens in, dropped by reason, and out, per subset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobillama.data.sources import Task

Repeats = NDArray[np.int64]  # (n, 2): a document that is dropped, sorted, and the one that it repeats
UNITS = ("documents", "bytes", "tokens")


def make_funnel(
    tasks: Sequence[Task],
    told: Sequence[Mapping[str, Any]],
    parts: Path,
    repeats: Mapping[str, Repeats],
    *,
    tokens: bool,
) -> dict[str, Any]:
    """The funnel of all tasks, subsets in the order of their first task.

    `told` is what `WriteParts` left of each task, `repeats` the kept documents dropped since, by reason; numbers count
    kept documents through all tasks. Dropped while cleaning counts the raw text, dropped since the cleaned one.
    """
    units = UNITS if tokens else UNITS[:2]
    funnel: dict[str, dict[str, Any]] = {}
    start = 0
    for number, (task, counts) in enumerate(zip(tasks, told, strict=True)):
        sizes = {
            "bytes": np.fromfile(parts / f"{number:05d}.sizes", np.uint32),
            **({"tokens": np.fromfile(parts / f"{number:05d}.tokens", np.uint32)} if tokens else {}),
        }
        dropped = {reason: list(sums) for reason, sums in counts["dropped"].items()}
        out = list(counts["kept"])
        for reason, pairs in repeats.items():
            stop = start + len(sizes["bytes"])
            again = pairs[slice(*np.searchsorted(pairs[:, 0], [start, stop])), 0] - start
            sums = [len(again), *(int(sizes[unit][again].sum(dtype=np.int64)) for unit in units[1:])]
            if sums[0]:
                dropped[reason] = sums
                out = [kept - gone for kept, gone in zip(out, sums, strict=False)]
        start += len(sizes["bytes"])
        subset = funnel.setdefault(task.subset, {f"{unit}_in": 0 for unit in units} | {"dropped": {}})
        for place, unit in enumerate(units):
            subset[f"{unit}_in"] += counts["read"][place]
            subset[f"{unit}_out"] = subset.get(f"{unit}_out", 0) + out[place]
            for reason, sums in dropped.items():
                pair = subset["dropped"].setdefault(reason, dict.fromkeys(units, 0))
                pair[unit] += sums[place]
    return funnel
