"""Several ranks that save and load checkpoints of a small state: torch is imported once, then the ranks are forked.

Run as `python checkpoint_ranks.py FOLDER`; what the ranks found is printed as one JSON object.
"""

import json
import os
import resource
import socket
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch._dynamo  # these three: once here instead of in every rank
import torch.distributed as dist
import torch.distributed.checkpoint.hf_storage
import torch.distributed.checkpoint.state_dict_saver
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from mobillama.train.checkpoint import SavedState, load_checkpoint, newest_checkpoint
from mobillama.train.checkpoint_writer import CheckpointWriter
from mobillama.train.state_digest import state_digests
from mobillama.train.world import World

ORIGIN = {"kind": "shards", "name": "s", "digest": "0" * 64}
ROWS = {"model.few": (1, 2), "model.wide": (7, 3), "model.flat": (5,), "model.even": (8, 2, 2)}


def whole(seed: int) -> dict[str, torch.Tensor]:
    """A state as one process holds it; some tensors have fewer rows than there are ranks."""
    torch.manual_seed(seed)
    state = {name: torch.randn(shape) for name, shape in ROWS.items()}
    state |= {f"optimizer.{name.removeprefix('model.')}.exp_avg": torch.randn(shape) for name, shape in ROWS.items()}
    return {**state, "optimizer.step": torch.tensor(4.0)}


def spread(state: dict[str, torch.Tensor], mesh) -> dict[str, torch.Tensor]:
    """The same state as FSDP2 holds it: cut along rows over the last dimension of the mesh, the step count whole."""
    if mesh is None:
        return state
    placements = [*[Replicate()] * (mesh.ndim - 1), Shard(0)]
    return {
        name: tensor if name == "optimizer.step" else distribute_tensor(tensor, mesh, placements)
        for name, tensor in state.items()
    }


def save(writer: CheckpointWriter, mesh, *, step: int = 4):
    """Save the state of seed 0; what is copied may be changed at once after `begin`."""
    state = spread(whole(0), mesh)
    writer.begin(state, step=step, tokens=step * 10, made_from=ORIGIN, recipe={}, circumstance={})
    if writer.asynchronous:
        for tensor in state.values():
            tensor.zero_()
    return writer.wait()


def saved(folder: Path, name: str) -> Callable:
    """Digests of the state in memory, and what the ledger would say of it, saved in both ways."""

    def work(world: World, mesh) -> dict:
        group = dist.new_group(backend="gloo") if world.size > 1 else None
        found = {"memory": state_digests(spread(whole(0), mesh), group)}
        for asynchronous in (True, False):
            with CheckpointWriter(folder / f"{name}-{asynchronous}", world, asynchronous=asynchronous) as writer:
                found[f"saved {asynchronous}"] = save(writer, mesh).result()
        return found

    return work


def loaded(folder: Path, names: list[str]) -> Callable:
    """Whether states come back bit for bit: into live tensors, and as whole ones."""

    def work(world: World, mesh) -> dict:
        told, expected = {}, whole(0)
        for name in names:
            found = newest_checkpoint(folder / f"{name}-True").checkpoint
            live, again = spread(whole(1), mesh), SavedState(found)
            load_checkpoint(found, live)
            full = {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in live.items()}
            told[name] = {
                "live": all(torch.equal(full[name], expected[name]) for name in expected),
                "whole": all(torch.equal(again[name], expected[name]) for name in expected),
                "names": sorted(again) == sorted(expected),
            }
        return told

    return work


def refused(run: Path) -> Callable:
    """What each rank hears when rank 1 alone has no room, and whether it can go on once there is some."""

    def work(world: World, mesh) -> dict:
        with CheckpointWriter(run, world) as writer:
            save(writer, mesh)
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            if world.rank == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
            try:
                save(writer, mesh, step=8)
                told = {"error": ""}
            except OSError as error:
                world.barrier()
                told = {"error": f"{error}", "left": sorted(path.name for path in (run / "checkpoints").iterdir())}
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            return {**told, "later": save(writer, mesh, step=12).step}

    return work


def on_ranks(shape: tuple[int, ...], work: Callable, folder: Path) -> list[dict]:
    """What `work(world, mesh)` gives on each of as many forked ranks as the mesh has."""
    size = 1
    for part in shape:
        size *= part
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    children = []
    for rank in range(size):
        child = os.fork()
        if child:
            children.append(child)
            continue
        try:
            mesh = None
            if size > 1:
                dist.init_process_group("gloo", where, timedelta(seconds=60), rank=rank, world_size=size)
                mesh = init_device_mesh("cpu", shape, mesh_dim_names=("copy", "shard")[-len(shape) :])
            (folder / f"{rank}.json").write_text(json.dumps(work(World(rank, size, rank), mesh)))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    failed = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert not any(failed), f"ranks ended with {failed}"
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    shapes = {"1": (1,), "2": (2,), "4": (4,), "2x2": (2, 2)}
    told = {
        "saved": {name: on_ranks(shape, saved(folder, name), folder / f"s{name}") for name, shape in shapes.items()},
        "loaded": {
            name: on_ranks(shape, loaded(folder, [*shapes]), folder / f"l{name}") for name, shape in shapes.items()
        },
        "refused": on_ranks((2,), refused(folder / "full"), folder / "r"),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
