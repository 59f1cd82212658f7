"""The oracle of scoring: every request alone, every position computed, nothing shared, kept or batched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mobillama.errors import InputError
from mobillama.eval.scoring import Answers, Node, Request, Score, Scorer, Stopped
from mobillama.generation.sampling import Settings


class PlainScorer(Scorer):
    """Scores with a function from ids (T,) to logits (T, V), one whole request a call."""

    def __init__(self, logits: Callable[[list[int]], Any], vocab_size: int, context_length: int) -> None:
        self._logits = logits
        self.vocab_size, self.context_length = vocab_size, context_length

    def score(self, requests: Sequence[Request]) -> list[Score]:
        """As Scorer.score."""
        self._check(requests)
        return [self._one(request) for request in requests]

    def _one(self, request: Request) -> Score:
        rows = np.asarray(self._logits(list(request.ids[:-1])), np.float64)[-request.scored :]  # (scored, V)
        targets = list(request.ids[-request.scored :])
        highest = rows.max(-1, keepdims=True)
        logs = rows - highest - np.log(np.exp(rows - highest).sum(-1, keepdims=True))
        found = logs[np.arange(request.scored), targets]
        return Score(tuple(found.tolist()), bool((rows.argmax(-1) == targets).all()))

    def _compute(self, trees: list[Node], answers: Answers) -> None:
        raise InputError("the plain scorer knows no trees; expected whole requests: call score")

    def continue_ids(self, prompts: Sequence[Sequence[int]], settings: Settings, stopped: Stopped) -> list[list[int]]:
        """The likeliest id each time, everything computed again for every id."""
        texts: list[list[int]] = []
        for index, prompt in enumerate(prompts):
            ids: list[int] = []
            while len(ids) < settings.max_new_tokens and len(prompt) + len(ids) < self.context_length:
                following = int(np.asarray(self._logits([*prompt, *ids])[-1]).argmax())
                if following in settings.end_ids:
                    break
                ids.append(following)
                if stopped(index, ids):
                    break
            texts.append(ids)
        return texts
