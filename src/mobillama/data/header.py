"""What a chunk file of shards says of itself, read and checked without numpy. Format: docs/formats.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from mobillama.data.layout import Extent, read_layout
from mobillama.errors import DamagedFileError, InputError

FORMAT, FORMAT_VERSION = "mobillama.shards", 2
VALIDATION = "validation.safetensors"
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
    def id_type(self) -> str:
        """Type of an id, as safetensors names it: 16 bits as long as they suffice."""
        return "U16" if self.vocab_size <= 1 << 16 else "U32"

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


def chunk_names(files: Mapping[str, Any], folder: Path) -> list[str]:
    """The training chunks among the files of a manifest, in order; DamagedFileError if those or VALIDATION lack."""
    names = sorted(name for name in files if name.startswith("chunk_"))
    if not names or VALIDATION not in files:
        raise DamagedFileError(f"{folder}: its manifest names no chunk or no {VALIDATION}; build the shards again")
    return names


def read_headers(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> tuple[Header, dict[str, dict[str, Extent]]]:
    """The header of a shards folder with these files (of its manifest), and where the arrays of each chunk lie.

    File name -> extents, training chunks in order, VALIDATION last. Errors: those of `read_header`, and
    DamagedFileError for a file of another size than promised or with another header than the first.
    """
    first: Header | None = None
    found = {}
    for name in [*(names := chunk_names(files, folder)), VALIDATION]:
        path = folder / name
        header, found[name] = read_header(path)
        if (size := path.stat().st_size) != files[name]["bytes"]:
            raise DamagedFileError(
                f"{path}: found {size} bytes; its manifest promises {files[name]['bytes']}; restore the file"
            )
        first = first or header
        if header != first:
            raise DamagedFileError(f"{path}: found {header}; expected {first} as in {names[0]}")
    assert first is not None, "chunk_names gives one name or more"
    return first, found


def read_header(path: Path) -> tuple[Header, dict[str, Extent]]:
    """Header of a chunk file, and where its arrays lie.

    Errors: DamagedFileError if it is cut short or its parts contradict each other, InputError if its format is newer.
    """
    arrays, metadata = read_layout(path)
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
        if ids.shape[1:] != (header.row_len,) or ids.type != header.id_type:
            raise ValueError(f"ids of shape {ids.shape} and type {ids.type} for {header}")
        (spans,) = arrays["span_document"].shape
        if offsets.shape != (ids.shape[0] + 1,) or _last(path, offsets) != spans:
            raise ValueError("span_offsets do not count the rows and spans")
        lengths = dict.fromkeys(("row_source", "row_bytes"), (ids.shape[0], "rows"))
        lengths |= dict.fromkeys(SPAN_ARRAYS if version > 1 else SPAN_ARRAYS[:-1], (spans, "spans"))
        for name, (length, what) in lengths.items():
            if arrays[name].shape != (length,):
                raise ValueError(f"{name} of shape {arrays[name].shape} for {length} {what}")
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{path} is not a chunk of shards: {error}; build the shards again") from None
    return header, arrays


def _last(path: Path, offsets: Extent) -> int:
    """The last of some U64."""
    with path.open("rb") as file:
        file.seek(offsets.start + 8 * (offsets.shape[0] - 1))
        return int.from_bytes(file.read(8), "little")
