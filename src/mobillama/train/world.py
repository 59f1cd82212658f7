"""The processes that train together: who this one is, and the few things they must agree on.

`torchrun` starts them and says in the environment who each is; a process started without it is alone. Rank 0 alone
writes to the run folder. Bulk data (weights, gradients) travels by FSDP2 and the checkpoints, not here.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from mobillama.errors import InputError, MobillamaError, RecipeError, TrainingError

T = TypeVar("T")

# What torchrun sets for each process: https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# Waiting for a process that is alive but does not answer ends with an error after this long. The slowest wait is for
# rank 0 to read and check shards and checkpoint.
PATIENCE = timedelta(minutes=30)


@dataclass(frozen=True)
class World:
    """This process among those that train one run together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those of its machine: which GPU is its own

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes the run folder."""
        return self.rank == 0

    def agree(self, wanted: bool) -> bool:
        """Whether it is wanted on any rank: the same answer on all."""
        if self.size == 1:
            return wanted
        votes = torch.tensor(int(wanted))
        dist.all_reduce(votes, dist.ReduceOp.MAX)
        return bool(votes)

    def share(self, thing: T) -> T:
        """Rank 0's `thing`, on all ranks; what the others give is not looked at."""
        if self.size == 1:
            return thing
        box = [thing if self.is_main else None]
        dist.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[return-value]

    def once(self, work: Callable[[], T]) -> T:
        """What `work` gives on rank 0, on all ranks; if it fails there, the error is raised on all."""
        if self.size == 1:
            return work()
        given, failed = None, ""
        if self.is_main:
            try:
                given = work()
            except BaseException as error:
                self.share((None, str(error) or type(error).__name__))
                raise
        given, failed = self.share((given, failed))
        if failed:
            raise TrainingError(f"rank 0 has ended the run: {failed}")
        return given  # type: ignore[return-value]

    def gather(self, mine: Sequence[float], count: int) -> list[float]:
        """`count` numbers (float64) of which each rank has some, all of them on all ranks.

        Number i belongs to rank i % size, which gives its own in order. The numbers are carried, not computed with, so
        what is made of them does not depend on how many ranks there are.
        """
        if self.size == 1:
            return list(mine)
        numbers = torch.zeros(count, dtype=torch.float64)
        numbers[self.rank :: self.size] = torch.tensor(mine, dtype=torch.float64)
        dist.all_reduce(numbers)
        return numbers.tolist()

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.agree(False)


ALONE = World()


@contextlib.contextmanager
def joined(device: str = "auto", patience: timedelta = PATIENCE) -> Iterator[World]:
    """Join the processes that torchrun started with this one, for a block of work; alone where it did not.

    device: the recipe's. On GPUs what lies there travels by NCCL and the rest by gloo, on CPUs all by gloo. Errors:
    InputError for an environment that is not torchrun's; RecipeError where processes share a GPU; TrainingError if
    another process is lost or does not answer for `patience`, so that none waits forever.
    """
    world = read_world()
    if world.size == 1:
        yield world
        return
    on_gpu = device.partition(":")[0] == "cuda" or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        _take_gpu(world)
    try:
        store, _, _ = next(rendezvous("env://", world.rank, world.size, timeout=patience))
        token = _agree_on_token(store, world, patience)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=PrefixStore(token, store),
            rank=world.rank,
            world_size=world.size,
            timeout=patience,
        )
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise InputError(
            f"rank {world.rank} of {world.size} did not find the others at {where} ({_first_line(error)}); start all "
            "with the same torchrun command, and let the machines reach each other there"
        ) from None
    try:
        yield world
    except MobillamaError:
        _abort(on_gpu)
        raise
    except RuntimeError as error:
        _abort(on_gpu)
        if _is_of_the_others(error):
            raise TrainingError(
                f"rank {world.rank} of {world.size} lost the others ({_first_line(error)}): one of them has ended, and "
                "its own message says why; the same command goes on from the newest checkpoint"
            ) from error
        raise
    except BaseException:
        _abort(on_gpu)
        raise
    dist.destroy_process_group()


def read_world() -> World:
    """Who torchrun says this process is; `ALONE` if it says nothing. Errors: InputError naming what is wrong."""
    said = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    if not said.keys() & {"RANK", "WORLD_SIZE", "LOCAL_RANK"}:
        return ALONE
    if missing := [name for name in VARIABLES if name not in said]:
        found = ", ".join(f"{name}={value}" for name, value in said.items())
        raise InputError(
            f"the environment has {found} but no {', '.join(missing)}; start the processes with torchrun, or remove "
            "these variables to train in one process"
        )
    numbers = {}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        if not said[name].isdigit():
            raise InputError(
                f"{name}={said[name]!r} in the environment is no number; start the processes with torchrun"
            )
        numbers[name] = int(said[name])
    world = World(numbers["RANK"], numbers["WORLD_SIZE"], numbers["LOCAL_RANK"])
    if world.rank >= world.size:
        raise InputError(
            f"RANK={world.rank} with WORLD_SIZE={world.size} in the environment; ranks are 0 to {world.size - 1}: "
            "start the processes with torchrun"
        )
    return world


def copies(size: int, shard_ranks: int) -> int:
    """How many copies of the weights `size` ranks hold, each spread over `shard_ranks` of them (0 = all: one copy).

    Error: RecipeError if `shard_ranks` does not divide `size`.
    """
    over = shard_ranks or size
    if size % over:
        divisors = [d for d in range(1, size + 1) if size % d == 0]
        raise RecipeError(
            f"train.shard_ranks={shard_ranks} does not divide the {size} ranks that train; use one of {divisors}, or "
            "0 for all"
        )
    return size // over


def spread(size: int, shard_ranks: int) -> int:
    """Over how many of `size` ranks a copy of the weights is spread, where `shard_ranks` need not divide them.

    A run that has lost ranks goes on: with the next larger number that divides what is left (a rank then holds no more
    than before), or with all where fewer are left than a copy was spread over. `copies` refuses such a number at a
    start. 0 = all.

    >>> spread(8, 4), spread(6, 4), spread(2, 4), spread(3, 0)
    (4, 6, 2, 3)
    """
    least = min(shard_ranks or size, size)
    return next(ranks for ranks in range(least, size + 1) if size % ranks == 0)


def _agree_on_token(store: Store, world: World, patience: timedelta) -> str:
    """A word that only the processes of this attempt know, the same on all.

    torchrun keeps one store for all its attempts, and what killed processes left in it (the addresses they listened on)
    must not be taken for that of their successors. So each rank asks under a new name, and rank 0 answers by that name
    until all have thanked it for this attempt's word.
    """
    mine = uuid.uuid4().hex
    if not world.is_main:
        store.set(f"mobillama/ask/{world.rank}", mine)
        store.wait([f"mobillama/answer/{mine}"], patience)
        token = str(store.get(f"mobillama/answer/{mine}"), "ascii")
        store.set(f"mobillama/thanks/{token}/{world.rank}", "")
        return token
    left = set(range(1, world.size))
    end = time.monotonic() + patience.total_seconds()
    while left:
        for rank in sorted(left):
            if store.check([f"mobillama/ask/{rank}"]):
                store.set(f"mobillama/answer/{store.get(f'mobillama/ask/{rank}').decode()}", mine)
            if store.check([f"mobillama/thanks/{mine}/{rank}"]):
                left.remove(rank)
        if time.monotonic() > end:
            raise RuntimeError(f"ranks {sorted(left)} did not come within {patience}")
        time.sleep(0.02)
    return mine


def _take_gpu(world: World) -> None:
    if world.local_rank >= torch.cuda.device_count():
        raise RecipeError(
            f"rank {world.rank} is process {world.local_rank + 1} of its machine, which has "
            f"{torch.cuda.device_count()} GPUs: start as many processes as GPUs (torchrun --nproc-per-node), or "
            "--set train.device=cpu"
        )
    torch.cuda.set_device(world.local_rank)


def _abort(on_gpu: bool) -> None:
    """Leave without waiting for the others, who may wait for us: their next exchange then fails at once."""
    if on_gpu:
        dist.distributed_c10d._abort_process_group()
    # gloo's connections close when the process ends; taking the group down here could wait for its threads.


def _is_of_the_others(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
