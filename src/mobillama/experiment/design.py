"""What an experiment is: arms that are trained on the same rows, settings chosen on a seed of their own, comparisons.

An arm is one model and how it is trained; every arm is trained once per seed, and arms of one seed read the same rows
in the same order. Nothing here trains or reads files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mobillama.config import ModelConfig
from mobillama.errors import RecipeError
from mobillama.model.cost import cost

TOLERANCE = 0.01  # share by which stored parameters that count as equal may differ
TUNING_SEED = 777  # far from the seeds of the arms, which count from 1
MANY_ARMS = 0.7  # share of the steps that designs of many arms take, to end in the same time as one of few
STEP: Mapping[str, Any] = {
    "rows_per_step": 4,
    "micro_batch_rows": 4,
    # Few tokens a step: the second moment is averaged over more of them than the paper's 0.95 (LOG.md).
    "beta2": 0.99,
    "keep_last": 1,
    # One thread each and as many trainings at once as there are cores: faster for small models than two threads on one,
    # and the bits do not depend on how many cores there are.
    "threads": 1,
}


@dataclass(frozen=True)
class Tuning:
    """A peak learning rate chosen by held-out bits per byte in short trainings on a seed of its own.

    The centre, half and twice of it are tried; while the best is at an edge, also the next beyond, up to `wider` times.
    """

    name: str
    model: ModelConfig
    steps: int
    setting: Literal["learning_rate", "muon_learning_rate"] = "learning_rate"
    centre: float = 3e-3
    train: Mapping[str, Any] = field(default_factory=dict)
    takes: tuple[str, ...] = ()  # earlier tunings whose choice holds here
    wider: int = 2


@dataclass(frozen=True)
class Arm:
    """One model and how it is trained."""

    name: str
    title: str
    model: ModelConfig
    steps: int
    takes: tuple[str, ...]  # tunings whose choice holds for it
    train: Mapping[str, Any] = field(default_factory=dict)
    start: str = ""  # the arm whose model of the same seed it starts from; none = new weights
    ffn: Literal["layer", "mean", "least_squares"] = "mean"  # how that model's FFNs become the stored ones
    seed_offset: int = 0  # added to the seed: another order of rows than the arms it is a source for


@dataclass(frozen=True)
class Comparison:
    """Arm `a` minus arm `b`, paired by seed; `group` is the heading it stands under."""

    a: str
    b: str
    group: str


@dataclass(frozen=True)
class Experiment:
    """A question, what is trained to answer it, and what is compared."""

    name: str
    title: str
    question: str
    arms: tuple[Arm, ...]
    tunings: tuple[Tuning, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        tunings = [tuning.name for tuning in self.tunings]
        wanted = {arm.start for arm in self.arms if arm.start}
        wanted |= {name for pair in self.comparisons for name in (pair.a, pair.b)}
        taken = {name for arm in self.arms for name in arm.takes}
        taken |= {name for tuning in self.tunings for name in tuning.takes}
        if len({*names}) != len(names) or wanted - {*names} or taken - {*tunings}:
            raise ValueError(f"{self.name}: names {names} and {tunings} do not fit {wanted} and {taken}")

    @property
    def models(self) -> list[ModelConfig]:
        """The model of every arm and tuning."""
        return [*(arm.model for arm in self.arms), *(tuning.model for tuning in self.tunings)]

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)


@dataclass(frozen=True)
class Sizes:
    """Shapes and budgets. The default is the paper's 0.5B divided by 16, its depths kept."""

    vocab_size: int = 2048
    seq_len: int = 256
    hidden_size: int = 128
    intermediate_size: int = 352
    layers: int = 22
    shallow_layers: int = 8  # the paper's baseline2
    heads: int = 4
    steps: int = 1000
    tuning_steps: int = 300

    def scaled(self, scale: float) -> Sizes:
        """Widths times `scale`, steps times its square (tokens per parameter stay); heads keep their number."""
        if not scale > 0:
            raise RecipeError(f"scale={scale}; expected a number above 0, 1 is the default size")
        unit = 2 * self.heads
        return Sizes(
            self.vocab_size,
            self.seq_len,
            max(2 * unit, round(self.hidden_size * scale / (2 * unit)) * 2 * unit),
            max(1, round(self.intermediate_size * scale)),
            self.layers,
            self.shallow_layers,
            self.heads,
            max(20, round(self.steps * scale**2)),
            max(10, round(self.tuning_steps * scale**2)),
        )

    def model(self, name: str, **shape: Any) -> ModelConfig:
        """A model of these sizes but for `shape`."""
        tree = {
            "name": name,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_ffn_blocks": 1,
            "max_position_embeddings": self.seq_len,
            # Wider than the paper's 0.02, which a model this narrow takes long to grow out of (LOG.md).
            "initializer_range": 0.05,
        }
        return ModelConfig.model_validate(tree | shape)


def schedule(steps: int, **changes: Any) -> dict[str, Any]:
    """The `train` table of a training of `steps` steps, warm-up a twentieth of them."""
    return {**STEP, "steps": steps, "warmup_steps": max(1, steps // 20), **changes}


def match_width(config: ModelConfig, stored: int) -> ModelConfig:
    """`config` with the intermediate_size that brings its stored parameters within 1% of `stored`.

    The roundest that does, as matrix products like round sizes. Error: RecipeError if none does.
    """
    narrow = config.model_copy(update={"intermediate_size": 1})
    wider = config.model_copy(update={"intermediate_size": 2})
    least = cost(narrow).stored_parameters
    per_unit = cost(wider).stored_parameters - least
    exact = 1 + (stored - least) / per_unit
    for unit in (32, 16, 8, 4, 2, 1):
        width = round(exact / unit) * unit
        found = config.model_copy(update={"intermediate_size": max(1, width)})
        if width > 0 and abs(cost(found).stored_parameters / stored - 1) < TOLERANCE:
            return found
    raise RecipeError(
        f"no intermediate_size gives {config.name} about {stored:,} stored parameters (nearest {exact:.1f}); "
        "use another scale"
    )


def training_flops(config: ModelConfig) -> int:
    """Operations of training on one token: three forward passes, attention over half a row on average."""
    found = cost(config)
    return 3 * (found.flops_per_token + found.attention_flops_per_token // 2)
