"""The update against AdamW and clipping written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mobillama.config import TrainConfig
from mobillama.errors import InputError
from mobillama.train.optimizer import Optimizer

CONFIG = TrainConfig(rows_per_step=1, micro_batch_rows=1, compile=False)


def build() -> tuple[dict[str, nn.Parameter], Optimizer]:
    print("seed 5")
    generator = torch.Generator().manual_seed(5)
    weights = {
        "matrix": nn.Parameter(torch.randn(7, 5, generator=generator)),
        "norm": nn.Parameter(torch.ones(5)),
    }
    return weights, Optimizer(weights, CONFIG)


def give_gradients(weights: dict[str, nn.Parameter], step: int, size: float) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for weight in weights.values():
        assert weight.grad is not None
        weight.grad.copy_(torch.randn(weight.shape, generator=generator) * size)


@pytest.mark.parametrize("size", [0.001, 10.0])
def test_update_is_adamw_with_decay_on_all_tensors_after_clipping(size: float) -> None:
    weights, optimizer = build()
    expected = {name: weight.detach().double() for name, weight in weights.items()}
    moments = {name: (torch.zeros_like(w), torch.zeros_like(w)) for name, w in expected.items()}
    for step in range(1, 6):
        lr = 0.01 / step
        give_gradients(weights, step, size)
        gradients = {name: weight.grad.double() for name, weight in weights.items()}  # type: ignore[union-attr]
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        found = optimizer.update(lr)
        assert float(found) == pytest.approx(norm, rel=1e-6)
        for name, gradient in gradients.items():
            clipped = gradient * min(1.0, CONFIG.clip / norm)
            first, second = moments[name]
            first.mul_(CONFIG.beta1).add_(clipped, alpha=1 - CONFIG.beta1)
            second.mul_(CONFIG.beta2).add_(clipped.square(), alpha=1 - CONFIG.beta2)
            unbiased = second.div(1 - CONFIG.beta2**step).sqrt() + CONFIG.eps
            expected[name] *= 1 - lr * CONFIG.weight_decay
            expected[name] -= lr * first / (1 - CONFIG.beta1**step) / unbiased
    for name, weight in weights.items():
        torch.testing.assert_close(weight.detach().double(), expected[name], rtol=1e-5, atol=1e-6)
        assert weight.grad is not None
        assert not weight.grad.any()


def test_a_gradient_that_is_not_a_number_changes_nothing() -> None:
    weights, optimizer = build()
    before = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    give_gradients(weights, 1, 1.0)
    weights["norm"].grad[0] = math.nan  # type: ignore[index]
    assert math.isnan(float(optimizer.update(0.1)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in optimizer.state().items())


def test_state_round_trips_bit_for_bit_and_goes_on_equal() -> None:
    weights, optimizer = build()
    for step in range(3):
        give_gradients(weights, step, 1.0)
        optimizer.update(0.01)
    kept = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    others, other = build()
    other.load_state(kept)
    for each, its in ((optimizer, weights), (other, others)):
        give_gradients(its, 9, 1.0)
        each.update(0.01)
    assert set(kept) == {f"model.{name}" for name in weights} | {
        f"optimizer.{name}.{moment}" for name in weights for moment in ("exp_avg", "exp_avg_sq")
    } | {"optimizer.step"}
    assert all(torch.equal(tensor, other.state()[name]) for name, tensor in optimizer.state().items())
    assert not torch.equal(kept["model.matrix"], other.state()["model.matrix"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("optimizer.matrix.exp_avg"), "lacks 'optimizer.matrix.exp_avg'"),
        (lambda state: state.update({"model.bias": torch.ones(2)}), "holds 'model.bias'"),
        (lambda state: state.update({"model.norm": torch.ones(6)}), r"shape \(6,\)"),
    ],
)
def test_a_state_of_another_model_is_refused_whole(change, words: str) -> None:
    weights, optimizer = build()
    state = {name: tensor.clone() + 1 for name, tensor in optimizer.state().items()}
    change(state)
    before = weights["matrix"].detach().clone()
    with pytest.raises(InputError, match=words):
        optimizer.load_state(state)
    assert torch.equal(weights["matrix"], before)
