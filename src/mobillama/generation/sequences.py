"""Sequences that are being generated: checked prompts, how far each has come, and why it ended."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal

from mobillama.errors import InputError
from mobillama.generation.sampling import Settings

Ending = Literal["eos", "length", "context", "stop"]


class Generation(ABC, Iterator[list[int | None]]):
    """A running generation: one list per step, the new id of each sequence, or None.

    `endings` says why each sequence ended (None: it has not). eos: the model ended it. length: `max_new_tokens`
    reached. context: prompt and text fill the model's context. stop: `end` was called.
    """

    def __init__(
        self, prompts: Sequence[Sequence[int]], settings: Settings, *, vocab_size: int, context_length: int
    ) -> None:
        """Error: InputError if there is no prompt, or one cannot be continued."""
        check_prompts(prompts, vocab_size, context_length)
        self.settings = settings
        self.context_length = context_length
        self.endings: list[Ending | None] = [None] * len(prompts)
        self._lengths = [len(prompt) for prompt in prompts]  # tokens of prompt and text
        self._produced = [0] * len(prompts)
        for index in range(len(prompts)):
            self._end_if_full(index)

    @abstractmethod
    def __next__(self) -> list[int | None]: ...

    def end(self, index: int) -> None:
        """Let sequence `index` go no further (a stop string was found in its text)."""
        self.endings[index] = "stop"

    def _accept(self, index: int, token: int) -> int | None:
        """Count a new id of a sequence; None if it is an id that ends a text, which is not part of it."""
        if token in self.settings.end_ids:
            self.endings[index] = "eos"
            return None
        self._lengths[index] += 1
        self._produced[index] += 1
        self._end_if_full(index)
        return token

    def _end_if_full(self, index: int) -> None:
        if self._produced[index] >= self.settings.max_new_tokens:
            self.endings[index] = "length"
        elif self._lengths[index] >= self.context_length:
            self.endings[index] = "context"

    def _room(self) -> int:
        """The most ids that any sequence can still be given."""
        return max(
            min(self.settings.max_new_tokens - produced, self.context_length - length)
            for produced, length in zip(self._produced, self._lengths, strict=True)
        )


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
