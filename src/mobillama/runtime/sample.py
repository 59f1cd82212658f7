"""The library's choice of a token from a row of logits; mobillama.generation.sampling is its oracle."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from mobillama.generation.sampling import Settings
from mobillama.runtime.library import SamplingStruct, check, library

# V vocab_size


def sample(
    logits: npt.NDArray[np.float32], settings: Settings, position: int, seen: npt.NDArray[np.int32] | None = None
) -> int:
    """The id of the next token, the same as mobillama.generation.sampling.choose gives.

    `logits` (V,); `position` counts the tokens before the new one; `seen` (any length, repeats allowed) holds the ids
    already in the sequence, read only if there is a penalty. Error: InputError if the largest logit is not finite.
    """
    row = np.ascontiguousarray(logits, dtype=np.float32)
    ids = None if seen is None else np.ascontiguousarray(seen, dtype=np.int32)
    address, count = (None, 0) if ids is None or not ids.size else (ids.ctypes.data, ids.size)
    found = ctypes.c_int32()
    struct = sampling_struct(settings)
    arguments = (row.ctypes.data, row.size, ctypes.byref(struct), position, address, count, ctypes.byref(found))
    check(library().mobillama_sample(*arguments))
    return found.value


@lru_cache(maxsize=16)
def sampling_struct(settings: Settings) -> SamplingStruct:
    """mobillama_sampling of our settings."""
    return SamplingStruct(
        temperature=settings.temperature,
        top_k=min(settings.top_k, 2**31 - 1),
        top_p=settings.top_p,
        repetition_penalty=settings.repetition_penalty,
        seed=settings.seed,
        num_ids=min(settings.num_ids or 0, 2**31 - 1),
    )
