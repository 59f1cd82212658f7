"""When and how much: the learning rate of a step, and whether something is due at it. Pure functions of the recipe.

Linear warm-up, then a cosine to `min_lr_ratio` of the peak at the last step (paper, section 4); or the peak held, and a
straight line to the same end over the last `decay_share` of the steps (warm-up-stable-decay, as in MiniCPM, 2024: a run
can be lengthened as long as its decay has not begun). Steps count from 1.
"""

from __future__ import annotations

import math

from mobillama.config import TrainConfig
from mobillama.errors import RecipeError


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """The learning rate of step `step` of `steps`: the first step's is peak / warmup_steps, never 0.

    >>> config = TrainConfig(learning_rate=1.0, warmup_steps=4, min_lr_ratio=0.1)
    >>> [round(learning_rate(config, step, 20), 2) for step in (1, 4, 12, 20)]
    [0.25, 1.0, 0.55, 0.1]
    >>> config = TrainConfig(schedule="wsd", decay_share=0.25, learning_rate=1.0, warmup_steps=4, min_lr_ratio=0.1)
    >>> [round(learning_rate(config, step, 20), 3) for step in (1, 4, 16, 17, 18, 20)]
    [0.25, 1.0, 1.0, 0.775, 0.55, 0.1]
    """
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    if config.schedule == "wsd":
        decay = max(1, round(config.decay_share * (steps - config.warmup_steps)))  # steps
        share = max(0, step - (steps - decay)) / decay  # of the way down, 0 to 1
        return config.learning_rate * (1 - (1 - config.min_lr_ratio) * share)
    share = (step - config.warmup_steps) / (steps - config.warmup_steps)  # of the cosine, 0 to 1
    cosine = (1 + math.cos(math.pi * share)) / 2
    return config.learning_rate * (config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine)


def check_schedule(config: TrainConfig, steps: int) -> None:
    """Raise RecipeError if the warm-up leaves no step at the peak."""
    if config.warmup_steps >= steps:
        raise RecipeError(
            f"train.warmup_steps={config.warmup_steps} does not fit into {steps} steps; "
            f"use less, for example --set train.warmup_steps={steps // 10}, or raise train.steps"
        )


def same_so_far(old: TrainConfig, old_steps: int, new: TrainConfig, new_steps: int, step: int) -> bool:
    """Whether steps 1..`step` have the same learning rates under both recipes."""
    return all(learning_rate(old, s, old_steps) == learning_rate(new, s, new_steps) for s in range(1, step + 1))


def due(step: int, every: int) -> bool:
    """Whether something done every `every` steps falls on this one; 0 = never."""
    return every > 0 and step % every == 0
