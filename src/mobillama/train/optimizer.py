"""AdamW on float32 weights, clipped to the true global gradient norm.

The paper's settings (section 4): one group, weight decay on every tensor. Each weight counts once in the norm, however
many layers use it. Moments exist from the start, so that a state saved before the first step is whole.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mobillama.config import TrainConfig
from mobillama.errors import InputError

MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimizer:
    """The gradients, the moments and the update of a model's float32 weights.

    weights: names and parameters, all float32 on one device. `gradients` are buffers of ours (`.grad` of each weight),
    zero between updates; whoever computes gradients adds to them.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], config: TrainConfig) -> None:
        self.weights = dict(weights)
        self.clip = config.clip
        self.adamw = torch.optim.AdamW(
            list(self.weights.values()),
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )
        for weight in self.weights.values():
            weight.grad = torch.zeros_like(weight)
            self.adamw.state[weight] = {
                "step": torch.zeros((), dtype=torch.float32, device=weight.device),
                **{moment: torch.zeros_like(weight) for moment in MOMENTS},
            }

    @property
    def gradients(self) -> list[Tensor]:
        """The gradient buffer of each weight, in the order of the weights."""
        return [weight.grad for weight in self.weights.values() if weight.grad is not None]

    @torch.no_grad()
    def update(self, lr: float) -> Tensor:
        """Clip, step with learning rate `lr`, zero the gradients; the norm before clipping (0-d float32).

        A norm that is not a finite number is given back before anything is changed: the caller must stop.
        """
        gradients = self.gradients
        norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm):
            return norm
        torch._foreach_mul_(gradients, (self.clip / (norm + 1e-6)).clamp(max=1.0))
        self.adamw.param_groups[0]["lr"] = lr
        self.adamw.step()
        torch._foreach_zero_(gradients)
        return norm

    def state(self) -> dict[str, Tensor]:
        """The live tensors (not copies): `model.<name>`, `optimizer.<name>.<moment>` and `optimizer.step`."""
        tensors: dict[str, Tensor] = {}
        for name, weight in self.weights.items():
            tensors[f"model.{name}"] = weight.detach()
            for moment in MOMENTS:
                tensors[f"optimizer.{name}.{moment}"] = self.adamw.state[weight][moment]
            tensors["optimizer.step"] = self.adamw.state[weight]["step"]
        return tensors

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy in what `state` gave. Errors: InputError if a name is missing or strange, or a shape differs."""
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
            tensor.copy_(tensors[name])
        for weight in self.weights.values():
            self.adamw.state[weight]["step"].copy_(tensors["optimizer.step"])
