"""The CPU's causal attention against PyTorch's in float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mobillama.train.attention import causal_attention


def draw(B: int, H: int, K: int, T: int, Dh: int, dtype: torch.dtype) -> list[Tensor]:
    print("seed 3")
    generator = torch.Generator().manual_seed(3)
    shapes = [(B, T, H, Dh), (B, T, K, Dh), (B, T, K, Dh)]
    return [torch.randn(shape, generator=generator).to(dtype).transpose(1, 2).requires_grad_() for shape in shapes]


def with_gradients(attend, inputs: list[Tensor], gqa: bool) -> list[Tensor]:
    out = attend(*inputs, is_causal=True, enable_gqa=gqa)
    pull = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype)
    return [out, *torch.autograd.grad(out, inputs, pull)]


@pytest.mark.parametrize("T", [1, 2, 3, 5, 64, 101])
@pytest.mark.parametrize(("H", "K"), [(4, 4), (4, 2), (6, 1)])
def test_values_and_gradients_are_those_of_pytorch(T: int, H: int, K: int) -> None:
    inputs = draw(2, H, K, T, 8, torch.float32)
    expected = with_gradients(F.scaled_dot_product_attention, inputs, H != K)
    found = with_gradients(causal_attention, inputs, H != K)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_no_further_from_float32_than_twice_pytorch() -> None:
    inputs = draw(2, 4, 4, 256, 32, torch.bfloat16)
    exact = with_gradients(F.scaled_dot_product_attention, [x.detach().float().requires_grad_() for x in inputs], False)
    theirs = with_gradients(F.scaled_dot_product_attention, inputs, False)
    ours = with_gradients(causal_attention, inputs, False)
    for mine, peer, true in zip(ours, theirs, (x.detach() for x in exact), strict=True):
        error, peer_error = (float((x.float() - true).norm() / true.norm()) for x in (mine.detach(), peer.detach()))
        print(error, peer_error)
        assert error < max(2 * peer_error, 0.005)


def test_a_position_does_not_see_its_future() -> None:
    inputs = draw(1, 2, 2, 40, 8, torch.float32)
    before = causal_attention(*inputs, is_causal=True)
    changed = [x.detach().clone() for x in inputs]
    for x in changed:
        x[:, :, 25:] += 1.0
    after = causal_attention(*changed, is_causal=True)
    assert torch.equal(before[:, :, :25], after[:, :, :25])
    assert not torch.equal(before[:, :, 25:], after[:, :, 25:])


def test_a_mask_is_handed_on() -> None:
    inputs = draw(1, 2, 2, 6, 8, torch.float32)
    mask = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(0)) > 0.3
    mask |= torch.eye(6, dtype=torch.bool)
    expected = F.scaled_dot_product_attention(*inputs, attn_mask=mask)
    torch.testing.assert_close(causal_attention(*inputs, attn_mask=mask), expected)
