"""Causal attention for training on a CPU in bfloat16, built of large matrix products.

PyTorch's CPU kernel works through tiles too small for this type's matrix units. Here a block of queries meets all keys
before its end in one batched product per step, what lies between the products is left to the compiler to fuse, and the
backward pass computes the scores again from the log-sum-exp (as FlashAttention does), so that memory stays that of one
block of scores. Softmax and sums over blocks are float32; scores are rounded to the inputs' type once.

Legend: N batch times heads, T time, Dh head_dim, Q queries of a block, S keys before its end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCKS = 4  # of queries; more skip more of the future but make smaller products and a longer compilation


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    enable_gqa: bool = False,
    documents: Tensor | None = None,
) -> Tensor:
    """As `torch.nn.functional.scaled_dot_product_attention`: q (B, H, T, Dh), k and v (B, K, T, Dh) -> (B, H, T, Dh).

    Whole texts in causal order are computed here; anything else is handed on to PyTorch. `documents` (B, T) int:
    positions look only at those of their own document.
    """
    if attn_mask is not None or not is_causal or q.shape[2] != k.shape[2]:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, is_causal=is_causal, enable_gqa=enable_gqa)
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)  # (B, H, T, Dh)
    flat = (x.flatten(0, 1) for x in (q, k, v))  # (N, T, Dh) each
    return _CausalAttention.apply(*flat, documents).view(q.shape)  # type: ignore[no-any-return,no-untyped-call]


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> Tensor:  # (N, T, Dh); (B, T)
        mixed, log_totals = [], []
        for start, end in _blocks(q.shape[1]):
            scores = _scores(q, k, start, end, documents)  # (N, Q, S)
            largest = scores.amax(-1, keepdim=True)  # (N, Q, 1)
            raised = (scores - largest).exp()
            total = raised.sum(-1, keepdim=True)  # (N, Q, 1)
            mixed.append(torch.bmm((raised / total).to(v.dtype), v[:, :end]))  # (N, Q, Dh)
            log_totals.append(largest + total.log())
        out = torch.cat(mixed, 1)  # (N, T, Dh)
        ctx.save_for_backward(q, k, v, out, torch.cat(log_totals, 1), documents)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, log_totals, documents = ctx.saved_tensors
        dout = gradients[0].contiguous()  # (N, T, Dh)
        T = q.shape[1]
        along = (dout.float() * out.float()).sum(-1, keepdim=True)  # (N, T, 1)
        dq, dk, dv = [], [], []
        for start, end in _blocks(T):
            weights = (_scores(q, k, start, end, documents) - log_totals[:, start:end]).exp()  # (N, Q, S)
            dweights = torch.bmm(dout[:, start:end], v[:, :end].transpose(1, 2)).float()
            dscores = (weights * (dweights - along[:, start:end]) * q.shape[2] ** -0.5).to(q.dtype)
            dq.append(torch.bmm(dscores, k[:, :end]))  # (N, Q, Dh)
            dk.append(torch.bmm(dscores.transpose(1, 2), q[:, start:end]))  # (N, S, Dh)
            dv.append(torch.bmm(weights.to(v.dtype).transpose(1, 2), dout[:, start:end]))  # (N, S, Dh)
        return torch.cat(dq, 1), _sum_over_blocks(dk, T), _sum_over_blocks(dv, T), None


def _scores(q: Tensor, k: Tensor, start: int, end: int, documents: Tensor | None) -> Tensor:
    """Scaled scores (N, Q, S) in float32 of the queries start..end, minus infinity where they may not look."""
    scale: float = q.shape[2] ** -0.5
    scores = torch.bmm(q[:, start:end], k[:, :end].transpose(1, 2)).float() * scale
    keys = torch.arange(end, device=q.device)  # (S,)
    scores = scores.masked_fill(keys > keys[start:, None], -math.inf)
    if documents is None:
        return scores
    apart = documents[:, None, start:end, None] != documents[:, None, None, :end]  # (B, 1, Q, S)
    by_row = scores.view(len(documents), -1, *scores.shape[1:])  # (B, H, Q, S)
    return by_row.masked_fill(apart, -math.inf).flatten(0, 1)


def _sum_over_blocks(parts: list[Tensor], T: int) -> Tensor:
    """Sum parts (N, S, Dh) of growing S to (N, T, Dh), in float32."""
    total = parts[-1].float()
    for part in parts[:-1]:
        total = total + F.pad(part.float(), (0, 0, 0, T - part.shape[1]))
    return total.to(parts[-1].dtype)


def _blocks(T: int) -> Iterator[tuple[int, int]]:
    size = -(-T // BLOCKS)
    return ((start, min(start + size, T)) for start in range(0, T, size))
