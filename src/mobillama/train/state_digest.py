"""Digests of a training state in memory, whole or spread over ranks.

Every rank sends its pieces of each tensor to the one rank that hashes it; the tensors are shared out by size. No rank
holds more of another's than one tensor, and nothing of the training's own process groups is used, so that this can go
on in the background.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from mobillama.train.digest import tensor_digest

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float64: "F64", torch.int64: "I64", torch.int32: "I32"}


@dataclass(frozen=True)
class LocalRows:
    """Which rows of a tensor a rank holds: `rows` from `row` on. Ranks may hold the same ones (HSDP, what is whole)."""

    row: int
    rows: int


def state_digests(state: Mapping[str, Tensor], group: dist.ProcessGroup | None = None) -> dict[str, str]:
    """The digest of every tensor of a state, the same on all ranks and for any number of them.

    state: plain tensors (the same on all ranks) and DTensors cut along their rows. group: of all ranks, for tensors on
    the CPU (gloo), used by nothing else meanwhile; None = one process holds the whole state.
    """
    names = sorted(state)
    if group is None:
        return {name: _digest(state[name], [local_tensor(state[name])]) for name in names}
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    held: list[dict[str, LocalRows]] = [{} for _ in range(size)]
    dist.all_gather_object(held, {name: local_rows(state[name]) for name in names}, group=group)
    holders = {name: _holders([rows[name] for rows in held]) for name in names}
    owners = _share_out({name: state[name].nbytes for name in names}, size)

    sending = []
    for tag, name in enumerate(names):
        if owners[name] != rank and rank in holders[name].values():
            piece = tensor_bytes(local_tensor(state[name]))
            sending.append((dist.isend(piece, group=group, group_dst=owners[name], tag=tag), piece))  # kept until sent
    mine = {}
    for tag, name in enumerate(names):
        if owners[name] == rank:
            mine[name] = _digest(state[name], _receive(state[name], holders[name], held, name, tag, group))
    for work, _ in sending:
        if work is not None:
            work.wait()
    parts: list[dict[str, str]] = [{} for _ in range(size)]
    dist.all_gather_object(parts, mine, group=group)
    together = {name: digest for part in parts for name, digest in part.items()}
    return {name: together[name] for name in names}


def local_tensor(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_rows(tensor: Tensor) -> LocalRows:
    """Which rows of a tensor this rank holds. Error: ValueError for a DTensor cut along anything but its rows."""
    if not isinstance(tensor, DTensor):
        return LocalRows(0, tensor.shape[0] if tensor.dim() else 1)
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    if not shape:
        return LocalRows(0, 1)
    if any(offset[1:]) or tuple(shape[1:]) != tuple(tensor.shape[1:]):
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)} is cut as {tensor.placements}; expected along rows")
    return LocalRows(offset[0], shape[0])


def _receive(
    tensor: Tensor,
    holders: Mapping[int, int],
    held: list[dict[str, LocalRows]],
    name: str,
    tag: int,
    group: dist.ProcessGroup,
) -> list[Tensor]:
    """The pieces of a tensor in order: this rank's own, and those that others send."""
    pieces = []
    for holder in holders.values():
        if holder == dist.get_rank(group):
            pieces.append(local_tensor(tensor))
            continue
        numbers = held[holder][name].rows * math.prod(tensor.shape[1:])
        piece = torch.empty(numbers * tensor.element_size(), dtype=torch.uint8)
        dist.recv(piece, group=group, group_src=holder, tag=tag)
        pieces.append(piece)
    return pieces


def _holders(rows: list[LocalRows]) -> dict[int, int]:
    """First row of each piece -> the lowest rank that holds it, in the order of rows."""
    found: dict[int, int] = {}
    for rank, local in enumerate(rows):
        if local.rows:
            found.setdefault(local.row, rank)
    return dict(sorted(found.items()))


def _share_out(sizes: Mapping[str, int], ranks: int) -> dict[str, int]:
    """Which rank hashes which tensor: the largest first, each to the rank that has least."""
    load = [0] * ranks
    owners = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        owners[name] = min(range(ranks), key=lambda rank: (load[rank], rank))
        load[owners[name]] += sizes[name]
    return owners


def _digest(tensor: Tensor, pieces: list[Tensor]) -> str:
    return tensor_digest(DTYPES[tensor.dtype], tensor.shape, (tensor_bytes(piece).numpy().data for piece in pieces))


def tensor_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor in order, on the CPU: uint8 (n,)."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
