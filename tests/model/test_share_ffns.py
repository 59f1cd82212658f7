"""From many FFNs to few: what each method takes, and what does not fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from twins import TINY, dense_twin, new_seed, random_ids, tiny_model

from mobillama.config import ModelConfig
from mobillama.errors import InputError, RecipeError
from mobillama.model.ffn_fit import RIDGE, ffn_uses, sharing_errors
from mobillama.model.sharing import Method, share_ffns

METHODS: tuple[Method, ...] = ("layer", "mean", "least_squares")


def target(**changes: object) -> ModelConfig:
    return ModelConfig(**{**TINY, **changes})


def rows_of(seed: int, rows: int = 6) -> Tensor:
    return random_ids(seed, rows, 32)


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("blocks", [1, 4])
def test_a_dense_model_of_equal_ffns_computes_the_same_when_shared(method: Method, blocks: int) -> None:
    seed = new_seed()
    dense = dense_twin(tiny_model(seed, num_ffn_blocks=1))
    shared = share_ffns(dense, target(num_ffn_blocks=blocks), method, rows=rows_of(seed))
    assert len(shared.ffns) == blocks
    ids = random_ids(seed + 1, 2, 20)
    torch.testing.assert_close(shared(ids), dense(ids), atol=1e-3, rtol=0)
    if method != "least_squares":
        assert torch.equal(shared.ffns[0].up_proj.weight, dense.ffns[0].up_proj.weight)


@pytest.mark.parametrize("blocks", [1, 4])
def test_least_squares_has_the_lowest_error_on_the_rows_it_was_fitted_on(blocks: int) -> None:
    seed = new_seed()
    dense, rows = tiny_model(seed, num_ffn_blocks=6), rows_of(seed)
    config = target(num_ffn_blocks=blocks)
    fitted = sharing_errors(dense, share_ffns(dense, config, "least_squares", rows=rows), rows)
    others = [sharing_errors(dense, share_ffns(dense, config, "mean"), rows)]
    fewest = min(len(config.layers_of(block)) for block in range(blocks))
    others += [sharing_errors(dense, share_ffns(dense, config, "layer", layer=layer), rows) for layer in range(fewest)]
    for block, error in enumerate(fitted):
        alone = len(config.layers_of(block)) == 1
        for other in others:
            assert (error < 1e-6 and other[block] < 1e-6) if alone else 0.01 < error < 0.99 * other[block]


@torch.no_grad()
def test_the_fitted_down_is_the_ridge_regression_towards_what_it_began_with() -> None:
    """Against PyTorch's lstsq on the system written out."""
    seed = new_seed()
    dense, rows = tiny_model(seed, num_ffn_blocks=6), rows_of(seed, 3)
    ffn = share_ffns(dense, target(num_ffn_blocks=1), "least_squares", rows=rows).ffn_of(0)
    gates = torch.stack([dense.ffn_of(layer).gate_proj.weight for layer in range(6)])
    downs = torch.stack([dense.ffn_of(layer).down_proj.weight for layer in range(6)])
    same = [layer for layer in range(6) if torch.equal(gates[layer], ffn.gate_proj.weight)]
    begun = downs[same[0]] if same else downs.mean(0)
    uses = [(inputs, outputs) for _, inputs, outputs in ffn_uses(dense, rows)]
    inner = ffn.inner(torch.cat([inputs for inputs, _ in uses])).double()  # (N, F)
    outputs = torch.cat([outputs for _, outputs in uses]).double()  # (N, D)
    ridge = (RIDGE * inner.square().sum() / inner.shape[1]).sqrt() * torch.eye(inner.shape[1]).double()
    left, right = torch.cat((inner, ridge)), torch.cat((outputs, ridge @ begun.double().T))
    expected = torch.linalg.lstsq(left, right).solution.T
    torch.testing.assert_close(ffn.down_proj.weight, expected.float(), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_layer_takes_one_of_each_block_and_mean_the_middle() -> None:
    dense = tiny_model(new_seed(), num_ffn_blocks=6)
    ups = torch.stack([dense.ffn_of(layer).up_proj.weight for layer in range(6)])
    taken = share_ffns(dense, target(num_ffn_blocks=2), "layer", layer=1)
    assert torch.equal(taken.ffn_of(0).up_proj.weight, ups[1])
    assert torch.equal(taken.ffn_of(5).up_proj.weight, ups[4])
    middle = share_ffns(dense, target(num_ffn_blocks=2), "mean")
    torch.testing.assert_close(middle.ffn_of(5).up_proj.weight, ups[3:].mean(0))


@torch.no_grad()
def test_all_other_weights_are_kept_and_the_model_it_came_from_too() -> None:
    seed = new_seed()
    dense = tiny_model(seed, num_ffn_blocks=6, tie_word_embeddings=True)
    before = {name: weight.clone() for name, weight in dense.state_dict().items()}
    config = target(num_ffn_blocks=1, tie_word_embeddings=True, ffn_adapter_rank=2, ffn_gain=True)
    shared = share_ffns(dense, config, "least_squares", rows=rows_of(seed), seed=seed).state_dict()
    for name, weight in before.items():
        assert torch.equal(dense.state_dict()[name], weight), name
        assert name.startswith("ffns.") or torch.equal(shared[name], weight), name
    assert not shared["layers.3.ffn_adapter.up.weight"].any()
    assert shared["layers.3.ffn_adapter.down.weight"].any()
    assert torch.equal(shared["layers.3.ffn_gain"], torch.ones(TINY["hidden_size"]))


@torch.no_grad()
def test_gains_and_adapters_of_the_model_to_start_from_come_along() -> None:
    dense = tiny_model(new_seed(), num_ffn_blocks=6, ffn_gain=True, ffn_adapter_rank=2)
    shared = share_ffns(dense, target(ffn_gain=True, ffn_adapter_rank=2), "mean").state_dict()
    for name in ("layers.1.ffn_gain", "layers.1.ffn_adapter.up.weight"):
        assert torch.equal(shared[name], dense.state_dict()[name])
    with pytest.raises(RecipeError, match=r"model\.ffn_adapter_rank=0.* has 2, which would be lost"):
        share_ffns(dense, target(ffn_gain=True), "mean")


@torch.no_grad()
def test_one_ffn_becomes_many_equal_ones() -> None:
    model = tiny_model(new_seed(), num_ffn_blocks=1)
    dense = share_ffns(model, target(num_ffn_blocks=6), "mean")
    ids = random_ids(1, 2, 9)
    torch.testing.assert_close(dense(ids), model(ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 56}, r"model\.hidden_size=56, but .* has 48.*--set model\.hidden_size=48"),
        ({"num_key_value_heads": 2}, r"model\.num_key_value_heads=2, but .* has 4"),
        ({"num_hidden_layers": 5}, r"model\.num_hidden_layers=5, but .* has 6"),
        ({"tie_word_embeddings": True}, r"--set model\.tie_word_embeddings=false"),
        ({"rope_theta": 10000.0}, r"model\.rope_theta=10000\.0, but .* has 5000\.0"),
    ],
)
def test_shapes_that_do_not_fit_name_the_key(changes: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        share_ffns(tiny_model(1, num_ffn_blocks=6), target(**changes), "mean")


def test_a_layer_that_a_block_has_not_and_a_fit_without_rows_are_errors() -> None:
    dense = tiny_model(1, num_ffn_blocks=6)
    with pytest.raises(RecipeError, match=r"init\.layer=1, but .* has 1 layers .*use 0 to 0"):
        share_ffns(dense, target(num_ffn_blocks=4), "layer", layer=1)
    with pytest.raises(InputError, match=r"no rows to fit .*init\.rows"):
        share_ffns(dense, target(num_ffn_blocks=1), "least_squares")
