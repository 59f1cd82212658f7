"""AdamW or Muon on float32 weights, in groups, clipped to the true global gradient norm.

With the paper's settings (section 4) there is one group: AdamW, weight decay on every tensor. A recipe can give FFNs a
learning rate by their uses, spare norms and embeddings the decay, and let Muon update the matrices inside the layers.
Each weight counts once in the norm, however many layers use it and ranks hold parts of it. Moments exist from the
start, so that a state saved before the first step is whole. Weights are plain tensors or DTensors (FSDP2).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Replicate, distribute_tensor

from mobillama.config import ModelConfig, TrainConfig, scale_of
from mobillama.errors import InputError
from mobillama.train.muon import Muon

Algorithm = Literal["adamw", "muon"]
Kind = Literal["ffn", "matrix", "vector", "table"]

MOMENTS: dict[Algorithm, tuple[str, ...]] = {"adamw": ("exp_avg", "exp_avg_sq"), "muon": ("momentum_buffer",)}
TABLES = ("embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True)
class Norms:
    """Gradient norms before clipping, 0-d float32: of all weights, of the FFN blocks, of attention."""

    all: Tensor
    ffn: Tensor
    attention: Tensor


@dataclass(frozen=True)
class Group:
    """How some weights are updated: by what, with which factor of the learning rate, with which weight decay."""

    algorithm: Algorithm
    factor: float
    decay: float


def kind_of(name: str, weight: Tensor) -> Kind:
    """What a weight of a Transformer is: of an FFN block, another matrix of a layer, a norm or gain, embedding or head.

    >>> kind_of("ffns.0.up_proj.weight", torch.empty(4, 2)), kind_of("layers.1.ffn_gain", torch.empty(2))
    ('ffn', 'vector')
    """
    if name.startswith("ffns."):
        return "ffn"
    if name in TABLES:
        return "table"
    return "vector" if weight.ndim == 1 else "matrix"


def group_of(name: str, weight: Tensor, config: TrainConfig, model: ModelConfig) -> Group:
    """The group that a recipe puts a weight of a Transformer into, by its name."""
    kind = kind_of(name, weight)
    uses = len(model.layers_of(int(name.split(".")[1]))) if kind == "ffn" else 1
    factor = scale_of(config.ffn_lr_scale, uses) if kind == "ffn" else 1.0
    spared = (kind == "vector" and not config.decay_norms) or (kind == "table" and not config.decay_embeddings)
    decay = 0.0 if spared else config.weight_decay
    if config.optimizer == "muon" and kind in ("ffn", "matrix"):
        return Group("muon", factor * config.muon_learning_rate / config.learning_rate, decay)
    return Group("adamw", factor, decay)


class Optimizer:
    """The gradients, the moments and the update of a model's float32 weights.

    weights: names as in a Transformer, and parameters, all float32 on one device. `gradients` are buffers of ours
    (`.grad` of each weight), zero between updates; whoever computes gradients adds to them.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], config: TrainConfig, model: ModelConfig) -> None:
        self.weights = dict(weights)
        self.clip = config.clip
        self._moments: dict[str, dict[str, Tensor]] = {}  # name of a weight -> its moments, live
        self._steps: list[Tensor] = []  # AdamW keeps one for each weight; all are equal
        groups: dict[Group, list[nn.Parameter]] = {}
        states: dict[nn.Parameter, dict[str, Tensor]] = {}
        for name, weight in self.weights.items():
            group = group_of(name, weight, config, model)
            groups.setdefault(group, []).append(weight)
            weight.grad = torch.zeros_like(weight)
            states[weight] = {moment: torch.zeros_like(weight) for moment in MOMENTS[group.algorithm]}
            self._moments[name] = dict(states[weight])
            if group.algorithm == "adamw":
                states[weight]["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
                self._steps.append(states[weight]["step"])
        self._optimizers = [
            _optimizer(
                algorithm, {group: them for group, them in groups.items() if group.algorithm == algorithm}, config
            )
            for algorithm in dict.fromkeys(group.algorithm for group in groups)
        ]
        for optimizer in self._optimizers:
            for each in optimizer.param_groups:
                optimizer.state.update({weight: states[weight] for weight in each["params"]})

    @property
    def gradients(self) -> list[Tensor]:
        """The gradient buffer of each weight, in the order of the weights."""
        return [weight.grad for weight in self.weights.values() if weight.grad is not None]

    @torch.no_grad()
    def norms(self) -> Norms:
        """Norms of the gradients as they stand; the same on all ranks."""
        each = dict(zip(self.weights, norm_of_each(self.gradients), strict=True))
        return Norms(
            all=_together(each.values()),
            ffn=_together(norm for name, norm in each.items() if name.startswith("ffns.")),
            attention=_together(norm for name, norm in each.items() if ".self_attn." in name),
        )

    @torch.no_grad()
    def update(self, lr: float, most: float = math.inf) -> Norms:
        """Clip, step and zero the gradients; the norms before clipping.

        lr: of the AdamW weights without a factor; Muon's and the FFNs' follow from it in the recipe's proportion.
        A global norm that is no finite number, or above `most`, is given back before anything is changed, gradients
        included: the caller must stop, or skip the update by `zero_gradients`.
        """
        norms = self.norms()
        if not (torch.isfinite(norms.all) & (norms.all <= most)):
            return norms
        torch._foreach_mul_(_locals(self.gradients), (self.clip / (norms.all + 1e-6)).clamp(max=1.0))
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group["factor"]
            optimizer.step()
        self.zero_gradients()
        return norms

    @torch.no_grad()
    def zero_gradients(self) -> None:
        """Forget the gradients."""
        torch._foreach_zero_(_locals(self.gradients))

    def state(self) -> dict[str, Tensor]:
        """The live tensors (not copies): `model.<name>`, `optimizer.<name>.<moment>` and `optimizer.step`.

        Whoever fills them in place calls `loaded` afterwards.
        """
        tensors: dict[str, Tensor] = {}
        for name, weight in self.weights.items():
            tensors[f"model.{name}"] = weight.detach()
            for moment, tensor in self._moments[name].items():
                tensors[f"optimizer.{name}.{moment}"] = tensor
        tensors["optimizer.step"] = self._steps[-1]
        return tensors

    @torch.no_grad()
    def loaded(self) -> None:
        """Take over what the tensors of `state` were filled with: the step holds for every weight."""
        for step in self._steps[:-1]:
            step.copy_(self._steps[-1])

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy in the whole tensors of what `state` gave.

        Errors: InputError if a name is missing or strange, or a shape differs; then nothing is changed.
        """
        live = self.state()
        if missing := sorted(live.keys() - tensors.keys()):
            raise InputError(
                f"the training state lacks {missing[0]!r} ({len(missing)} in all); is it of another model?"
            )
        if strange := sorted(tensors.keys() - live.keys()):
            raise InputError(
                f"the training state holds {strange[0]!r} ({len(strange)} in all), which this model has not; "
                "use the recipe it was trained with"
            )
        for name, tensor in live.items():
            if tensors[name].shape != tensor.shape:
                raise InputError(
                    f"{name!r} of the training state has shape {tuple(tensors[name].shape)}; "
                    f"this model has {tuple(tensor.shape)}: use the recipe it was trained with"
                )
        for name, tensor in live.items():
            _fill(tensor, tensors[name])
        self.loaded()


def _optimizer(
    algorithm: Algorithm, groups: Mapping[Group, list[nn.Parameter]], config: TrainConfig
) -> torch.optim.Optimizer:
    """The optimizer of some groups, each with its `factor` of the learning rate."""
    given = [{"params": them, "factor": group.factor, "weight_decay": group.decay} for group, them in groups.items()]
    if algorithm == "muon":
        return Muon(given, config.muon_momentum)
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(given, lr=config.learning_rate, betas=betas, eps=config.eps, fused=True)


def norm_of_each(gradients: Sequence[Tensor]) -> list[Tensor]:
    """The norm (0-d, plain) of each of some tensors, whole ones; for DTensors one exchange a kind of placement."""
    norms = list(torch._foreach_norm(_locals(gradients)))
    placed: dict[Any, list[int]] = {}
    for index, gradient in enumerate(gradients):
        if isinstance(gradient, DTensor):
            placed.setdefault((gradient.device_mesh, gradient.placements), []).append(index)
    for (mesh, placements), members in placed.items():
        squares = torch.stack([norms[index] for index in members]).square()  # (n,) of this rank's parts
        summed = [Partial() if place.is_shard() else Replicate() for place in placements]
        whole = DTensor.from_local(squares, mesh, summed, run_check=False).full_tensor().sqrt()
        for index, norm in zip(members, whole.unbind(), strict=True):
            norms[index] = norm
    return norms


def _together(norms: Iterable[Tensor]) -> Tensor:
    """The norm of several tensors from that of each; 0 of none."""
    each = list(norms)
    return torch.linalg.vector_norm(torch.stack(each)) if each else torch.zeros(())


def _locals(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Each tensor's part on this rank, on the same memory."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def _fill(live: Tensor, whole: Tensor) -> None:
    if isinstance(live, DTensor) and not isinstance(whole, DTensor):
        # Without a source rank every rank cuts its own part out: nothing is sent.
        whole = distribute_tensor(whole.to(live.device), live.device_mesh, live.placements, src_data_rank=None)
    live.copy_(whole)
