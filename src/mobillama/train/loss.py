"""Cross entropy of a linear head, one chunk of positions at a time.

The logits of a large vocabulary are the largest tensor of a small model's step, so they never exist for more than
`chunk_tokens` positions at once. The gradient of a chunk is computed while its logits are there, in the forward pass;
nothing is computed twice. Softmax and sums are float32 whatever the type of the states.

Legend: N positions, C positions of a chunk, D hidden_size, V vocab_size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Kernel = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


def nats_and_gradient(logits: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Nats of each target (C,) in float32, and `scale` times the gradient of their sum by the logits (C, V)."""
    wide = logits.float()  # (C, V)
    largest = wide.amax(-1, keepdim=True)  # (C, 1)
    total = (wide - largest).exp().sum(-1, keepdim=True)  # (C, 1)
    log_total = largest + total.log()  # (C, 1)
    nats = log_total[:, 0] - wide.gather(-1, targets[:, None])[:, 0]  # (C,)
    classes = torch.arange(logits.shape[-1], device=logits.device)  # (V,)
    hit = (classes == targets[:, None]).float()  # (C, V)
    gradient = ((wide - log_total).exp() - hit) * scale
    return nats, gradient.to(logits.dtype)


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk_tokens: int, kernel: Kernel = nats_and_gradient
) -> Tensor:
    """Mean nats per position (0-d float32) of targets (N,) under the logits hidden (N, D) @ weight (V, D)^T.

    chunk_tokens: positions whose logits exist at once; 0 = all. kernel: `nats_and_gradient`, or a compiled form of it.
    First derivatives only.
    """
    return _LinearCrossEntropy.apply(hidden, weight, targets, chunk_tokens, kernel)  # type: ignore[no-any-return,no-untyped-call]


@torch.no_grad()
def summed_nats(hidden: Tensor, weight: Tensor, targets: Tensor, chunk_tokens: int) -> Tensor:
    """Sum of the nats (0-d float64) of targets (N,) under the logits hidden (N, D) @ weight (V, D)^T."""
    total = torch.zeros((), dtype=torch.float64, device="cpu" if hidden.device.type == "mps" else hidden.device)
    for part in _chunks(targets.shape[0], chunk_tokens):
        logits = F.linear(hidden[part], weight).float()  # (C, V)
        nats = F.cross_entropy(logits, targets[part], reduction="none")  # (C,)
        total += nats.to(total.device, torch.float64).sum()
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_tokens: int, kernel: Kernel) -> Tensor:
        N = targets.shape[0]
        hidden_gradient = torch.empty_like(hidden)  # (N, D)
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32)  # (V, D), float32: a sum over all chunks
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for part in _chunks(N, chunk_tokens):
            logits = F.linear(hidden[part], weight)  # (C, V)
            nats, gradient = kernel(logits, targets[part], 1.0 / N)
            torch.mm(gradient, weight, out=hidden_gradient[part])
            weight_gradient += gradient.t() @ hidden[part]
            total += nats.sum()
        ctx.save_for_backward(hidden_gradient, weight_gradient.to(weight.dtype))
        return total / N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        scale = gradients[0]
        return hidden_gradient * scale, weight_gradient * scale, None, None, None


def _chunks(positions: int, chunk_tokens: int) -> Iterator[slice]:
    size = chunk_tokens or positions
    return (slice(start, min(start + size, positions)) for start in range(0, positions, size))
