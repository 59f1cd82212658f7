"""One chunk file of shards: a safetensors file whose metadata say what it is. Format: docs/formats.md."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mobillama.data.tensors import lay_out, map_arrays, write_arrays
from mobillama.errors import DamagedFileError, InputError

FORMAT, FORMAT_VERSION = "mobillama.shards", 2
VALIDATION = "validation.safetensors"
Arrays = dict[str, NDArray[Any]]
Packing = Literal["concatenate", "best_fit"]
SPAN_ARRAYS = (
    *("span_document", "span_token", "span_tokens", "span_byte_start", "span_byte_end"),
    "span_first_bytes",  # since version 2
)


@dataclass(frozen=True)
class Header:
    """What every chunk file of one shards folder says of itself."""

    vocab_size: int
    seq_len: int
    tokenizer_digest: str
    sources: tuple[str, ...]
    packing: Packing = "concatenate"

    @property
    def padded(self) -> bool:
        """Whether rows may end in padding: positions after their last span."""
        return self.packing == "best_fit"

    @property
    def row_len(self) -> int:
        """Ids in a row: seq_len trained positions and the one before them."""
        return self.seq_len + 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of an id: 16 bits as long as they suffice."""
        return np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    def metadata(self) -> dict[str, str]:
        """The header as the text pairs that safetensors keeps."""
        return {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "vocab_size": str(self.vocab_size),
            "seq_len": str(self.seq_len),
            "tokenizer": self.tokenizer_digest,
            "sources": json.dumps(self.sources, ensure_ascii=False),
            "packing": self.packing,
        }


def chunk_name(number: int, chunks: int) -> str:
    """File name of training chunk `number` of `chunks`: at least three digits."""
    return f"chunk_{number:0{max(3, len(str(chunks - 1)))}d}.safetensors"


def write_chunk(path: Path, header: Header, rows: int, spans: int, fill: Callable[[Arrays], None]) -> None:
    """Create one chunk file of `rows` rows and `spans` spans; `fill` writes into its arrays (docs/formats.md)."""
    shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
        "ids": (header.dtype, (rows, header.row_len)),
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
    arrays, metadata = map_arrays(path)
    try:
        if metadata["format"] != FORMAT:
            raise ValueError(f"format {metadata['format']!r}")
        if (version := int(metadata["format_version"])) > FORMAT_VERSION:
            raise InputError(f"{path} has format version {version}; this mobillama reads up to {FORMAT_VERSION}")
        sources = tuple(json.loads(metadata["sources"]))
        packing: Any = metadata["packing"] if version > 1 else "concatenate"
        if packing not in get_args(Packing):
            raise ValueError(f"packing {packing!r}")
        sizes = int(metadata["vocab_size"]), int(metadata["seq_len"])
        header = Header(*sizes, metadata["tokenizer"], sources, packing)
        ids, offsets = arrays["ids"], arrays["span_offsets"]
        if ids.shape[1:] != (header.row_len,) or ids.dtype != header.dtype:
            raise ValueError(f"ids of shape {ids.shape} and type {ids.dtype} for {header}")
        if len(offsets) != len(ids) + 1 or int(offsets[-1]) != len(arrays["span_document"]):
            raise ValueError("span_offsets do not count the rows and spans")
        for name in ("row_source", "row_bytes"):
            if len(arrays[name]) != len(ids):
                raise ValueError(f"{name} has {len(arrays[name])} entries for {len(ids)} rows")
        for name in SPAN_ARRAYS if version > 1 else SPAN_ARRAYS[:-1]:
            if len(arrays[name]) != int(offsets[-1]):
                raise ValueError(f"{name} has {len(arrays[name])} entries for {int(offsets[-1])} spans")
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{path} is not a chunk of shards: {error}; build the shards again") from None
    return arrays, header
