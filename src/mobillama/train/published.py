"""Published checkpoints: kept for good, each with a plain model folder that anyone can load.

Writes `RUN/published/ckpt_000`, `ckpt_001`, ... (LLM360's names), each made from the checkpoint whose manifest has that
number. Which steps are published follows from recipe and shards: see docs/formats.md, section Run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mobillama import manifest
from mobillama.config import TrainConfig, TrainRecipe
from mobillama.data.order import Steps
from mobillama.data.shards import Shards, tokenizer_files
from mobillama.errors import MobillamaError
from mobillama.model.weights import save_model
from mobillama.train.checkpoint import Checkpoint, SavedState, read_checkpoint, sealed_folders

PREFIX = "model."


def published_folder(run: Path) -> Path:
    """Where a run keeps its published models."""
    return run / "published"


def is_publication(
    config: TrainConfig, chunk_rows: Sequence[int], seq_len: int, step: int, steps: int, order: Steps | None = None
) -> bool:
    """Whether the checkpoint of a step is published: a chunk's end was read, or the next `publish_tokens`, or all.

    Tokens are those read, rows times seq_len, whether they are trained on or not. order: the positions that the steps
    of a branch read; those its parent read count.
    """
    if not (config.publish_chunks or config.publish_tokens):
        return False
    order = order or Steps(config.rows_per_step)
    before, now = order.first_position(step), order.first_position(step + 1)  # rows read
    if config.publish_chunks and _chunks_read(now, chunk_rows) > _chunks_read(before, chunk_rows):
        return True
    every = config.publish_tokens
    return step == steps or bool(every and now * seq_len // every > before * seq_len // every)


def next_number(run: Path, step: int) -> int:
    """The number under which the checkpoint of `step` is published: one more than the last published before it."""
    numbers = [-1]
    for folder in sealed_folders(run):
        counts = manifest.read(folder).counts
        if counts.get("published") is not None and counts["step"] < step:
            numbers.append(counts["published"])
    return max(numbers) + 1


@dataclass(frozen=True)
class Published:
    """A published model, as the ledger tells of it."""

    step: int
    number: int
    weights: str  # sha256 (hex) of model.safetensors
    root: str  # root digest of its folder: of the configuration, the code and the tokenizer beside the weights too

    def result(self) -> dict[str, Any]:
        """What a repetition must repeat."""
        return {"step": self.step, "weights": self.weights}

    def circumstance(self) -> dict[str, Any]:
        """What it need not: the number follows from what was published before, the folder from the code as well."""
        return {"number": self.number, "manifest": self.root}


def write_published(run: Path, checkpoint: Checkpoint, recipe: TrainRecipe, shards: Shards) -> Published:
    """Write the model folder of a published checkpoint; what is there under its number is replaced.

    Error: OSError if there is no room; the checkpoint is there all the same, and the next start writes the folder.
    """
    if checkpoint.published is None:
        raise ValueError(f"{checkpoint.folder} is not published")
    out = _folder(run, checkpoint.published)
    source = manifest.origin(checkpoint.folder, checkpoint.manifest)
    source["name"] = f"checkpoints/{checkpoint.folder.name}"
    manifest.remove(out)  # even if it looks the same: the ledger's line is of the folder that was written here
    saved = SavedState(checkpoint)
    weights = {name.removeprefix(PREFIX): saved[name] for name in saved if name.startswith(PREFIX)}
    with manifest.building(out) as partial:
        save_model(partial, weights, recipe.model, tokenizer_files(shards.folder))
        sealed = manifest.seal(
            partial,
            out,
            "model",
            made_from=[source, manifest.origin(shards.folder, shards.manifest)],
            recipe=recipe.tree(),
            counts={"step": checkpoint.step, "tokens": checkpoint.tokens, "published": checkpoint.published},
            circumstance=checkpoint.manifest.circumstance,
        )
    sha256 = str(sealed.files["model.safetensors"]["sha256"])
    return Published(checkpoint.step, checkpoint.published, sha256, sealed.digest())


def complete_published(
    run: Path, recipe: TrainRecipe, shards: Shards, told: Mapping[int, str] | None = None, *, after: int = 0
) -> list[Published]:
    """Write the model folders that a kill kept from being written or from being told of; those written.

    told: number -> root digest by the ledger. A folder that is not the one told of is replaced. One that an older
    version wrote, and told of nowhere, stays. after: the step that a branch begins with, which its parent published.
    """
    folders, told = sealed_folders(run), told or {}
    written = []
    for folder in folders:
        number = manifest.read(folder).counts.get("published")
        if number is None or manifest.read(folder).counts["step"] <= after:
            continue
        there = _root(_folder(run, number))
        wanted = told.get(number, None if folder == folders[-1] else there)  # of the newest the line may be missing
        if there is None or there != wanted:
            written.append(write_published(run, read_checkpoint(folder), recipe, shards))
    return written


def _folder(run: Path, number: int) -> Path:
    return published_folder(run) / f"ckpt_{number:03d}"


def _root(folder: Path) -> str | None:
    """The root digest of a folder; None if it is none with a readable manifest."""
    try:
        return manifest.read(folder).digest()
    except MobillamaError:
        return None


def _chunks_read(rows: int, chunk_rows: Sequence[int]) -> int:
    """Chunks, over all passes, of which every row is among the first `rows` read."""
    ends = np.cumsum(np.asarray(chunk_rows, np.int64))
    passes, place = divmod(rows, int(ends[-1]))
    return passes * len(ends) + int(np.searchsorted(ends, place, side="right"))
