"""Parquet: each row is a document. Pages are read one after the other, rows in batches of BATCH_ROWS.

Held are a page of each column and the cells of a batch, which no dictionary makes more than BATCH_ROWS times
DICTIONARY_BYTES. A row that cannot be turned into text is bad; a row group with a damaged page is damage to the file.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from datatrove.data import Document

from mobillama.data.bad_records import bad_record, damaged_file
from mobillama.data.compressed import BUFFER, Opened
from mobillama.data.record import from_record, too_long
from mobillama.data.sources import Task
from mobillama.errors import InputError

BATCH_ROWS = 256
DICTIONARY_BYTES = 4 << 20  # what writers keep below, so that a batch of rows has at most BATCH_ROWS times as many
MAGIC = b"PAR1"

Cells = dict[str, Callable[[int], Any]]  # of a batch, by column: from a row's number to its cell


class _Nothing:
    """A cell without a value."""

    def as_py(self) -> None:
        """None."""


NOTHING = _Nothing()


def read_rows(task: Task, source: Opened, name: str) -> Iterator[Document]:
    """Documents of a file, `record` counts its rows. A remote one is fetched whole to a temporary file first: its
    columns lie apart in it. Errors: DamagedFileError, InputError.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    head: bytes = source.raw.peek(len(MAGIC))[: len(MAGIC)]  # type: ignore[attr-defined]
    with tempfile.NamedTemporaryFile(prefix="mobillama-", suffix=".parquet") as spool:
        if source.path is None:
            shutil.copyfileobj(source.raw, spool, BUFFER)
            spool.flush()
        try:
            file = parquet.ParquetFile(source.path or spool.name, buffer_size=BUFFER)
            columns = _columns(task, file.schema_arrow.names)
            if large := _dictionaries(file, columns, source.path or spool.name):
                # They stay dictionaries: spelled out, a long text that every row repeats would have no bound.
                file = parquet.ParquetFile(source.path or spool.name, buffer_size=BUFFER, read_dictionary=large)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # the last of a column's name
            if isinstance(error, OSError) and error.errno:
                raise
            why = (
                "it is cut short or damaged: fetch it again" if head == MAGIC else "it is no Parquet file: leave it out"
            )
            yield damaged_file(task, source.where, name, 0, f" cannot be read as Parquet ({_words(error)}); {why}")
            return
        except _DoubledError as error:
            yield damaged_file(task, source.where, name, 0, f" {error}", InputError)
            return
        with file:
            first = 0
            for group in range(file.num_row_groups):
                rows, number = file.metadata.row_group(group).num_rows, first
                try:
                    if columns:
                        for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns):
                            cells = {column: _cells(batch.column(column)) for column in batch.schema.names}
                            for row in range(batch.num_rows):
                                number += 1
                                yield _document(task, source.where, name, number, cells, row)
                    else:  # no field of these files is known
                        for number in range(first + 1, first + rows + 1):
                            yield from_record(task, source.where, name, number, dict.fromkeys(file.schema_arrow.names))
                except (pyarrow.ArrowException, OSError) as error:
                    if isinstance(error, OSError) and error.errno:
                        raise
                    found = (
                        f": after row {number} the rows up to {first + rows} cannot be read ({_words(error)}); it is "
                        "damaged: fetch it again"
                    )
                    yield damaged_file(task, source.where, name, number, found)
                first += rows


class _DoubledError(Exception):
    """Two columns of the same name."""


def _columns(task: Task, names: list[str]) -> list[str]:
    """The columns to read, a field inside a column by its path. Error: _DoubledError for a name that two have."""
    source = task.source
    found = []
    for field in dict.fromkeys((source.text_field, source.id_field, source.url_field, source.license_field)):
        top = field if field in names else field.partition(".")[0]
        if (count := names.count(top)) > 1:
            raise _DoubledError(f"has {count} columns {top!r}; expected one: rename the others, or leave the file out")
        if count:
            found.append(field)
    return found


def _dictionaries(file: Any, columns: list[str], path: Path | str) -> list[str]:
    """The paths of those columns that have a dictionary of more than DICTIONARY_BYTES in a row group."""
    found = []
    with Path(path).open("rb") as pages:
        for number in range(len(file.schema)):
            leaf = file.schema.column(number)
            if leaf.path in columns and leaf.physical_type == "BYTE_ARRAY":
                chunks = (file.metadata.row_group(group).column(number) for group in range(file.num_row_groups))
                if any(_dictionary_bytes(pages, chunk) > DICTIONARY_BYTES for chunk in chunks):
                    found.append(leaf.path)
    return found


def _dictionary_bytes(pages: IO[bytes], chunk: Any) -> int:
    """Bytes of the dictionary that a column chunk begins with; 0 without one. From the header of its first page: two
    fields of Thrift's compact form, type (2 = dictionary) and size without compression."""
    pages.seek(chunk.dictionary_page_offset or chunk.data_page_offset)
    head = pages.read(12)
    if head[:3] != b"\x15\x04\x15":  # an i32 field, 2 as a zigzag number, an i32 field
        return 0
    size = shift = 0
    for byte in head[3:]:
        size |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            break
    return size >> 1


def _cells(array: Any) -> Callable[[int], Any]:
    """What gives the cell of a row; None where a dictionary has none for it."""
    import pyarrow

    if not isinstance(array, pyarrow.DictionaryArray):
        return array.__getitem__  # type: ignore[no-any-return]
    values, places = array.dictionary, array.indices.to_pylist()  # much faster than pyarrow's scalars of dictionaries
    return lambda row: NOTHING if (place := places[row]) is None else values[place]


def _document(task: Task, where: str, name: str, number: int, cells: Cells, row: int) -> Document:
    try:
        record = {column: cell(row).as_py() for column, cell in cells.items()}
    except UnicodeDecodeError as error:
        found = f"a field that is no UTF-8 ({error.reason} at byte {error.start})"
        size = _bytes_of(cells[task.source.text_field](row)) if task.source.text_field in cells else 0
        return bad_record(task, where, name, number, "invalid_utf8", found, size=size)
    document = from_record(task, where, name, number, record)
    if (size := document.metadata["raw_bytes"]) > task.source.max_record_bytes:
        return too_long(task, where, name, number, size)
    return document


def _bytes_of(cell: Any) -> int:
    """Bytes of a cell; 0 where there is none, or fields inside it."""
    return len(cell.as_buffer() or b"") if hasattr(cell, "as_buffer") else 0


def _words(error: Exception) -> str:
    return " ".join(str(error).split())
