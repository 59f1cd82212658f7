"""Best-fit packing: whole documents go into rows where they leave the least room; nothing is cut that fits a row.

After Ding et al. 2024, "Fewer Truncations Improve Language Modeling" (best-fit decreasing). A document longer than a
row is first cut into whole rows; its rest is packed like a document. Pieces are packed WINDOW at a time in the order of
the stream, so that memory has a bound; which row a piece goes to depends on the sizes alone. Rules: docs/formats.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobillama.data.parts import replacing

Ints = NDArray[np.int64]
WINDOW = 1 << 20  # pieces packed together
DOCUMENTS = 1 << 16  # cut into pieces at a time


@dataclass(frozen=True)
class FittedRows:
    """Rows of pieces, on disk: `pieces` int64 (pieces, 2) first token in the stream and tokens, row by row, and `ends`
    int64 (rows + 1,) where the pieces of each row begin."""

    rows: int
    padding: int  # positions that hold no token
    folder: Path
    stem: str

    def find(self, rows: Ints) -> tuple[Ints, Ints, Ints]:
        """Pieces of some rows in order: their number in each row (rows,), first token and tokens of each (pieces,)."""
        count = self._offsets[rows + 1] - self._offsets[rows]
        place = np.arange(count.sum()) + np.repeat(self._offsets[rows] - np.cumsum(count) + count, count)
        start, tokens = self._pieces[place].T
        return count, start, tokens

    @cached_property
    def _offsets(self) -> Ints:
        return np.memmap(self.folder / f"{self.stem}.ends", np.int64, "r")

    @cached_property
    def _pieces(self) -> Ints:
        path = self.folder / f"{self.stem}.pieces"
        return np.memmap(path, np.int64, "r").reshape(-1, 2) if self.rows else np.empty((0, 2), np.int64)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is mapped: another process maps it again."""
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}


def fit_documents(starts: Ints, row_len: int, folder: Path, stem: str) -> FittedRows:
    """Pack the documents of a stream into rows of `row_len` tokens; writes `<stem>.pieces` and `<stem>.ends`.

    `starts` (documents + 1,): first token of each document, closed by the end of the stream; no document is empty.
    """
    rows = pieces = 0
    with (
        replacing(folder / f"{stem}.pieces") as beside,
        replacing(folder / f"{stem}.ends") as ends,
        beside.open("wb") as piece_file,
        ends.open("wb") as end_file,
    ):
        for start, tokens in _windows(starts, row_len):
            row = fit(tokens, row_len)
            order = np.argsort(row, kind="stable")  # row by row, in the order of the stream
            piece_file.write(np.column_stack([start, tokens])[order].tobytes())
            count = np.bincount(row)
            end_file.write((pieces + np.cumsum(count) - count).tobytes())
            rows, pieces = rows + len(count), pieces + len(row)
        end_file.write(np.array([pieces], np.int64).tobytes())
    return FittedRows(rows, rows * row_len - int(starts[-1]), folder, stem)


def fit(sizes: Ints, capacity: int) -> Ints:
    """Row of each piece (pieces,), rows numbered in the order they are opened. Sizes are 1 to `capacity`.

    Pieces come by size, the largest first, equal ones in the order given. Each goes to a row with the least free room
    that holds it, of those the one that has had this much room the longest; if there is none, a row is opened.
    """
    order = np.argsort(-sizes, kind="stable")
    row = np.empty(len(sizes), np.int64)
    free: list[list[Ints]] = [[] for _ in range(capacity + 1)]  # rows by their free room, in runs
    opened = done = 0
    for size, count in zip(*_descending_counts(sizes), strict=True):
        room = size
        left = order[done : done + count]
        done += count
        # All pieces of one size at a time. A row with the least room that holds one takes as many as it holds: with
        # what it has left it is again the one with the least.
        while len(left):
            while room < capacity and not free[room]:
                room += 1
            each = room // size
            wanted = -(-len(left) // each)
            if free[room]:
                run = free[room].pop(0)
                if len(run) > wanted:
                    free[room].insert(0, run[wanted:])
                    run = run[:wanted]
            else:  # nothing holds it
                run = np.arange(opened, opened + wanted)
                opened += wanted
            taken = min(len(left), len(run) * each)
            row[left[:taken]] = np.repeat(run, each)[:taken]
            left = left[taken:]
            whole, rest = divmod(taken, each)
            if whole:
                free[room - each * size].append(run[:whole])
            if rest:
                free[room - rest * size].append(run[whole:])
    return row


def _descending_counts(sizes: Ints) -> tuple[list[int], list[int]]:
    """The sizes that occur, largest first, and how many pieces have each."""
    values, counts = np.unique(sizes, return_counts=True)
    return values[::-1].tolist(), counts[::-1].tolist()


def _windows(starts: Ints, row_len: int) -> Iterator[tuple[Ints, Ints]]:
    """First token and tokens of every piece, WINDOW at a time, in the order of the stream."""
    kept: list[tuple[Ints, Ints]] = []
    held = 0
    for first in range(0, len(starts) - 1, DOCUMENTS):
        edges = np.asarray(starts[first : first + DOCUMENTS + 1])
        count = -(-np.diff(edges) // row_len)  # pieces of each document
        inside = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        start = np.repeat(edges[:-1], count) + inside * row_len
        tokens = np.minimum(np.repeat(edges[1:], count) - start, row_len)
        kept.append((start, tokens))
        held += len(start)
        while held >= WINDOW:
            start, tokens = (np.concatenate(each) for each in zip(*kept, strict=True))
            yield start[:WINDOW], tokens[:WINDOW]
            kept, held = [(start[WINDOW:], tokens[WINDOW:])], held - WINDOW
    if held:
        start, tokens = (np.concatenate(each) for each in zip(*kept, strict=True))
        yield start, tokens
