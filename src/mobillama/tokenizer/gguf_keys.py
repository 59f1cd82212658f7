"""The metadata of a GGUF file as plain Python values, and where its tensors lie.

The gguf package's reader makes an array of every string, which takes seconds for a vocabulary of 32,000 pieces; this
one takes thousandths. Format, of versions 2 and 3, little-endian: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from mobillama.errors import DamagedFileError, InputError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
# Number of a value's type -> its struct format.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
T = TypeVar("T")
ALIGNMENT = 32  # of tensors, where the file does not say another


@dataclass(frozen=True)
class Stored:
    """A tensor as the file lists it."""

    shape: tuple[int, ...]  # outermost first
    kind: int  # number of its type in GGML
    start: int  # its first byte in the file


def read_keys(path: Path) -> dict[str, Any]:
    """Every key of a GGUF file with its value: a number, a bool, a text or a list of one of these.

    Errors: InputError if it is no GGUF file or one of a version we do not know, DamagedFileError if it is not whole.
    """
    return _read(path, lambda reader: reader.keys())


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    """The keys of a GGUF file, and its tensors by their names. Errors: those of `read_keys`."""
    return _read(path, lambda reader: (reader.keys(), reader.tensors()))


def _read(path: Path, wanted: Callable[[_Reader], T]) -> T:
    if not path.is_file():
        raise InputError(f"{path} is no file; give a GGUF file: `mobillama quantize` writes one")
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise InputError(
                f"{path} is no GGUF file (its first bytes are not {MAGIC!r}); `mobillama quantize` writes one"
            )
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with data:
        try:
            return wanted(_Reader(data))
        except _UnsupportedError as error:
            raise InputError(f"{path} is {error}") from None
        except (struct.error, ValueError) as error:
            raise DamagedFileError(f"{path} is not a whole GGUF file: {error}; get it again") from None


class _UnsupportedError(Exception):
    """What the file is, and what is read instead."""


class _Reader:
    """A place in the bytes, moved on by every reading. Errors: struct.error and ValueError."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, len(MAGIC)

    def keys(self) -> dict[str, Any]:
        (version,) = self.numbers("I", 1)
        if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
            raise _UnsupportedError(
                "a big-endian GGUF file; this mobillama reads little-endian ones: gguf-convert-endian of the gguf"
                " package turns it round"
            )
        if version not in VERSIONS:
            raise _UnsupportedError(
                f"GGUF of version {version}; this mobillama reads {VERSIONS[0]} and {VERSIONS[1]}: "
                + ("it needs a newer mobillama" if version > VERSIONS[-1] else "convert the model with a newer program")
            )
        self.tensor_count, count = self.numbers("Q", 2)
        found = dict[str, Any]()
        for _ in range(count):
            name = self.text()
            (kind,) = self.numbers("I", 1)
            found[name] = self.value(kind)
        self.alignment = found.get("general.alignment", ALIGNMENT)
        return found

    def tensors(self) -> dict[str, Stored]:
        """What follows the keys."""
        found = dict[str, Stored]()
        for _ in range(self.tensor_count):
            name = self.text()
            (dimensions,) = self.numbers("I", 1)
            shape = self.numbers("Q", dimensions)
            (kind,), (offset,) = self.numbers("I", 1), self.numbers("Q", 1)
            if name in found:
                raise ValueError(f"the tensor {name} is listed twice")
            found[name] = Stored(shape[::-1], kind, offset)
        if not isinstance(self.alignment, int) or self.alignment < 1:
            raise ValueError(f"general.alignment is {self.alignment!r:.60}")
        start = -(-self.at // self.alignment) * self.alignment
        return {name: replace(each, start=start + each.start) for name, each in found.items()}

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            (inner,) = self.numbers("I", 1)
            (count,) = self.numbers("Q", 1)
            if inner == ARRAY:
                raise _UnsupportedError("GGUF with an array of arrays, which no model this mobillama knows has")
            if inner == STRING:
                # Pieces keep the bytes they have; a text that only describes reads U+FFFD where it is no UTF-8.
                return [self.text("surrogateescape") for _ in range(count)]
            return list(self.numbers(_scalar(inner), count))
        return self.numbers(_scalar(kind), 1)[0]

    def numbers(self, form: str, count: int) -> tuple[Any, ...]:
        # Checked here, because struct takes memory for its format before it looks at the bytes.
        if count * struct.calcsize(f"<{form}") > len(self.data) - self.at:
            raise ValueError(f"{count} numbers at byte {self.at} go past the end at {len(self.data)}")
        found = struct.unpack_from(f"<{count}{form}", self.data, self.at)
        self.at += struct.calcsize(f"<{count}{form}")
        return found

    def text(self, errors: str = "replace") -> str:
        (size,) = self.numbers("Q", 1)
        if size > len(self.data) - self.at:
            raise ValueError(f"a text of {size} bytes at byte {self.at} goes past the end at {len(self.data)}")
        self.at += size
        return self.data[self.at - size : self.at].decode(errors=errors)


def _scalar(kind: int) -> str:
    if kind not in SCALARS:
        raise ValueError(f"a value of unknown type {kind}")
    return SCALARS[kind]
