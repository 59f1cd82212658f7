"""Fits the FFNs of a model that shares them to those of one that has more: closed-form least squares on activations.

Every layer's own FFN says, on some rows, what it gives for what it gets there. A shared FFN takes gate and up from the
mean of its layers' or from the best single one of them, and the down that comes nearest to all of their outputs; of the
two the nearer one is taken. A small ridge holds directions that the rows hardly reach near the down begun with, so that
the fit is never worse than what it begins with, and an FFN that is exact already stays.

Legend: N positions, D hidden_size, F intermediate_size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from mobillama.config import ModelConfig
from mobillama.model.transformer import FeedForward, Transformer

RIDGE = 1e-4  # of the mean diagonal of the normal matrix


@torch.no_grad()
def fit_ffns(dense: Transformer, config: ModelConfig, rows: Tensor) -> list[dict[str, Tensor]]:
    """The state of each FFN block of `config`, fitted on rows (n, T) of ids.

    Takes two passes over the rows, and for each block two float64 matrices of (F, F).
    """
    sources = [[dense.ffn_of(layer) for layer in config.layers_of(block)] for block in range(config.num_ffn_blocks)]
    errors = [[0.0] * len(members) for members in sources]  # of each layer's FFN in place of all of its block
    for layer, inputs, outputs in ffn_uses(dense, rows):
        block = config.ffn_block_of(layer)
        for index, ffn in enumerate(sources[block]):
            errors[block][index] += float((ffn(inputs) - outputs).double().square().sum())
    candidates = []
    for members, theirs in zip(sources, errors, strict=True):
        best = members[min(range(len(members)), key=theirs.__getitem__)]
        candidates.append([_Fit(config, state) for state in (mean_ffn(members), best.state_dict())])
    for layer, inputs, outputs in ffn_uses(dense, rows):
        for fit in candidates[config.ffn_block_of(layer)]:
            fit.add(inputs, outputs)
    return [min(both, key=_Fit.solve).ffn.state_dict() for both in candidates]


def mean_ffn(ffns: Sequence[FeedForward]) -> dict[str, Tensor]:
    """The mean of several FFNs' weights, taken in float64, so that equal ones give themselves."""
    states = [ffn.state_dict() for ffn in ffns]
    return {name: torch.stack([state[name].double() for state in states]).mean(0).float() for name in states[0]}


@torch.no_grad()
def sharing_errors(dense: Transformer, shared: Transformer, rows: Tensor) -> list[float]:
    """How far each FFN block is from what it stands for: squared error over the outputs' squares, on rows (n, T).

    The outputs are those of each layer's own FFN in `dense`, given its own inputs there. 0 = equal.
    """
    error, size = torch.zeros(2, len(shared.ffns), dtype=torch.float64)
    for layer, inputs, outputs in ffn_uses(dense, rows):
        block = shared.config.ffn_block_of(layer)
        error[block] += (shared.ffn_of(layer)(inputs) - outputs).double().square().sum()
        size[block] += outputs.double().square().sum()
    return [float(part) for part in error / size]


def ffn_uses(model: Transformer, rows: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For each of rows (n, T) and each layer: what the layer's FFN gets and gives there, both (N, D)."""
    seen: dict[int, Tensor] = {}
    handles = [
        block.get_submodule("post_attention_layernorm").register_forward_hook(_keep_in(seen, index))
        for index, block in enumerate(model.layers)
    ]
    try:
        for row in rows:
            model.hidden_states(row[None])
            for layer, inputs in seen.items():
                flat = inputs.flatten(0, 1)
                yield layer, flat, model.ffn_of(layer)(flat)
    finally:
        for handle in handles:
            handle.remove()


def _keep_in(seen: dict[int, Tensor], layer: int) -> Callable[[object, object, Tensor], None]:
    def hook(_module: object, _inputs: object, output: Tensor) -> None:
        seen[layer] = output

    return hook


class _Fit:
    """One choice of gate, up and a down to begin with, and the normal equations of the best down for them."""

    def __init__(self, config: ModelConfig, begun: dict[str, Tensor]) -> None:
        self.ffn = FeedForward(config)
        self.ffn.load_state_dict(begun)
        inner, hidden = config.intermediate_size, config.hidden_size
        self.normal = torch.zeros(inner, inner, dtype=torch.float64)
        self.right = torch.zeros(inner, hidden, dtype=torch.float64)
        self.size = 0.0  # of the outputs, squared

    def add(self, inputs: Tensor, outputs: Tensor) -> None:  # (N, D) both
        inner = self.ffn.inner(inputs).double()  # (N, F)
        self.normal += inner.T @ inner
        self.right += inner.T @ outputs.double()
        self.size += float(outputs.double().square().sum())

    def solve(self) -> float:
        """Set the best down; the squared error that is left."""
        begun = self.ffn.down_proj.weight.double().T  # (F, D)
        size = self.normal.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)  # 0 if all inputs are
        ridge = RIDGE * size * torch.eye(len(self.normal), dtype=torch.float64)
        step = self.right - self.normal @ begun
        best = begun + torch.cholesky_solve(step, torch.linalg.cholesky(self.normal + ridge))  # (F, D)
        self.ffn.down_proj.weight.copy_(best.T)
        return float(self.size - 2 * (best * self.right).sum() + (best * (self.normal @ best)).sum())
