"""Validation: nats per token and bits per byte over held-out rows, of each source and of all.

The shards know how many bytes of text the trained positions of each row cover, so no tokenizer is needed: bits per byte
are nats / ln 2 / bytes, and can be compared between models with different tokenizers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobillama.data.shards import Shards


class Evaluates(Protocol):
    """What validation needs of a training step."""

    def evaluate(self, rows: Tensor) -> Tensor:
        """Summed nats of rows (b, seq_len + 1)."""
        ...


@dataclass
class Sum:
    """Nats, tokens and bytes of some rows."""

    nats: float = 0.0
    tokens: int = 0
    bytes: int = 0

    def bits_per_byte(self) -> float | None:
        """None where the rows cover no text."""
        return self.nats / math.log(2) / self.bytes if self.bytes else None


def validate(step: Evaluates, shards: Shards, *, rows: int, batch_rows: int) -> dict[str, Any]:
    """Evaluate `rows` held-out rows (0 = all; else spread evenly over them), `batch_rows` at a time.

    Gives plain JSON types: loss (nats per token), bits_per_byte, the same per source, tokens and bytes.
    """
    chosen = choose_rows(shards.num_validation_rows, rows)
    sources = shards.row_sources(chosen, "validation")
    sums = {}
    for source in np.unique(sources):
        sums[shards.sources[source]] = _sum_rows(step, shards, chosen[sources == source], batch_rows)
    total = Sum()
    for part in sums.values():
        total = Sum(total.nats + part.nats, total.tokens + part.tokens, total.bytes + part.bytes)
    return {
        "loss": total.nats / total.tokens,
        "bits_per_byte": total.bits_per_byte(),
        "tokens": total.tokens,
        "bytes": total.bytes,
        "sources": {
            name: {
                "loss": part.nats / part.tokens,
                "bits_per_byte": part.bits_per_byte(),
                "tokens": part.tokens,
                "bytes": part.bytes,
            }
            for name, part in sums.items()
        },
    }


def choose_rows(available: int, wanted: int) -> NDArray[np.int64]:
    """Which held-out rows: all, or `wanted` of them spread evenly.

    >>> choose_rows(10, 4).tolist()
    [0, 2, 5, 7]
    """
    if not 0 < wanted < available:
        return np.arange(available)
    return np.arange(wanted) * available // wanted


def _sum_rows(step: Evaluates, shards: Shards, chosen: NDArray[np.int64], batch_rows: int) -> Sum:
    found = Sum()
    for start in range(0, len(chosen), batch_rows):
        batch = chosen[start : start + batch_rows]
        rows = torch.from_numpy(shards.validation_rows(batch))  # (b, seq_len + 1)
        found.nats += float(step.evaluate(rows))
        found.tokens += len(batch) * shards.seq_len
        found.bytes += int(shards.row_bytes(batch, "validation").sum())
    return found
