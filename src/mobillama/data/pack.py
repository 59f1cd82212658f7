"""Packing: the documents of a source form one stream of tokens; rows are made of pieces of it and dealt to chunks.

Concatenated (Amber), row r of a source holds tokens [r * row_len, (r + 1) * row_len) of its stream; what is left at the
end is counted and dropped. Best fit lays whole documents into rows and pads them (best_fit.py). Row p of the shards is
row `permute(key(DEALING, seed), rows, p)` of all streams, and chunk c of C holds rows c * rows // C up to
(c + 1) * rows // C: pure functions, so chunks are written in any order.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from mobillama.data.best_fit import fit_documents
from mobillama.data.chunk import Arrays, write_chunk
from mobillama.data.encode import BASE
from mobillama.data.header import VALIDATION, Header, chunk_name
from mobillama.data.order import DEALING, key
from mobillama.data.parts import replacing
from mobillama.data.stream import permute
from mobillama.errors import DamagedFileError

Ints = NDArray[np.int64]
Method = Literal["concatenate", "best_fit"]
OPEN_FILES = 300  # a process may often have 1,024 open


class Layout(Protocol):
    """Which pieces of a stream each of its rows is made of."""

    @property
    def rows(self) -> int:
        """Rows of the stream."""
        ...

    @property
    def padding(self) -> int:
        """Positions of the rows that hold no token."""
        ...

    def find(self, rows: Ints) -> tuple[Ints, Ints, Ints]:
        """Pieces of some rows in order: their number in each row (rows,), first token and tokens of each (pieces,)."""
        ...


@dataclass(frozen=True)
class CutRows:
    """Rows of `row_len` tokens, one after the other: each is one piece."""

    rows: int
    row_len: int
    padding: int = 0

    def find(self, rows: Ints) -> tuple[Ints, Ints, Ints]:
        """As Layout says."""
        return np.ones_like(rows), rows * self.row_len, np.full_like(rows, self.row_len)


@dataclass(frozen=True)
class Stream:
    """The tokens of one source and split: encoded parts laid end to end, and the rows they make.

    `starts` and `byte_starts` (parts + 1,) say where each part begins, in tokens and in bytes of text. `table` is a
    file of int64 (documents + 1, 3): first token, first byte and number of each document, closed by the stream's ends.
    """

    stems: tuple[Path, ...]
    starts: Ints
    byte_starts: Ints
    table: Path
    layout: Layout

    @property
    def tokens(self) -> int:
        """Tokens in the whole stream."""
        return int(self.starts[-1])

    @cached_property
    def documents(self) -> Ints:
        """The table, memory-mapped."""
        return np.memmap(self.table, np.int64, "r").reshape(-1, 3)

    def read(self, start: int, ids: NDArray[Any], lengths: NDArray[Any], parts: Parts) -> int:
        """Fill `ids` and `lengths` (n,) with the tokens from `start` on; the bytes of text before `start`."""
        part = int(np.searchsorted(self.starts, start, side="right")) - 1
        inside = start - int(self.starts[part])
        base = inside // BASE
        before = parts.read(self.stems[part], "lengths", np.uint16, base * BASE, inside).sum(dtype=np.int64)
        before += self.byte_starts[part] + parts.read(self.stems[part], "bases", np.int64, base, base + 1)[0]
        done = 0
        while done < len(ids):
            stop = min(inside + len(ids) - done, int(self.starts[part + 1] - self.starts[part]))
            count = stop - inside
            ids[done : done + count] = parts.read(self.stems[part], "ids", ids.dtype, inside, stop)
            lengths[done : done + count] = parts.read(self.stems[part], "lengths", np.uint16, inside, stop)
            part, inside, done = part + 1, 0, done + count
        return int(before)


class Parts:
    """Reads ranges of encoded parts; the files read last stay open.

    Not memory maps: rows of a chunk come from everywhere, so that a worker would in time hold the whole corpus.
    """

    def __init__(self) -> None:
        self.opened: OrderedDict[Path, FileIO] = OrderedDict()

    def read(self, stem: Path, name: str, dtype: Any, start: int, stop: int) -> NDArray[Any]:
        """Elements `start` to `stop` of the array in `<stem>.<name>`. Error: DamagedFileError if it is too short."""
        path, size = stem.with_name(f"{stem.name}.{name}"), np.dtype(dtype).itemsize
        file = self.opened.pop(path, None) or path.open("rb", buffering=0)
        self.opened[path] = file
        if len(self.opened) > OPEN_FILES:
            self.opened.popitem(last=False)[1].close()
        data = os.pread(file.fileno(), (stop - start) * size, start * size)
        if len(data) != (stop - start) * size:
            raise DamagedFileError(f"{path} ends before element {stop}; remove {path.parent.parent} and build again")
        return np.frombuffer(data, dtype)

    def close(self) -> None:
        """Close all files."""
        while self.opened:
            self.opened.popitem()[1].close()


def plan_stream(stems: list[Path], table: Path, method: Method, row_len: int) -> Stream:
    """Lay encoded parts end to end and plan their rows; writes the stream's table and, beside it, that of the rows."""
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
    layout: Layout = CutRows(int(edges[-1, 0]) // row_len, row_len)
    if method == "best_fit":
        starts = np.memmap(table, np.int64, "r").reshape(-1, 3)[:, 0]
        layout = fit_documents(starts, row_len, table.parent, table.stem)
    return Stream(tuple(kept), edges[:, 0], edges[:, 1], table, layout)


@dataclass(frozen=True)
class Plan:
    """What goes into the shards: per source one training and one held-out stream, each with its rows."""

    header: Header
    end_id: int  # </s>, which fills what is left of a row
    seed: int
    chunks: int
    train: tuple[Stream, ...]
    validation: tuple[Stream, ...]

    def rows(self, streams: tuple[Stream, ...]) -> list[int]:
        """Rows of each stream."""
        return [stream.layout.rows for stream in streams]

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
    """The rows of one chunk: the pieces each is made of, and the documents these meet."""

    def __init__(self, plan: Plan, streams: tuple[Stream, ...], rows: Ints) -> None:
        self.row_len, self.end_id, self.streams = plan.header.row_len, plan.end_id, streams
        ends = np.cumsum(plan.rows(streams))
        self.source = np.searchsorted(ends, rows, side="right")  # (rows,)
        self.pieces = np.zeros(len(rows), np.int64)  # in each row
        inside = rows - np.concatenate([[0], ends])[self.source]  # the row in its stream
        found = []
        for source, stream in enumerate(streams):
            here = self.source == source
            self.pieces[here], start, tokens = stream.layout.find(inside[here])
            begins = stream.documents[:-1, 0]
            first = np.searchsorted(begins, start, side="right") - 1
            last = np.searchsorted(begins, start + tokens, side="left")
            found.append(np.stack([start, tokens, first, last - first]))
        row = np.repeat(np.arange(len(rows)), self.pieces)  # (pieces,)
        every = np.empty((4, len(row)), np.int64)
        for source, part in enumerate(found):
            every[:, self.source[row] == source] = part
        self.start, self.tokens, first, count = every  # in the stream; `first` and `count` of the documents met
        filled = np.cumsum(self.tokens)
        first_piece = np.cumsum(self.pieces) - self.pieces  # of each row
        self.place = filled - self.tokens - np.concatenate([[0], filled])[first_piece[row]]  # first position in the row
        self.sizes = np.zeros(len(row), np.int64)  # bytes of text in the piece
        self.before = np.zeros(len(row), np.int64)  # bytes of text in the stream before the piece
        self.piece = np.repeat(np.arange(len(row)), count)  # (spans,)
        self.document = first[self.piece] + np.arange(len(self.piece)) - (np.cumsum(count) - count)[self.piece]
        self.offsets = np.concatenate(
            [[0], np.cumsum(np.bincount(row[self.piece], minlength=len(rows)))]
        )  # (rows + 1,)

    def fill(self, arrays: Arrays) -> None:
        """Write all arrays of the chunk."""
        arrays["row_source"][:] = self.source
        arrays["span_offsets"][:] = self.offsets
        for source, span, piece, document in self._spans():
            start, _, number = self.streams[source].documents[document].T
            end = self.streams[source].documents[document + 1, 0]
            first, stop = self.start[piece], self.start[piece] + self.tokens[piece]
            token = np.maximum(start, first)
            arrays["span_document"][span] = number
            arrays["span_token"][span] = token - first + self.place[piece]
            arrays["span_tokens"][span] = np.minimum(end, stop) - token
        self._fill_rows(arrays)
        for source, span, piece, document in self._spans():
            byte, byte_end = (self.streams[source].documents[document + later, 1] for later in (0, 1))
            start, end = (self.streams[source].documents[document + later, 0] for later in (0, 1))
            first, stop = self.start[piece], self.start[piece] + self.tokens[piece]
            arrays["span_byte_start"][span] = np.where(start >= first, 0, self.before[piece] - byte)
            covered = np.where(end <= stop, byte_end, self.before[piece] + self.sizes[piece])
            arrays["span_byte_end"][span] = covered - byte

    def _fill_rows(self, arrays: Arrays) -> None:
        """Write ids and bytes row by row, and remember the bytes of each piece."""
        parts, lengths = Parts(), np.empty(self.row_len, np.uint16)
        starts, tokens, places = (each.tolist() for each in (self.start, self.tokens, self.place))
        offsets, edges = self.offsets.tolist(), np.concatenate([[0], np.cumsum(self.pieces)]).tolist()
        for row, source in enumerate(self.source.tolist()):
            stream, ids, stop = self.streams[source], arrays["ids"][row], 0
            for piece in range(edges[row], edges[row + 1]):
                here = slice(places[piece], stop := places[piece] + tokens[piece])
                self.before[piece] = stream.read(starts[piece], ids[here], lengths[here], parts)
                self.sizes[piece] = lengths[here].sum(dtype=np.int64)
            ids[stop:] = self.end_id
            arrays["row_bytes"][row] = self.sizes[edges[row] : edges[row + 1]].sum() - int(lengths[0])
            spans = slice(offsets[row], offsets[row + 1])
            arrays["span_first_bytes"][spans] = lengths[arrays["span_token"][spans]]
        parts.close()

    def _spans(self) -> Iterator[tuple[int, Ints, Ints, Ints]]:
        """Per source: the spans of its rows, and of each its piece and its document in the stream's table."""
        source_of = np.repeat(self.source, self.pieces)[self.piece]
        for source in range(len(self.streams)):
            span = np.nonzero(source_of == source)[0]
            yield source, span, self.piece[span], self.document[span]
