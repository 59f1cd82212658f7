"""The documents table of a corpus or shards folder: Parquet parts whose lines are numbered through, in name order.

Document n of the table is what a span's `span_document` names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from mobillama.errors import DamagedFileError, MobillamaError, missing_extra

GROUPS_KEPT = 64


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What pyarrow says of a Parquet file of ours that cannot be read, as a DamagedFileError that names it."""
    import pyarrow

    try:
        yield
    except (OSError, pyarrow.ArrowException) as error:
        if isinstance(error, MobillamaError) or (isinstance(error, OSError) and error.errno):
            raise
        words = " ".join(str(error).split())
        raise DamagedFileError(f"{path} cannot be read ({words}); restore it or build it again") from None


class DocumentTable:
    """Lines of a documents table by number; the row groups read last are kept."""

    def __init__(self, folder: Path, columns: tuple[str, ...] | None = None) -> None:
        """Read the footers of all parts. Error: DamagedFileError naming a part that cannot be read."""
        try:
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise missing_extra("data", error) from None
        self.folder, self.columns = folder, list(columns) if columns else None
        self._files: list[Any] = []
        self._paths: list[Path] = []
        self._groups: list[tuple[int, int]] = []  # file, row group
        sizes = []
        for path in sorted(folder.glob("*.parquet")):
            with reading(path):
                file = parquet.ParquetFile(path, memory_map=True)
            self._paths.append(path)
            for group in range(file.metadata.num_row_groups):
                self._groups.append((len(self._files), group))
                sizes.append(file.metadata.row_group(group).num_rows)
            self._files.append(file)
        self._ends = np.cumsum(sizes, dtype=np.int64)  # (row groups,)
        self._read = lru_cache(GROUPS_KEPT)(self._read_group)

    def __len__(self) -> int:
        """Documents in the table."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def lines(self, numbers: Iterable[int]) -> list[dict[str, Any]]:
        """The lines of some documents, in the order asked for. Error: DamagedFileError for one that is not there."""
        found = []
        for number in numbers:
            if not 0 <= number < len(self):
                raise DamagedFileError(f"{self.folder} holds {len(self)} documents; document {number} is asked for")
            place = int(np.searchsorted(self._ends, number, side="right"))
            start = int(self._ends[place - 1]) if place else 0
            found.append({name: column[number - start].as_py() for name, column in self._read(place).items()})
        return found

    def numbers_where(self, column: str, value: str) -> list[int]:
        """The numbers of the documents that have `value` in a column, in order; reads that column alone."""
        wanted = value.encode("utf-8", "surrogatepass")
        found: list[int] = []
        start = 0
        for path, file in zip(self._paths, self._files, strict=True):
            with reading(path):
                chunks = file.read(columns=[column]).column(0).chunks
            for array in chunks:
                if not len(array):
                    continue
                offsets, data = _strings(array)
                likely = np.nonzero(np.diff(offsets) == len(wanted))[0].tolist()
                found += [start + n for n in likely if data[offsets[n] : offsets[n + 1]] == wanted]
                start += len(array)
        return found

    def texts(self) -> Iterator[tuple[int, Callable[[], Iterator[tuple[int, Any, Any]]]]]:
        """Per part the number of its first document, and a reader of its texts that may run in a thread of its own.

        The reader gives, batch by batch, the number of the first document, the offsets (n + 1,) and the bytes of n
        texts end to end.
        """
        first = 0
        for path, file in zip(self._paths, self._files, strict=True):
            yield first, partial(_read_texts, path, file, first)
            first += file.metadata.num_rows

    def _read_group(self, place: int) -> dict[str, Any]:
        file, group = self._groups[place]
        with reading(self._paths[file]):
            table = self._files[file].read_row_group(group, columns=self.columns)
        return {name: table.column(name) for name in table.column_names}


def _read_texts(path: Path, file: Any, number: int) -> Iterator[tuple[int, Any, Any]]:
    for group in range(file.metadata.num_row_groups):
        with reading(path):
            chunks = file.read_row_group(group, columns=["text"]).column(0).chunks
        for array in chunks:
            if len(array):
                yield number, *_strings(array)
            number += len(array)


def _strings(array: Any) -> tuple[Any, bytes]:
    """Offsets (n + 1,) and bytes of an array of strings. pyarrow.compute would import pandas first, for 0.2 s."""
    wide = np.int64 if str(array.type) == "large_string" else np.int32
    _, offsets, data = array.buffers()
    return np.frombuffer(offsets, wide)[array.offset :][: len(array) + 1], data.to_pybytes() if data else b""
