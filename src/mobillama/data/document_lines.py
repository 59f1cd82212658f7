"""What a look-up tells of a document, by its number, readable without pyarrow: loading that takes longer than looking.

Beside each part of the shards' documents table lies `part_00000.safetensors` with the lines of that part. Format:
docs/formats.md.
"""

from __future__ import annotations

import bisect
import json
import mmap
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobillama.data.layout import read_layout
from mobillama.errors import DamagedFileError, InputError

if TYPE_CHECKING:
    from mobillama.data.documents import DocumentTable

FORMAT, FORMAT_VERSION = "mobillama.document_lines", 1
COLUMNS = ("id", "source", "license", "url")
PARTS_KEPT = 64


class DocumentLines:
    """Lines of all documents by number."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.paths = folder, sorted(folder.glob("*.safetensors"))
        self._part = lru_cache(PARTS_KEPT)(_Part)

    def lines(self, numbers: Iterable[int]) -> list[dict[str, Any]]:
        """The lines of some documents, in the order asked for. Error: DamagedFileError for one that is not there."""
        found = []
        for number in numbers:
            place = bisect.bisect_right(self.paths, number, key=lambda path: self._part(path).first) - 1
            part = self._part(self.paths[max(0, place)])
            if not 0 <= number - part.first < part.count:
                raise DamagedFileError(
                    f"{self.folder} holds no document {number}; restore it or build the shards again"
                )
            found.append(dict(zip(COLUMNS, part.line(number - part.first), strict=True)))
        return found


class _Part:
    """The file of one part, memory-mapped: `first` is the number of its first document, `count` how many it has."""

    def __init__(self, path: Path) -> None:
        arrays, metadata = read_layout(path)
        try:
            if metadata["format"] != FORMAT:
                raise ValueError(f"format {metadata['format']!r}")
            if (version := int(metadata["format_version"])) > FORMAT_VERSION:
                raise InputError(f"{path} has format version {version}; this mobillama reads up to {FORMAT_VERSION}")
            self.path, self.first, (ends,) = path, int(metadata["first"]), arrays["offsets"].shape
            self.count, self.offsets, self.start = ends - 1, arrays["offsets"].start, arrays["lines"].start
        except InputError:
            raise
        except (KeyError, ValueError) as error:
            raise DamagedFileError(f"{path} holds no lines of documents ({error}); build the shards again") from None
        with path.open("rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def line(self, place: int) -> list[str]:
        begin, end = (
            int.from_bytes(self.data[at : at + 8], "little")
            for at in (self.offsets + 8 * place, self.offsets + 8 * place + 8)
        )
        try:
            found = json.loads(self.data[self.start + begin : self.start + end])
        except ValueError as error:
            raise DamagedFileError(f"{self.path}: line {place} cannot be read ({error}); restore the file") from None
        return list(found)


def open_lines(folder: Path) -> DocumentLines | DocumentTable:
    """The lines of a documents folder; of shards that were built before there were any, read from its Parquet."""
    lines = DocumentLines(folder)
    if lines.paths:
        return lines
    from mobillama.data.documents import DocumentTable

    return DocumentTable(folder, COLUMNS)


def metadata(first: int) -> dict[str, str]:
    """What the file of a part says of itself; `first` is the number of its first document."""
    return {"format": FORMAT, "format_version": str(FORMAT_VERSION), "first": str(first)}
