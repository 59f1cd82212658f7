"""What a model must beat: unigram and bigram models counted on the training rows, scored on the held-out rows.

The bigram is interpolated Kneser-Ney (Kneser and Ney 1995; Chen and Goodman 1998, section 2.7), its discount estimated
from the counts of counts; the unigram is add-one. Both give every id a probability above zero.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from mobillama.data.segments import counted_targets
from mobillama.data.shards import Shards, Split, read_shards
from mobillama.errors import InputError

Ids = np.ndarray[Any, np.dtype[Any]]


class Rows:
    """The trained positions of some rows: ids and those before them (n,), without padding."""

    def __init__(self, ids: Ids, counted: Ids | None = None):
        """ids (rows, row_len); counted (rows, row_len - 1), which of ids[:, 1:] are trained on, None = all."""
        before, targets = ids[:, :-1].astype(np.int64), ids[:, 1:].astype(np.int64)
        self.before, self.targets = (
            each.reshape(-1) if counted is None else each[counted] for each in (before, targets)
        )


class Unigram:
    """Add-one estimate of the probability of an id."""

    def __init__(self, rows: Rows, vocab_size: int):
        counts = np.bincount(rows.targets, minlength=vocab_size)
        self.log_probability = np.log((counts + 1) / (counts.sum() + vocab_size))  # (V,) nats

    def nats(self, rows: Rows) -> float:
        """Summed -log p of every trained position of `rows`."""
        return float(-self.log_probability[rows.targets].sum())


class Bigram:
    """Interpolated Kneser-Ney estimate of the probability of an id after another."""

    def __init__(self, rows: Rows, vocab_size: int):
        self.vocab_size = vocab_size
        pairs = self._pairs(rows)
        self.keys, counts = np.unique(pairs, return_counts=True)
        singles, doubles = int((counts == 1).sum()), int((counts == 2).sum())
        self.discount = singles / (singles + 2 * doubles) if singles and doubles else 0.5
        self.counts = counts.astype(np.float64)
        before, after = self.keys // vocab_size, self.keys % vocab_size
        self.total = np.bincount(before, weights=self.counts, minlength=vocab_size)  # (V,) times an id was a context
        self.followers = np.bincount(before, minlength=vocab_size)  # (V,) different ids seen after it
        contexts = np.bincount(after, minlength=vocab_size)  # (V,) different ids seen before it
        kinds = int(contexts.sum())
        seen = int((contexts > 0).sum())
        # Continuation probability, itself discounted towards the uniform, so that no id has probability 0.
        discounted = np.maximum(contexts - self.discount, 0.0)
        self.backoff = discounted / kinds + self.discount * seen / kinds / vocab_size

    def _pairs(self, rows: Rows) -> Ids:
        return rows.before * self.vocab_size + rows.targets

    def probability(self, pairs: Ids) -> Ids:
        """p(after | before) for keys before * V + after."""
        place = np.minimum(np.searchsorted(self.keys, pairs), len(self.keys) - 1)
        count = np.where(self.keys[place] == pairs, self.counts[place], 0.0)
        before, after = pairs // self.vocab_size, pairs % self.vocab_size
        total = self.total[before]
        lower = self.backoff[after]
        with np.errstate(divide="ignore", invalid="ignore"):
            higher = (
                np.maximum(count - self.discount, 0.0) / total + self.discount * self.followers[before] / total * lower
            )
        found: Ids = np.where(total > 0, higher, lower)
        return found

    def nats(self, rows: Rows) -> float:
        """Summed -log p of every trained position of `rows`."""
        return float(-np.log(self.probability(self._pairs(rows))).sum())


def measure(folder: Path, max_rows: int = 0) -> dict[str, Any]:
    """Nats per token and bits per byte of both models on the held-out rows; `max_rows` 0 counts all training rows."""
    shards = read_shards(folder)
    training = np.arange(min(max_rows or shards.num_rows, shards.num_rows), dtype=np.int64)
    held_out = np.arange(shards.num_validation_rows, dtype=np.int64)
    return compare(shards, training, held_out)


def compare(shards: Shards, training: Ids, held_out: Ids) -> dict[str, Any]:
    """Both models fitted on the training rows of these numbers and scored on the held-out rows of those."""
    fitted, rows = _read(shards, "train", training), _read(shards, "validation", held_out)
    tokens, size = len(rows.targets), int(shards.row_bytes(held_out, split="validation").sum())
    if not tokens:
        raise InputError(f"{shards.folder} has no held-out rows to score a model on; build it with some")
    result: dict[str, Any] = {
        "training_rows": len(training),
        "validation_tokens": tokens,
        "validation_bytes": size,
        "models": {},
    }
    for name, model in (("unigram", Unigram), ("bigram", Bigram)):
        nats = model(fitted, shards.vocab_size).nats(rows)
        per_byte = nats / math.log(2) / size if size else None  # shards need not know their bytes of text
        result["models"][name] = {"nats_per_token": nats / tokens, "bits_per_byte": per_byte}
    return result


def _read(shards: Shards, split: Split, numbers: Ids) -> Rows:
    ids = shards.train_rows(numbers) if split == "train" else shards.validation_rows(numbers)
    counted = counted_targets(shards.segments(numbers, split), document_mask=False) if shards.padded else None
    return Rows(ids, counted)
