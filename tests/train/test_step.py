"""The step against plain autograd on the plain model, and against itself."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mobillama.config import ModelConfig, TrainConfig
from mobillama.model.initialise import build_model
from mobillama.model.transformer import Transformer
from mobillama.train.step import TrainStep

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
CPU = torch.device("cpu")


def build(dtype: torch.dtype = torch.float32, model: dict | None = None, **train) -> TrainStep:
    shape = ModelConfig(**{**SHAPE, "initializer_range": 0.2, **(model or {})})
    how = {"rows_per_step": 6, "micro_batch_rows": 3, "compile": False, "loss_chunk_tokens": 10, **train}
    return TrainStep(build_model(shape, 0), TrainConfig(**how), CPU, dtype)


def draw_rows(rows: int = 6, tokens: int = 17, seed: int = 0) -> Tensor:
    return torch.randint(0, SHAPE["vocab_size"], (rows, tokens), generator=torch.Generator().manual_seed(seed))


def gradients(model: Transformer) -> dict[str, Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}  # type: ignore[union-attr]


def plain_gradients(step: TrainStep, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of the model as it is: float32, one graph, all logits."""
    weights = dict(step.model.named_parameters())
    logits = step.model(rows[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    return loss, dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "model",
    [
        {},
        {"num_ffn_blocks": 2},
        {"num_ffn_blocks": 4},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 2},
    ],
    ids=["shared", "grouped", "dense", "tied", "grouped-query"],
)
def test_gradients_are_those_of_the_plain_model(model: dict, checkpointing: bool) -> None:
    step = build(model=model, activation_checkpointing=checkpointing)
    rows = draw_rows()
    loss, expected = plain_gradients(step, rows)
    losses = [step.accumulate(rows[:3], 0.5), step.accumulate(rows[3:], 0.5)]
    torch.testing.assert_close(torch.stack(losses).mean(), loss.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients(step.model), expected, rtol=1e-4, atol=1e-6)


def test_accumulating_over_micro_batches_equals_one_batch() -> None:
    whole, parts = build(micro_batch_rows=6), build()
    for seed in range(3):
        rows = draw_rows(seed=seed)
        whole.accumulate(rows, 1.0)
        for part in rows.split(2):
            parts.accumulate(part, 1 / 3)
        torch.testing.assert_close(vars(parts.update(1e-3)), vars(whole.update(1e-3)), rtol=1e-5, atol=1e-6)
    for name, weight in whole.model.state_dict().items():
        # By norm: AdamW divides by a gradient's own size, so where that is rounding noise a weight moves by a share of
        # the learning rate. One such weight of 1,024 differed by 4e-5; a part left out differs by 1e-2 of the norm.
        difference = parts.model.state_dict()[name] - weight
        assert difference.norm() <= 1e-4 * weight.norm(), name


def test_recomputing_activations_changes_no_bit() -> None:
    kept, recomputed = build(torch.bfloat16), build(torch.bfloat16, activation_checkpointing=True)
    for step in (kept, recomputed):
        step.accumulate(draw_rows(), 1.0)
    first, second = gradients(kept.model), gradients(recomputed.model)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_uses_of_the_shared_ffn_are_summed_in_float32() -> None:
    """Its gradient is the float32 sum of those that a dense model with equal FFNs has in each layer."""
    shared, dense = build(torch.bfloat16), build(torch.bfloat16, model={"num_ffn_blocks": 4})
    state = {name: tensor.clone() for name, tensor in dense.state().items()}
    for name, tensor in shared.state().items():
        for layer in range(4):
            state[name.replace("ffns.0.", f"ffns.{layer}.")] = tensor.clone()
    dense.load_state(state)
    for step in (shared, dense):
        step.accumulate(draw_rows(), 1.0)
    found, each = gradients(shared.model), gradients(dense.model)
    for name in ("gate_proj.weight", "up_proj.weight", "down_proj.weight"):
        uses = [each[f"ffns.{layer}.{name}"] for layer in reversed(range(4))]
        assert torch.equal(found[f"ffns.0.{name}"], sum(uses))
        assert not torch.equal(found[f"ffns.0.{name}"], sum(use.bfloat16() for use in uses).float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_evaluate_sums_the_loss_and_changes_nothing(dtype: torch.dtype) -> None:
    step, rows = build(dtype), draw_rows()
    before = digest(step)
    nats = step.evaluate(rows)
    assert nats.dtype == torch.float64
    assert digest(step) == before
    assert not any(gradient.any() for gradient in gradients(step.model).values())
    loss = step.accumulate(rows, 1.0)
    assert loss.dtype == torch.float32
    assert float(nats) / rows[:, 1:].numel() == pytest.approx(float(loss), rel=1e-5 if dtype == torch.float32 else 5e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_learns_and_evaluation_sees_the_new_weights(dtype: torch.dtype) -> None:
    step, rows = build(dtype), draw_rows()
    first = float(step.evaluate(rows))
    for _ in range(30):
        step.accumulate(rows, 1.0)
        step.update(1e-2)
    assert float(step.evaluate(rows)) < 0.5 * first


def test_norm_counts_the_shared_ffn_once() -> None:
    step, rows = build(), draw_rows()
    _, expected = plain_gradients(step, rows)
    step.accumulate(rows, 1.0)
    norm = torch.stack([gradient.square().sum() for gradient in expected.values()]).sum().sqrt()
    torch.testing.assert_close(step.update(1e-3).all, norm, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_goes_on_bitwise_equal_from_a_saved_state(dtype: torch.dtype) -> None:
    def train(step: TrainStep, seeds: range) -> list[float]:
        found = []
        for seed in seeds:
            found += [float(step.accumulate(part, 0.5)) for part in draw_rows(seed=seed).split(3)]
            found.append(float(step.update(1e-3).all))
        return found

    step = build(dtype)
    train(step, range(3))
    kept = {name: tensor.clone() for name, tensor in step.state().items()}
    other = build(dtype, model={"initializer_range": 0.3})
    other.load_state(kept)
    assert digest(other) == digest(step)
    assert train(step, range(3, 6)) == train(other, range(3, 6))
    assert digest(other) == digest(step)


def test_masters_and_state_are_float32_whatever_the_compute() -> None:
    step = build(torch.bfloat16)
    assert all(tensor.dtype == torch.float32 for tensor in step.state().values())
    assert step.working.model.lm_head.weight.dtype == torch.bfloat16


def digest(step: TrainStep) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(step.state().items()):
        total.update(name.encode() + tensor.numpy().tobytes())
    return total.hexdigest()


RUN = """
import sys, torch
from test_step import build, digest, draw_rows
from mobillama.device import computing, place
with computing(place("cpu", threads=2), deterministic=True):
    shape = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 512}
    step = build(torch.bfloat16, model=shape, compile=sys.argv[1] == "compiled", loss_chunk_tokens=64)
    for seed in range(6):
        for part in draw_rows(tokens=33, seed=seed).split(3):
            step.accumulate(part, 0.5)
        step.update(1e-2)
print("digest", digest(step))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["eager", "compiled"])
def test_fresh_processes_end_with_the_same_bits(how: str, tmp_path) -> None:
    digests = set()
    for process in range(2):
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / str(process))}
        environment["PYTHONPATH"] = str(Path(__file__).parent)
        done = subprocess.run(
            [sys.executable, "-c", RUN, how], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        digests.add(done.stdout.split()[-1])
    assert len(digests) == 1


@pytest.mark.slow
def test_compiled_gradients_are_those_of_the_eager_step() -> None:
    model = {"hidden_size": 64, "intermediate_size": 96, "num_key_value_heads": 2}
    eager = build(torch.bfloat16, model=model)
    compiled = build(torch.bfloat16, model=model, compile=True)
    exact = build(model=model)
    rows = draw_rows(tokens=31)
    losses = [float(step.accumulate(rows, 1.0)) for step in (exact, eager, compiled)]
    assert losses == pytest.approx([losses[0]] * 3, abs=0.02)
    true, *found = (gradients(step.model) for step in (exact, eager, compiled))
    for name, gradient in true.items():
        errors = [float((each[name] - gradient).norm() / gradient.norm()) for each in found]
        assert errors[1] < max(1.5 * errors[0], 0.01), (name, errors)
