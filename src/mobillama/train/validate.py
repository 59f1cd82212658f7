"""Validation: nats per token and bits per byte over held-out rows, of each source and of all.

The shards know how many bytes of text the trained positions of each row cover, so no tokenizer is needed: bits per byte
are nats / ln 2 / bytes, and can be compared between models with different tokenizers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mobillama.data.shards import Shards
from mobillama.train.batch import read_batch


class Evaluates(Protocol):
    """What validation needs of a training step."""

    def evaluate(self, rows: Tensor, documents: Tensor | None = None, counted: Tensor | None = None) -> Tensor:
        """Summed nats of the targets of rows (b, seq_len + 1) that count, all if `counted` is None."""
        ...


@dataclass
class Sum:
    """Nats, tokens and bytes of some rows."""

    nats: float = 0.0
    tokens: int = 0
    bytes: int = 0

    def loss(self) -> float | None:
        """Nats per token; None where no token counts."""
        return self.nats / self.tokens if self.tokens else None

    def bits_per_byte(self) -> float | None:
        """None where the rows cover no text."""
        return self.nats / math.log(2) / self.bytes if self.bytes else None


def validate(
    step: Evaluates, shards: Shards, *, rows: int, batch_rows: int, document_mask: bool = False
) -> dict[str, Any]:
    """Evaluate `rows` held-out rows (0 = all; else spread evenly over them), `batch_rows` at a time.

    Gives plain JSON types: loss (nats per token), bits_per_byte, the same per source, tokens and bytes.
    """
    chosen = choose_rows(shards.num_validation_rows, rows)
    sources = shards.row_sources(chosen, "validation")
    sums = {}
    for source in np.unique(sources):
        here = chosen[sources == source]
        sums[shards.sources[source]] = _sum_rows(step, shards, here, batch_rows, document_mask)
    total = Sum()
    for part in sums.values():
        total = Sum(total.nats + part.nats, total.tokens + part.tokens, total.bytes + part.bytes)
    return {
        "loss": total.loss(),
        "bits_per_byte": total.bits_per_byte(),
        "tokens": total.tokens,
        "bytes": total.bytes,
        "sources": {
            name: {
                "loss": part.loss(),
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


def _sum_rows(step: Evaluates, shards: Shards, chosen: NDArray[np.int64], batch_rows: int, document_mask: bool) -> Sum:
    found = Sum()
    for start in range(0, len(chosen), batch_rows):
        ids = chosen[start : start + batch_rows]
        batch = read_batch(shards, ids, "validation", document_mask=document_mask)
        rows, documents, counted = batch.tensors()
        found.nats += float(step.evaluate(rows) if counted is None else step.evaluate(rows, documents, counted))
        found.tokens += batch.tokens
        found.bytes += int(shards.row_bytes(ids, "validation", document_mask=document_mask).sum())
    return found
