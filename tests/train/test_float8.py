"""Matrix products in float8: what they compute, what they leave alone, and where they are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mobillama.config import ModelConfig, TrainConfig
from mobillama.errors import RecipeError
from mobillama.model.initialise import build_model
from mobillama.train.float8 import BACKWARD, FORWARD, Float8Linear, check_float8, to_float8, use_float8

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = ModelConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, num_ffn_blocks=1
)
IDS = torch.arange(2 * 24).view(2, 24) % 64


def random(*size: int, seed: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def linear(inputs: int, outputs: int) -> Float8Linear:
    made = Float8Linear(inputs, outputs, bias=False)
    made.weight.data = random(outputs, inputs, seed=1)
    return made


@pytest.mark.parametrize("positions", [32, 21])  # 21: padded to a multiple of 16
def test_the_three_products_are_those_of_the_rounded_operands(positions: int) -> None:
    layer = linear(64, 48)
    x, gradient = random(positions, 64, seed=2).requires_grad_(), random(positions, 48, seed=3)
    out = layer(x)
    out.backward(gradient)

    def rounded(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        values, factor = to_float8(tensor, dtype)
        return values.double() * factor.double()

    w, g = rounded(layer.weight.detach(), FORWARD), rounded(gradient, BACKWARD)
    inputs = rounded(x.detach(), FORWARD)
    torch.testing.assert_close(out.detach().double(), inputs @ w.t(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(x.grad.double(), g @ w, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(layer.weight.grad.double(), g.t() @ inputs, rtol=1e-5, atol=1e-4)


def test_rounding_costs_what_the_formats_say() -> None:
    """e4m3 keeps three bits of mantissa, e5m2 two: half a unit in the last place is 1/16 and 1/8."""
    x = random(1000, seed=4) * 37
    for dtype, most in ((FORWARD, 1 / 16), (BACKWARD, 1 / 8)):
        values, factor = to_float8(x, dtype)
        near = (values.float() * factor - x).abs() / x.abs()
        assert 0.5 * most < float(near[x.abs() > 0.5].max()) <= most * 1.001
    layer = linear(256, 256)
    x = random(512, 256, seed=5)
    exact = x @ layer.weight.t()
    error = (layer(x) - exact).norm() / exact.norm()
    assert 0.005 < error < 0.05, float(error)


def test_zeros_stay_zeros_and_large_values_stay_finite() -> None:
    layer = linear(16, 16)
    assert torch.equal(layer(torch.zeros(16, 16)), torch.zeros(16, 16))
    assert torch.isfinite(layer(torch.full((16, 16), 1e30))).all()
    values, factor = to_float8(torch.tensor([3e38, -3e38]), BACKWARD)
    assert torch.isfinite(values.float() * factor).all()


def test_layers_inside_the_blocks_change_and_nothing_else_does() -> None:
    model = build_model(SHAPE, 0)
    before = dict(model.named_parameters())
    assert use_float8(model) == 3 * 4 + 3  # attention of three layers, one FFN
    assert {name: id(weight) for name, weight in model.named_parameters()} == {n: id(w) for n, w in before.items()}
    assert type(model.lm_head) is nn.Linear


def test_a_model_in_float8_learns_as_one_in_float32() -> None:
    losses = {}
    for float8 in (False, True):
        model = build_model(SHAPE, 0)
        if float8:
            use_float8(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(30):
            loss = nn.functional.cross_entropy(model(IDS[:, :-1]).flatten(0, 1), IDS[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses[float8] = float(loss.detach())
    print(losses)
    assert losses[True] != losses[False]
    assert losses[True] == pytest.approx(losses[False], abs=0.1)
    assert losses[True] < 1.0


def test_a_small_matrix_keeps_its_type_and_a_model_of_small_ones_is_refused() -> None:
    shape = SHAPE.model_copy(update={"intermediate_size": 40})
    assert use_float8(build_model(shape, 0)) == 3 * 4
    with pytest.raises(RecipeError, match=r"hidden_size=20, intermediate_size=40.*multiples of 16|multiples of 16.*20"):
        use_float8(build_model(shape.model_copy(update={"hidden_size": 20}), 0))


def test_a_device_without_float8_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"train\.float8=true, but the device is 'cpu'.*8\.9.*train\.float8=false"):
        check_float8(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    with pytest.raises(RecipeError, match=r"NVIDIA A100 has compute capability 8\.0"):
        check_float8(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    check_float8(torch.device("cuda"))


def test_the_step_of_training_runs_on_float8_layers() -> None:
    """The working copy has leaves of its own; their gradients reach the float32 masters through float8 products."""
    from mobillama.train.step import TrainStep

    config = TrainConfig(rows_per_step=2, micro_batch_rows=2, compile=False)
    norms = {}
    for float8 in (False, True):
        step = TrainStep(build_model(SHAPE, 0), config, torch.device("cpu"), torch.bfloat16)
        if float8:
            use_float8(step.working.model)
        step.accumulate(IDS, 1.0)
        norms[float8] = float(torch.nn.utils.get_total_norm(step.optimizer.gradients))
    assert norms[True] != norms[False]
    assert norms[True] == pytest.approx(norms[False], rel=0.1)


@pytest.mark.slow
def test_compiled_float8_products_equal_eager_ones() -> None:
    layer, x = linear(64, 48), random(32, 64, seed=6)
    found = []
    for run in (layer, torch.compile(layer)):
        layer.zero_grad()
        out = run(x)
        out.square().sum().backward()
        found.append((out.detach(), layer.weight.grad.clone()))
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-3)
