"""Intervals: Student's quantiles from tables, and how often an interval holds the truth."""

from __future__ import annotations

import numpy as np
import pytest

from mobillama.experiment.statistics import bootstrap, t_interval, t_quantile

# Two-sided 95%, from printed tables.
TABLE = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 9: 2.2622, 30: 2.0423, 1000: 1.9623}


@pytest.mark.parametrize("freedom", TABLE)
def test_t_quantiles_are_those_of_the_tables(freedom: int) -> None:
    assert t_quantile(freedom) == pytest.approx(TABLE[freedom], abs=1e-4)


def test_the_t_interval_holds_the_mean_about_95_times_in_100() -> None:
    numbers = np.random.default_rng(3)
    intervals = [t_interval(numbers.normal(1.0, 2.0, 3).tolist()) for _ in range(2000)]
    held = sum(found is not None and found.low <= 1.0 <= found.high for found in intervals)
    assert 0.93 < held / 2000 < 0.97


def test_one_value_has_no_interval() -> None:
    assert t_interval([1.0]) is None
    assert bootstrap(np.array([1.0]), np.array([5.0])) is None


def test_the_bootstrap_is_as_wide_as_theory_says_and_repeats() -> None:
    numbers = np.random.default_rng(4)
    size = np.full(400, 50.0)
    bits = numbers.normal(5.0, 10.0, 400)  # a byte's mean 0.1, its standard error 10 / 50 / sqrt(400) = 0.01
    found = bootstrap(bits, size)
    assert found is not None and found == bootstrap(bits, size)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * bits.std() / 50 / 20, rel=0.1)
    assert (found.high + found.low) / 2 == pytest.approx(bits.sum() / size.sum(), abs=0.002)
