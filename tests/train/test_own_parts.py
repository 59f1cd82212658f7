"""The step of a model whose layers have adapters and gains beside the shared FFN, and of each optimizer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mobillama.config import ModelConfig, TrainConfig
from mobillama.model.initialise import build_model
from mobillama.train.step import TrainStep

SHAPE = ModelConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_ffn_blocks=2,
    ffn_adapter_rank=3,
    ffn_gain=True,
    max_position_embeddings=32,
    initializer_range=0.2,
)
CPU = torch.device("cpu")


def build(dtype: torch.dtype = torch.float32, **train) -> TrainStep:
    model = build_model(SHAPE, 0)
    with torch.no_grad():
        for block in model.layers:  # adapters that give something, so that gradients reach both of their matrices
            block.ffn_adapter.up.weight.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
    config = TrainConfig(**{"rows_per_step": 6, "micro_batch_rows": 3, "compile": False, **train})
    return TrainStep(model, config, CPU, dtype)


def draw_rows(seed: int = 0) -> Tensor:
    return torch.randint(0, SHAPE.vocab_size, (6, 17), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_adapters_and_gains_are_those_of_the_plain_model(checkpointing: bool) -> None:
    step, rows = build(activation_checkpointing=checkpointing), draw_rows()
    weights = dict(step.model.named_parameters())
    loss = F.cross_entropy(step.model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
    expected = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    losses = [step.accumulate(rows[:3], 0.5), step.accumulate(rows[3:], 0.5)]
    torch.testing.assert_close(torch.stack(losses).mean(), loss.detach(), rtol=1e-6, atol=1e-6)
    for name, weight in weights.items():
        torch.testing.assert_close(weight.grad, expected[name], rtol=1e-4, atol=1e-6, msg=name)
        assert expected[name].any(), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_weight_learns_and_the_loss_falls(optimizer: str, dtype: torch.dtype) -> None:
    step, rows = build(dtype, optimizer=optimizer), draw_rows()
    before = {name: tensor.clone() for name, tensor in step.state().items()}
    losses = []
    for _ in range(12):
        losses.append(float(torch.stack([step.accumulate(part, 0.5) for part in rows.split(3)]).mean()))
        step.update(3e-3)
    assert losses[-1] < 0.7 * losses[0]
    assert float(step.evaluate(rows)) / rows[:, 1:].numel() < losses[-1] + 0.1
    for name, tensor in step.state().items():
        assert not torch.equal(tensor, before[name]), name
