"""Token-level generation: prompts in, one new id per sequence and step out.

Each prompt is read once, its keys and values kept in a cache made once for the whole run; a step then computes one
position a sequence, and logits of that position alone. Prompts of unequal length are padded on the left under a true
attention mask, so a sequence in a batch gets what it gets alone (up to the rounding of larger matrix products). How a
token is chosen, how sequences end, text: mobillama.generation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mobillama.generation import sequences
from mobillama.generation.sampling import Settings, choose
from mobillama.model.transformer import KVCache, Transformer

# B sequences, W width of the padded prompts, S positions so far, V vocab_size

Logits = npt.NDArray[np.float32]

FILLER = 0  # id fed where a sequence has no text; the mask hides it


def generate(model: Transformer, prompts: Sequence[Sequence[int]], settings: Settings) -> Generation:
    """Continue each prompt; iterate over the result for one list per step: the new id of each sequence, or None.

    Errors: InputError if there is no prompt, one is empty or longer than the context, or an id is outside the
    vocabulary.
    """
    return Generation(model, prompts, settings)


class Generation(sequences.Generation):
    """A running generation of a Transformer."""

    def __init__(self, model: Transformer, prompts: Sequence[Sequence[int]], settings: Settings) -> None:
        config = model.config
        super().__init__(prompts, settings, vocab_size=config.vocab_size, context_length=config.max_position_embeddings)
        self.model = model
        self._seen = self._mark_seen(prompts) if settings.repetition_penalty != 1 else None  # (B, V)
        self._ids, self._mask = self._pad(prompts)  # (B, W), (B, W + room) or None
        self._cache: KVCache | None = None

    def __next__(self) -> list[int | None]:
        if None not in self.endings:
            self._cache = None
            raise StopIteration
        logits = self._read(self._ids)  # (B, V)
        new: list[int | None] = [
            self._choose(index, logits[index]) if ending is None else None for index, ending in enumerate(self.endings)
        ]
        if all(token is None for token in new):  # every sequence that was left met its end
            return next(self)
        self._ids = torch.tensor([[FILLER if token is None else token] for token in new])  # (B, 1)
        return new

    def _choose(self, index: int, logits: Logits) -> int | None:
        """The next id of one sequence, with its bookkeeping; None if it is an id that ends a text."""
        seen = None if self._seen is None else self._seen[index]
        token = self._accept(index, choose(logits, seen, self.settings, self._lengths[index]))
        if seen is not None and token is not None:
            seen[token] = True
        return token

    @torch.inference_mode()
    def _read(self, ids: Tensor) -> Logits:
        """Run the model over new positions (B, T) and give the logits (B, V) after the last, on the CPU."""
        weight = self.model.head_weight
        if self._cache is None:
            capacity = ids.shape[1] + self._room()
            self._cache = KVCache(self.model.config, len(ids), capacity, weight.device, weight.dtype)
        mask = None
        if self._mask is not None:
            end = self._cache.length + ids.shape[1]
            if self._cache.length:  # this position holds text only in the sequences that go on
                self._mask[:, end - 1] = torch.tensor([ending is None for ending in self.endings])
            mask = self._mask[:, :end].to(weight.device)  # (B, S)
        logits = self.model(ids.to(weight.device), attention_mask=mask, cache=self._cache, last_only=True)
        last: Logits = logits[:, -1].float().cpu().numpy()
        return last

    def _pad(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor | None]:
        """Ids (B, W) with filler on the left, and the mask (B, W + room) of what is text; None if nothing is filler."""
        width = max(self._lengths)
        ids = torch.tensor([[FILLER] * (width - len(prompt)) + list(map(int, prompt)) for prompt in prompts])
        if width == min(self._lengths):
            return ids, None
        columns = torch.arange(width + self._room())
        return ids, columns >= torch.tensor([[width - length] for length in self._lengths])

    def _mark_seen(self, prompts: Sequence[Sequence[int]]) -> npt.NDArray[np.bool_]:
        """(B, V): True where an id occurs in the prompt."""
        seen = np.zeros((len(prompts), self.model.config.vocab_size), dtype=np.bool_)
        for row, prompt in zip(seen, prompts, strict=True):
            row[list(prompt)] = True
        return seen
