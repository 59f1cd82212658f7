"""Where the arrays of a file in the safetensors layout lie, read without numpy.

Layout: 8 bytes little-endian length of the header, the header (JSON, padded with spaces), the arrays end to end.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from mobillama.errors import DamagedFileError

ITEM_BYTES = {"U8": 1, "U16": 2, "U32": 4, "U64": 8}


@dataclass(frozen=True)
class Extent:
    """One array of a file: its type (a key of ITEM_BYTES), its shape, and its first byte in the file."""

    type: str
    shape: tuple[int, ...]
    start: int


def read_layout(path: Path) -> tuple[dict[str, Extent], dict[str, str]]:
    """The arrays and the metadata of a file. Error: DamagedFileError if its size is not what its header says."""
    advice = "restore the file or build the artefact again"
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            head = 8 + int.from_bytes(file.read(8), "little")
            if not 8 < head <= size:
                raise ValueError(f"a header of {head} bytes in a file of {size}")
            header = json.loads(file.read(head - 8))
        metadata = header.pop("__metadata__", {})
        arrays, end = {}, 0
        for name, entry in header.items():
            shape, (start, stop) = tuple(entry["shape"]), entry["data_offsets"]
            if min(shape, default=0) < 0 or stop - start != ITEM_BYTES[entry["dtype"]] * math.prod(shape):
                raise ValueError(f"array {name} of shape {shape} in {stop - start} bytes")
            arrays[name], end = Extent(entry["dtype"], shape, head + start), max(end, stop)
    except FileNotFoundError:
        raise DamagedFileError(f"{path} is missing; {advice}") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DamagedFileError(f"{path}: its header cannot be read ({error}); {advice}") from None
    if size != head + end:
        raise DamagedFileError(f"{path}: found {size} bytes; its header promises {head + end}; {advice}")
    return arrays, metadata
