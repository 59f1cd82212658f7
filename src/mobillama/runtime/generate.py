"""Token-level generation in the engine: prompts in, one new id per sequence and step out.

All sequences live in one context and are decoded together. With lookup, ids that followed the same few ids earlier in
a sequence are taken as a guess and checked in one call; the engine's bits do not depend on how ids are grouped into
calls, so the text is the same as without, whatever the settings.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mobillama.errors import InputError
from mobillama.generation import sequences
from mobillama.generation.sampling import Settings
from mobillama.runtime.engine import KV, MAX_VERIFY, Context, Engine

REPEATS = (3, 2)  # ids that must repeat for a guess, the longer first
SHARED = 8  # ids from which the common beginning of two prompts is copied instead of computed again

Text = npt.NDArray[np.int32]


class Generation(sequences.Generation):
    """A running generation of an engine's model."""

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Sequence[int]],
        settings: Settings,
        *,
        threads: int = 0,
        kv: KV = "f16",
        lookup: int = 0,
    ) -> None:
        """threads, kv: of the context. lookup: most ids guessed at a time. Errors: InputError."""
        info = engine.info
        super().__init__(prompts, settings, vocab_size=info.vocab_size, context_length=info.context_length)
        if not 0 <= lookup < MAX_VERIFY:
            raise InputError(f"lookup={lookup}; expected 0 (no guesses) to {MAX_VERIFY - 1} ids guessed at a time")
        self._engine, self._threads, self._kv, self._lookup = engine, threads, kv, lookup
        self._context: Context | None = None
        self._ids = [np.zeros(len(prompt) + self._room(), np.int32) for prompt in prompts]
        self._chosen = [len(prompt) for prompt in prompts]  # ids of prompt and text, those in `_waiting` included
        self._waiting: list[deque[int]] = [deque() for _ in prompts]  # chosen, not given out yet
        for ids, prompt in zip(self._ids, prompts, strict=True):
            ids[: len(prompt)] = prompt

    def __next__(self) -> list[int | None]:
        active = [index for index, ending in enumerate(self.endings) if ending is None]
        if not active:
            if self._context is not None:
                self._context.close()
            raise StopIteration
        if self._context is None:
            self._context = self._open()
            self._read_prompts(self._context, active)
        else:
            self._compute(self._context, [index for index in active if not self._waiting[index]])
        new: list[int | None] = [None] * len(self.endings)
        for index in active:
            new[index] = self._accept(index, self._waiting[index].popleft())
        if all(token is None for token in new):  # every sequence that was left met its end
            return next(self)
        return new

    def _open(self) -> Context:
        longest = max(len(ids) for ids in self._ids)
        return self._engine.context(
            threads=self._threads,
            max_tokens=min(longest, self.context_length),
            max_sequences=len(self._ids),
            kv=self._kv,
        )

    def _read_prompts(self, context: Context, active: list[int]) -> None:
        """Compute every prompt and choose the first id behind it; a beginning that an earlier one has is copied."""
        read: list[int] = []
        for index in active:
            prompt = self._text(index)
            source, shared = max(
                ((other, _common(prompt, self._ids[other][: context.length(other)])) for other in read),
                key=lambda pair: pair[1],
                default=(0, 0),
            )
            shared = min(shared, len(prompt) - 1)  # the last id is computed in any case, for its logits
            if shared >= SHARED:
                context.fork(source, index, shared)
            context.prefill(prompt[context.length(index) :], index)
            read.append(index)
            self._choose(context, index, 0)

    def _compute(self, context: Context, empty: list[int]) -> None:
        """Choose at least one id for each of these sequences, whose last id was not computed yet."""
        plain = []
        for index in empty:
            guess = self._guess(index)
            if len(guess):
                self._check_guess(context, index, guess)
            else:
                plain.append(index)
        if plain:
            context.decode([int(self._text(index)[-1]) for index in plain], plain)
            for row, index in enumerate(plain):
                self._choose(context, index, row)

    def _guess(self, index: int) -> Text:
        """Ids that may come next, (0 to lookup,); as many as there is still room for behind the next one."""
        left = min(self.settings.max_new_tokens - self._produced[index], self.context_length - self._lengths[index])
        most = min(self._lookup, left - 1)
        return find_repeat(self._text(index), most) if most > 0 else np.zeros(0, np.int32)

    def _check_guess(self, context: Context, index: int, guess: Text) -> None:
        """Compute the last id and the guess at once; keep what would have been chosen one by one."""
        before = context.length(index)
        context.verify(np.concatenate((self._text(index)[-1:], guess)), index)
        right = 0
        while (token := self._choose(context, index, right)) not in self.settings.end_ids:
            if right == len(guess) or token != guess[right]:
                break
            right += 1
        context.rewind(before + 1 + right, index)

    def _choose(self, context: Context, index: int, row: int) -> int:
        """Choose the next id of a sequence from a row of logits; it waits to be given out."""
        seen = self._text(index) if self.settings.repetition_penalty != 1 else None
        token = context.sample(self.settings, self._chosen[index], seen, row)
        self._ids[index][self._chosen[index]] = token
        self._chosen[index] += 1
        self._waiting[index].append(token)
        return token

    def _text(self, index: int) -> Text:
        return self._ids[index][: self._chosen[index]]


def find_repeat(ids: Text, most: int) -> Text:
    """What may follow: the ids behind the latest earlier place of the last few ids, in a circle; (most,) or (0,).

    >>> find_repeat(np.array([1, 2, 3, 4, 5, 1, 2, 3], np.int32), 3).tolist()
    [4, 5, 1]
    >>> find_repeat(np.array([1, 2, 3, 4], np.int32), 3).tolist()
    []
    """
    for size in REPEATS:
        if len(ids) > size:
            windows = np.lib.stride_tricks.sliding_window_view(ids[:-1], size)  # (places, size)
            places = np.flatnonzero((windows == ids[-size:]).all(axis=1))
            if places.size:
                return np.resize(ids[places[-1] + size :], most)
    return np.zeros(0, np.int32)


def _common(a: Text, b: Text) -> int:
    """Ids that two texts have in common at their beginning."""
    size = min(len(a), len(b))
    different = np.flatnonzero(a[:size] != b[:size])
    return int(different[0]) if different.size else size
