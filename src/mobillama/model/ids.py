"""Token ids from outside, checked before they reach a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mobillama.errors import InputError


def as_rows(ids: Any, vocab_size: int, context: int) -> Tensor:
    """Ids (T,) or (B, T), as lists, array or tensor -> (B, T) int64 on the CPU.

    Errors: InputError for ids that are ragged, empty, not whole, outside the vocabulary or longer than the context.
    """
    try:
        table = np.atleast_2d(ids.cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids))
        if not np.issubdtype(table.dtype, np.integer) or table.ndim != 2 or not table.size:
            raise ValueError(f"found shape {table.shape} of {table.dtype}")
    except (TypeError, ValueError) as error:
        raise InputError(
            f"token ids are not a table of whole numbers ({error}); expected ids (T,) or (B, T) with rows of equal"
            " length: pad them and give an attention_mask"
        ) from None
    if table.shape[1] > context:
        raise InputError(f"{table.shape[1]} token ids in a row; the model's context holds {context}")
    low, high = int(table.min()), int(table.max())
    if low < 0 or high >= vocab_size:
        raise InputError(
            f"token ids run from {low} to {high}; this model's vocabulary has ids 0 to {vocab_size - 1}: use the"
            " tokenizer that belongs to the model"
        )
    return torch.from_numpy(table.astype(np.int64))
