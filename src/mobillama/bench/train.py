"""`mobillama bench train`: training tokens per second beside a peer, interleaved in one run.

Each side is a process of its own (`train_sides.py`), driven through pipes: one side computes while the others wait, so
whatever else the machine does meets all of them. All start from the same weights and read the same batches; the losses
are compared. Ours is the step that `mobillama train` runs by default.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mobillama.bench.train_sides import SIDES
from mobillama.config import ModelConfig
from mobillama.errors import InputError, TrainingError

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
ROWS, SEQ_LEN = 8, 512
WARM_UP_STEPS = 2  # the first compiles and allocates
COMPARED_STEP = 20  # losses are compared after this many steps
PEERS = {"transformers": {"train-compiled": "transformers-compiled", "train-eager": "transformers-eager"}}


class Side:
    """One process that takes training steps when told to, and reports seconds and losses."""

    def __init__(self, kind: str, shape: dict[str, Any], cache: Path) -> None:
        self.kind = kind
        self.losses: list[float] = []
        # A compiler cache of its own: compile times are those of a first run.
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache / kind)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mobillama.bench.train_sides", kind, json.dumps(shape)],
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
        self.losses += told["losses"]
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


def measure(
    against: str = "transformers",
    rounds: int = 9,
    steps_per_round: int = 2,
    model: ModelConfig = MODEL,
    rows: int = ROWS,
    seq_len: int = SEQ_LEN,
) -> dict[str, Any]:
    """Tokens per second of our default step and of the peer's forms, one pair of figures a round.

    Gives `rows`, as every bench does; `compile_seconds`, what each side's first step took longer than a later one;
    `loss_difference`, the largest between ours and a peer after `compared_step` steps.
    Errors: InputError for a peer that is not known.
    """
    if against not in PEERS:
        raise InputError(f"no peer {against!r} for training; the peers are: {', '.join(PEERS)}")
    forms = PEERS[against]
    shape = {"model": model.tree(), "rows": rows, "seq_len": seq_len}
    with tempfile.TemporaryDirectory(prefix="mobillama-bench-") as folder:
        sides: dict[str, Side] = {}
        try:
            first: dict[str, float] = {}
            for kind in SIDES:
                sides[kind] = Side(kind, shape, Path(folder))
                first[kind] = sides[kind].take(1)
            for side in sides.values():
                side.take(WARM_UP_STEPS - 1)
            seconds = _interleave(sides, rounds, steps_per_round)
        finally:
            for side in sides.values():
                side.close()
    tokens = rows * seq_len
    speeds = {kind: [tokens / each for each in taken] for kind, taken in seconds.items()}
    step = min(COMPARED_STEP, len(sides["ours"].losses))
    return {
        "rows": [_row(name, speeds["ours"], speeds[kind], against) for name, kind in forms.items()],
        "compile_seconds": {
            kind: round(first[kind] - statistics.median(seconds[kind]), 2)
            for kind in SIDES
            if not kind.endswith("eager")
        },
        "loss_difference": max(abs(sides["ours"].losses[step - 1] - sides[k].losses[step - 1]) for k in forms.values()),
        "losses": {kind: side.losses[step - 1] for kind, side in sides.items()},
        "compared_step": step,
    }


def _interleave(sides: dict[str, Side], rounds: int, steps: int) -> dict[str, list[float]]:
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


def _row(name: str, ours: list[float], peer: list[float], peer_name: str) -> dict[str, Any]:
    pairs = [[mine, theirs] for mine, theirs in zip(ours, peer, strict=True)]
    return {
        "name": name,
        "ours": statistics.median(ours),
        "peer": statistics.median(peer),
        "peer_name": peer_name,
        "ratio": statistics.median(mine / theirs for mine, theirs in pairs),
        "unit": "tokens/s",
        "pairs": pairs,
    }
