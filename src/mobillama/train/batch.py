"""Rows on their way to the step: their ids, and where it matters their documents and which targets count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobillama.data.segments import counted_targets
from mobillama.data.shards import Shards, Split


@dataclass(frozen=True)
class Batch:
    """Some rows. What is None is not needed: no attention is masked, and all targets are trained on."""

    rows: NDArray[np.int64]  # (n, seq_len + 1)
    documents: NDArray[np.int64] | None = None  # (n, seq_len): attention stays inside a document
    counted: NDArray[np.bool_] | None = None  # (n, seq_len): which of rows[:, 1:] are trained on

    @property
    def tokens(self) -> int:
        """Targets that count."""
        return self.rows[:, 1:].size if self.counted is None else int(self.counted.sum())

    def parts(self, rows: int) -> Iterator[Batch]:
        """The batch, `rows` rows at a time."""
        for start in range(0, len(self.rows), rows):
            part = slice(start, start + rows)
            yield Batch(
                self.rows[part],
                None if self.documents is None else self.documents[part],
                None if self.counted is None else self.counted[part],
            )

    def tensors(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Rows, documents and counted, as the step takes them."""
        return torch.from_numpy(self.rows), _tensor(self.documents), _tensor(self.counted)


def read_batch(shards: Shards, ids: NDArray[np.int64], split: Split, *, document_mask: bool) -> Batch:
    """Rows of a split by their numbers, with all that padding and a document mask ask for."""
    rows = shards.train_rows(ids) if split == "train" else shards.validation_rows(ids)
    if not document_mask and not shards.padded:
        return Batch(rows)
    segments = shards.segments(ids, split)
    documents = segments[:, :-1] if document_mask else None
    return Batch(rows, documents, counted_targets(segments, document_mask=document_mask))


def _tensor(array: NDArray[Any] | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(np.ascontiguousarray(array))
