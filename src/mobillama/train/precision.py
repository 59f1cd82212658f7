"""The working copy: the model a step computes with, in the compute type, with a leaf of its own for every use.

The float32 weights of the model are the masters: the optimizer's, the checkpoint's. The working copy is the same
architecture with the dial turned to dense and the head untied, so that each layer's FFN and the head are leaves of
their own; leaves of one shared weight lie on one piece of memory. Autograd therefore never sums the uses of a weight in
the compute type: each use adds its gradient to the master's in float32 and frees it at once. Weights are cast to the
compute type once a step (as FSDP2's mixed precision does); in float32 the leaves lie on the masters themselves.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from mobillama.model.transformer import Transformer

EMBEDDING = "embed_tokens.weight"


class WorkingCopy:
    """`model` with `dtype` weights, whose gradients land in the masters' `.grad` (float32 buffers that must exist)."""

    def __init__(self, masters: Transformer, dtype: torch.dtype) -> None:
        self.share = 1.0  # factor of the gradients of the backward pass under way
        weights = dict(masters.named_parameters())
        cast = {
            # Rows of the embedding are cast after the look-up: a frequent token's gradient is a long sum.
            name: weight.detach() if name == EMBEDDING else weight.detach().to(dtype)
            for name, weight in weights.items()
        }
        config = masters.config
        unshared = config.model_copy(update={"num_ffn_blocks": config.num_hidden_layers, "tie_word_embeddings": False})
        with torch.device("meta"):
            self.model = Transformer(unshared)
        if masters.lm_head is None:
            weights["lm_head.weight"] = weights[EMBEDDING]
            cast["lm_head.weight"] = weights[EMBEDDING].detach().to(dtype)
        for use in [name for name, _ in self.model.named_parameters()]:
            name = _master_of(use, masters)
            leaf = nn.Parameter(cast[name])
            leaf.register_post_accumulate_grad_hook(partial(self._collect, weights[name]))  # type: ignore[no-untyped-call]
            path, _, last = use.rpartition(".")
            setattr(self.model.get_submodule(path), last, leaf)
        self.model.embed_tokens.register_forward_hook(lambda _module, _inputs, rows: rows.to(dtype))
        stale = [name for name, tensor in cast.items() if tensor.data_ptr() != weights[name].data_ptr()]
        self._copies = [cast[name] for name in stale]
        self._originals: list[Tensor] = [weights[name].detach() for name in stale]

    @torch.no_grad()
    def refresh(self) -> None:
        """Cast the masters again, after they changed."""
        if self._copies:
            torch._foreach_copy_(self._copies, self._originals)

    def _collect(self, master: nn.Parameter, leaf: Tensor) -> None:
        assert master.grad is not None and leaf.grad is not None
        master.grad.add_(leaf.grad, alpha=self.share)
        leaf.grad = None


def _master_of(use: str, masters: Transformer) -> str:
    """The master behind a name of the working copy."""
    if use == "lm_head.weight" and masters.lm_head is None:
        return use
    kind, _, rest = use.partition(".")
    if kind != "ffns":
        return use
    layer, _, tensor = rest.partition(".")
    return f"ffns.{masters.config.ffn_block_of(int(layer))}.{tensor}"
