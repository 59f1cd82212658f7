"""The plan for many GPUs: memory and traffic from shapes, where its speed comes from, and the paper's figures."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from mobillama.cli.commands import app
from mobillama.config import ModelConfig, TrainRecipe, presets, read_recipe
from mobillama.errors import InputError, RecipeError
from mobillama.model.transformer import Transformer
from mobillama.train.cluster import PAPER_TOKENS, collectives, padded, paper_utilisation, units
from mobillama.train.gpus import GPUS, gpu_named
from mobillama.train.plan import plan_training

STEPS = "train.steps=767880"


def plan(name: str, *settings: str, gpus: int = 160, kind: str = "a100-80g", **more: float) -> dict:
    return plan_training(read_recipe(TrainRecipe, name, [STEPS, *settings]), gpus=gpus, kind=kind, **more)["cluster"]


@pytest.mark.parametrize("name", presets("model"))
def test_the_units_hold_every_weight_of_the_model_once(name: str) -> None:
    config = read_recipe(ModelConfig, name)
    with torch.device("meta"):
        model = Transformer(config)
    block, root = (padded(shapes, 1) for shapes in units(config))
    assert config.num_hidden_layers * block + root == sum(weight.numel() for weight in model.parameters())
    assert block == sum(weight.numel() for weight in model.layers[0].parameters())


def test_layers_own_parts_of_a_shared_ffn_belong_to_the_blocks() -> None:
    config = read_recipe(ModelConfig, "mobillama-0.5b", ["ffn_adapter_rank=8", "ffn_gain=true", "num_hidden_layers=2"])
    with torch.device("meta"):
        block: nn.Module = Transformer(config).layers[0]
    assert padded(units(config)[0], 1) == sum(weight.numel() for weight in block.parameters())


def test_the_shared_ffn_is_gathered_once_and_weights_twice_in_blocks() -> None:
    recipe = read_recipe(TrainRecipe, "mobillama-0.5b")
    block, root = (padded(shapes, 160) for shapes in units(recipe.model))
    found = collectives(recipe, 160)
    assert found["all_gather"] == {"count": 45, "bytes": 2 * (44 * block + root) * 159 // 160}
    assert found["reduce_scatter"] == {"count": 23, "bytes": 4 * (22 * block + root) * 159 // 160}
    assert collectives(recipe, 1) == {}
    dense = collectives(read_recipe(TrainRecipe, "large-base-1.2b"), 160)
    assert dense["all_gather"]["bytes"] > 1.5 * found["all_gather"]["bytes"]


def test_in_copies_weights_stay_inside_a_machine_and_gradients_are_reduced_between_them() -> None:
    recipe = read_recipe(TrainRecipe, "mobillama-0.5b", ["train.shard_ranks=8"])
    found = collectives(recipe, 160)
    block, root = (padded(shapes, 8) for shapes in units(recipe.model))
    assert found["all_gather"]["bytes"] == 2 * (44 * block + root) * 7 // 8
    assert found["all_reduce"] == {"count": 23, "bytes": 2 * 19 * 4 * (22 * block + root) // (8 * 20)}
    assert plan("mobillama-0.5b", "train.shard_ranks=8")["copies"] == 20
    with pytest.raises(RecipeError, match=r"train\.shard_ranks=7 does not divide 160 GPUs; use one of \[1, 2, 4, 5"):
        plan("mobillama-0.5b", "train.shard_ranks=7")


def test_states_are_divided_among_the_gpus_and_the_sum_is_compared_with_the_gpus_memory() -> None:
    small, large = (plan("mobillama-0.5b", gpus=gpus)["memory"] for gpus in (160, 16))
    assert large["state"] == pytest.approx(10 * small["state"], rel=0.02)
    assert small["all"] == sum(value for key, value in small.items() if key != "all")
    accumulated = plan("mobillama-0.5b", gpus=16)
    assert accumulated["passes_per_step"] == 10
    assert large["gradients"] > small["gradients"]
    assert plan("mobillama-0.5b")["fits"]
    crowded = plan("large-base-1.2b", "train.micro_batch_rows=400", "train.activation_checkpointing=false")
    assert not crowded["fits"]


def test_ranks_without_a_part_are_said_and_slow_the_plan() -> None:
    even, uneven = plan("mobillama-0.5b", gpus=160, mfu=0.4), plan("mobillama-0.5b", gpus=128, mfu=0.4)
    assert even["idle_share"] == 0.0
    assert uneven["passes_per_step"] == 2 and uneven["idle_share"] == pytest.approx(1 - 160 / 256)
    assert uneven["tokens_per_second_per_gpu"] == pytest.approx(160 / 256 * even["tokens_per_second_per_gpu"])


def test_the_speed_is_the_given_utilisation_or_the_papers_and_the_plan_says_which() -> None:
    given = plan("mobillama-0.5b", mfu=0.5, kind="h200-141g")
    assert given["tokens_per_second_per_gpu"] * given["model_flops_per_token"] == pytest.approx(0.5 * 989e12)
    assert "50.0% of the stated 989 TFLOP/s, which was given" in given["speed_basis"]
    taken = plan("mobillama-0.5b")
    assert taken["tokens_per_second_per_gpu"] == pytest.approx(14_500)
    assert taken["utilisation"] == pytest.approx(paper_utilisation())
    assert "the paper's mobillama-0.5b at 14.5k tokens/s" in taken["speed_basis"]
    assert plan("mobillama-0.5b", tokens_per_second=1e6)["speed_basis"] == "the speed that was given"
    with pytest.raises(InputError, match="--mfu and a speed"):
        plan("mobillama-0.5b", mfu=0.5, tokens_per_second=1e6)


def test_table_1_is_compared_and_the_differences_are_named() -> None:
    paper = plan("mobillama-0.5b")["paper"]
    assert paper["gpu_hours"] == 26_600
    assert paper["tokens_per_second_per_gpu"] == pytest.approx(13_100, rel=0.005)
    assert paper["planned_gpu_hours"] == pytest.approx(PAPER_TOKENS / 14_500 / 3600)
    assert 0.85 < paper["ratio"] < 1.0
    assert any("23.3K to 25.0K GPU-hours" in reason and "26.6K" in reason for reason in paper["differences"])
    large = plan("large-base-1.2b")["paper"]
    assert large["gpu_hours"] == 46_100
    assert any(
        "1.73 times the hours" in reason and "1.00 times its operations" in reason for reason in large["differences"]
    )
    assert any(
        "the plan is for h200" in reason for reason in plan("baseline1", kind="h200-141g")["paper"]["differences"]
    )
    assert plan("mini-amber", "model.max_position_embeddings=2048")["paper"] is None


def test_the_command_prints_memory_traffic_hours_and_the_paper() -> None:
    words = ["plan", "train/mobillama-0.5b", "--gpus", "160", "--kind", "a100-80g", "--set", STEPS]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    for part in ("on 160 x a100-80g", "of 80 GB", "all-gather: 45 a step", "reduce-scatter: 23", "26,600 GPU-hours"):
        assert part in done.stdout
    told = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert told["hours"] == pytest.approx(told["cluster"]["hours"])
    for wrong, message in (
        (["--gpus", "8"], "belong together"),
        (["--mfu", "0.4"], "say which with --gpus"),
        (["--gpus", "8", "--kind", "tpu"], "kinds with stated figures are: a100-40g"),
    ):
        failed = CliRunner().invoke(app, ["plan", "train/mobillama-0.5b", *wrong])
        assert isinstance(failed.exception, InputError) and message in str(failed.exception)
    failed = CliRunner().invoke(app, ["plan", "data/mini-amber", "--gpus", "8"])
    assert "--gpus" in str(failed.exception)


def test_a_gpu_is_known_by_the_name_its_driver_gives() -> None:
    assert gpu_named("NVIDIA H100 80GB HBM3") is GPUS["h100-80g"]
    assert gpu_named("NVIDIA A100-SXM4-40GB") is GPUS["a100-40g"]
    assert gpu_named("NVIDIA GeForce RTX 4090") is GPUS["rtx4090-24g"]
    for other in ("NVIDIA H100 NVL", "NVIDIA A100 80GB PCIe", "AMD EPYC"):
        assert gpu_named(other) is None
