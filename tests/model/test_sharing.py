"""Sharing of feed-forward networks: stored once, equal to a dense model with copies, gradients summed over uses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from twins import TINY, dense_twin, new_seed, random_ids, tiny_model

from mobillama.config import ModelConfig


def test_shared_ffn_is_registered_once() -> None:
    model = tiny_model(0, num_ffn_blocks=1)
    assert [name for name in model.state_dict() if "gate_proj" in name] == ["ffns.0.gate_proj.weight"]
    pointers = [tensor.data_ptr() for tensor in model.state_dict().values()]
    assert len(set(pointers)) == len(pointers)


@given(layers=st.integers(1, 60), data=st.data())
def test_layers_divide_among_blocks_in_order_and_evenly(layers: int, data: st.DataObject) -> None:
    blocks = data.draw(st.integers(1, layers))
    config = ModelConfig(num_hidden_layers=layers, num_ffn_blocks=blocks)
    used = [config.ffn_block_of(layer) for layer in range(layers)]
    assert used == sorted(used)
    assert set(used) == set(range(blocks))
    sizes = [used.count(block) for block in range(blocks)]
    assert max(sizes) - min(sizes) <= 1
    assert [config.first_layer_of(block) for block in range(blocks)] == [used.index(block) for block in range(blocks)]


@torch.no_grad()
@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 5, 6])
def test_grouped_equals_dense_with_copied_weights(blocks: int) -> None:
    seed = new_seed()
    model = tiny_model(seed, num_ffn_blocks=blocks)
    assert len(model.ffns) == blocks
    ids = random_ids(seed, 2, 11)
    torch.testing.assert_close(model(ids), dense_twin(model)(ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize("blocks", [1, 4])
def test_gradient_of_a_shared_ffn_is_the_sum_over_its_uses(blocks: int) -> None:
    seed = new_seed()
    model = tiny_model(seed, num_ffn_blocks=blocks, initializer_range=0.1)
    dense = dense_twin(model)
    ids, targets = random_ids(seed, 2, 11), random_ids(seed + 1, 2, 11)
    for network in (model, dense):
        torch.nn.functional.cross_entropy(network(ids).flatten(0, 1), targets.flatten()).backward()
    for block, ffn in enumerate(model.ffns):
        users = [layer for layer in range(TINY["num_hidden_layers"]) if model.config.ffn_block_of(layer) == block]
        for name, weight in ffn.named_parameters():
            uses = [dense.ffns[layer].get_parameter(name).grad for layer in users]
            total = torch.stack([grad for grad in uses if grad is not None]).sum(0)
            assert weight.grad is not None
            torch.testing.assert_close(weight.grad, total, atol=1e-6, rtol=1e-4)
            if len(users) > 1:
                assert not torch.allclose(weight.grad, uses[0], atol=1e-6, rtol=1e-4)
