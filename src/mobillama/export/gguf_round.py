"""A weight as the bytes of a GGUF tensor type. The rounding to blocks is the engine's own, in native/."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobillama.errors import InputError
from mobillama.export.gguf_types import TYPES, row_bytes
from mobillama.runtime.library import check, library

FLOATS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
LARGEST_HALF = 65504.0  # blocks hold their scale as f16
ROWS = 2**22  # weights widened to float32 at once


def encode(
    weight: Tensor, to: str, what: str, importance: NDArray[np.float32] | None = None, threads: int = 0
) -> NDArray[np.uint8]:
    """Bytes (rows, row_bytes) of a weight (rows, cols), or (bytes,) of a vector, in the type `to` of gguf_types.TYPES.

    what: names the weight in errors. importance: (cols,) weights of the squared error; only blocks are rounded by it.
    threads: 0 = one per core. Error: InputError for weights that are no numbers or too large for the type.
    """
    largest = float(torch.stack(torch.aminmax(weight)).abs().max())
    if not largest <= (torch.finfo(torch.float32).max if to in ("f32", "bf16") else LARGEST_HALF):
        raise InputError(
            f"{what} holds a weight of size {largest}; expected finite numbers, up to {LARGEST_HALF:.0f} for {to}: "
            "use f32 or bf16 for large ones, and another checkpoint where they are not finite"
        )
    if to in FLOATS:
        return weight.to(FLOATS[to]).contiguous().view(torch.uint8).numpy()
    rows, cols = weight.shape
    out = np.empty((rows, row_bytes(to, cols)), np.uint8)
    step = max(1, ROWS // cols)
    for start in range(0, rows, step):
        part = weight[start : start + step].to(torch.float32).contiguous().numpy()
        check(
            library().mobillama_quantize(
                int(TYPES[to]),
                part.ctypes.data,
                len(part),
                cols,
                None if importance is None else importance.ctypes.data,
                threads,
                out[start:].ctypes.data,
            )
        )
    return out
