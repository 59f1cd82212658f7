"""Tiny seeded models and their independent twins: transformers' LlamaForCausalLM, and dense models of equal weights."""

from __future__ import annotations

import secrets
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from mobillama.config import ModelConfig
from mobillama.model.initialise import build_model
from mobillama.model.transformer import Transformer

TINY: dict[str, Any] = {
    "vocab_size": 53,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rope_theta": 5000.0,
    "rms_norm_eps": 1e-4,
    "initializer_range": 0.3,  # far from uniform logits, so that a wrong position or mask shows
}


def new_seed() -> int:
    """A fresh seed, printed so that a failure can be repeated."""
    seed = secrets.randbelow(2**31)
    print(f"seed {seed}")
    return seed


def tiny_model(seed: int, **changes: Any) -> Transformer:
    """A small model whose norms and gains differ from one as well, and whose adapters give something."""
    model = build_model(ModelConfig(**{**TINY, **changes}), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.uniform_(0.5, 1.5, generator=generator)
        for block in model.layers:
            if block.ffn_adapter is not None:  # new ones give nothing
                block.ffn_adapter.up.weight.normal_(0, 0.3, generator=generator)
    return model


def random_ids(seed: int, batch: int, tokens: int, vocab_size: int = TINY["vocab_size"]) -> Tensor:
    """Token ids (batch, tokens)."""
    return torch.randint(vocab_size, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def llama_tensors(model: Transformer) -> dict[str, Tensor]:
    """The weights under LLaMA's names with an FFN for every layer: what a plain LLaMA of the same function holds."""
    tensors = {}
    for name, weight in model.state_dict().items():
        if not name.startswith("ffns."):
            tensors[name if name == "lm_head.weight" else f"model.{name}"] = weight
    for layer in range(model.config.num_hidden_layers):
        ffn = model.ffns[model.config.ffn_block_of(layer)]
        for part, weight in ffn.state_dict().items():
            tensors[f"model.layers.{layer}.mlp.{part}"] = weight
    return tensors


def llama_twin(model: Transformer, *, aliased: bool = False) -> LlamaForCausalLM:
    """transformers' LLaMA with the same weights; aliased = its layers hold the very same MLP objects."""
    config = model.config
    twin = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=config.tie_word_embeddings,
        )
    )
    if aliased:
        for index, layer in enumerate(twin.model.layers):
            layer.mlp = twin.model.layers[config.first_layer_of(config.ffn_block_of(index))].mlp
    tensors = llama_tensors(model)
    if config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    twin.load_state_dict(tensors)
    return twin.eval()


def dense_twin(model: Transformer) -> Transformer:
    """A model with a copy of the right FFN for every layer."""
    config = model.config.model_copy(update={"num_ffn_blocks": model.config.num_hidden_layers})
    twin = Transformer(config)
    state = {name: weight for name, weight in model.state_dict().items() if not name.startswith("ffns.")}
    for layer in range(config.num_hidden_layers):
        for part, weight in model.ffns[model.config.ffn_block_of(layer)].state_dict().items():
            state[f"ffns.{layer}.{part}"] = weight
    twin.load_state_dict(state)
    return twin
