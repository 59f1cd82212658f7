"""What is applied to a model from outside before it is trained: kernels, compiled blocks, recomputed activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mobillama.config import TrainConfig
from mobillama.model.transformer import Attention, Transformer
from mobillama.train.attention import causal_attention
from mobillama.train.document_mask import DocumentAttention
from mobillama.train.float8 import use_float8
from mobillama.train.loss import Kernel, nats_and_gradient


class Recomputed(nn.Module):
    """A block that keeps its input alone and computes the rest again in the backward pass."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *inputs: Any) -> Tensor:
        """As the block."""
        # Nothing in a block is random, so no generator state needs to be kept.
        return checkpoint(self.block, *inputs, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]


def prepare(
    model: Transformer, config: TrainConfig, device: torch.device, dtype: torch.dtype
) -> tuple[DocumentAttention | None, Kernel]:
    """Apply all that a step of `config` computes with: attention, float8, compiled and recomputed blocks.

    Gives the attention that masks documents, if the recipe has one, and the kernel of the loss.
    """
    attention = attend_as_configured(model, config, device, dtype)
    kernel: Kernel = nats_and_gradient
    if config.float8:
        use_float8(model)
    if config.compile:
        compile_blocks(model)
        kernel = torch.compile(nats_and_gradient)
    if config.activation_checkpointing:
        recompute_blocks(model)
    return attention, kernel


def attend_as_configured(
    model: Transformer, config: TrainConfig, device: torch.device, dtype: torch.dtype
) -> DocumentAttention | None:
    """Give every layer the attention that a step of `config` computes with; where it masks documents, that one.

    On a CPU in bfloat16, compiled, it is our own kernel.
    """
    own_kernel = config.compile and device.type == "cpu" and dtype == torch.bfloat16
    if config.document_mask:
        attention = DocumentAttention(own_kernel=own_kernel)
        replace_attention(model, attention)
        return attention
    if own_kernel:
        replace_attention(model, causal_attention)
    return None


def replace_attention(model: Transformer, attend: Callable[..., Tensor]) -> None:
    """Let every layer attend by a function with the signature of PyTorch's scaled_dot_product_attention."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.attend = attend


def compile_blocks(model: Transformer) -> None:
    """Compile each block on its own: the blocks share one kernel, and it repeats bit for bit in every process.

    (Compiled as a whole, a model was seen to end with other bits in other processes: an atomic add on the CPU.)
    """
    for block in model.layers:
        block.compile()


def recompute_blocks(model: Transformer) -> None:
    """Trade a second forward pass for the memory of the activations inside each block."""
    for index, block in enumerate(model.layers):
        model.layers[index] = Recomputed(block)
