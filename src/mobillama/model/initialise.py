"""Initial weights: every tensor from a generator of its own, keyed by the seed and the tensor's name.

The order in which tensors are visited, and which others exist, change nothing: a shared FFN is drawn once, and models
of different depth agree in the tensors they have in common. Normal(0, initializer_range) without scaling by depth, as
in the released training code; norms and gains start at one, and adapters at giving nothing: their `up` is zero.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from mobillama.config import ModelConfig, Scale, scale_of
from mobillama.model.transformer import Transformer

ADAPTER_UP = "ffn_adapter.up.weight"


def build_model(config: ModelConfig, seed: int, *, ffn_init_scale: Scale = "1") -> Transformer:
    """A new model on the CPU in float32 with the initial weights of `seed`.

    ffn_init_scale: a factor of every FFN's weights, by the number of layers that use it.
    """
    model = outline_model(config)
    model.to_empty(device="cpu")
    initialise(model, seed, ffn_init_scale=ffn_init_scale)
    return model


@torch.no_grad()
def initialise(model: Transformer, seed: int, *, ffn_init_scale: Scale = "1") -> None:
    """Set every weight of `model`, in place; drawn in float32 on the CPU whatever its type and device."""
    for name, weight in model.named_parameters():
        weight.copy_(draw_weight(name, weight.shape, model.config, seed, ffn_init_scale=ffn_init_scale))


def draw_weight(
    name: str, shape: Sequence[int], config: ModelConfig, seed: int, *, ffn_init_scale: Scale = "1"
) -> Tensor:
    """The initial value of one weight by its name in a Transformer: float32 (shape), on the CPU."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.float32, device="cpu")
    if name.endswith(ADAPTER_UP):
        return torch.zeros(shape, dtype=torch.float32, device="cpu")
    drawn = torch.empty(shape, dtype=torch.float32, device="cpu")
    drawn.normal_(0.0, config.initializer_range, generator=_generator(seed, name))
    if name.startswith("ffns."):
        drawn *= scale_of(ffn_init_scale, len(config.layers_of(int(name.split(".")[1]))))
    return drawn


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def outline_model(config: ModelConfig) -> Transformer:
    """A model of names, shapes and types without memory (torch's meta device): for counting and for loading into."""
    with torch.device("meta"):
        return Transformer(config)
