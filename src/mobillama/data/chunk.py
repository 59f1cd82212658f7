"""One chunk file of shards as arrays, written and memory-mapped; `header` is what it says of itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobillama.data.header import Header, read_header
from mobillama.data.tensors import DTYPES, lay_out, map_extents, write_arrays

Arrays = dict[str, NDArray[Any]]


def write_chunk(path: Path, header: Header, rows: int, spans: int, fill: Callable[[Arrays], None]) -> None:
    """Create one chunk file of `rows` rows and `spans` spans; `fill` writes into its arrays (docs/formats.md)."""
    shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
        "ids": (np.dtype(DTYPES[header.id_type]), (rows, header.row_len)),
        "row_source": (np.uint8, (rows,)),
        "row_bytes": (np.uint32, (rows,)),
        "span_offsets": (np.uint64, (rows + 1,)),
        "span_document": (np.uint64, (spans,)),
        "span_token": (np.uint32, (spans,)),
        "span_tokens": (np.uint32, (spans,)),
        "span_byte_start": (np.uint64, (spans,)),
        "span_byte_end": (np.uint64, (spans,)),
        "span_first_bytes": (np.uint16, (spans,)),
    }
    write_arrays(path, lay_out(shapes, header.metadata()), fill)


def open_chunk(path: Path) -> tuple[Arrays, Header]:
    """Memory-mapped arrays and header of a chunk file.

    Errors: DamagedFileError if it is cut short or its parts contradict each other, InputError if its format is newer.
    """
    header, extents = read_header(path)
    return map_extents(path, extents), header
