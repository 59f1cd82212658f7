"""The plan of a training run: what shapes and shards say, and nothing that nobody measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mobillama.cli.commands import app
from mobillama.config import TrainRecipe, resolve
from mobillama.data.shards import write_shards
from mobillama.model.transformer import Transformer
from mobillama.train.cluster import moments
from mobillama.train.optimizer import Optimizer
from mobillama.train.plan import plan_training

MODEL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
# Embedding and head, attention, one FFN, norms.
PARAMETERS = 2 * 64 * 16 + 3 * 4 * 16 * 16 + 3 * 16 * 40 + 7 * 16


def recipe(**train: object) -> TrainRecipe:
    settings = {"rows_per_step": 4, "micro_batch_rows": 2, **train}
    return resolve(TrainRecipe, {"name": "tiny", "model": MODEL, "train": settings}, "test")


def test_one_pass_over_shards_gives_steps_and_tokens(tmp_path: Path) -> None:
    row = list(range(9))
    write_shards(tmp_path / "shards", [row] * 22, [row], vocab_size=64)
    found = plan_training(recipe(), tmp_path / "shards")
    assert (found["steps"], found["tokens_per_step"], found["tokens"]) == (5, 32, 160)
    assert found["passes"] == pytest.approx(20 / 22)


def test_operations_are_three_forward_passes_with_what_a_causal_token_sees() -> None:
    found = plan_training(recipe(steps=10), seq_len=8)
    weights = 3 * 4 * 16 * 16 + 3 * 3 * 16 * 40 + 64 * 16  # the shared FFN runs in every layer
    forward = 2 * weights + 3 * 4 * 16 * 4.5
    assert found["flops_per_token"] == pytest.approx(3 * forward)
    again = plan_training(recipe(steps=10, activation_checkpointing=True), seq_len=8)
    assert again["flops_per_token"] == pytest.approx(4 * forward - 2 * 64 * 16)
    assert found["flops"] == pytest.approx(found["flops_per_token"] * 10 * 4 * 8)


def test_a_checkpoint_is_weights_and_two_moments_in_float32() -> None:
    found = plan_training(recipe(steps=10, keep_last=3, dtype="float32"))
    assert found["checkpoint_bytes"] == 12 * PARAMETERS
    assert found["disk_bytes"] == 3 * 12 * PARAMETERS + 4 * PARAMETERS
    assert found["memory"]["state"] == 16 * PARAMETERS
    assert plan_training(recipe(steps=10))["memory"]["state"] == 16 * PARAMETERS + 2 * (PARAMETERS - 64 * 16)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(
    "shape", [{}, {"tie_word_embeddings": True, "num_ffn_blocks": 3}, {"ffn_adapter_rank": 1, "ffn_gain": True}]
)
def test_a_checkpoint_and_the_memory_hold_what_the_optimizer_keeps(optimizer: str, shape: dict) -> None:
    """Against a real state: AdamW's two moments of a weight, Muon's one of a matrix inside the layers."""
    told = recipe(steps=10, dtype="float32", optimizer=optimizer)
    told = told.model_copy(update={"model": told.model.model_copy(update=shape)})
    model = Transformer(told.model)
    optimizer_ = Optimizer(dict(model.named_parameters()), told.train, told.model)
    state = sum(tensor.nbytes for name, tensor in optimizer_.state().items() if name != "optimizer.step")
    found = plan_training(told)
    assert found["checkpoint_bytes"] == state
    assert found["memory"]["state"] == state + sum(gradient.nbytes for gradient in optimizer_.gradients)
    many = plan_training(told, gpus=2, kind="a100-80g")["cluster"]["memory"]["state"]
    odd = moments(told, 2) - moments(told)  # rows of padding
    assert found["memory"]["state"] / 2 <= many <= (found["memory"]["state"] + 4 * 3 * odd) / 2


def test_hours_come_from_a_speed_that_was_given_and_from_nothing_else() -> None:
    assert plan_training(recipe(steps=10))["hours"] is None
    assert "--like" in plan_training(recipe(steps=10))["hours_why"]
    assert "not built" in plan_training(recipe(), tokens_per_second=5.0)["hours_why"]
    found = plan_training(recipe(steps=10), tokens_per_second=64.0)
    assert found["hours"] == pytest.approx(10 * 4 * 32 / 64 / 3600)


def test_the_speed_of_a_run_is_that_of_its_median_step(tmp_path: Path) -> None:
    lines = [{"kind": "start", "result": {}, "circumstance": {}}]
    for step, seconds in enumerate((90.0, 2.0, 1.0, 2.0, 40.0), 1):
        lines.append(
            {"kind": "step", "result": {"step": step, "tokens": 100 * step}, "circumstance": {"seconds": seconds}}
        )
    (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = CliRunner().invoke(app, ["plan", "train/mini-amber", "--like", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["tokens_per_second"] == pytest.approx(50.0)
