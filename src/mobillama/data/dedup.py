"""Exact deduplication over the whole corpus, in buckets of hashes that fit in memory.

Of documents with equal cleaned text the first in order (source, file, record) stays, whatever the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.pipeline.base import PipelineStep

from mobillama.data.parts import replacing

BUCKET_DOCUMENTS = 1 << 20


class FindDuplicates(PipelineStep):  # type: ignore[misc]
    """Writes `<bucket>.npy`, (n, 2) int64: kept documents whose text an earlier one has, and the first that has it."""

    name, type = "exact duplicates", "dedup"

    def __init__(self, hashes: list[Path], folder: Path) -> None:
        super().__init__()
        self.hashes, self.folder = hashes, folder

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Work through the hashes of bucket `rank` of `world_size`; yields nothing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        numbers, hashes, start = [], [], 0
        for path in self.hashes:
            found = np.fromfile(path, "S32")
            if len(found):
                first = found.view("<u8").reshape(-1, 4)[:, 0]
                here = np.nonzero(first % np.uint64(world_size) == rank)[0]
                numbers.append(start + here)
                hashes.append(found[here])
            start += len(found)
        pairs = np.empty((0, 2), np.int64)
        if numbers:
            number, text = np.concatenate(numbers), np.concatenate(hashes)
            # The first of each, since the sort behind it is stable.
            _, firsts, which = np.unique(text, return_index=True, return_inverse=True)
            first = number[firsts[which]]
            again = np.flatnonzero(number != first)
            pairs = np.column_stack([number[again], first[again]])
        with replacing(self.folder / f"{rank:05d}.npy") as beside, beside.open("wb") as file:
            np.save(file, pairs)
        yield from ()


def buckets(documents: int) -> int:
    """How many buckets so many documents are dealt to."""
    return max(1, -(-documents // BUCKET_DOCUMENTS))


def merge_duplicates(folder: Path, out: Path) -> None:
    """Write the pairs of all buckets to one file, sorted by the document that goes: (n, 2) int64."""
    found = [np.empty((0, 2), np.int64), *(np.load(path) for path in sorted(folder.glob("*.npy")))]
    merged = np.concatenate(found)
    with replacing(out) as beside, beside.open("wb") as file:
        np.save(file, merged[np.argsort(merged[:, 0])])
