"""Token ids from outside, checked before they reach a model."""

from __future__ import annotations

from collections.abc import Sequence
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


def check_prompts(prompts: Sequence[Sequence[int]], vocab_size: int, context: int) -> None:
    """Raise InputError naming the first prompt that cannot be continued, and why."""
    if not prompts:
        raise InputError("no prompt was given; expected at least one list of token ids")
    for index, prompt in enumerate(prompts):
        if not len(prompt):
            raise InputError(f"prompt {index} is empty; expected at least one token (or start it with <s>: bos=True)")
        if len(prompt) > context:
            raise InputError(
                f"prompt {index} has {len(prompt)} tokens; the model's context holds {context}: shorten the prompt"
            )
        if outside := [token for token in prompt if not 0 <= token < vocab_size]:
            raise InputError(
                f"prompt {index} holds the id {outside[0]}; this model's vocabulary has ids 0 to {vocab_size - 1}:"
                " use the tokenizer that belongs to the model"
            )
