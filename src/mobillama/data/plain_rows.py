"""Training rows of shards one at a time, without numpy: a look-up of a row or two costs less than importing it.

`shards` reads the same files as arrays. Both check the same headers.
"""

from __future__ import annotations

import bisect
import itertools
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mobillama import manifest
from mobillama.data.document_lines import DocumentLines, open_lines
from mobillama.data.header import SPAN_ARRAYS, VALIDATION, read_headers
from mobillama.data.layout import ITEM_BYTES
from mobillama.data.span import Span
from mobillama.errors import InputError

if TYPE_CHECKING:
    from mobillama.data.documents import DocumentTable

FORMATS = {"U8": "B", "U16": "H", "U32": "I", "U64": "Q"}


@dataclass(frozen=True)
class Row:
    """One row: its ids (row_len), the source it is from and the documents it was cut from."""

    ids: list[int]
    source: str
    spans: list[Span]


class PlainRows:
    """The training rows of one shards folder by their global numbers."""

    def __init__(self, folder: Path) -> None:
        """Check the header of every chunk. Errors: InputError, DamagedFileError naming the file."""
        self.folder, self.manifest = folder, manifest.read(folder, "shards")
        self.header, extents = read_headers(folder, self.manifest.files)
        del extents[VALIDATION]
        self._chunks = list(extents.items())
        self.chunk_rows = tuple(arrays["ids"].shape[0] for _, arrays in self._chunks)

    def row(self, number: int) -> Row:
        """The row of this global number. Errors: InputError for a row or an id that cannot be."""
        ends = list(itertools.accumulate(self.chunk_rows))
        if not 0 <= number < ends[-1]:
            raise InputError(f"{self.folder}: row {number} of train; it has rows 0 to {ends[-1] - 1}")
        chunk = bisect.bisect_right(ends, number)
        place, length = number - (ends[chunk] - self.chunk_rows[chunk]), self.header.row_len
        name, arrays = self._chunks[chunk]
        with (self.folder / name).open("rb") as file:

            def read(name: str, start: int, count: int) -> list[int]:
                found = arrays[name]
                file.seek(found.start + ITEM_BYTES[found.type] * start)
                return list(struct.unpack(f"<{count}{FORMATS[found.type]}", file.read(ITEM_BYTES[found.type] * count)))

            ids = read("ids", place * length, length)
            (source,) = read("row_source", place, 1)
            first, last = read("span_offsets", place, 2)
            documents, tokens, counts, starts, stops = (read(name, first, last - first) for name in SPAN_ARRAYS[:5])
        if (high := max(ids)) >= self.header.vocab_size:
            raise InputError(
                f"{self.folder}: train row {number} holds id {high}; the vocabulary has {self.header.vocab_size} ids "
                f"(0 to {self.header.vocab_size - 1}): check the files with `mobillama verify`"
            )
        lines = self._lines.lines(documents) if documents else []
        spans = [
            Span(line["id"], line["source"], line["license"], line["url"], token, count, start, stop, document)
            for line, token, count, start, stop, document in zip(
                lines, tokens, counts, starts, stops, documents, strict=True
            )
        ]
        return Row(ids, self.header.sources[source], spans)

    @cached_property
    def _lines(self) -> DocumentLines | DocumentTable:
        return open_lines(self.folder / "documents")
