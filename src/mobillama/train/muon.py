"""Muon for matrices that may be spread over ranks (Jordan et al., https://kellerjordan.github.io/posts/muon/).

On whole tensors the bits are those of `torch.optim.Muon`. That one can be given DTensors too, but then multiplies parts
in bfloat16, in another order for every number of ranks, which its iteration makes large. Here a matrix's
momentum is gathered once, every rank makes the same orthogonal matrix of it, and each keeps its own part: the update
does not depend on the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

# Of the quintic iteration that drives singular values towards one; five rounds suffice (torch.optim.Muon).
A, B, C = 3.4445, -4.7750, 2.0315
ROUNDS, EPS = 5, 1e-7


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal, on float32 matrices; decoupled weight decay.

    Each matrix has a `momentum_buffer`. The learning rate is multiplied by sqrt(rows / columns) where that is above 1.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float) -> None:
        super().__init__(groups, {"lr": 0.02, "weight_decay": 0.0, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every matrix by its gradient; a closure is not taken."""
        if closure is not None:
            raise ValueError("Muon takes no closure; compute the gradients before the step")
        for group in self.param_groups:
            for weight in group["params"]:
                self._update(weight, group["lr"], group["weight_decay"], group["momentum"])

    def _update(self, weight: nn.Parameter, lr: float, decay: float, momentum: float) -> None:
        assert weight.grad is not None
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        buffer = state["momentum_buffer"]
        buffer.lerp_(weight.grad, 1 - momentum)
        update = _alike(orthogonal(_whole(weight.grad.lerp(buffer, momentum))), weight)
        rows, columns = weight.shape
        weight.mul_(1 - lr * decay)
        weight.add_(update, alpha=-lr * math.sqrt(max(1, rows / columns)))


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix (m, n) with the singular vectors of `matrix` and singular values near one (0.5 to 1.5), in bfloat16."""
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T  # (m, n), m <= n
    x = x / x.norm().clamp(min=EPS)
    for _ in range(ROUNDS):
        gram = x @ x.T  # (m, m)
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x.T if tall else x


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _alike(whole: Tensor, weight: Tensor) -> Tensor:
    """A whole tensor placed as `weight` is; every rank has the whole, so nothing is sent."""
    if isinstance(weight, DTensor):
        return distribute_tensor(whole.contiguous(), weight.device_mesh, weight.placements, src_data_rank=None)
    return whole
