"""A model whose layers have gains on what their FFN gives, as one without: each gain goes into a down_proj of its own.

What other programs read has no place for gains, but holds (or may hold) a copy of the FFN for every layer. Folded, a
model computes what it did, up to one rounding of each weight of down_proj, and shares no FFN any more.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mobillama.config import ModelConfig
from mobillama.errors import InputError
from mobillama.export.gguf_source import Source
from mobillama.model.initialise import outline_model
from mobillama.model.transformer import Transformer


class Folded:
    """A source without gains, of as many FFN blocks as layers, that computes what `source` computes."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.config = folded_config(source.config)
        self.tokenizer = source.tokenizer
        self.lineage = source.lineage
        self.end_ids = source.end_ids

    def weight(self, name: str) -> Tensor:
        """As Source.weight."""
        return folded_weight(name, self._source.config, self._source.weight)


@torch.no_grad()
def fold_gains(model: Transformer) -> Transformer:
    """The model without gains, in the same type; itself if it has none."""
    if not model.config.ffn_gain:
        return model
    state = model.state_dict()
    folded = outline_model(folded_config(model.config)).to(model.head_weight.dtype).to_empty(device="cpu").eval()
    for name, weight in folded.named_parameters():
        weight.copy_(folded_weight(name, model.config, state.__getitem__))
    return folded


def folded_config(config: ModelConfig) -> ModelConfig:
    """The shapes of the model without gains."""
    return config.model_copy(update={"ffn_gain": False, "num_ffn_blocks": config.num_hidden_layers})


def folded_weight(name: str, config: ModelConfig, read: Callable[[str], Tensor]) -> Tensor:
    """A weight of the folded model, from the weights of the model of `config` that `read` gives by name."""
    if not name.startswith("ffns."):
        return read(name)
    _, layer, part, _ = name.split(".")
    weight = read(f"ffns.{config.ffn_block_of(int(layer))}.{part}.weight")
    if part != "down_proj":
        return weight
    gain = read(f"layers.{layer}.ffn_gain")  # (D,), for the rows of down_proj (D, F)
    return (gain.float()[:, None] * weight.float()).to(weight.dtype)


def require_no_adapters(config: ModelConfig, what: str) -> None:
    """InputError if a model has low-rank paths beside its FFN, which `what` has no place for."""
    if config.ffn_adapter_rank:
        raise InputError(
            f"the model has ffn_adapter_rank={config.ffn_adapter_rank}; {what} has no place for a path beside the FFN, "
            "and it cannot be folded into the FFN: export --format hf, which transformers and mobillama load"
        )
