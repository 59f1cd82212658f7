"""Attention that does not cross documents, applied to a model from outside.

The model says "whole rows in causal order", as ever; what each layer attends with knows the documents of the rows under
way and leaves out what lies in another one. Rotary positions are relative, so a document gives what it gives alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mobillama.train.attention import causal_attention

Attend = Callable[..., Tensor]


class DocumentAttention:
    """In place of scaled_dot_product_attention; `documents` (B, T) int of the rows under way, None = no mask.

    own_kernel: by `causal_attention`, for training on a CPU in bfloat16; else PyTorch's, with a mask spelt out.
    """

    def __init__(self, *, own_kernel: bool) -> None:
        self.own_kernel = own_kernel
        self.documents: Tensor | None = None
        self.mask: Tensor | None = None  # (B, 1, T, T), True = may look; one for all layers

    def show(self, documents: Tensor) -> None:
        """Set the documents (B, T) that the positions of the next rows belong to."""
        self.documents = documents
        if not self.own_kernel:
            T = documents.shape[1]
            causal = torch.ones(T, T, dtype=torch.bool, device=documents.device).tril()
            self.mask = ((documents[:, :, None] == documents[:, None, :]) & causal)[:, None]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, enable_gqa: bool, **_: Any) -> Tensor:
        """q (B, H, T, Dh), k and v (B, K, T, Dh) -> (B, H, T, Dh)."""
        if self.own_kernel:
            return causal_attention(q, k, v, is_causal=True, enable_gqa=enable_gqa, documents=self.documents)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, enable_gqa=enable_gqa)
