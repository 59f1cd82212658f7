"""MobiLlama for transformers: LlamaForCausalLM whose layers share feed-forward networks.

This file is complete in itself: it is copied into every saved model folder, so that
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` works where the mobillama package is not
installed. It needs torch and transformers 5 or newer. Layer i uses FFN block `i * num_ffn_blocks // num_hidden_layers`,
and a file holds each block once, under the first layer that uses it. A layer may have a low-rank path beside its FFN
and a gain on what the FFN gives, both its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer


class MobiLlamaConfig(LlamaConfig):  # type: ignore[no-untyped-call]
    """LlamaConfig with `num_ffn_blocks`: 1 = one FFN for all layers, num_hidden_layers = one each.

    `ffn_adapter_rank`: of each layer's low-rank path, 0 = none. `ffn_gain`: whether each layer has a gain.
    """

    model_type = "mobillama"

    num_ffn_blocks: int = 1
    ffn_adapter_rank: int = 0
    ffn_gain: bool = False

    def first_user(self, layer: int) -> int:
        """The first layer that uses the FFN block of `layer`."""
        block = layer * self.num_ffn_blocks // self.num_hidden_layers
        return -(-block * self.num_hidden_layers // self.num_ffn_blocks)


class MobiLlamaAdapter(nn.Module):
    """A low-rank path beside the FFN; it starts at giving nothing."""

    def __init__(self, config: MobiLlamaConfig) -> None:
        super().__init__()
        self.down = nn.Linear(config.hidden_size, config.ffn_adapter_rank, bias=False)
        self.up = nn.Linear(config.ffn_adapter_rank, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., hidden_size) -> the same shape."""
        return self.up(self.down(x))  # type: ignore[no-any-return]


class MobiLlamaDecoderLayer(LlamaDecoderLayer):
    """LlamaDecoderLayer with a gain on what the FFN gives, a low-rank path beside it, or both."""

    def __init__(self, config: MobiLlamaConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.ffn_adapter = MobiLlamaAdapter(config) if config.ffn_adapter_rank else None
        self.ffn_gain = nn.Parameter(torch.ones(config.hidden_size)) if config.ffn_gain else None

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        """As LlamaDecoderLayer's, which has no place to add to its FFN."""
        seen = self.input_layernorm(hidden_states)
        mixed, _ = self.self_attn(hidden_states=seen, **kwargs)
        hidden_states = hidden_states + mixed
        seen = self.post_attention_layernorm(hidden_states)
        given = self.mlp(seen)
        if self.ffn_gain is not None:
            given = given * self.ffn_gain
        if self.ffn_adapter is not None:
            given = given + self.ffn_adapter(seen)
        return hidden_states + given  # type: ignore[no-any-return]


class MobiLlamaForCausalLM(LlamaForCausalLM):  # type: ignore[no-untyped-call]
    """LlamaForCausalLM in which later users of an FFN block hold the first user's module."""

    config_class = MobiLlamaConfig
    _no_split_modules = ["LlamaDecoderLayer", "MobiLlamaDecoderLayer"]  # noqa: RUF012

    def __init__(self, config: MobiLlamaConfig) -> None:
        super().__init__(config)  # type: ignore[no-untyped-call]
        if config.ffn_adapter_rank or config.ffn_gain:
            layers = (MobiLlamaDecoderLayer(config, index) for index in range(config.num_hidden_layers))
            self.model.layers = nn.ModuleList(layers)
        for index, layer in enumerate(self.model.layers):
            layer.mlp = self.model.layers[config.first_user(index)].mlp
        # Saving reads this attribute; loading and tying ask the method below. Both must know the FFN's other names.
        self._tied_weights_keys = {**(self._tied_weights_keys or {}), **self._shared_ffn_names()}
        self.post_init()  # type: ignore[no-untyped-call]
        for layer in self.model.layers if config.ffn_adapter_rank else ():
            nn.init.zeros_(layer.ffn_adapter.up.weight)

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Every parameter name that stands for another's tensor, whatever `tie_word_embeddings` says."""
        tied = super().get_expanded_tied_weights_keys(all_submodels=all_submodels)
        return {**tied, **self._shared_ffn_names()}

    def _shared_ffn_names(self) -> dict[str, str]:
        names = {}
        for layer in range(self.config.num_hidden_layers):
            first = self.config.first_user(layer)
            if layer != first:
                for part in ("gate_proj", "up_proj", "down_proj"):
                    names[f"model.layers.{layer}.mlp.{part}.weight"] = f"model.layers.{first}.mlp.{part}.weight"
        return names
