"""The designs: stored parameters that are called equal are equal, and every arm of a seed reads the same rows."""

from __future__ import annotations

import math

import pytest

from mobillama.config import ModelConfig
from mobillama.errors import RecipeError
from mobillama.experiment import DESIGNS
from mobillama.experiment.design import (
    STEP,
    TOLERANCE,
    Arm,
    Comparison,
    Experiment,
    Sizes,
    match_width,
    schedule,
    training_flops,
)
from mobillama.experiment.table5 import EQUAL_FLOPS, EQUAL_TOKENS
from mobillama.model.cost import cost
from mobillama.model.initialise import outline_model


def count(config: ModelConfig) -> int:
    return sum(weight.numel() for weight in outline_model(config).parameters())


@pytest.mark.parametrize("scale", [0.5, 1, 2])
@pytest.mark.parametrize("name", ["table5", "sharing"])
def test_arms_store_equally_many_parameters_within_one_percent(name: str, scale: float) -> None:
    stored = {arm.name: count(arm.model) for arm in DESIGNS[name](Sizes().scaled(scale)).arms}
    assert max(stored.values()) / min(stored.values()) - 1 < 2 * TOLERANCE
    reference = stored["mobillama" if name == "table5" else "blocks-8"]
    assert all(abs(found / reference - 1) < TOLERANCE for found in stored.values()), stored


def test_table5_is_the_papers_table_divided_by_sixteen() -> None:
    models = {arm.name: arm.model for arm in DESIGNS["table5"](Sizes()).arms}
    shared, narrow, shallow = models["mobillama"], models["baseline1"], models["baseline2"]
    assert (shared.hidden_size, shared.intermediate_size, shared.num_hidden_layers) == (2048 // 16, 5632 // 16, 22)
    assert (narrow.hidden_size, narrow.num_hidden_layers, narrow.num_ffn_blocks) == (1024 // 16, 22, 22)
    assert (shallow.hidden_size, shallow.num_hidden_layers, shallow.num_ffn_blocks) == (2048 // 16, 8, 8)
    paper = cost(ModelConfig()).stored_shares
    assert math.isclose(cost(shared).stored_shares.embedding, paper.embedding, abs_tol=0.01)
    assert math.isclose(cost(shared).stored_shares.ffn, paper.ffn, abs_tol=0.01)


def test_equal_tokens_and_equal_operations_are_equal() -> None:
    experiment = DESIGNS["table5"](Sizes())
    for pair in experiment.comparisons:
        a, b = experiment.arm(pair.a), experiment.arm(pair.b)
        if pair.group == EQUAL_TOKENS:
            assert a.steps == b.steps
        else:
            assert pair.group == EQUAL_FLOPS
            spent = [arm.steps * training_flops(arm.model) for arm in (a, b)]
            assert spent[0] == pytest.approx(spent[1], rel=0.01)


@pytest.mark.parametrize("name", DESIGNS)
def test_arms_differ_in_nothing_that_decides_which_rows_a_step_reads(name: str) -> None:
    experiment = DESIGNS[name](Sizes())
    assert {arm.train["rows_per_step"] for arm in experiment.arms} == {STEP["rows_per_step"]}
    compared = {name for pair in experiment.comparisons for name in (pair.a, pair.b)}
    assert {experiment.arm(name).seed_offset for name in compared} == {0}


def test_a_comparison_of_an_arm_that_is_not_there_is_refused() -> None:
    arm = Arm("x", "x", Sizes().model("x"), 10, (), schedule(10))
    with pytest.raises(ValueError, match="do not fit"):
        Experiment("e", "t", "q", (arm,), (), (Comparison("x", "y", "g"),))


def test_scale_keeps_tokens_per_parameter_and_refuses_zero() -> None:
    larger = Sizes().scaled(2)
    assert (larger.hidden_size, larger.intermediate_size, larger.steps) == (256, 704, 4000)
    with pytest.raises(RecipeError, match="scale=0"):
        Sizes().scaled(0)


def test_a_size_that_no_width_can_match_is_refused() -> None:
    with pytest.raises(RecipeError, match="no intermediate_size gives tiny"):
        match_width(Sizes(hidden_size=16).model("tiny"), 1000)
