import itertools
import math

import pytest

from mobillama.config import TrainConfig
from mobillama.errors import RecipeError
from mobillama.train.schedule import check_schedule, due, learning_rate, same_so_far


def test_golden_learning_rates_of_the_paper():
    """Peak 3e-4, 2,000 steps of warm-up, cosine to a tenth: worked out by hand at quarter points of the cosine."""
    config = TrainConfig()
    rates = [learning_rate(config, step, 10_000) for step in (1, 1_000, 2_000, 4_000, 6_000, 8_000, 10_000)]
    assert rates == pytest.approx([1.5e-7, 1.5e-4, 3e-4, 2.604594e-4, 1.65e-4, 6.95406e-5, 3e-5], rel=1e-6)


def test_learning_rate_rises_then_falls_and_ends_at_the_ratio():
    config = TrainConfig(learning_rate=2.0, warmup_steps=7, min_lr_ratio=0.25)
    rates = [learning_rate(config, step, 40) for step in range(1, 41)]
    assert rates[:7] == [2.0 * step / 7 for step in range(1, 8)]
    assert all(before > after for before, after in itertools.pairwise(rates[6:]))
    assert math.isclose(rates[-1], 0.5)


def test_without_warm_up_the_first_step_is_on_the_cosine():
    assert learning_rate(TrainConfig(learning_rate=1.0, warmup_steps=0, min_lr_ratio=0), 5, 10) == pytest.approx(0.5)


def test_a_warm_up_that_does_not_fit_is_an_error_that_says_what_would():
    check_schedule(TrainConfig(warmup_steps=9), 10)
    with pytest.raises(RecipeError, match=r"train.warmup_steps=10 does not fit into 10 steps.*warmup_steps=1,"):
        check_schedule(TrainConfig(warmup_steps=10), 10)


def test_more_steps_leave_the_warm_up_as_it_was_but_not_the_cosine():
    config = TrainConfig(warmup_steps=5)
    assert same_so_far(config, 20, config, 30, 5)
    assert not same_so_far(config, 20, config, 30, 6)
    constant = TrainConfig(warmup_steps=5, min_lr_ratio=1.0)
    assert same_so_far(constant, 20, constant, 30, 20)


def test_warmup_stable_decay_holds_the_peak_and_falls_in_a_straight_line():
    config = TrainConfig(schedule="wsd", learning_rate=2.0, warmup_steps=10, decay_share=0.3, min_lr_ratio=0.25)
    rates = [learning_rate(config, step, 110) for step in range(1, 111)]
    assert rates[:10] == [2.0 * step / 10 for step in range(1, 11)]
    assert rates[10:80] == [2.0] * 70
    assert rates[80:] == pytest.approx([2.0 - 1.5 * step / 30 for step in range(1, 31)])
    assert rates != [
        learning_rate(config.model_copy(update={"schedule": "cosine"}), step, 110) for step in range(1, 111)
    ]


def test_decaying_over_all_steps_or_one_ends_at_the_ratio_too():
    for share in (1e-9, 1.0):
        config = TrainConfig(schedule="wsd", learning_rate=1.0, warmup_steps=2, decay_share=share, min_lr_ratio=0)
        assert [learning_rate(config, step, 12) for step in (2, 12)] == [1.0, 0.0]
        assert (learning_rate(config, 11, 12) == 1.0) == (share < 1)


def test_a_stable_run_can_be_lengthened_until_its_decay_has_begun():
    config = TrainConfig(schedule="wsd", warmup_steps=5, decay_share=0.2)
    assert same_so_far(config, 105, config, 205, 85)
    assert not same_so_far(config, 105, config, 205, 86)
    assert not same_so_far(config, 105, config.model_copy(update={"schedule": "cosine"}), 205, 6)


def test_due_counts_from_the_first_step_and_zero_is_never():
    assert [step for step in range(1, 10) if due(step, 3)] == [3, 6, 9]
    assert not any(due(step, 0) for step in range(1, 10))
