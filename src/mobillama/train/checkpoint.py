"""Checkpoints: everything a run needs to go on, written whole or not at all.

`RUN/checkpoints/step_000100/` is an artefact of kind "checkpoint": weights.safetensors (float32), optimizer.safetensors
(moments and step count) and a manifest with step, tokens, the recipe and the digest of the shards. There is no random
state to keep: initial weights and the order of rows are functions of the seed, and nothing else is random. The digests
of weights and optimizer state are the sha256 of those two files, whose bytes follow from the tensors alone.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mobillama import manifest
from mobillama.errors import DamagedFileError, InputError, MobillamaError

KIND = "checkpoint"
PARTS = {"model.": "weights.safetensors", "optimizer.": "optimizer.safetensors"}  # prefix in the state -> file
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float64: "F64", torch.int64: "I64", torch.int32: "I32"}


@dataclass(frozen=True)
class Checkpoint:
    """A sealed training state."""

    folder: Path
    manifest: manifest.Manifest

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return int(self.manifest.counts["step"])

    @property
    def tokens(self) -> int:
        """Tokens trained on."""
        return int(self.manifest.counts["tokens"])

    def result(self) -> dict[str, Any]:
        """What the ledger says of it: step and the digests of weights and optimizer state."""
        sha = {file: self.manifest.files[file]["sha256"] for file in PARTS.values()}
        return {"step": self.step, "weights": sha["weights.safetensors"], "optimizer": sha["optimizer.safetensors"]}


def checkpoints_folder(run: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return run / "checkpoints"


def save_checkpoint(
    run: Path,
    state: Mapping[str, Tensor],
    *,
    step: int,
    tokens: int,
    made_from: Mapping[str, str],
    recipe: Mapping[str, Any],
    circumstance: Mapping[str, Any],
) -> Checkpoint:
    """Write a training state (names as in TrainStep.state) and seal it; tensors are written one by one, none copied.

    Errors: OSError if there is no room; what was written of it is removed, older checkpoints stay as they are.
    """
    out = checkpoints_folder(run) / f"step_{step:06d}"
    with manifest.building(out) as partial:
        try:
            for prefix, name in PARTS.items():
                part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
                write_tensors(partial / name, part)
            sealed = manifest.seal(
                partial,
                out,
                KIND,
                made_from=[made_from],
                recipe=recipe,
                counts={"step": step, "tokens": tokens},
                circumstance=circumstance,
            )
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise OSError(error.errno, error.strerror, str(error.filename or out)) from None
    return Checkpoint(out, sealed)


def newest_checkpoint(run: Path) -> Checkpoint | None:
    """The checkpoint with the most steps, every byte of it checked; None if there is none yet.

    Errors: DamagedFileError naming what is wrong with it and the one to go on from without it.
    """
    found = _sealed(run)
    if not found:
        return None
    try:
        return _checked(found[-1])
    except MobillamaError as error:
        good = next((folder for folder in reversed(found[:-1]) if _is_good(folder)), None)
        rest = f"goes on from {good.name}" if good else "starts from the initial weights"
        raise DamagedFileError(
            f"{error}. Nothing was changed. If the files cannot be restored, remove {found[-1]}: the same command then "
            f"{rest}"
        ) from None


class SavedState(Mapping[str, Tensor]):
    """The training state of a checkpoint; a tensor is mapped from its file when asked for, and let go with its user.

    So a state is copied into a model with the memory of one tensor.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._where: dict[str, tuple[Path, str]] = {}  # name in the state -> file, name in it
        for prefix, name in PARTS.items():
            path = checkpoint.folder / name
            try:
                with safe_open(path, framework="pt") as file:
                    self._where |= {prefix + key: (path, key) for key in file.keys()}  # noqa: SIM118
            except SafetensorError as error:
                raise DamagedFileError(f"{path} cannot be read ({error}); remove {checkpoint.folder}") from None

    def __getitem__(self, name: str) -> Tensor:
        path, key = self._where[name]
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(key)  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def prune_checkpoints(run: Path, keep_last: int) -> None:
    """Remove all but the newest `keep_last` checkpoints."""
    for folder in _sealed(run)[:-keep_last]:
        manifest.remove(folder)


def sweep_checkpoints(run: Path) -> None:
    """Remove what a kill left of a checkpoint being written or removed."""
    folder = checkpoints_folder(run)
    for leftover in [*folder.glob("*.partial"), *folder.glob(".*.removed")]:
        shutil.rmtree(leftover)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as one safetensors file, sorted by name, each from its own memory.

    Format: https://github.com/huggingface/safetensors#format
    """
    header, end = {}, 0
    for name, tensor in sorted(tensors.items()):
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for _, tensor in sorted(tensors.items()):
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)


def _sealed(run: Path) -> list[Path]:
    """Checkpoint folders that appeared whole, fewest steps first."""
    numbered = {
        int(match[1]): folder
        for folder in checkpoints_folder(run).glob("step_*")
        if (match := re.fullmatch(r"step_(\d+)", folder.name))
    }
    return [numbered[step] for step in sorted(numbered)]


def _checked(folder: Path) -> Checkpoint:
    checkpoint = Checkpoint(folder, manifest.read(folder, KIND))
    if missing := [name for name in PARTS.values() if name not in checkpoint.manifest.files]:
        raise InputError(f"the manifest of {folder} names no {missing[0]}")
    if wrong := manifest.differences(folder):
        raise DamagedFileError(f"{folder} is damaged: {'; '.join(wrong)}")
    return checkpoint


def _is_good(folder: Path) -> bool:
    try:
        return bool(_checked(folder))
    except MobillamaError:
        return False
