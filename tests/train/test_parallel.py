"""What is applied to a model from outside leaves what it computes as it is."""

from __future__ import annotations

import torch

from mobillama.config import ModelConfig
from mobillama.model.initialise import build_model
from mobillama.model.transformer import Attention, Transformer
from mobillama.train.attention import causal_attention
from mobillama.train.parallel import Recomputed, recompute_blocks, replace_attention


def build() -> Transformer:
    shape = ModelConfig(vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2)
    return build_model(shape, 0)


IDS = torch.arange(26).view(2, 13)


def test_every_layer_attends_by_the_function_given() -> None:
    plain, replaced = build(), build()
    calls = []

    def attend(*inputs, **how):
        calls.append(how)
        return causal_attention(*inputs, **how)

    replace_attention(replaced, attend)
    torch.testing.assert_close(replaced(IDS), plain(IDS), rtol=1e-4, atol=1e-5)
    assert len(calls) == len([m for m in plain.modules() if isinstance(m, Attention)]) == 3


def test_a_recomputed_block_runs_again_in_the_backward_pass() -> None:
    plain, recomputed = build(), build()
    runs = []
    for block in recomputed.layers:
        block.register_forward_pre_hook(lambda *_: runs.append(1))
    recompute_blocks(recomputed)
    assert all(isinstance(block, Recomputed) for block in recomputed.layers)
    outs = [model(IDS) for model in (plain, recomputed)]
    assert torch.equal(*outs)
    assert len(runs) == 3
    for out in outs:
        out.square().mean().backward()
    assert len(runs) == 6
    for mine, its in zip(plain.parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(mine.grad, its.grad)
