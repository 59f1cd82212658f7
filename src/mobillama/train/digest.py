"""Digests of a training state, tensor by tensor: the same however the state is spread over processes and files.

A tensor's digest is the sha256 of one line that says its type and shape, followed by its bytes row by row; that of a
part (weights, optimizer) is the sha256 of the canonical JSON of its tensors' digests by name. Reads safetensors files,
whole or in the pieces that torch.distributed.checkpoint writes; imports no torch. Format: docs/formats.md, Checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobillama import manifest, strict_json
from mobillama.errors import DamagedFileError

FILE, FORMAT, FORMAT_VERSION = "digests.json", "mobillama.digests", 1
PARTS = {"weights": "model.", "optimizer": "optimizer."}  # part -> what the names of its tensors begin with
BLOCK = 1 << 22  # bytes read at once
HEADER_BYTES = 100_000_000  # safetensors' own limit
PLACES = "DCP_SHARDING_INFO"  # key of a file's metadata under which torch.distributed.checkpoint says where pieces lie


def tensor_digest(dtype: str, shape: Sequence[int], data: Iterable[bytes | memoryview]) -> str:
    """sha256 (hex) of a tensor: its type as safetensors names it, its shape, and its bytes in order.

    >>> tensor_digest("F32", [2], [bytes(8)]) == hashlib.sha256(b"F32 [2]\\n" + bytes(8)).hexdigest()
    True
    """
    digest = hashlib.sha256(f"{dtype} [{','.join(map(str, shape))}]\n".encode())
    for block in data:
        digest.update(block)
    return digest.hexdigest()


def part_digests(tensors: Mapping[str, str]) -> dict[str, str]:
    """The digest of `weights` and of `optimizer` from those of their tensors."""
    return {
        part: hashlib.sha256(
            manifest.canonical({name: digest for name, digest in tensors.items() if name.startswith(prefix)})
        ).hexdigest()
        for part, prefix in PARTS.items()
    }


def write_digests(folder: Path, tensors: Mapping[str, str]) -> None:
    """Write the digest of every tensor beside the files that hold them."""
    tree = {"format": FORMAT, "format_version": FORMAT_VERSION, "tensors": dict(sorted(tensors.items()))}
    (folder / FILE).write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")


def read_digests(folder: Path) -> dict[str, str]:
    """The digest of every tensor, as the checkpoint at `folder` says. Error: DamagedFileError."""
    path = folder / FILE
    try:
        tree = strict_json.require(
            strict_json.parse(path.read_bytes()), {"format": str, "format_version": int, "tensors": dict}
        )
        if tree["format"] != FORMAT or not 1 <= tree["format_version"] <= FORMAT_VERSION:
            raise ValueError(f"format {tree['format']} version {tree['format_version']}")
        return strict_json.require(tree["tensors"], dict.fromkeys(tree["tensors"], str))
    except (OSError, ValueError) as error:
        raise DamagedFileError(f"{path} cannot be read ({error}); restore it from a copy") from None


@dataclass(frozen=True)
class Piece:
    """Some rows of a tensor, one after the other in one file."""

    path: Path
    start: int  # byte of the file
    size: int  # in bytes
    row: int  # of the tensor, where the piece begins
    shape: tuple[int, ...]

    def read(self) -> Iterator[bytes]:
        """Its bytes."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            left = self.size
            while left:
                block = file.read(min(left, BLOCK))
                if not block:
                    raise DamagedFileError(f"{self.path} ends early; expected {left} bytes more")
                left -= len(block)
                yield block


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in the files of a folder: pieces that follow each other row by row."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    def digest(self) -> str:
        """As `tensor_digest`, from what lies on the disk."""
        return tensor_digest(self.dtype, self.shape, (block for piece in self.pieces for block in piece.read()))


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor in the safetensors files of a folder, by name. Error: DamagedFileError for what does not fit."""
    found: dict[str, tuple[str, list[Piece]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, dtype, piece in _pieces(path):
            kind, pieces = found.setdefault(name, (dtype, []))
            if kind != dtype:
                raise DamagedFileError(f"{path}: {name!r} is of type {dtype}; in another file it is {kind}")
            pieces.append(piece)
    return {name: _joined(name, dtype, pieces) for name, (dtype, pieces) in sorted(found.items())}


def _pieces(path: Path) -> Iterator[tuple[str, str, Piece]]:
    """Name, type and place of every entry of one file. Format: https://github.com/huggingface/safetensors#format."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            header = strict_json.require(strict_json.parse(file.read(length)), {})
            room = file.seek(0, 2) - 8 - length
        metadata = strict_json.require(header.pop("__metadata__", {}), {})
        places = strict_json.require(strict_json.parse(metadata.get(PLACES, "{}").encode()), {})
        for name, entry in header.items():
            strict_json.require(entry, {"dtype": str, "shape": list, "data_offsets": list})
            start, end = (_count(number) for number in entry["data_offsets"])
            shape = tuple(_count(size) for size in entry["shape"])
            row, *rest = (_count(number) for number in places.get(name, {}).get("saved_offsets") or [0])
            if any(rest):
                raise ValueError(f"{name!r} is cut along more than its rows: offsets {[row, *rest]}")
            if not start <= end <= room:
                raise ValueError(f"{name!r} lies from {start} to {end} of {room} bytes")
            yield name, entry["dtype"], Piece(path, 8 + length + start, end - start, row, shape)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"{path} is not a readable safetensors file ({error}); restore it from a copy") from None


def _count(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise ValueError(f"found {number!r:.60}; expected an integer from 0 on")
    return number


def _joined(name: str, dtype: str, pieces: list[Piece]) -> StoredTensor:
    full = sorted((piece for piece in pieces if math.prod(piece.shape)), key=lambda piece: piece.row)
    if not full:
        return StoredTensor(dtype, pieces[0].shape, tuple(pieces[:1]))  # it is empty
    row = 0
    for piece in full:
        if piece.row != row or piece.shape[1:] != full[0].shape[1:]:
            raise DamagedFileError(f"{piece.path}: {name!r} has a piece at row {piece.row}; expected one at row {row}")
        row += piece.shape[0] if piece.shape else 1
    return StoredTensor(dtype, (row, *full[0].shape[1:]) if full[0].shape else (), tuple(full))
