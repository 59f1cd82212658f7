"""The files of a checkpoint: torch.distributed.checkpoint plans who writes which rows, this writes them.

As `HuggingFaceStorageWriter`, whose files torch reads back at any number of ranks, but every tensor goes from its own
memory to the file: torch's way copies all of a file twice first, which costs several times as much of a training's CPU
and memory. The header is in the order of names, so that the bytes follow from the tensors and the number of ranks.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from mobillama.train.digest import PLACES
from mobillama.train.state_digest import DTYPES, tensor_bytes


class RowFiles(HuggingFaceStorageWriter):
    """Writes this rank's rows below `folder`; `files` says in which file (from 1) each tensor goes, the same on all."""

    def __init__(self, folder: Path, files: dict[str, int]) -> None:
        super().__init__(str(folder), files, save_distributed=True)
        self.files = files

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write and sync a file for each number that this rank has rows of."""
        rank, count = plan.storage_data["shard_index"], max(self.files.values())
        results = []
        for number in sorted({self.files[item.index.fqn] for item in plan.items}):
            items = [item for item in plan.items if self.files[item.index.fqn] == number]
            name = f"shard-{rank:05d}-model-{number:05d}-of-{count:05d}.safetensors"
            _write_file(Path(self.path) / name, items, planner)
            results += [WriteResult(index=item.index, size_in_bytes=0, storage_data=None) for item in items]
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future


def _write_file(path: Path, items: list[WriteItem], planner: SavePlanner) -> None:
    """Header and bytes of some pieces. Format: https://github.com/huggingface/safetensors#format."""
    pieces, places, entries, end = [], {}, {}, 0
    for item in sorted(items, key=lambda item: item.index.fqn):
        name, piece = item.index.fqn, _resolved(planner, item)
        start, end = end, end + piece.nbytes
        entries[name] = {"dtype": DTYPES[piece.dtype], "shape": list(piece.shape), "data_offsets": [start, end]}
        places[name] = {"saved_offsets": list(item.tensor_data.chunk.offsets) if item.tensor_data else []}
        pieces.append(piece)
    about = {PLACES: json.dumps(places, separators=(",", ":")), "DCP_VERSION": "1.0", "format": "pt"}
    head = json.dumps({"__metadata__": about, **entries}, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for piece in pieces:
            file.write(tensor_bytes(piece).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def _resolved(planner: SavePlanner, item: WriteItem) -> torch.Tensor:
    data: Any = planner.resolve_data(item)
    if not isinstance(data, torch.Tensor):
        raise TypeError(f"{item.index.fqn} is no tensor; a training state holds tensors alone")
    return data
