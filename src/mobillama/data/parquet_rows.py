"""Parquet: each row is a document. Pages are read one after the other, rows in batches of BATCH_ROWS.

A row that cannot be turned into text is bad; a row group with a damaged page is damage to the file.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from datatrove.data import Document

from mobillama.data.bad_records import bad_record, damaged_file
from mobillama.data.compressed import BUFFER, Opened
from mobillama.data.record import from_record, too_long
from mobillama.data.sources import Task
from mobillama.errors import InputError

BATCH_ROWS = 256
MAGIC = b"PAR1"


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
                            for row in range(batch.num_rows):
                                number += 1
                                yield _document(task, source.where, name, number, batch, row)
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


def _document(task: Task, where: str, name: str, number: int, batch: Any, row: int) -> Document:
    values = {column: batch.column(place)[row] for place, column in enumerate(batch.schema.names)}
    try:
        record = {column: value.as_py() for column, value in values.items()}
    except UnicodeDecodeError as error:
        found = f"a field that is no UTF-8 ({error.reason} at byte {error.start})"
        size = _bytes_of(values.get(task.source.text_field))
        return bad_record(task, where, name, number, "invalid_utf8", found, size=size)
    document = from_record(task, where, name, number, record)
    if (size := document.metadata["raw_bytes"]) > task.source.max_record_bytes:
        return too_long(task, where, name, number, size)
    return document


def _bytes_of(value: Any) -> int:
    """Bytes of a cell; 0 where there is none."""
    value = getattr(value, "value", value)  # of a dictionary
    return len(value.as_buffer() or b"") if hasattr(value, "as_buffer") else 0


def _words(error: Exception) -> str:
    return " ".join(str(error).split())
