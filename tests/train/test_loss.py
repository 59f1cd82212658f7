"""The chunked loss against PyTorch's cross entropy on plain float32 logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mobillama.train.loss import linear_cross_entropy, nats_and_gradient, summed_nats

SIZES = [(1, 3, 2), (7, 5, 11), (64, 16, 50), (130, 33, 257)]  # N, D, V
CHUNKS = [0, 1, 5, 64, 1000]


def draw(N: int, D: int, V: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    print("seed 7")
    generator = torch.Generator().manual_seed(7)
    hidden = torch.randn(N, D, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, V, (N,), generator=generator)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("chunk", CHUNKS)
def test_loss_and_gradients_are_those_of_plain_cross_entropy(sizes: tuple[int, int, int], chunk: int) -> None:
    hidden, weight, targets = draw(*sizes)
    plain = F.cross_entropy(hidden @ weight.t(), targets)
    expected = torch.autograd.grad(plain, (hidden, weight))
    loss = linear_cross_entropy(hidden, weight, targets, chunk)
    found = torch.autograd.grad(loss, (hidden, weight))
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert loss.dtype == torch.float32
    assert loss.ndim == 0


def test_gradient_follows_what_the_loss_is_multiplied_by() -> None:
    hidden, weight, targets = draw(20, 6, 9)
    whole = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets, 8), (hidden, weight))
    half = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets, 8) * 0.5, (hidden, weight))
    torch.testing.assert_close(tuple(2 * each for each in half), whole)


@pytest.mark.parametrize("chunk", [0, 3, 16])
def test_logits_never_exist_for_more_positions_than_a_chunk(chunk: int) -> None:
    hidden, weight, targets = draw(50, 4, 13)
    seen: list[tuple[int, ...]] = []

    def watch(logits: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        seen.append(tuple(logits.shape))
        return nats_and_gradient(logits, targets, scale)

    linear_cross_entropy(hidden, weight, targets, chunk, watch)
    assert max(rows for rows, _ in seen) == (chunk or 50)
    assert sum(rows for rows, _ in seen) == 50


def test_bfloat16_states_are_as_near_as_their_type_allows() -> None:
    hidden, weight, targets = draw(200, 64, 500, torch.bfloat16)
    loss = linear_cross_entropy(hidden, weight, targets, 64)
    found = torch.autograd.grad(loss, (hidden, weight))
    wide = [each.detach().float().requires_grad_() for each in (hidden, weight)]
    plain = F.cross_entropy(wide[0] @ wide[1].t(), targets)
    expected = torch.autograd.grad(plain, wide)
    assert abs(loss.item() - plain.item()) < 0.01
    for mine, exact in zip(found, expected, strict=True):
        assert (mine.float() - exact).norm() / exact.norm() < 0.01


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, targets = draw(10, 8, 12)
    loss = linear_cross_entropy(hidden * 1e3, weight * 1e3, targets, 4)
    assert torch.isfinite(loss)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_summed_nats_are_a_float64_sum(chunk: int) -> None:
    hidden, weight, targets = draw(130, 33, 257)
    total = summed_nats(hidden, weight, targets, chunk)
    each = F.cross_entropy(hidden.double() @ weight.double().t(), targets, reduction="sum")
    assert total.dtype == torch.float64
    torch.testing.assert_close(total, each.detach(), rtol=1e-6, atol=1e-5)
