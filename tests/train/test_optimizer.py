"""The update against AdamW and clipping written out in float64, and the groups that a recipe makes."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mobillama.config import ModelConfig, Scale, TrainConfig
from mobillama.errors import InputError
from mobillama.model.initialise import build_model
from mobillama.train.optimizer import Optimizer

BATCH = {"rows_per_step": 1, "micro_batch_rows": 1, "compile": False}
CONFIG = TrainConfig(**BATCH)
MODEL = ModelConfig(
    vocab_size=31,
    hidden_size=16,
    intermediate_size=20,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_ffn_blocks=2,  # of two layers, and of one
    ffn_adapter_rank=2,
    ffn_gain=True,
)


def build() -> tuple[dict[str, nn.Parameter], Optimizer]:
    print("seed 5")
    generator = torch.Generator().manual_seed(5)
    weights = {
        "matrix": nn.Parameter(torch.randn(7, 5, generator=generator)),
        "norm": nn.Parameter(torch.ones(5)),
    }
    return weights, Optimizer(weights, CONFIG, MODEL)


def of_a_model(**train) -> Optimizer:
    """The optimizer of a model's weights, norms and adapters drawn as well."""
    model = build_model(MODEL, 3)
    generator = torch.Generator().manual_seed(3)
    for weight in model.parameters():
        nn.init.normal_(weight, generator=generator)
    return Optimizer(dict(model.named_parameters()), TrainConfig(**BATCH, **train), MODEL)


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
        assert float(found.all) == pytest.approx(norm, rel=1e-6)
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
    assert math.isnan(float(optimizer.update(0.1).all))
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


def test_default_settings_give_the_bits_of_one_group_of_plain_adamw() -> None:
    optimizer = of_a_model()
    plain = {name: nn.Parameter(weight.detach().clone()) for name, weight in optimizer.weights.items()}
    decay, betas = CONFIG.weight_decay, (CONFIG.beta1, CONFIG.beta2)
    adamw = torch.optim.AdamW(plain.values(), lr=1.0, betas=betas, eps=CONFIG.eps, weight_decay=decay, fused=True)
    for step in range(4):
        give_gradients(optimizer.weights, step, 0.3)
        for name, weight in plain.items():
            weight.grad = optimizer.weights[name].grad.clone()  # type: ignore[union-attr]
        norm = torch.nn.utils.get_total_norm([weight.grad for weight in plain.values()])
        torch._foreach_mul_([weight.grad for weight in plain.values()], (CONFIG.clip / (norm + 1e-6)).clamp(max=1.0))
        adamw.param_groups[0]["lr"] = 0.01 / (step + 1)
        adamw.step()
        assert torch.equal(optimizer.update(0.01 / (step + 1)).all, norm)
    for name, weight in plain.items():
        assert torch.equal(weight, optimizer.weights[name]), name
        assert torch.equal(adamw.state[weight]["exp_avg_sq"], optimizer.state()[f"optimizer.{name}.exp_avg_sq"])


def test_norms_of_ffns_and_attention_are_told_apart() -> None:
    optimizer = of_a_model()
    give_gradients(optimizer.weights, 1, 1.0)
    parts = {"all": "", "ffn": "ffns.", "attention": ".self_attn."}
    expected = {
        part: math.sqrt(sum(float(w.grad.double().square().sum()) for n, w in optimizer.weights.items() if mark in n))
        for part, mark in parts.items()
    }
    found = optimizer.update(0.01)
    for part, norm in expected.items():
        assert float(getattr(found, part)) == pytest.approx(norm, rel=1e-6), part
    assert 0 < expected["ffn"] != expected["attention"] < expected["all"]
    assert float(build()[1].norms().ffn) == 0.0


def moved_by_decay(optimizer: Optimizer, lr: float) -> dict[str, float]:
    """How much each weight shrinks, over lr, at an update without gradients."""
    before = {name: weight.detach().clone() for name, weight in optimizer.weights.items()}
    optimizer.update(lr)
    return {
        name: float((1 - weight.detach().double().norm() / before[name].double().norm()) / lr)
        for name, weight in optimizer.weights.items()
    }


@pytest.mark.parametrize(("norms", "embeddings"), [(True, True), (False, True), (True, False)])
def test_weight_decay_spares_norms_and_embeddings_where_the_recipe_says_so(norms: bool, embeddings: bool) -> None:
    shrunk = moved_by_decay(of_a_model(decay_norms=norms, decay_embeddings=embeddings), 0.01)
    for name, share in shrunk.items():
        table, vector = name in ("embed_tokens.weight", "lm_head.weight"), "norm" in name or "gain" in name
        spared = (table and not embeddings) or (vector and not norms)
        assert share == pytest.approx(0.0 if spared else CONFIG.weight_decay, rel=1e-3, abs=1e-9), name


@pytest.mark.parametrize(
    ("scale", "factors"), [("1", (1, 1)), ("1/sqrt(uses)", (2**-0.5, 1)), ("1/uses", (0.5, 1))], ids=str
)
@pytest.mark.parametrize("algorithm", ["adamw", "muon"])
def test_an_ffn_s_learning_rate_is_scaled_by_its_uses(
    algorithm: str, scale: Scale, factors: tuple[float, float]
) -> None:
    """By weight decay, which goes by the learning rate: each block by its own number of layers, nothing else."""
    rates = {"learning_rate": 0.01, "muon_learning_rate": 0.03}
    shrunk = moved_by_decay(of_a_model(optimizer=algorithm, ffn_lr_scale=scale, **rates), 0.005)
    for name, share in shrunk.items():
        factor = factors[int(name.split(".")[1])] if name.startswith("ffns.") else 1.0
        inside = name.startswith(("ffns.", "layers.")) and "norm" not in name and "gain" not in name
        factor *= 3.0 if algorithm == "muon" and inside else 1.0
        assert share == pytest.approx(CONFIG.weight_decay * factor, rel=1e-3), name


def test_muon_updates_the_matrices_inside_the_layers_as_pytorch_s_does_and_adamw_the_rest() -> None:
    optimizer = of_a_model(optimizer="muon", learning_rate=0.01, muon_learning_rate=0.05, muon_momentum=0.8, clip=1e9)
    other = of_a_model(learning_rate=0.01, clip=1e9)
    ours = {f"optimizer.{name}.momentum_buffer" for name in optimizer.weights} & optimizer.state().keys()
    inside = [name.removeprefix("optimizer.").removesuffix(".momentum_buffer") for name in sorted(ours)]
    assert len(inside) == 3 * (4 + 2) + 2 * 3  # attention and adapters of three layers, two FFN blocks
    plain = {name: nn.Parameter(optimizer.weights[name].detach().clone()) for name in inside}
    muon = torch.optim.Muon(plain.values(), lr=0.025, weight_decay=CONFIG.weight_decay, momentum=0.8)
    for step in range(3):
        for each in (optimizer, other):
            give_gradients(each.weights, step, 0.3)
        for name, weight in plain.items():
            weight.grad = optimizer.weights[name].grad.clone()  # type: ignore[union-attr]
        muon.step()
        optimizer.update(0.005)
        other.update(0.005)
    for name, weight in optimizer.weights.items():
        assert torch.equal(weight, plain[name] if name in plain else other.weights[name]), name
        assert name not in plain or not torch.equal(weight, other.weights[name]), name
        buffer = optimizer.state().get(f"optimizer.{name}.momentum_buffer")
        assert buffer is None or torch.equal(buffer, muon.state[plain[name]]["momentum_buffer"])


def test_a_norm_above_what_is_allowed_changes_nothing_and_the_gradients_can_be_forgotten() -> None:
    weights, optimizer = build()
    before = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    give_gradients(weights, 1, 1.0)
    norm = float(optimizer.norms().all)
    assert float(optimizer.update(0.1, norm * 0.99).all) == norm
    assert all(torch.equal(tensor, before[name]) for name, tensor in optimizer.state().items())
    assert all(gradient.any() for gradient in optimizer.gradients)
    optimizer.zero_gradients()
    assert not any(gradient.any() for gradient in optimizer.gradients)
    give_gradients(weights, 1, 1.0)
    optimizer.update(0.1, norm)
    assert not torch.equal(weights["matrix"], before["model.matrix"])


@pytest.mark.parametrize("algorithm", ["adamw", "muon"])
def test_a_state_filled_in_place_goes_on_as_one_that_was_loaded(algorithm: str) -> None:
    first, filled, loaded = (of_a_model(optimizer=algorithm) for _ in range(3))
    for step in range(3):
        give_gradients(first.weights, step, 1.0)
        first.update(0.01)
    kept = {name: tensor.clone() for name, tensor in first.state().items()}
    with torch.no_grad():
        for name, tensor in filled.state().items():
            tensor.copy_(kept[name])
    filled.loaded()
    loaded.load_state(kept)
    for optimizer in (first, filled, loaded):
        give_gradients(optimizer.weights, 9, 1.0)
        optimizer.update(0.01)
    for name, tensor in first.state().items():
        assert torch.equal(tensor, filled.state()[name]), name
        assert torch.equal(tensor, loaded.state()[name]), name


RANKS = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch import nn
from test_optimizer import MODEL, BATCH, give_gradients, of_a_model
from mobillama.config import TrainConfig
from mobillama.train.optimizer import Optimizer

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (dist.get_world_size(),))

def spread(tensor):
    return distribute_tensor(tensor, mesh, [Shard(0)])

def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

for algorithm in ("adamw", "muon"):
    single = of_a_model(optimizer=algorithm)
    weights = {name: nn.Parameter(spread(weight.detach())) for name, weight in single.weights.items()}
    sharded = Optimizer(weights, TrainConfig(**BATCH, optimizer=algorithm), MODEL)
    for step in range(4):
        give_gradients(single.weights, step, 1.0)
        for name, weight in weights.items():
            weight.grad.copy_(spread(single.weights[name].grad))
        one, many = single.update(0.001), sharded.update(0.001)
        for part in ("all", "ffn", "attention"):
            torch.testing.assert_close(getattr(many, part), getattr(one, part), rtol=1e-6, atol=0)
    for name, tensor in single.state().items():
        torch.testing.assert_close(whole(sharded.state()[name]), tensor, rtol=1e-5, atol=1e-6, msg=name)
    kept = {name: tensor.clone() for name, tensor in single.state().items()}
    sharded.load_state(kept)
    assert all(torch.equal(whole(tensor), kept[name]) for name, tensor in sharded.state().items())
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_weights_spread_over_ranks_are_updated_as_whole_ones(tmp_path: Path) -> None:
    """Three ranks, so that parts are uneven and some are empty."""
    (tmp_path / "ranks.py").write_text(RANKS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    done = subprocess.run(
        [*launch, str(tmp_path / "ranks.py")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
