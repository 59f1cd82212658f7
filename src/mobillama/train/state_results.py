"""What the ledger would say of a training state in memory: its `checkpoint` and `end` results, nothing written.

State: as TrainStep.state, live; every function is called on all ranks.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from mobillama.config import ModelConfig
from mobillama.manifest import sha256_file
from mobillama.model.weights import save_model
from mobillama.train.checkpoint import FORM
from mobillama.train.digest import PARTS, part_digests
from mobillama.train.state_digest import DTYPES, state_digests
from mobillama.train.world import World


class WholeTensors(Mapping[str, Tensor]):
    """A state whose tensors are whole on every rank, each gathered when asked for: on all ranks, in the same order."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._state[name].detach()
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)


def checkpoint_result(state: Mapping[str, Tensor], step: int, form: int, world: World) -> dict[str, Any]:
    """The result of a `checkpoint` line of a form of checkpoints (1: digests of files; 2: of tensors)."""
    if form == FORM:
        group = dist.group.WORLD if world.size > 1 else None
        return {"step": step, "form": form, **part_digests(state_digests(state, group))}
    return {"step": step, **{part: _file_digest(WholeTensors(state), prefix) for part, prefix in PARTS.items()}}


def model_digest(state: Mapping[str, Tensor], config: ModelConfig) -> str:
    """sha256 (hex) of the model.safetensors that a run writes at its end."""
    whole = WholeTensors(state)
    weights = {name.removeprefix("model."): whole[name] for name in whole if name.startswith("model.")}
    with tempfile.TemporaryDirectory(prefix="mobillama-replay-") as folder:
        save_model(Path(folder), weights, config)
        return sha256_file(Path(folder) / "model.safetensors")


def _file_digest(state: Mapping[str, Tensor], prefix: str) -> str:
    """sha256 (hex) of the safetensors file that form 1 wrote of a part: sorted by name, header padded to 8 bytes."""
    names = sorted(name for name in state if name.startswith(prefix))
    header: dict[str, Any] = {}
    end = 0
    for name in names:
        tensor = state[name]
        start, end = end, end + tensor.nbytes
        shape = list(tensor.shape)
        header[name.removeprefix(prefix)] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": shape,
            "data_offsets": [start, end],
        }
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    digest = hashlib.sha256(len(head).to_bytes(8, "little") + head)
    for name in names:
        digest.update(state[name].cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
