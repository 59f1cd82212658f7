"""Perplexity and bits per byte: of any text, and of each subset of a shards folder's held-out (or training) rows.

A text is cut into windows that lie end to end, each token scored once, the first of a window after the last token of
the one before it alone (lm_eval's rolling windows). A row of shards is read as in training: its first token is not
scored, and padding is neither read nor counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mobillama.data.shards import Shards, Split
from mobillama.errors import InputError
from mobillama.eval.scoring import Request, Scorer

ROWS = 8  # scored together


@dataclass
class Sum:
    """Nats, tokens and bytes of some text."""

    nats: float = 0.0
    tokens: int = 0
    bytes: int = 0

    def add(self, other: Sum) -> None:
        """Take another's along."""
        self.nats, self.tokens, self.bytes = (
            self.nats + other.nats,
            self.tokens + other.tokens,
            self.bytes + other.bytes,
        )

    def tree(self) -> dict[str, Any]:
        """Plain JSON types; what cannot be said of no token or no byte is null."""
        per_token = self.nats / self.tokens if self.tokens else None
        return {
            "tokens": self.tokens,
            "bytes": self.bytes,
            "loss": per_token,
            "perplexity": None if per_token is None else math.exp(min(per_token, 700.0)),
            "bits_per_byte": self.nats / math.log(2) / self.bytes if self.bytes else None,
        }


def score_text(adapter: Any, text: str) -> dict[str, Any]:
    """Perplexity of a text by an Adapter. Error: InputError for a text without a token."""
    windows = adapter.roll(text)
    if not text or not windows:
        raise InputError("the text is empty; give a file with text in it")
    answers = adapter.answer(windows)
    found = Sum(
        -sum(one.log_likelihood for one in answers),
        sum(one.continuation_tokens for one in answers),
        len(text.encode("utf-8", "surrogatepass")),
    )
    return {**found.tree(), "windows": len(windows)}


def score_rows(scorer: Scorer, shards: Shards, split: Split, wanted: int) -> dict[str, Any]:
    """Perplexity of `wanted` rows of each source (0 = all; else spread evenly over its rows), per source and in all.

    Error: InputError if the rows are longer than the model's context, or hold ids that it does not know.
    """
    if shards.seq_len > scorer.context_length:
        raise InputError(
            f"rows of {shards.folder} have {shards.seq_len} tokens; the model's context holds {scorer.context_length}"
        )
    count = shards.num_rows if split == "train" else shards.num_validation_rows
    if not count:
        raise InputError(f"{shards.folder} has no rows of {split}; choose the other split")
    sources = shards.row_sources(np.arange(count), split)
    total, found = Sum(), {}
    for source in np.unique(sources).tolist():
        rows = np.nonzero(sources == source)[0]
        if wanted and wanted < len(rows):
            rows = rows[np.arange(wanted) * len(rows) // wanted]
        mine = _score(scorer, shards, split, rows)
        found[shards.sources[source]] = {**mine.tree(), "rows": len(rows)}
        total.add(mine)
    return {**total.tree(), "rows": sum(one["rows"] for one in found.values()), "sources": found}


def _score(scorer: Scorer, shards: Shards, split: Split, rows: npt.NDArray[np.int64]) -> Sum:
    read = shards.train_rows if split == "train" else shards.validation_rows
    total = Sum()
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        ids = read(part)
        lengths = (shards.segments(part, split) >= 0).sum(1) if shards.padded else np.full(len(part), ids.shape[1])
        requests = [
            Request(tuple(row[:length].tolist()), int(length) - 1)
            for row, length in zip(ids, lengths.tolist(), strict=True)
            if length > 1
        ]
        scores = scorer.score(requests)
        sizes = shards.row_bytes(part, split)
        total.add(Sum(-sum(one.total for one in scores), sum(one.scored for one in requests), int(sizes.sum())))
    return total


def table(found: dict[str, Any]) -> str:
    """What was found as text, a subset a line."""
    rows = [("", "nats per token", "perplexity", "bits per byte", "tokens", "bytes")]
    for name, one in [*found.get("sources", {}).items(), ("all", found)]:
        numbers = [_figure(one[key], digits) for key, digits in (("loss", 4), ("perplexity", 2), ("bits_per_byte", 4))]
        rows.append((name, *numbers, f"{one['tokens']:,}", f"{one['bytes']:,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
