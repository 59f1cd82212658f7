"""The documents table of a corpus or shards folder: Parquet parts whose lines are numbered through, in name order.

Document n of the table is what a span's `span_document` names.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mobillama.errors import DamagedFileError, missing_extra


def read_documents(folder: Path, numbers: Iterable[int], columns: list[str] | None = None) -> dict[int, dict[str, Any]]:
    """Lines of the table by number. Errors: DamagedFileError if a number or a part cannot be read."""
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise missing_extra("data", error) from None
    wanted = sorted(set(numbers))
    found: dict[int, dict[str, Any]] = {}
    start = 0
    for path in sorted(folder.glob("*.parquet")):
        if len(found) == len(wanted):
            break
        try:
            file = parquet.ParquetFile(path, memory_map=True)
            groups = file.metadata
            for group in range(groups.num_row_groups):
                stop = start + groups.row_group(group).num_rows
                if here := [number for number in wanted if start <= number < stop]:
                    table = file.read_row_group(group, columns=columns)
                    lines = table.take([number - start for number in here]).to_pylist()
                    found.update(zip(here, lines, strict=True))
                start = stop
        except (OSError, pyarrow.ArrowException) as error:
            raise DamagedFileError(f"{path} cannot be read ({error}); restore it or build the artefact again") from None
    if missing := [number for number in wanted if number not in found]:
        raise DamagedFileError(f"{folder} holds documents 0 to {start - 1}; document {missing[0]} is not among them")
    return found
