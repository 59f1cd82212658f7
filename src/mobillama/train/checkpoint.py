"""Checkpoints that are there: the newest good one, its training state, and which of them are kept.

`RUN/checkpoints/step_000100/` is an artefact of kind "checkpoint": all that a run needs to go on and an audit asks for.
It holds weights, moments and step count in the pieces that the ranks wrote (safetensors, read at any number of ranks),
the digest of every tensor, and a manifest with step, tokens, recipe, code, environment and the digest of the shards.
There is no random state: initial weights and the order of rows are functions of the seed, and nothing else is drawn.
Writing them: checkpoint_writer.py. The first version (one file of weights, one of optimizer) is still read.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor

from mobillama import manifest
from mobillama.errors import DamagedFileError, InputError, naming, system_number
from mobillama.train import digest
from mobillama.train.digest import StoredTensor, stored_tensors
from mobillama.train.state_digest import local_rows

KIND, FORM = "checkpoint", 2
FIRST_FORM = {"model.": "weights.safetensors", "optimizer.": "optimizer.safetensors"}  # prefix -> file, in form 1
# Each rank reads what it needs by itself; torch warns of that wherever there is one process.
warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")


@dataclass(frozen=True)
class Checkpoint:
    """A sealed training state."""

    folder: Path
    manifest: manifest.Manifest
    seconds: Mapping[str, float] = field(default_factory=dict)  # of each part of writing it; empty if it was read

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return int(self.manifest.counts["step"])

    @property
    def tokens(self) -> int:
        """Tokens trained on."""
        return int(self.manifest.counts["tokens"])

    @property
    def published(self) -> int | None:
        """Which published checkpoint it is (kept for good); None if it is none."""
        number = self.manifest.counts.get("published")
        return None if number is None else int(number)

    @property
    def form(self) -> int:
        """Version of what is in the folder."""
        return int(self.manifest.counts.get("form", 1))

    def result(self) -> dict[str, Any]:
        """What the ledger says of it: step, form, and the digests of weights and optimizer state."""
        counts, files = self.manifest.counts, self.manifest.files
        if self.form > 1:
            return {"step": self.step, "form": self.form, **{part: counts[part] for part in digest.PARTS}}
        sha = [files[name]["sha256"] for name in FIRST_FORM.values()]
        return {"step": self.step, "weights": sha[0], "optimizer": sha[1]}

    def circumstance(self) -> dict[str, Any]:
        """What the ledger says beside it: the root digest, which depends on the number of ranks, and the seconds."""
        return {"manifest": self.manifest.digest(), "seconds": dict(self.seconds)}


@dataclass(frozen=True)
class Newest:
    """Where a run can go on. `refused`: what is wrong with the checkpoints that are newer, newest first, by folder."""

    checkpoint: Checkpoint | None
    refused: Mapping[Path, str] = field(default_factory=dict)

    def result(self) -> dict[str, str]:
        """What the ledger's `resumed` line says of the refused ones: folder name -> what is wrong."""
        return {folder.name: what for folder, what in self.refused.items()}


def checkpoints_folder(run: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return run / "checkpoints"


def newest_checkpoint(run: Path) -> Newest:
    """The good checkpoint with the most steps, every byte of it checked, and what is wrong with newer ones.

    Changes nothing (see `set_aside`). Errors: InputError for one written by a newer mobillama.
    """
    refused: dict[Path, str] = {}
    for folder in reversed(sealed_folders(run)):
        try:
            return Newest(read_checkpoint(folder), refused)
        except DamagedFileError as error:
            refused[folder] = str(error)
    return Newest(None, refused)


def read_checkpoint(folder: Path) -> Checkpoint:
    """A checkpoint, every byte checked. Errors: DamagedFileError saying what is wrong; InputError if it is newer."""
    if not (folder / manifest.FILE).is_file():
        raise DamagedFileError(f"{folder}: {manifest.FILE} is missing")
    found = manifest.read(folder)
    try:
        checkpoint = Checkpoint(folder, found)
        form, _ = checkpoint.form, (checkpoint.step, checkpoint.tokens, checkpoint.published)
        if form > FORM:
            raise InputError(
                f"{folder} is a checkpoint of version {form}; this mobillama reads up to {FORM}: install a newer one"
            )
        if found.kind != KIND:
            raise ValueError(f"kind {found.kind!r}")
        named = [*FIRST_FORM.values()] if form == 1 else [digest.FILE]
        if missing := [name for name in named if name not in found.files]:
            raise ValueError(f"it names no {missing[0]}")
        checkpoint.result()
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise DamagedFileError(f"{folder / manifest.FILE} is not that of a checkpoint ({error!r})") from None
    if wrong := [*manifest.differences(folder), *manifest.extra_files(folder)]:
        raise DamagedFileError(f"{folder} is damaged: {'; '.join(wrong)}")
    return checkpoint


class SavedState(Mapping[str, Tensor]):
    """The whole tensors of a checkpoint, however many ranks wrote it; each is read when asked for.

    One that lies in one piece is mapped from its file. So a state is copied with the memory of one tensor.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._tensors: dict[str, StoredTensor] = {}
        self._names: dict[str, str] = {}  # name in the state -> in its file
        stored = stored_tensors(checkpoint.folder)
        if checkpoint.form > 1:
            self._tensors, self._names = stored, {name: name for name in stored}
            return
        for prefix, file in FIRST_FORM.items():
            for name, tensor in stored.items():
                if tensor.pieces and tensor.pieces[0].path.name == file:
                    self._tensors[prefix + name], self._names[prefix + name] = tensor, name

    def __getitem__(self, name: str) -> Tensor:
        stored = self._tensors[name]
        pieces = [_read(piece.path, self._names[name]) for piece in stored.pieces]
        return torch.cat(pieces) if len(pieces) != 1 else pieces[0]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return self._tensors[name].shape

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@torch.no_grad()
def load_checkpoint(checkpoint: Checkpoint, state: Mapping[str, Tensor]) -> None:
    """Fill live tensors (names as in TrainStep.state) with those of a checkpoint, in place, at any number of ranks.

    Each rank reads the rows it holds, and waits for no other. What a step derives from these tensors is its own affair.
    Errors: InputError if the checkpoint is not of this model (nothing is changed).
    """
    saved = SavedState(checkpoint)
    _check_fit(checkpoint, saved, state)
    if checkpoint.form > 1:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict_loader import load

        load(dict(state), storage_reader=HuggingFaceStorageReader(str(checkpoint.folder)), no_dist=True)
        return
    for name, tensor in state.items():
        if isinstance(tensor, DTensor):
            rows = local_rows(tensor)
            tensor.to_local().copy_(saved[name][rows.row : rows.row + rows.rows])
        else:
            tensor.copy_(saved[name])


def _check_fit(checkpoint: Checkpoint, saved: SavedState, state: Mapping[str, Tensor]) -> None:
    for names, words in ((state.keys() - saved.keys(), "lacks"), (saved.keys() - state.keys(), "holds")):
        if names:
            raise InputError(
                f"{checkpoint.folder} {words} {min(names)!r} ({len(names)} such in all), unlike the model that is "
                "trained: use the recipe it was written with"
            )
    for name, tensor in state.items():
        if saved.shape(name) != tuple(tensor.shape):
            raise InputError(
                f"{name!r} of {checkpoint.folder} has shape {saved.shape(name)}; this model has {tuple(tensor.shape)}: "
                "use the recipe it was written with"
            )


def prune_checkpoints(run: Path, keep_last: int, *, first: int | None = None) -> None:
    """Remove all but the newest `keep_last` checkpoints, the published ones, and that of step `first`, of a branch."""
    for folder in sealed_folders(run)[:-keep_last]:
        counts = manifest.read(folder).counts
        if counts.get("published") is None and counts["step"] != first:
            manifest.remove(folder)


def set_aside(newest: Newest) -> None:
    """Rename the refused checkpoints to `<name>.damaged`: never read again, nor counted, nor in the way of their step.

    An earlier one of that name is replaced.
    """
    for folder in newest.refused:
        aside = folder.with_name(f"{folder.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)


def sweep_checkpoints(run: Path) -> None:
    """Remove what a kill left of a checkpoint being written or removed."""
    folder = checkpoints_folder(run)
    for leftover in [*folder.glob("*.partial"), *folder.glob(".*.removed")]:
        shutil.rmtree(leftover)


def sealed_folders(run: Path) -> list[Path]:
    """Checkpoint folders that appeared whole, fewest steps first."""
    numbered = {
        int(match[1]): folder
        for folder in checkpoints_folder(run).glob("step_*")
        if (match := re.fullmatch(r"step_(\d+)", folder.name))
    }
    return [numbered[step] for step in sorted(numbered)]


def _read(path: Path, name: str) -> Tensor:
    try:
        with naming(path), safe_open(path, framework="pt") as file:
            return file.get_tensor(name)  # type: ignore[no-any-return]
    except SafetensorError as error:
        if system_number(error) is not None:  # the file may be whole
            raise
        raise DamagedFileError(f"{path} cannot be read ({error}); restore it from a copy") from None
