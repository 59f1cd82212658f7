"""MobiLlama for transformers: LlamaForCausalLM whose layers share feed-forward networks.

This file is complete in itself: it is copied into every saved model folder, so that
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` works where the mobillama package is not
installed. It needs torch and transformers 5 or newer. Layer i uses FFN block `i * num_ffn_blocks // num_hidden_layers`,
and a file holds each block once, under the first layer that uses it.
"""

from __future__ import annotations

from transformers import LlamaConfig, LlamaForCausalLM


class MobiLlamaConfig(LlamaConfig):  # type: ignore[no-untyped-call]
    """LlamaConfig with `num_ffn_blocks`: 1 = one FFN for all layers, num_hidden_layers = one each."""

    model_type = "mobillama"

    num_ffn_blocks: int = 1

    def first_user(self, layer: int) -> int:
        """The first layer that uses the FFN block of `layer`."""
        block = layer * self.num_ffn_blocks // self.num_hidden_layers
        return -(-block * self.num_hidden_layers // self.num_ffn_blocks)


class MobiLlamaForCausalLM(LlamaForCausalLM):  # type: ignore[no-untyped-call]
    """LlamaForCausalLM in which later users of an FFN block hold the first user's module."""

    config_class = MobiLlamaConfig

    def __init__(self, config: MobiLlamaConfig) -> None:
        super().__init__(config)  # type: ignore[no-untyped-call]
        for index, layer in enumerate(self.model.layers):
            layer.mlp = self.model.layers[config.first_user(index)].mlp
        # Saving reads this attribute; loading and tying ask the method below. Both must know the FFN's other names.
        self._tied_weights_keys = {**(self._tied_weights_keys or {}), **self._shared_ffn_names()}
        self.post_init()  # type: ignore[no-untyped-call]

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
