"""A chunk of shards as an Arrow table, for whatever reads Arrow: nothing of it is copied, but for names of sources."""

from __future__ import annotations

from typing import Any

import numpy as np

from mobillama.data.chunk import Arrays
from mobillama.data.header import SPAN_ARRAYS
from mobillama.errors import missing_extra

PREFIX = "span_"


def chunk_table(arrays: Arrays, sources: tuple[str, ...]) -> Any:
    """A pyarrow table over the arrays of a chunk: ids, source, row_bytes, spans. Error: MissingExtraError."""
    try:
        import pyarrow
    except ImportError as error:
        raise missing_extra("data", error) from None
    rows, row_len = arrays["ids"].shape
    spans = {name.removeprefix(PREFIX): arrays[name] for name in SPAN_ARRAYS if name in arrays}
    struct = pyarrow.StructArray.from_arrays([pyarrow.array(values) for values in spans.values()], list(spans))
    offsets = pyarrow.array(arrays["span_offsets"].view(np.int64))
    columns = {
        "ids": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(arrays["ids"].reshape(-1)), row_len),
        "source": pyarrow.array(list(sources), pyarrow.string()).take(pyarrow.array(arrays["row_source"])),
        "row_bytes": pyarrow.array(arrays["row_bytes"]),
        "spans": pyarrow.LargeListArray.from_arrays(offsets, struct),
    }
    table = pyarrow.table(columns)
    assert len(table) == rows
    return table
