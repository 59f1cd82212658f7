"""Matrix products inside the layers in float8, with weights that stay what they are.

Every linear layer of attention and FFN rounds its operands to float8 on the way into a product: inputs and weights to
e4m3 (three bits of mantissa), incoming gradients to e5m2 (more range), each tensor with one scale that maps its largest
value to the format's largest (dynamic per-tensor scaling; Micikevicius et al., arXiv 2209.05433). Sums are float32.
Embedding, norms, attention itself and the head stay in the compute type.

Legend: N positions, I inputs, O outputs of a layer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobillama.errors import RecipeError
from mobillama.model.transformer import Transformer

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
CAPABILITY = (8, 9)  # of CUDA devices: Ada; Hopper and later have more of it
MULTIPLE = 16  # the hardware's products take sizes that are multiples of this
SMALLEST = 1e-12  # largest value of a tensor below which it is scaled as if it were this: zeros stay zeros


def check_float8(device: torch.device) -> None:
    """Refuse a device without float8 matrix products. Error: RecipeError."""
    found = f"train.float8=true, but the device is {device.type!r}"
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if torch.version.hip is None and capability >= CAPABILITY:
            return
        name = torch.cuda.get_device_name(device)
        found = f"train.float8=true, but {name} has compute capability {'.'.join(map(str, capability))}"
    raise RecipeError(
        f"{found}; float8 products need an NVIDIA GPU of compute capability {'.'.join(map(str, CAPABILITY))} or more "
        "(L40S, H100, H200, B200, ...): use such a device, or --set train.float8=false"
    )


class Float8Linear(nn.Linear):
    """A linear layer without bias whose products are in float8; its weight keeps its type."""

    def forward(self, x: Tensor) -> Tensor:  # (..., I) -> (..., O)
        """x @ weight^T, in the type of x."""
        flat = x.reshape(-1, x.shape[-1])  # (N, I)
        # The weight's gradient sums over positions: zeros up to the next multiple add nothing to it.
        padded = F.pad(flat, (0, 0, 0, -flat.shape[0] % MULTIPLE))
        out = _Float8Product.apply(padded, self.weight)  # type: ignore[no-untyped-call]
        return out[: flat.shape[0]].view(*x.shape[:-1], -1)  # type: ignore[no-any-return]


def use_float8(model: Transformer) -> int:
    """Let the linear layers of attention and FFNs multiply in float8; how many do.

    Parameters stay the same objects under the same names: call it before fully_shard and compile. A layer whose sizes
    are not multiples of 16 (an adapter of a small rank) keeps the compute type. The device is not looked at: see
    `check_float8`. Error: RecipeError if no layer fits.
    """
    changed = 0
    for part in (model.layers, model.ffns):
        for module in part.modules():
            if type(module) is nn.Linear and not any(size % MULTIPLE for size in module.weight.shape):
                module.__class__ = Float8Linear
                changed += 1
    if not changed:
        raise RecipeError(
            f"train.float8=true, but no matrix of the model has sizes that are multiples of {MULTIPLE} "
            f"(hidden_size={model.config.hidden_size}, intermediate_size={model.config.intermediate_size}): "
            "choose such sizes, or --set train.float8=false"
        )
    return changed


def to_float8(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x rounded to a float8 type after scaling, and the factor (0-d float32) that undoes the scaling.

    >>> rounded, factor = to_float8(torch.tensor([0.5, -2.0]), torch.float8_e4m3fn)
    >>> (rounded.float() * factor).tolist()
    [0.5, -2.0]
    """
    largest = x.detach().abs().amax().float().clamp(min=SMALLEST)
    factor = largest / torch.finfo(dtype).max
    limit = torch.finfo(dtype).max
    # Rounding to the type does not saturate everywhere: a value a rounding error above the largest would be NaN.
    return (x.float() / factor).clamp(-limit, limit).to(dtype), factor


class _Float8Product(torch.autograd.Function):
    """(N, I) by (O, I) -> (N, O). The hardware wants rows of the left and columns of the right one behind another."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        # What is kept is what other layers keep too (and what FSDP2 gathers again), not the rounded copies.
        ctx.save_for_backward(x, weight)
        left, left_factor = to_float8(x, FORWARD)  # (N, I)
        right, right_factor = to_float8(weight, FORWARD)  # (O, I)
        return torch._scaled_mm(
            left, right.t(), scale_a=left_factor, scale_b=right_factor, out_dtype=x.dtype, use_fast_accum=True
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        gradient, factor = to_float8(gradients[0].contiguous(), BACKWARD)  # (N, O)
        for_x = for_weight = None
        if ctx.needs_input_grad[0]:
            right, right_factor = to_float8(weight, FORWARD)
            columns = right.t().contiguous().t()  # (O, I), columns one behind another
            for_x = torch._scaled_mm(gradient, columns, scale_a=factor, scale_b=right_factor, out_dtype=x.dtype)
        if ctx.needs_input_grad[1]:
            right, right_factor = to_float8(x, FORWARD)
            columns = right.t().contiguous().t()  # (N, I)
            rows = gradient.t().contiguous()  # (O, N)
            for_weight = torch._scaled_mm(rows, columns, scale_a=factor, scale_b=right_factor, out_dtype=weight.dtype)
        return for_x, for_weight
