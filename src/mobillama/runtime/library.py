"""Find and load the engine's library, and give every function of its C door (native/include/mobillama.h) its types.

The library is looked for beside this file, where the package's build puts it; the environment variable
MOBILLAMA_LIBRARY names another one.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_double, c_int32, c_int64, c_uint64, c_void_p
from enum import IntEnum
from functools import cache
from pathlib import Path

from mobillama import runtime
from mobillama.errors import (
    DamagedFileError,
    EngineError,
    InputError,
    MissingLibraryError,
    MobillamaError,
    OutOfMemoryError,
)

VERSION = 1  # MOBILLAMA_VERSION of the header that this file was written after
VARIABLE = "MOBILLAMA_LIBRARY"
FILE = {"win32": "mobillama.dll", "darwin": "libmobillama.dylib"}.get(sys.platform, "libmobillama.so")

Progress = ctypes.CFUNCTYPE(None, c_double, c_void_p)


class Status(IntEnum):
    """mobillama_status."""

    OK = 0
    INVALID = 1
    IO = 2
    FORMAT = 3
    UNSUPPORTED = 4
    MEMORY = 5
    FULL = 6
    BUSY = 7
    CANCELLED = 8


ERRORS: dict[int, Callable[[str], MobillamaError]] = {
    Status.INVALID: InputError,
    Status.IO: DamagedFileError,
    Status.FORMAT: DamagedFileError,
    Status.UNSUPPORTED: InputError,
    Status.MEMORY: OutOfMemoryError,
    Status.FULL: InputError,
    Status.BUSY: EngineError,
    Status.CANCELLED: EngineError,
}


class OpenOptions(ctypes.Structure):
    """mobillama_open_options."""

    _fields_ = (
        ("threads", c_int32),
        ("share_ffn", c_int32),
        ("resident_bytes", c_int64),
        ("progress", Progress),
        ("user", c_void_p),
    )


class InfoStruct(ctypes.Structure):
    """mobillama_info."""

    _fields_ = (
        ("vocab_size", c_int32),
        ("hidden_size", c_int32),
        ("intermediate_size", c_int32),
        ("num_hidden_layers", c_int32),
        ("num_attention_heads", c_int32),
        ("num_key_value_heads", c_int32),
        ("head_dim", c_int32),
        ("num_ffn_blocks", c_int32),
        ("context_length", c_int32),
        ("file_bytes", c_int64),
        ("weight_bytes", c_int64),
        ("bytes_per_token", c_int64),
        ("unique_bytes_per_token", c_int64),
        ("resident_bytes", c_int64),
        ("cache_bytes", c_int64),
        ("isa", c_char_p),
    )


class ContextOptions(ctypes.Structure):
    """mobillama_context_options."""

    _fields_ = (
        ("threads", c_int32),
        ("max_tokens", c_int32),
        ("max_sequences", c_int32),
        ("kv_type", c_int32),
        ("float_activations", c_int32),
    )


class SamplingStruct(ctypes.Structure):
    """mobillama_sampling."""

    _fields_ = (
        ("temperature", c_double),
        ("top_k", c_int32),
        ("top_p", c_double),
        ("repetition_penalty", c_double),
        ("seed", c_uint64),
        ("num_ids", c_int32),
    )


# Name without its prefix -> (result, arguments). Arrays are passed as addresses: numpy hands those out cheaply.
FUNCTIONS: dict[str, tuple[type | None, list[type]]] = {
    "version": (c_int32, []),
    "last_error": (c_char_p, []),
    "open": (c_int32, [c_char_p, POINTER(OpenOptions), POINTER(c_void_p)]),
    "open_ignoring": (
        c_int32,
        [c_char_p, POINTER(OpenOptions), POINTER(c_char_p), c_int32, POINTER(c_void_p)],
    ),
    "close": (None, [c_void_p]),
    "describe": (c_int32, [c_void_p, POINTER(InfoStruct)]),
    "context_new": (c_int32, [c_void_p, POINTER(ContextOptions), POINTER(c_void_p)]),
    "context_free": (None, [c_void_p]),
    "prefill": (c_int32, [c_void_p, c_int32, c_void_p, c_int32]),
    "decode": (c_int32, [c_void_p, c_void_p, c_void_p, c_int32]),
    "verify": (c_int32, [c_void_p, c_int32, c_void_p, c_int32]),
    "logits": (c_void_p, [c_void_p, c_int32]),
    "log_probs": (c_int32, [c_void_p, c_int32, c_void_p, c_int32, c_void_p, c_void_p, c_int32, c_void_p]),
    "length": (c_int32, [c_void_p, c_int32]),
    "fork": (c_int32, [c_void_p, c_int32, c_int32, c_int32]),
    "rewind": (c_int32, [c_void_p, c_int32, c_int32]),
    "cancel": (None, [c_void_p]),
    "stop": (None, [c_void_p]),
    "sample": (c_int32, [c_void_p, c_int32, POINTER(SamplingStruct), c_int64, c_void_p, c_int32, POINTER(c_int32)]),
    "row_bytes": (c_int64, [c_int32, c_int64]),
    "quantize": (c_int32, [c_int32, c_void_p, c_int64, c_int64, c_void_p, c_int32, c_void_p]),
    "dequantize": (c_int32, [c_int32, c_void_p, c_int64, c_int64, c_void_p]),
    "bandwidth": (c_double, [c_int64, c_int32, c_double]),
    "round_trip": (c_double, []),
}


@cache
def library() -> ctypes.CDLL:
    """The engine's library, loaded once, its functions typed. Calls into it let other Python threads run.

    Error: MissingLibraryError if it is not there, cannot be loaded or is of another version.
    """
    path = find()
    try:
        loaded = ctypes.CDLL(str(path))
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(loaded, f"mobillama_{name}")
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise MissingLibraryError(f"{path} cannot be used as the engine's library: {error}; {_build()}") from None
    if (version := loaded.mobillama_version()) != VERSION:
        raise MissingLibraryError(
            f"{path} is version {version} of the engine; this package expects version {VERSION}: {_build()}"
        )
    return loaded


def find() -> Path:
    """The library's file. Error: MissingLibraryError names every place that was looked at."""
    if named := os.environ.get(VARIABLE):
        if not Path(named).is_file():
            raise MissingLibraryError(f"{VARIABLE}={named} is no file; set it to {FILE}, or unset it")
        return Path(named).resolve()
    # An editable install gives the package two folders: the sources, and what was built.
    places = [Path(folder) / FILE for folder in runtime.__path__]
    for place in places:
        if place.is_file():
            return place
    looked = " and ".join(map(str, places))
    raise MissingLibraryError(f"the engine's library was not found ({looked}); {_build()}")


def check(status: int) -> None:
    """Raise the error of a status that is not OK, in the library's words for the calling thread's last call."""
    if status != Status.OK:
        raise ERRORS.get(status, EngineError)(library().mobillama_last_error().decode(errors="replace"))


def _build() -> str:
    return (
        "build it with a C++20 compiler: 'make setup' in a checkout, or"
        " 'pip install --force-reinstall --no-deps mobillama'; an existing build is named by"
        f" {VARIABLE}=path/to/{FILE}"
    )
