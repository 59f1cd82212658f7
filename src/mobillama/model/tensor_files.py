"""The tensor files of a model folder, one or many: safetensors, or the pickled `.bin` files of older releases.

Everything is memory-mapped and read tensor by tensor, so that loading holds one copy of the weights. A `.bin` is read
with `weights_only`, which runs no code from the file.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mobillama.errors import DamagedFileError, InputError, naming, system_number

SAFETENSORS = "model.safetensors"
PICKLED = "pytorch_model.bin"
INDEX = ".index.json"
POINTER = b"version https://git-lfs"  # what a clone without Git LFS has in place of a large file


class TensorFile(Protocol):
    """One open file: names, shapes without reading, tensors on demand."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def tensor(self, name: str) -> Tensor: ...


class Safetensors:
    """One safetensors file. Mapped anew for each tensor, so that what was read does not stay in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._opened() as file:
            self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118

    def names(self) -> list[str]:
        return list(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def tensor(self, name: str) -> Tensor:
        with self._opened() as file:
            return file.get_tensor(name)  # type: ignore[no-any-return]

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        try:
            with naming(self.path), safe_open(self.path, framework="pt") as file:
                yield file
        except SafetensorError as error:
            if system_number(error) is not None:  # the file may be whole
                raise
            raise _damaged(self.path, "safetensors", error) from None


class Pickled:
    """One `.bin` file. Mapped anew whenever many bytes were read, so that they do not stay in memory."""

    FORGET_AFTER = 2**28  # bytes; mapping again is cheap beside reading this much

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mapped = _is_zip(path)
        self.tensors = _unpickle(path, self.mapped)
        self.read = 0

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def tensor(self, name: str) -> Tensor:
        if self.mapped and self.read > self.FORGET_AFTER:
            self.tensors, self.read = _unpickle(self.path, self.mapped), 0
        found = self.tensors[name]
        self.read += found.nbytes
        return found


class TensorFiles:
    """All tensors of a model folder under the names they have on disk."""

    def __init__(self, files: Mapping[Path, TensorFile]) -> None:
        self.path_of: dict[str, Path] = {}
        self.files = files
        for path, file in files.items():
            for name in file.names():
                if name in self.path_of:
                    raise InputError(f"{name} is in {self.path_of[name]} and in {path}; expected it in one of them")
                self.path_of[name] = path

    def __contains__(self, name: str) -> bool:
        return name in self.path_of

    def names(self) -> list[str]:
        """Every name, in the order of the files."""
        return list(self.path_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape; reads nothing but the file's header."""
        return self.files[self.path_of[name]].shape(name)

    def tensor(self, name: str) -> Tensor:
        """A tensor that is backed by the file: copy what is to be kept."""
        return self.files[self.path_of[name]].tensor(name)


def open_tensors(folder: Path) -> TensorFiles:
    """A model folder's tensors: safetensors where there are any, else `.bin`; one file or shards with an index.

    Errors: InputError without any or with a shard missing; DamagedFileError for truncated or unreadable files.
    """
    return TensorFiles({path: _open(path) for path in _find(folder)})


def _find(folder: Path) -> list[Path]:
    for name in (SAFETENSORS, PICKLED):
        if (folder / name).is_file():
            return [folder / name]
        if (folder / (name + INDEX)).is_file():
            return _shards(folder / (name + INDEX))
    raise InputError(
        f"{folder} has no weights; expected {SAFETENSORS} or {PICKLED}, or shards with {SAFETENSORS}{INDEX} "
        f"or {PICKLED}{INDEX}"
    )


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedFileError(f"{index} is not an index of shards ({error!r}); restore it") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise InputError(f"{index} names the shard {name!r}; expected the name of a file in the same folder")
        if not (index.parent / name).is_file():
            raise InputError(f"{index} names the shard {name}, which is missing; download all of {', '.join(names)}")
    return [index.parent / name for name in names]


def _open(path: Path) -> TensorFile:
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise InputError(
                f"{path} is the pointer that Git LFS keeps in place of a file; fetch the file itself: git lfs pull"
            )
    return Pickled(path) if path.suffix == ".bin" else Safetensors(path)


def _unpickle(path: Path, mapped: bool) -> dict[str, Tensor]:
    """The tensors of a `.bin`; mapped = left on disk until they are used."""
    try:
        with naming(path):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        # Torch's message is a page long; its first line names the cause.
        raise InputError(
            f"{path} holds something other than tensors, or is cut short ({str(error).splitlines()[0][:200]}); "
            "only files of plain tensors are read, because others can run code"
        ) from None
    except (RuntimeError, EOFError, ValueError, OSError, KeyError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the file may be whole
            raise
        raise _damaged(path, "pickled tensor", error) from None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError(f"{path} does not hold a plain dictionary of tensors; save it with torch.save(state_dict)")
    for name, tensor in found.items():
        # Strides of 0 make a few numbers a tensor of any size, and reading it would take memory for all of it.
        if tensor.nbytes > (stored := tensor.untyped_storage().nbytes()):
            raise InputError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, {tensor.nbytes} bytes, but the file holds {stored} of"
                " it; save it with tensor.contiguous()"
            )
    return found


def _is_zip(path: Path) -> bool:
    """Whether a `.bin` has the format (torch 1.6 or newer) that can be mapped."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _damaged(path: Path, kind: str, error: Exception) -> DamagedFileError:
    first = (str(error).splitlines() or [repr(error)])[0][:200]
    return DamagedFileError(
        f"{path} ({path.stat().st_size} bytes) is not a whole {kind} file: {first}; download or save it again"
    )
