"""How sure a difference is: t intervals over seeds, a bootstrap over held-out documents."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A range that holds the value with 95% confidence."""

    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        """Whether no difference is among the values."""
        return self.low <= 0 <= self.high


def t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """The t with P(|T| < t) = confidence for Student's T with `freedom` degrees of freedom (1 or more).

    >>> round(t_quantile(2), 3), round(t_quantile(9), 3)
    (4.303, 2.262)
    """
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """P(|T| < sqrt(freedom) tan(angle)), in closed form (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    if freedom % 2:
        term, total = cosine, cosine if freedom > 1 else 0.0
        for k in range(3, freedom - 1, 2):
            term *= (k - 1) / k * cosine**2
            total += term
        return 2 / math.pi * (angle + sine * total)
    term = total = 1.0
    for k in range(2, freedom - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    return sine * total


def t_interval(values: Sequence[float]) -> Interval | None:
    """Of the mean of some independent values; None for fewer than two."""
    if len(values) < 2:
        return None
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    half = t_quantile(len(values) - 1) * spread / math.sqrt(len(values))
    return Interval(mean - half, mean + half)


def bootstrap(difference: NDArray[np.float64], size: NDArray[np.float64], seed: int = 0) -> Interval | None:
    """Of a difference in bits per byte when other documents had been held out: documents drawn anew, with replacement.

    `difference` (documents,) bits of one model minus the other's; `size` (documents,) bytes. None for fewer than two.
    """
    count = len(difference)
    if count < 2 or not size.sum():
        return None
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), SAMPLES)  # (SAMPLES, documents)
    covered = weights @ size
    means = (weights @ difference)[covered > 0] / covered[covered > 0]
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high))
