"""Files of named arrays in the safetensors layout, written and memory-mapped with numpy alone; see `layout`.

The same arrays and metadata always give the same bytes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobillama.data.layout import Extent, read_layout

DTYPES = {"U8": "<u1", "U16": "<u2", "U32": "<u4", "U64": "<u8"}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
ALIGNMENT = 64


@dataclass(frozen=True)
class Layout:
    """Where each array of one file lies: the bytes before the data, and per name (dtype, shape, first byte)."""

    head: bytes
    arrays: dict[str, tuple[np.dtype[Any], tuple[int, ...], int]]
    size: int


def lay_out(shapes: Mapping[str, tuple[Any, tuple[int, ...]]], metadata: Mapping[str, str]) -> Layout:
    """The layout of a file that will hold arrays of these (dtype, shape), widest elements first so that all align."""
    order = sorted(shapes, key=lambda name: (-np.dtype(shapes[name][0]).itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    places, end = {}, 0
    for name in order:
        dtype, shape = np.dtype(shapes[name][0]).newbyteorder("<"), shapes[name][1]
        places[name] = (dtype, shape, end)
        end += dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [places[name][2], end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    head = len(text).to_bytes(8, "little") + text
    arrays = {name: (dtype, shape, len(head) + start) for name, (dtype, shape, start) in places.items()}
    return Layout(head, arrays, len(head) + end)


def write_arrays(path: Path, layout: Layout, fill: Callable[[dict[str, NDArray[Any]]], None]) -> None:
    """Create `path` with `layout`, let `fill` write into its memory-mapped arrays, and force it to disk.

    The bytes are reserved first, so that a full disk is an OSError here and not a crash inside `fill`. The caller
    gives a temporary path and renames it.
    """
    with path.open("wb+") as file:
        file.write(layout.head)
        file.flush()
        if layout.size > len(layout.head):
            reserve(file.fileno(), layout.size)
        fill(_map(path, layout.arrays, "r+"))
        file.flush()
        os.fsync(file.fileno())


def reserve(descriptor: int, size: int) -> None:
    """Give an open file `size` bytes of real disk. Error: OSError if the disk is too small."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        block = bytes(1 << 20)
        for start in range(os.fstat(descriptor).st_size, size, len(block)):
            os.pwrite(descriptor, block[: size - start], start)


def map_arrays(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Memory-mapped arrays and metadata of a file. Error: DamagedFileError if its size is not what its header says."""
    extents, metadata = read_layout(path)
    return map_extents(path, extents), metadata


def map_extents(path: Path, extents: Mapping[str, Extent]) -> dict[str, NDArray[Any]]:
    """Memory-mapped arrays of a file whose layout is known."""
    places = {name: (np.dtype(DTYPES[found.type]), found.shape, found.start) for name, found in extents.items()}
    return _map(path, places, "r")


def _map(path: Path, arrays: dict[str, tuple[np.dtype[Any], tuple[int, ...], int]], mode: Any) -> dict[str, Any]:
    """One array per entry; an array without elements is not mapped (the kernel refuses to)."""
    if not any(all(shape) for _, shape, _ in arrays.values()):
        return {name: np.empty(shape, dtype) for name, (dtype, shape, _) in arrays.items()}
    whole = np.asarray(np.memmap(path, np.uint8, mode))  # cuts of a plain array are made in half the time
    return {
        name: whole[start : start + dtype.itemsize * math.prod(shape)].view(dtype).reshape(shape)
        for name, (dtype, shape, start) in arrays.items()
    }
