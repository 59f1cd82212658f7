"""`mobillama bench train --overhead`: what ledger, digests, curves and checkpoints cost a run.

The same recipe three times, each in a process of its own, in turns of one checkpoint each: `mobillama train` itself
with checkpoints written in the background, the same with training waiting for them, and the bare steps. A checkpoint
begins in the middle of a turn, so that what it leaves to the background falls into the turn too.

Run as `python -m mobillama.bench.train_overhead KIND SETTING_JSON`: each line of standard input is a number of steps.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobillama.bench.train import Side, interleave, row_of
from mobillama.bench.train_sides import SEED
from mobillama.config import TrainRecipe, read_recipe, resolve
from mobillama.device import computing, peak_memory, place

BARE, ASYNCHRONOUS, BLOCKING = "bare", "asynchronous", "blocking"
KINDS = (ASYNCHRONOUS, BARE, BLOCKING)
RECIPE = "mini-amber"
EVERY = 100  # steps between checkpoints
MOST = 0.03  # of a step's time, with checkpoints in the background
ENOUGH_STEPS = 1_000_000  # so that no turn meets the run's end


class Enough(Exception):
    """No more steps are asked for."""


class Pace:
    """Takes steps when told to: called after each, it answers at the end of a turn and waits for the next."""

    def __init__(self, replies: Any, recipe: TrainRecipe) -> None:
        self.replies, self.here = replies, place(recipe.train)
        self.begin(sys.stdin.readline())

    def begin(self, line: str) -> None:
        """A turn of as many steps as the line says."""
        self.done, self.until = 0, int(line)
        self.started, self.worked = time.perf_counter(), time.process_time()

    def __call__(self, _shown: Any = None) -> None:
        self.done += 1
        if self.done < self.until:
            return
        seconds, worked = time.perf_counter() - self.started, time.process_time() - self.worked
        told = {"seconds": seconds, "processor_seconds": worked, "peak_memory": peak_memory(self.here)}
        print(json.dumps(told), file=self.replies, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise Enough
        self.begin(line)


def measure(
    recipe: str = RECIPE,
    rounds: int = 3,
    every: int = EVERY,
    settings: Sequence[str] = (),
    most: float = MOST,
) -> dict[str, Any]:
    """Seconds of a step with all that a run writes, beside the bare step, one pair a round.

    Gives `rows`: `overhead-asynchronous` and `overhead-blocking` (steps per second, ratio = with over without) and peak
    memory; `overhead`, the share of a step's time that each costs; `most`, what the first may cost;
    `processor_overhead`, the same share of processor time, which work of others on the same cores changes less.
    """
    read_recipe(TrainRecipe, recipe, settings)  # its errors here, not in three processes
    with tempfile.TemporaryDirectory(prefix="mobillama-bench-") as folder:
        setting = {"recipe": recipe, "settings": list(settings), "every": every, "folder": folder}
        sides: dict[str, Side] = {}
        try:
            for kind in KINDS:
                sides[kind] = Side(kind, json.dumps(setting), Path(folder), "mobillama.bench.train_overhead")
                sides[kind].take(every // 2)  # compiled; from here on a checkpoint begins in the middle of each turn
            seconds = interleave(sides, rounds, every)
        finally:
            for side in sides.values():
                side.close()
    worked = {
        kind: [told["processor_seconds"] / every for told in side.told[1:]]  # the first turn compiles
        for kind, side in sides.items()
    }
    speeds = {kind: [1.0 / each for each in taken] for kind, taken in seconds.items()}
    peaks = {kind: side.told[-1]["peak_memory"]["resident_bytes"] / 1e6 for kind, side in sides.items()}
    rows = [
        row_of(f"overhead-{kind}", speeds[kind], speeds[BARE], "bare steps", "steps/s")
        for kind in (ASYNCHRONOUS, BLOCKING)
    ]
    for kind in (ASYNCHRONOUS, BLOCKING):
        row = row_of(f"peak-memory-{kind}", [peaks[kind]], [peaks[BARE]], "bare steps", "MB")
        rows.append({**row, "ratio": row["peer"] / row["ours"]})
    return {
        "rows": rows,
        "overhead": {kind: overhead(seconds[kind], seconds[BARE]) for kind in (ASYNCHRONOUS, BLOCKING)},
        "processor_overhead": {kind: overhead(worked[kind], worked[BARE]) for kind in (ASYNCHRONOUS, BLOCKING)},
        "most": most,
        "step_seconds": {kind: statistics.median(taken) for kind, taken in seconds.items()},
        "recipe": recipe,
        "checkpoint_every": every,
        "rounds": rounds,
    }


def overhead(recorded: list[float], bare: list[float]) -> float:
    """Share of a bare step's time that a recorded one takes longer, median over rounds.

    >>> overhead([1.1, 2.0], [1.0, 2.0])
    0.050000000000000044
    """
    return statistics.median(mine / theirs - 1.0 for mine, theirs in zip(recorded, bare, strict=True))


def main(kind: str, setting: dict[str, Any]) -> None:
    """One side."""
    import numpy as np

    from mobillama.data.shards import write_shards

    recipe = read_recipe(TrainRecipe, setting["recipe"], setting["settings"])
    tree = recipe.tree()
    tree["train"] |= {
        "steps": ENOUGH_STEPS,
        "validate_every": 0,
        "checkpoint_every": setting["every"],
        "asynchronous": kind == ASYNCHRONOUS,
    }
    recipe = resolve(TrainRecipe, tree, setting["recipe"])
    folder = Path(setting["folder"])
    shards, model = folder / f"shards-{kind}", recipe.model
    rows = max(64, recipe.train.rows_per_step)
    ids = np.random.default_rng(SEED).integers(0, model.vocab_size, (rows + 1, model.max_position_embeddings + 1))
    write_shards(shards, ids[:rows], ids[rows:], vocab_size=model.vocab_size)
    replies, sys.stdout = sys.stdout, sys.stderr
    pace = Pace(replies, recipe)
    try:
        if kind == BARE:
            take_bare_steps(recipe, shards, pace)
        else:
            from mobillama.train.loop import train

            train(recipe, shards, folder / f"run-{kind}", on_progress=pace)
    except Enough:
        return


def take_bare_steps(recipe: TrainRecipe, shards: Path, pace: Pace) -> None:
    """The steps of a run and nothing that records them."""
    from mobillama.data.shards import read_shards
    from mobillama.data.stream import row_ids
    from mobillama.model.initialise import build_model
    from mobillama.train.batch import read_batch
    from mobillama.train.schedule import learning_rate
    from mobillama.train.step import TrainStep

    config, found = recipe.train, read_shards(shards)
    here = place(config)
    with computing(here, deterministic=config.deterministic):
        step = TrainStep(build_model(recipe.model, config.seed), config, here.device, here.dtype)
        for number in itertools.count(1):
            ids = row_ids(config.seed, number, config.rows_per_step, found.chunk_rows)
            rows = read_batch(found, ids, "train", document_mask=config.document_mask)
            share = config.micro_batch_rows / config.rows_per_step
            losses = [step.accumulate(part.tensors()[0], share) for part in rows.parts(config.micro_batch_rows)]
            step.update(learning_rate(config, number, ENOUGH_STEPS))
            float(losses[-1])
            pace()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
