"""Which tensors a GGUF file of a model holds, under which names and in which order of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mobillama.config import ModelConfig

Architecture = Literal["mobillama", "llama"]
ARCHITECTURES: tuple[Architecture, ...] = ("mobillama", "llama")
ATTENTION = {"attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj", "attn_output": "o_proj"}
FFN = {"ffn_gate": "gate_proj", "ffn_up": "up_proj", "ffn_down": "down_proj"}


@dataclass(frozen=True)
class Entry:
    """One tensor of the file."""

    name: str  # in the file
    weight: str  # in the Transformer
    kind: str  # of gguf_types.KINDS, or "norm"
    heads: int = 0  # whose rows are interleaved; 0 = rows as they are


def entries(config: ModelConfig, architecture: Architecture) -> Iterator[Entry]:
    """The tensors in the order of the file.

    mobillama: each FFN block once, under the first layer that uses it. llama: under every layer, and the rows of
    queries and keys interleaved, which is what llama.cpp expects of this architecture.
    """
    llama = architecture == "llama"
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads} if llama else {}
    yield Entry("token_embd.weight", "embed_tokens.weight", "head" if config.tie_word_embeddings else "embedding")
    for layer in range(config.num_hidden_layers):
        block = config.ffn_block_of(layer)
        here, there = f"blk.{layer}", f"layers.{layer}"
        yield Entry(f"{here}.attn_norm.weight", f"{there}.input_layernorm.weight", "norm")
        for name, part in ATTENTION.items():
            yield Entry(f"{here}.{name}.weight", f"{there}.self_attn.{part}.weight", "attention", heads.get(name, 0))
        yield Entry(f"{here}.ffn_norm.weight", f"{there}.post_attention_layernorm.weight", "norm")
        if llama or layer == config.first_layer_of(block):
            for name, part in FFN.items():
                yield Entry(f"{here}.{name}.weight", f"ffns.{block}.{part}.weight", "ffn")
    yield Entry("output_norm.weight", "norm.weight", "norm")
    if not config.tie_word_embeddings:
        yield Entry("output.weight", "lm_head.weight", "head")


def interleave(weight: Tensor, heads: int) -> Tensor:
    """Rows of a query or key matrix for a rotation of neighbours (2j, 2j + 1) in place of halves (j, j + Dh / 2).

    weight: (heads * Dh, D). Row j of a head's first half goes to 2j, row j of its second half to 2j + 1.
    """
    rows, cols = weight.shape
    halves = weight.view(heads, 2, rows // heads // 2, cols)
    return halves.transpose(1, 2).reshape(weight.shape)


def in_file_order(entry: Entry, weight: Tensor) -> Tensor:
    """The weight with its rows as the file has them, contiguous."""
    return (interleave(weight, entry.heads) if entry.heads else weight).contiguous()


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every weight of a model by its name."""
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}
