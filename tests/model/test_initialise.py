"""Initial weights depend on the seed and each tensor's name, and on nothing else."""

from __future__ import annotations

import pytest
import torch
from twins import TINY, new_seed

from mobillama.config import ModelConfig, Scale
from mobillama.model.initialise import build_model, initialise
from mobillama.model.transformer import Transformer

CONFIG = ModelConfig(**TINY)


def test_order_of_tensors_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seed = new_seed()
    forwards = build_model(CONFIG, seed).state_dict()
    backwards = Transformer(CONFIG)
    names = list(backwards.named_parameters())
    monkeypatch.setattr(backwards, "named_parameters", lambda: reversed(names))
    initialise(backwards, seed)
    for name, weight in backwards.state_dict().items():
        assert torch.equal(weight, forwards[name]), name


def test_other_tensors_change_nothing() -> None:
    seed = new_seed()
    shallow = build_model(CONFIG.model_copy(update={"num_hidden_layers": 2}), seed).state_dict()
    dense = build_model(CONFIG.model_copy(update={"num_ffn_blocks": 6}), seed).state_dict()
    model = build_model(CONFIG, seed).state_dict()
    assert "ffns.0.up_proj.weight" in shallow
    for name, weight in [*shallow.items(), *((name, dense[name]) for name in model)]:
        assert torch.equal(weight, model[name]), name


def test_the_same_seed_repeats_and_another_does_not() -> None:
    one, two, other = (build_model(CONFIG, seed).state_dict() for seed in (7, 7, 8))
    for name, weight in one.items():
        assert torch.equal(weight, two[name]), name
        assert weight.ndim == 1 or not torch.equal(weight, other[name]), name


def test_weights_are_normal_with_the_recipe_s_deviation_and_norms_are_one() -> None:
    model = build_model(ModelConfig(vocab_size=2000, hidden_size=128, num_hidden_layers=2, initializer_range=0.05), 1)
    for name, weight in model.state_dict().items():
        if weight.ndim == 1:
            assert torch.equal(weight, torch.ones_like(weight)), name
        else:
            assert weight.std().item() == pytest.approx(0.05, rel=0.03), name
            assert abs(weight.mean().item()) < 0.002, name
    flat = [weight.flatten()[:64].tolist() for weight in model.state_dict().values() if weight.ndim == 2]
    assert len({tuple(values) for values in flat}) == len(flat), "two tensors hold the same numbers"


def test_global_random_state_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = build_model(CONFIG, 5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    two = build_model(CONFIG, 5).state_dict()
    assert all(torch.equal(weight, two[name]) for name, weight in one.items())


def test_another_type_holds_the_same_numbers_rounded() -> None:
    wide = build_model(CONFIG, 3)
    narrow = Transformer(CONFIG).bfloat16()
    initialise(narrow, 3)
    for name, weight in narrow.state_dict().items():
        assert torch.equal(weight, wide.state_dict()[name].bfloat16()), name


def test_adapters_and_gains_start_at_changing_nothing() -> None:
    plain = build_model(CONFIG, 5)
    own = build_model(CONFIG.model_copy(update={"ffn_adapter_rank": 4, "ffn_gain": True}), 5)
    state = own.state_dict()
    assert all(torch.equal(weight, state[name]) for name, weight in plain.state_dict().items())
    assert len(state) == len(plain.state_dict()) + 3 * CONFIG.num_hidden_layers
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(own(ids), plain(ids))
        own.layers[2].ffn_adapter.up.weight.add_(0.1)
        assert not torch.equal(own(ids), plain(ids))


@pytest.mark.parametrize(("scale", "factors"), [("1/sqrt(uses)", (2**-0.5, 1.0)), ("1/uses", (0.5, 1.0))])
def test_initial_ffns_are_scaled_by_the_layers_that_use_them(scale: Scale, factors: tuple[float, float]) -> None:
    config = CONFIG.model_copy(update={"num_hidden_layers": 3, "num_ffn_blocks": 2})  # two layers, and one
    plain, scaled = build_model(config, 5).state_dict(), build_model(config, 5, ffn_init_scale=scale).state_dict()
    for name, weight in plain.items():
        factor = factors[int(name.split(".")[1])] if name.startswith("ffns.") else 1.0
        torch.testing.assert_close(scaled[name], weight * factor, rtol=1e-6, atol=0)
