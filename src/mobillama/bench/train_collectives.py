"""`mobillama bench train --ranks N`: what the ranks of a training step send each other, counted by PyTorch's profiler.

N processes on this machine, gloo, one thread each: counts and bytes are those of the layout, whatever carries them; no
time is measured. Run as `python -m mobillama.bench.train_collectives SHAPE_JSON` with torchrun's variables in the
environment; rank 0 prints one JSON object.
"""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from mobillama.bench.train import bench_shape, row_of
from mobillama.bench.train_sides import LEARNING_RATE, SEED, Shape, batch
from mobillama.config import ModelConfig
from mobillama.errors import TrainingError

# Of two blocks and a row of 64: counts scale with layers, bytes with shapes, and both are compared with the plan.
MODEL = ModelConfig(
    name="bench-collectives",
    vocab_size=512,
    hidden_size=64,
    intermediate_size=176,
    num_hidden_layers=4,
    num_attention_heads=4,
    max_position_embeddings=64,
)
LIMIT = 300  # seconds that the processes may take
# The profiler's name of a collective -> ours, and which input holds the larger of its tensors.
WHOLE = {"c10d::_allgather_base_": ("all_gather", 0), "c10d::_reduce_scatter_base_": ("reduce_scatter", 1)}
LISTED = {"c10d::allreduce_": "all_reduce", "c10d::broadcast_": "broadcast", "c10d::allgather_": "all_gather_list"}
WIDTH = {"float": 4, "c10::BFloat16": 2, "double": 8, "long int": 8, "int": 4, "unsigned char": 1, "bool": 1}


def measure(ranks: int = 2, settings: Sequence[str] = (), **shape_of: Any) -> dict[str, Any]:
    """Collectives of one optimizer step on `ranks` ranks: `rows`, and `collectives` by kind; see `bench_shape`.

    Without a recipe each rank takes one row in a pass, as many as there are rows. Blocks are not compiled.

    `count`, and `bytes`: what each rank sends in a ring, (n - 1) / n of a tensor gathered or scattered among n, twice
    that of one reduced for all. `planned_bytes`: what train/cluster.py says of the same step.
    Errors: TrainingError if a process ends with an error.
    """
    from mobillama.config import TrainRecipe
    from mobillama.train.cluster import collectives

    if not shape_of.get("recipe"):
        shape_of["rows"] = shape_of.get("rows") or ranks
        shape_of["micro_rows"] = shape_of.get("micro_rows") or 1
    shape = bench_shape(**shape_of, settings=("train.compile=false", *settings), model=MODEL)
    found = _run(shape, ranks)
    planned = collectives(TrainRecipe(name="bench", model=shape.model, train=shape.train), ranks)
    rows = [row_of(f"collectives-{kind}", [told["count"]], unit="per step") for kind, told in found.items()]
    rows += [row_of(f"bytes-{kind}", [told["bytes"]], unit="bytes per step and rank") for kind, told in found.items()]
    return {
        "rows": rows,
        "collectives": found,
        "planned_bytes": {kind: told["bytes"] for kind, told in planned.items()},
        "ranks": ranks,
        "model": shape.model.name,
    }


def _run(shape: Shape, ranks: int) -> dict[str, dict[str, int]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(ranks):
        environment = os.environ | {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "mobillama.bench.train_collectives", shape.text()]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    try:
        said = [process.communicate(timeout=LIMIT)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    if failed := [rank for rank, process in enumerate(processes) if process.returncode]:
        raise TrainingError(f"rank {failed[0]} of {ranks} ended with an error; its own message is above")
    return dict(json.loads(said[0].splitlines()[-1]))


def main(shape: Shape) -> None:
    """One rank: a step to set all up, and one that is looked at."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from mobillama.device import place
    from mobillama.model.initialise import build_model
    from mobillama.train.sharded_step import ShardedStep
    from mobillama.train.world import copies, joined

    torch.set_num_threads(1)
    here = place("cpu", shape.train.dtype)
    train = shape.train
    with joined("cpu") as world:
        step = ShardedStep(build_model(shape.model, SEED), train, here.device, here.dtype, world)
        parts = train.rows_per_step // train.micro_batch_rows
        passes = math.ceil(parts / world.size)

        def take(number: int) -> None:
            rows = batch(shape.model, number, train.micro_batch_rows, shape.seq_len)
            for index in range(passes):
                step.accumulate(rows, 1.0 / (passes * world.size), last=index == passes - 1)
            step.update(LEARNING_RATE)

        take(0)
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
            take(1)
        among = copies(world.size, train.shard_ranks)
        if world.is_main:
            print(json.dumps(count_collectives(seen.events(), world.size if among == 1 else among)))


def count_collectives(events: Iterable[Any], reducing: int) -> dict[str, dict[str, int]]:
    """Count and bytes of each kind of collective among a profiler's events, under gloo.

    reducing: ranks that an all-reduce is among.
    """
    found: dict[str, dict[str, int]] = {}
    carried = scattered = 0
    for event in events:
        if event.name in WHOLE:
            kind, larger = WHOLE[event.name]
            sizes = [math.prod(shape) for shape in event.input_shapes[:2]]
            width = WIDTH[event.input_dtypes[larger]]
            _add(found, kind, abs(sizes[0] - sizes[1]) * width)
            scattered += sizes[1] * width if kind == "reduce_scatter" else 0
        elif event.name in LISTED:
            _add(found, LISTED[event.name], 0)
        elif event.name == "gloo:all_reduce":
            carried += math.prod(event.input_shapes[0]) * WIDTH[event.input_dtypes[0]]
    if "all_reduce" in found:
        # The sizes of a list are not told. gloo carries out a reduce-scatter as an all-reduce too: the rest is ours.
        found["all_reduce"]["bytes"] = round(2 * (reducing - 1) / reducing * (carried - scattered))
    return found


def _add(found: dict[str, dict[str, int]], kind: str, size: int) -> None:
    told = found.setdefault(kind, {"count": 0, "bytes": 0})
    told["count"] += 1
    told["bytes"] += size


if __name__ == "__main__":
    main(Shape.parse(sys.argv[1]))
