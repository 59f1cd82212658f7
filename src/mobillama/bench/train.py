"""`mobillama bench train`: training tokens per second beside a peer, interleaved in one run, and how much of the
machine's arithmetic they are.

Each side is a process of its own (`train_sides.py`), driven through pipes: one side computes while the others wait, so
whatever else the machine does meets all of them. All start from the same weights and read the same batches; the losses
are compared. Ours is the step that `mobillama train` runs. A large matrix product takes its turn like a side: what the
device reaches with nothing around it.

Where only PyTorch, numpy, pydantic and safetensors are installed: `python -m mobillama.bench.train JSON`, the JSON
being keyword arguments of `measure`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mobillama.bench.train_sides import OURS, OURS_FREE, PRODUCT, Shape
from mobillama.config import ModelConfig, TrainConfig, TrainRecipe, read_recipe, resolve
from mobillama.errors import InputError, TrainingError
from mobillama.train.flops import model_flops_per_token
from mobillama.train.gpus import gpu_named

MODEL = ModelConfig(
    name="bench-train",
    vocab_size=8192,
    hidden_size=256,
    intermediate_size=704,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=8,
    num_ffn_blocks=1,
    max_position_embeddings=512,
)
ROWS = 8
WARM_UP_STEPS = 2  # the first compiles and allocates
COMPARED_STEP = 20  # losses are compared after this many steps
# Peer -> row -> side; the headline first.
PEERS = {
    "transformers": {"train-compiled": "transformers-compiled", "train-eager": "transformers-eager"},
    "nondeterministic": {"train-deterministic": OURS_FREE},
    "none": {},
}
EAGER = "transformers-eager"


class Side:
    """One process that takes training steps when told to, and reports seconds and losses.

    Run as `python -m module kind text`; `kind` names it, and its compiler cache.
    """

    def __init__(self, kind: str, text: str, cache: Path, module: str = "mobillama.bench.train_sides") -> None:
        self.kind = kind
        self.losses: list[float] = []
        self.told: list[dict[str, Any]] = []  # every reply
        # A compiler cache of its own: compile times are those of a first run.
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache / kind)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, kind, text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def take(self, steps: int) -> float:
        """Take `steps` steps; seconds of each on average. Errors: TrainingError if the process ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            print(steps, file=self.process.stdin, flush=True)
            reply = self.process.stdout.readline()
        except BrokenPipeError:
            reply = ""
        if not reply:
            raise TrainingError(
                f"the process of {self.kind!r} ended with status {self.process.wait()} before it was measured; "
                "its own message is above"
            )
        told = json.loads(reply)
        self.told.append(told)
        self.losses += told.get("losses", [])
        return float(told["seconds"]) / steps

    def close(self) -> None:
        """End the process."""
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def bench_shape(
    recipe: str = "",
    preset: str = "",
    rows: int = 0,
    micro_rows: int = 0,
    seq_len: int = 0,
    settings: Sequence[str] = (),
    model: ModelConfig = MODEL,
) -> Shape:
    """What to train: a train recipe, or a model preset, or `model`.

    rows: of a step, and micro_rows of one pass; 0 = the recipe's, without one 8 rows in one pass. seq_len: 0 = the
    model's context. settings: `a.b=c` for the recipe. Error: RecipeError.
    """
    if recipe and preset:
        raise InputError(f"recipe {recipe!r} and preset {preset!r} both name a model; leave one out")
    rows = rows or (0 if recipe else ROWS)
    given = ([f"train.rows_per_step={rows}"] if rows else []) + list(settings)
    if micro_rows or rows:
        given.append(f"train.micro_batch_rows={micro_rows or rows}")
    if recipe:
        found = read_recipe(TrainRecipe, recipe, given)
    else:
        tree: dict[str, Any] = {"model": {"preset": preset} if preset else model.tree(), "train": {}}
        for setting in given:
            key, equals, value = setting.partition("=")
            if not key.startswith("train.") or not equals:
                raise InputError(f"--set {setting!r} without a recipe sets fields of train: --set train.key=value")
            tree["train"][key.removeprefix("train.")] = {"true": True, "false": False}.get(value, value)
        found = resolve(TrainRecipe, tree, "bench train")
    return Shape(found.model, found.train, seq_len or found.model.max_position_embeddings)


def measure(
    against: str = "transformers",
    rounds: int = 9,
    steps_per_round: int = 2,
    **shape_of: Any,
) -> dict[str, Any]:
    """Tokens per second of our step and of the peer's forms, one pair of figures a round; see `bench_shape`.

    Gives `rows`, as every bench does: the peer's; `utilisation-measured` and `utilisation-stated`, operations of the
    model per second beside those of a matrix product in this run and those that the device's maker states (where
    known); `peak-memory`, where the ratio is the peer's bytes over ours. `compile_seconds`: what each side's first step
    took longer than a later one; `loss_difference`, the largest between ours and a peer after `compared_step` steps.
    Errors: InputError for a peer that is not known.
    """
    if against not in PEERS:
        raise InputError(f"no peer {against!r} for training; the peers are: {', '.join(PEERS)}")
    shape = bench_shape(**shape_of)
    forms = PEERS[against]
    kinds = (OURS, *dict.fromkeys(forms.values()))
    seconds, first, sides = take_turns((*kinds, PRODUCT), shape, rounds, steps_per_round)
    tokens = shape.train.rows_per_step * shape.seq_len
    speeds = {kind: [tokens / each for each in seconds[kind]] for kind in kinds}
    step = min(COMPARED_STEP, len(sides[OURS].losses))
    result: dict[str, Any] = {
        "rows": [row_of(name, speeds[OURS], speeds[kind], against) for name, kind in forms.items()]
        or [row_of("train", speeds[OURS])]
    }
    flops = model_flops_per_token(shape.model, shape.seq_len)
    machine = _machine(shape.train)
    result["rows"] += utilisation(
        [speed * flops for speed in speeds[OURS]],
        [told["flops_per_second"] for told in sides[PRODUCT].told][-rounds:],
        machine["stated_flops_per_second"],
    )
    result["rows"] += [_memory_row(sides, kind, name) for name, kind in forms.items()] or [_memory_row(sides)]
    return result | {
        "compile_seconds": {
            kind: round(first[kind] - statistics.median(seconds[kind]), 2) for kind in kinds if kind != EAGER
        },
        "loss_difference": max(abs(sides[OURS].losses[step - 1] - sides[k].losses[step - 1]) for k in kinds),
        "losses": {kind: sides[kind].losses[step - 1] for kind in kinds},
        "compared_step": step,
        "model": shape.model.name,
        "tokens_per_step": tokens,
        "rows_per_pass": shape.train.micro_batch_rows,
        "seq_len": shape.seq_len,
        "model_flops_per_token": flops,
        **machine,
    }


def take_turns(
    kinds: Sequence[str], shape: Shape, rounds: int, steps: int
) -> tuple[dict[str, list[float]], dict[str, float], dict[str, Side]]:
    """Seconds per step of each side in each round and of its first step, and the sides, ended."""
    with tempfile.TemporaryDirectory(prefix="mobillama-bench-") as folder:
        sides: dict[str, Side] = {}
        try:
            first: dict[str, float] = {}
            for kind in kinds:
                sides[kind] = Side(kind, shape.text(), Path(folder))
                first[kind] = sides[kind].take(1)
            for side in sides.values():
                side.take(WARM_UP_STEPS - 1)
            return interleave(sides, rounds, steps), first, sides
        finally:
            for side in sides.values():
                side.close()


def interleave(sides: Mapping[str, Side], rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds per step of each side in each round; the order turns round by round."""
    seconds: dict[str, list[float]] = {kind: [] for kind in sides}
    kinds = list(sides)
    started = time.monotonic()
    for turn in range(rounds):
        at = turn % len(kinds)
        for kind in kinds[at:] + kinds[:at]:
            seconds[kind].append(sides[kind].take(steps))
        print(f"round {turn + 1} of {rounds}, {time.monotonic() - started:.0f} s", file=sys.stderr)
    return seconds


def utilisation(ours: list[float], product: list[float], stated: float | None) -> list[dict[str, Any]]:
    """Rows of our model's operations per second beside those of a matrix product, and of the device as stated."""
    ours, product = [each / 1e9 for each in ours], [each / 1e9 for each in product]
    rows = [row_of("utilisation-measured", ours, product, "matrix product", "GFLOP/s")]
    if stated:
        rows.append(row_of("utilisation-stated", ours, [stated / 1e9] * len(ours), "stated peak", "GFLOP/s"))
    return rows


def _machine(train: TrainConfig) -> dict[str, Any]:
    """The device, its compute type and what its maker states of it."""
    import torch

    from mobillama.device import place

    here = place(train)
    gpu = gpu_named(here.name)
    # Beside the peak of bfloat16 with train.float8 too: what float8 gains shows as a higher share of the same peak.
    stated = gpu.bf16_flops if gpu and here.dtype == torch.bfloat16 else None
    return {
        **{key: value for key, value in here.environment().items() if key != "machine"},
        "stated_flops_per_second": stated,
        "stated_by": gpu.source if gpu and stated else None,
    }


def _memory_row(sides: Mapping[str, Side], kind: str = "", name: str = "") -> dict[str, Any]:
    """Peak megabytes on the device (on a CPU: of the process) of our side and another."""

    def peak(side: Side) -> float:
        memory = side.told[-1]["peak_memory"]
        return float(memory.get("device_bytes", memory["resident_bytes"])) / 1e6

    ours = peak(sides[OURS])
    if not kind:
        return row_of("peak-memory", [ours], unit="MB")
    row = row_of(f"peak-memory-{name.removeprefix('train-')}", [ours], [peak(sides[kind])], kind, "MB")
    return {**row, "ratio": row["peer"] / row["ours"]}


def row_of(
    name: str,
    ours: list[float],
    peer: list[float] | None = None,
    peer_name: str | None = None,
    unit: str = "tokens/s",
) -> dict[str, Any]:
    """One row: medians of both sides, and of the pairs' ratios."""
    if peer is None:
        row = {"name": name, "ours": statistics.median(ours), "peer": None, "peer_name": None, "ratio": None}
        return {**row, "unit": unit, "pairs": [[each] for each in ours]}
    pairs = [[mine, theirs] for mine, theirs in zip(ours, peer, strict=True)]
    return {
        "name": name,
        "ours": statistics.median(ours),
        "peer": statistics.median(peer),
        "peer_name": peer_name,
        "ratio": statistics.median(mine / theirs for mine, theirs in pairs),
        "unit": unit,
        "pairs": pairs,
    }


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
