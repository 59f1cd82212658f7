"""Packing: the documents of a source form one stream of tokens; rows are cut from it and dealt to chunks.

Row r of a source holds tokens [r * row_len, (r + 1) * row_len) of its stream (Amber: rows do not overlap); what is left
at the end is counted and dropped. Row p of the shards is row `permute(key(DEALING, seed), rows, p)` of all streams, and
chunk c of C holds rows c * rows // C up to (c + 1) * rows // C: pure functions, so chunks are written in any order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from mobillama.data.chunk import VALIDATION, Arrays, Header, chunk_name, write_chunk
from mobillama.data.encode import BASE
from mobillama.data.parts import replacing
from mobillama.data.stream import DEALING, key, permute

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Stream:
    """The tokens of one source and split: encoded parts laid end to end.

    `starts` and `byte_starts` (parts + 1,) say where each part begins, in tokens and in bytes of text. `table` is a
    file of int64 (documents + 1, 3): first token, first byte and number of each document, closed by the stream's ends.
    """

    stems: tuple[Path, ...]
    starts: Ints
    byte_starts: Ints
    table: Path

    @property
    def tokens(self) -> int:
        """Tokens in the whole stream."""
        return int(self.starts[-1])

    @cached_property
    def documents(self) -> Ints:
        """The table, memory-mapped."""
        return np.memmap(self.table, np.int64, "r").reshape(-1, 3)

    def read(self, start: int, ids: NDArray[Any], lengths: NDArray[Any], maps: Maps) -> int:
        """Fill `ids` and `lengths` (n,) with the tokens from `start` on; the bytes of text before `start`."""
        part = int(np.searchsorted(self.starts, start, side="right")) - 1
        inside = start - int(self.starts[part])
        base = inside // BASE
        before = maps.open(self.stems[part], "lengths", np.uint16)[base * BASE : inside].sum(dtype=np.int64)
        before += self.byte_starts[part] + maps.open(self.stems[part], "bases", np.int64)[base]
        done = 0
        while done < len(ids):
            stop = min(inside + len(ids) - done, int(self.starts[part + 1] - self.starts[part]))
            count = stop - inside
            ids[done : done + count] = maps.open(self.stems[part], "ids", ids.dtype)[inside:stop]
            lengths[done : done + count] = maps.open(self.stems[part], "lengths", np.uint16)[inside:stop]
            part, inside, done = part + 1, 0, done + count
        return int(before)


class Maps:
    """Memory maps of encoded parts, opened on first use."""

    def __init__(self) -> None:
        self.opened: dict[tuple[Path, str], NDArray[Any]] = {}

    def open(self, stem: Path, name: str, dtype: Any) -> NDArray[Any]:
        """The array in file `<stem>.<name>`."""
        if (stem, name) not in self.opened:
            self.opened[stem, name] = np.memmap(stem.with_name(f"{stem.name}.{name}"), dtype, "r")
        return self.opened[stem, name]


def plan_stream(stems: list[Path], table: Path) -> Stream:
    """Lay encoded parts end to end; writes the stream's table."""
    kept, ends = [], [np.zeros(3, np.int64)]  # first token and first byte of the next document
    with replacing(table) as beside, beside.open("wb") as file:
        for stem in stems:
            records = np.fromfile(f"{stem}.records", np.int64).reshape(-1, 3)
            if len(records):
                number, sizes = records[:, 0], records[:, 1:]  # sizes in tokens and in bytes
                lines = np.column_stack([ends[-1][:2] + np.cumsum(sizes, axis=0) - sizes, number])
                file.write(lines.tobytes())
                kept.append(stem)
                ends.append(np.append(lines[-1, :2] + sizes[-1], 0))
        file.write(ends[-1].tobytes())
    edges = np.stack(ends)
    return Stream(tuple(kept), edges[:, 0], edges[:, 1], table)


@dataclass(frozen=True)
class Plan:
    """What goes into the shards: per source one training and one held-out stream, and the rows cut from each."""

    header: Header
    seed: int
    chunks: int
    train: tuple[Stream, ...]
    validation: tuple[Stream, ...]

    def rows(self, streams: tuple[Stream, ...]) -> list[int]:
        """Whole rows of each stream."""
        return [stream.tokens // self.header.row_len for stream in streams]

    def chunk(self, number: int) -> tuple[str, tuple[Stream, ...], Ints]:
        """File name, streams and rows (numbered through the streams) of chunk `number`; after the last: validation."""
        if number == self.chunks:
            return VALIDATION, self.validation, np.arange(sum(self.rows(self.validation)))
        total = sum(self.rows(self.train))
        places = np.arange(number * total // self.chunks, (number + 1) * total // self.chunks, dtype=np.uint64)
        return chunk_name(number, self.chunks), self.train, permute(key(DEALING, self.seed), total, places)


class WriteChunk(PipelineStep):  # type: ignore[misc]
    """Writes chunk `rank`, or the validation rows after the last chunk."""

    name, type = "pack", "writer"
    counter: Any

    def __init__(self, plan: Plan, out: Path) -> None:
        super().__init__()
        self.plan, self.out = plan, out

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Write the file whole or not at all; yields nothing."""
        name, streams, rows = self.plan.chunk(rank)
        cut = Cut(self.plan, streams, rows)
        with self.counter.of(rank) as done, replacing(self.out / name) as beside:
            write_chunk(beside, self.plan.header, len(rows), len(cut.document), cut.fill)
            done += (0, int(cut.sizes.sum()))
        yield from ()


class Cut:
    """The rows of one chunk: where each begins in its stream, and the documents it meets."""

    def __init__(self, plan: Plan, streams: tuple[Stream, ...], rows: Ints) -> None:
        self.row_len, self.streams = plan.header.row_len, streams
        ends = np.cumsum(plan.rows(streams))
        self.source = np.searchsorted(ends, rows, side="right")  # (rows,)
        self.start = (rows - np.concatenate([[0], ends])[self.source]) * self.row_len  # first token in the stream
        self.sizes = np.zeros(len(rows), np.int64)  # bytes of text in the row
        self.before = np.zeros(len(rows), np.int64)  # bytes of text in the stream before the row
        first, last = np.zeros_like(self.start), np.zeros_like(self.start)
        for source, stream in enumerate(streams):
            here = self.source == source
            begins = stream.documents[:-1, 0]
            first[here] = np.searchsorted(begins, self.start[here], side="right") - 1
            last[here] = np.searchsorted(begins, self.start[here] + self.row_len, side="left")
        count = last - first
        self.offsets = np.concatenate([[0], np.cumsum(count)])  # (rows + 1,)
        self.row = np.repeat(np.arange(len(rows)), count)  # (spans,)
        self.document = first[self.row] + np.arange(len(self.row)) - self.offsets[self.row]  # in the stream's table

    def fill(self, arrays: Arrays) -> None:
        """Write all arrays of the chunk."""
        maps, lengths = Maps(), np.empty(self.row_len, np.uint16)
        for place, (source, start) in enumerate(zip(self.source.tolist(), self.start.tolist(), strict=True)):
            self.before[place] = self.streams[source].read(start, arrays["ids"][place], lengths, maps)
            self.sizes[place] = lengths.sum(dtype=np.int64)
            arrays["row_bytes"][place] = self.sizes[place] - lengths[0]
        arrays["row_source"][:] = self.source
        arrays["span_offsets"][:] = self.offsets
        for source, stream in enumerate(self.streams):
            here = np.nonzero(self.source[self.row] == source)[0]  # spans of this source
            row, document = self.row[here], self.document[here]
            start, byte, number = stream.documents[document].T
            end, byte_end, _ = stream.documents[document + 1].T
            row_start, row_end = self.start[row], self.start[row] + self.row_len
            token = np.maximum(start, row_start)
            arrays["span_document"][here] = number
            arrays["span_token"][here] = token - row_start
            arrays["span_tokens"][here] = np.minimum(end, row_end) - token
            arrays["span_byte_start"][here] = np.where(start >= row_start, 0, self.before[row] - byte)
            covered = np.where(end <= row_end, byte_end, self.before[row] + self.sizes[row])
            arrays["span_byte_end"][here] = covered - byte
