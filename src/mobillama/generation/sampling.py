"""One next token from one row of logits: penalty, temperature, top-k, top-p, draw, in this order.

numpy only, one sequence at a time, in float64: a sequence gets the same token alone, in a batch and on any device, as
far as its logits are the same. The random number of a token is a pure function of (seed, position in the sequence):
there is no generator to keep in step, and text that is generated in two halves equals text generated at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mobillama.errors import InputError

# V vocab_size

Floats = npt.NDArray[np.floating[Any]]

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15  # odd integer nearest 2^64 / golden ratio: the increment of SplitMix64


@dataclass(frozen=True)
class Settings:
    """How tokens are chosen and when to stop. Errors: InputError names the value that cannot be used."""

    max_new_tokens: int = 128
    temperature: float = 0.8  # divides the logits; 0 = always the likeliest token (top_k and top_p change nothing then)
    top_k: int = 0  # keep the k likeliest (and ties with the k-th); 0 = all
    top_p: float = 0.95  # keep the fewest likeliest tokens whose probabilities reach this sum; 1 = all
    repetition_penalty: float = 1.0  # ids already in prompt or text: logit / penalty if > 0, else logit * penalty
    seed: int = 0
    end_ids: frozenset[int] = frozenset()  # any of them ends a sequence and is not returned
    num_ids: int | None = None  # choose among the first this many ids only: a tokenizer can be smaller than its model

    def __post_init__(self) -> None:
        def check(name: str, good: bool, expected: str) -> None:
            if not good:
                raise InputError(f"{name}={getattr(self, name)!r}; expected {expected}")

        check("max_new_tokens", self.max_new_tokens >= 1, "1 or more")
        check("temperature", 0 <= self.temperature < math.inf, "0 (the likeliest token) or more, such as 0.8")
        check("top_k", self.top_k >= 0, "0 (all) or more")
        check("top_p", 0 < self.top_p <= 1, "more than 0 and at most 1 (all)")
        check("repetition_penalty", 0.01 <= self.repetition_penalty <= 100, "0.01 to 100; 1 = none")
        check("num_ids", self.num_ids is None or self.num_ids >= 1, "1 or more, or None for all")
        check("seed", 0 <= self.seed <= MASK, "0 to 2**64 - 1")


def choose(logits: Floats, seen: npt.NDArray[np.bool_] | None, settings: Settings, position: int) -> int:
    """The id of the next token.

    `logits` (V,); `seen` (V,) marks the ids already in the sequence (read only if there is a penalty); `position`
    counts the tokens before the new one. Ties go to the lowest id. Error: InputError if the largest logit is not a
    finite number.
    """
    logits = logits[: settings.num_ids]
    highest = logits.max()  # NaN if any is
    if not np.isfinite(highest):
        raise InputError(
            f"the largest logit at position {position} is {highest}; expected a finite number: the weights are"
            " damaged, or the type is too narrow for them (try dtype='float32')"
        )
    if settings.temperature == 0 and settings.repetition_penalty == 1:
        return int(logits.argmax())
    scores = logits.astype(np.float64)  # (V,) a copy
    if settings.repetition_penalty != 1 and seen is not None:
        penalise(scores, seen, settings.repetition_penalty)
    if settings.temperature == 0:
        return int(scores.argmax())
    weights = filtered_weights(scores, settings)  # (V,)
    return draw(weights, uniform(settings.seed, position))


def penalise(scores: npt.NDArray[np.float64], seen: npt.NDArray[np.bool_], penalty: float) -> None:
    """Make ids already in the sequence less likely, in place (Keskar et al. 2019, CTRL, section 4.1)."""
    ids = np.flatnonzero(seen[: scores.size])
    found = scores[ids]
    scores[ids] = np.where(found > 0, found / penalty, found * penalty)


def filtered_weights(scores: npt.NDArray[np.float64], settings: Settings) -> npt.NDArray[np.float64]:
    """Unnormalised probabilities (V,) after temperature, top-k and top-p; 0 where a token was dropped."""
    size = scores.size
    with np.errstate(over="ignore"):  # next to temperature 0, all but the likeliest go to minus infinity
        scores = (scores - scores.max()) / settings.temperature  # (V,) the highest is 0, so that exp cannot overflow
    weights = np.exp(scores)  # (V,)
    if 0 < settings.top_k < size:
        weights[scores < np.partition(scores, size - settings.top_k)[size - settings.top_k]] = 0.0
    if settings.top_p < 1:
        total = weights.sum()
        # All tokens below (1 - p) / V of the total sum to less than 1 - p: they cannot be in the nucleus, so the
        # sort needs only the others.
        weights[weights < (1 - settings.top_p) * total / size] = 0.0
        candidates = np.flatnonzero(weights)
        order = candidates[np.argsort(-weights[candidates], kind="stable")]
        reached = int(np.searchsorted(np.cumsum(weights[order]), settings.top_p * total))
        weights[order[reached + 1 :]] = 0.0
    return weights


def draw(weights: npt.NDArray[np.float64], point: float) -> int:
    """The id at `point` (0 to below 1) of the cumulative distribution in order of ids."""
    cumulative = np.cumsum(weights)  # (V,)
    index = int(np.searchsorted(cumulative, point * cumulative[-1], side="right"))
    return index if index < weights.size else int(np.flatnonzero(weights)[-1])


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on seed and position alone: output `position` of a SplitMix64 stream.

    >>> uniform(1, 5) == uniform(1, 5), uniform(1, 5) == uniform(1, 6), uniform(1, 5) == uniform(2, 5)
    (True, False, False)
    """
    # The seed is mixed first: streams of neighbouring seeds would otherwise overlap. The top 53 bits fill a float.
    return (mix(mix(seed) + (position + 1) * GOLDEN) >> 11) * 2.0**-53


def mix(value: int) -> int:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014): 64 bits in, 64 well-mixed bits out, one to one."""
    value &= MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)
