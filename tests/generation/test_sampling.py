"""Choosing a token: each step against a plain version of itself, and frequencies against probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mobillama.errors import InputError
from mobillama.generation.sampling import Settings, choose, mix, uniform

V = 50


def plain_choice(logits: np.ndarray, seen: set[int], settings: Settings, point: float) -> int:
    """The documented order, one token at a time in Python numbers: penalty, temperature, top-k, top-p, draw."""
    scores = {token: float(logit) for token, logit in enumerate(logits)}
    for token in seen:
        scores[token] = (
            scores[token] / settings.repetition_penalty
            if scores[token] > 0
            else scores[token] * settings.repetition_penalty
        )
    ranked = sorted(scores, key=lambda token: (-scores[token], token))
    if settings.temperature == 0:
        return ranked[0]
    if settings.top_k:
        least = scores[ranked[min(settings.top_k, len(ranked)) - 1]]
        ranked = [token for token in ranked if scores[token] >= least]
    highest = scores[ranked[0]]
    weight = {token: math.exp((scores[token] - highest) / settings.temperature) for token in ranked}
    total = math.fsum(weight.values())
    kept, reached = [], 0.0
    for token in ranked:
        if reached < settings.top_p * total or settings.top_p == 1:
            kept.append(token)
            reached += weight[token]
    left = point * math.fsum(weight[token] for token in kept)
    for token in sorted(kept):
        left -= weight[token]
        if left < 0:
            return token
    return max(kept)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {"temperature": 0.0, "repetition_penalty": 1.7},
        {"temperature": 1.0, "top_p": 1.0},
        {"temperature": 0.5, "top_k": 5, "top_p": 1.0},
        {"temperature": 1.3, "top_p": 0.6},
        {"temperature": 0.9, "top_k": 7, "top_p": 0.8, "repetition_penalty": 1.3},
        {"temperature": 2.0, "top_k": 500, "top_p": 0.999, "repetition_penalty": 0.8},
        {"temperature": 1e-4, "top_p": 0.95},
        {"temperature": 1e-306, "repetition_penalty": 100.0},
    ],
    ids=str,
)
def test_choice_equals_a_plain_version(settings: dict[str, float]) -> None:
    seed = 20261122
    print("seed", seed)
    numbers = np.random.default_rng(seed)
    for position in range(300):
        logits = numbers.normal(0, 3, V).astype(np.float32)
        if position % 3 == 0:  # ties, also at the borders of top-k and top-p
            logits = np.round(logits)
        seen = numbers.random(V) < 0.3
        chosen = Settings(seed=position, **settings)  # type: ignore[arg-type]
        point = uniform(chosen.seed, position)
        expected = plain_choice(logits, set(np.flatnonzero(seen).tolist()), chosen, point)
        assert choose(logits, seen, chosen, position) == expected, (position, chosen)


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"temperature": 1.0, "top_p": 1.0}, [0, 1, 2, 3, 4]),
        ({"temperature": 2.0, "top_p": 1.0}, [0, 1, 2, 3, 4]),
        ({"temperature": 1.0, "top_k": 3, "top_p": 1.0}, [0, 1, 2]),
        ({"temperature": 1.0, "top_p": 0.7}, [0, 1]),
    ],
    ids=str,
)
def test_frequencies_follow_the_probabilities(settings: dict[str, float], allowed: list[int]) -> None:
    probabilities = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    draws = 20_000
    chosen = Settings(seed=7, **settings)  # type: ignore[arg-type]
    counts = np.bincount(
        [choose(np.log(probabilities), None, chosen, position) for position in range(draws)], minlength=5
    )
    expected = np.where(np.isin(np.arange(5), allowed), probabilities ** (1 / chosen.temperature), 0)
    expected *= draws / expected.sum()
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    chi_square = float((((counts - expected) ** 2)[kept] / expected[kept]).sum())
    # The 0.999 quantiles of chi-square with 1, 2 and 4 degrees of freedom.
    assert chi_square < {2: 10.83, 3: 13.82, 5: 18.47}[int(kept.sum())], counts


def test_random_numbers_are_uniform_over_positions_and_over_seeds() -> None:
    for name, points in (
        ("positions", [uniform(3, position) for position in range(20_000)]),
        ("seeds", [uniform(seed, 3) for seed in range(20_000)]),
        ("diagonal", [uniform(step, 20_000 - step) for step in range(20_000)]),
    ):
        counts, _ = np.histogram(points, bins=20, range=(0, 1))
        assert float(((counts - 1000) ** 2 / 1000).sum()) < 43.82, name  # 0.999 quantile, 19 degrees of freedom
        assert len(set(points)) == 20_000, name


def test_mix_is_the_published_splitmix64() -> None:
    # First outputs of the generator from state 1234567, as published with the reference code.
    state, outputs = 1234567, []
    for _ in range(3):
        state += 0x9E3779B97F4A7C15
        outputs.append(mix(state))
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_the_likeliest_token_always_survives() -> None:
    logits = np.array([0.0, 5.0, 5.0, -1.0], dtype=np.float32)
    assert choose(logits, None, Settings(temperature=0), 0) == 1  # a tie goes to the lowest id
    assert choose(logits, None, Settings(top_p=1e-9), 0) == 1
    assert choose(np.array([0.0, 9.0, 5.0]), None, Settings(top_k=1, temperature=100), 0) == 1


def test_penalty_makes_seen_ids_less_likely_whatever_their_sign() -> None:
    settings = Settings(temperature=0, repetition_penalty=2.0)
    seen = np.array([True, False])
    assert choose(np.array([1.5, 1.0]), seen, settings, 0) == 1
    assert choose(np.array([-1.0, -1.5]), seen, settings, 0) == 1


def test_ids_the_tokenizer_does_not_have_are_never_chosen() -> None:
    logits = np.array([0.0, 1.0, 9.0, 9.0])
    for settings in (
        Settings(temperature=0, num_ids=2),
        Settings(top_k=1, num_ids=2),
        Settings(temperature=0, repetition_penalty=1.01, num_ids=2),
    ):
        assert choose(logits, np.ones(4, dtype=np.bool_), settings, 0) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_numbers_are_an_error(bad: float) -> None:
    with pytest.raises(InputError, match=r"largest logit at position 4 .* finite"):
        choose(np.array([0.0, bad, 1.0]), None, Settings(), 4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf),
        ("max_new_tokens", 0),
        ("seed", -1),
    ],
)
def test_an_impossible_setting_is_named(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{name}=.*expected"):
        Settings(**{name: value})  # type: ignore[arg-type]
