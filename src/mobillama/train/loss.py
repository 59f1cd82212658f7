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
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    chunk_tokens: int,
    kernel: Kernel = nats_and_gradient,
    counted: Tensor | None = None,
) -> Tensor:
    """Mean nats per position (0-d float32) of targets (N,) under the logits hidden (N, D) @ weight (V, D)^T.

    chunk_tokens: positions whose logits exist at once; 0 = all. kernel: `nats_and_gradient`, or a compiled form of it.
    counted: bool (N,), the positions that the mean is over, at least one; None = all. First derivatives only.
    """
    return _LinearCrossEntropy.apply(hidden, weight, targets, chunk_tokens, kernel, counted)  # type: ignore[no-any-return,no-untyped-call]


@torch.no_grad()
def summed_nats(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk_tokens: int, counted: Tensor | None = None
) -> Tensor:
    """Sum of the nats (0-d float64) of targets (N,) under the logits hidden (N, D) @ weight (V, D)^T.

    counted: bool (N,), the positions summed over; None = all.
    """
    total = torch.zeros((), dtype=torch.float64, device="cpu" if hidden.device.type == "mps" else hidden.device)
    for part in _chunks(targets.shape[0], chunk_tokens):
        logits = F.linear(hidden[part], weight).float()  # (C, V)
        nats = F.cross_entropy(logits, targets[part], reduction="none")  # (C,)
        nats = nats if counted is None else nats * counted[part]
        total += nats.to(total.device, torch.float64).sum()
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        chunk_tokens: int,
        kernel: Kernel,
        counted: Tensor | None,
    ) -> Tensor:
        N = targets.shape[0]
        hidden_gradient = torch.empty_like(hidden)  # (N, D)
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32)  # (V, D), float32: a sum over all chunks
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for part in _chunks(N, chunk_tokens):
            logits = F.linear(hidden[part], weight)  # (C, V)
            nats, gradient = kernel(logits, targets[part], 1.0 / N)
            torch.mm(gradient, weight, out=hidden_gradient[part])
            if counted is None:
                weight_gradient += gradient.t() @ hidden[part]
                total += nats.sum()
            else:  # on the narrow sides of the products: the logits are not touched again
                kept = counted[part, None]  # (C, 1)
                hidden_gradient[part] *= kept
                weight_gradient += gradient.t() @ (hidden[part] * kept)
                total += (nats * counted[part]).sum()
        ctx.save_for_backward(hidden_gradient, weight_gradient.to(weight.dtype))
        # The scale inside the kernel stays 1 / N, a constant that it may be compiled for.
        ctx.rescale = None if counted is None else N / counted.sum()
        return total / N if counted is None else total / counted.sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        scale = gradients[0] if ctx.rescale is None else gradients[0] * ctx.rescale
        return hidden_gradient * scale, weight_gradient * scale, None, None, None, None


def _chunks(positions: int, chunk_tokens: int) -> Iterator[slice]:
    size = chunk_tokens or positions
    return (slice(start, min(start + size, positions)) for start in range(0, positions, size))
