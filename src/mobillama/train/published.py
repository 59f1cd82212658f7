"""Published checkpoints: kept for good, each with a plain model folder that anyone can load.

Writes `RUN/published/ckpt_000`, `ckpt_001`, ... (LLM360's names), each made from the checkpoint whose manifest has that
number. Which steps are published follows from recipe and shards: see docs/formats.md, section Run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mobillama import manifest
from mobillama.config import TrainConfig, TrainRecipe
from mobillama.data.shards import Shards, tokenizer_files
from mobillama.model.weights import save_model
from mobillama.train.checkpoint import Checkpoint, SavedState, read_checkpoint, sealed_folders

PREFIX = "model."


def published_folder(run: Path) -> Path:
    """Where a run keeps its published models."""
    return run / "published"


def is_publication(config: TrainConfig, chunk_rows: Sequence[int], seq_len: int, step: int, steps: int) -> bool:
    """Whether the checkpoint of a step is published: a chunk's end was read, or the next `publish_tokens`, or all.

    Tokens are those read, rows times seq_len, whether they are trained on or not.
    """
    if not (config.publish_chunks or config.publish_tokens):
        return False
    before, now = (step - 1) * config.rows_per_step, step * config.rows_per_step  # rows read
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


def write_published(run: Path, checkpoint: Checkpoint, recipe: TrainRecipe, shards: Shards) -> Path:
    """Write the model folder of a published checkpoint; what was made from another checkpoint is replaced.

    Error: OSError if there is no room; the checkpoint is there all the same, and the next start writes the folder.
    """
    out = published_folder(run) / f"ckpt_{checkpoint.published:03d}"
    source = manifest.origin(checkpoint.folder, checkpoint.manifest)
    source["name"] = f"checkpoints/{checkpoint.folder.name}"
    if (out / manifest.FILE).is_file() and source in manifest.read(out).made_from:
        return out
    manifest.remove(out)
    saved = SavedState(checkpoint)
    weights = {name.removeprefix(PREFIX): saved[name] for name in saved if name.startswith(PREFIX)}
    with manifest.building(out) as partial:
        save_model(partial, weights, recipe.model, tokenizer_files(shards.folder))
        manifest.seal(
            partial,
            out,
            "model",
            made_from=[source, manifest.origin(shards.folder, shards.manifest)],
            recipe=recipe.tree(),
            counts={"step": checkpoint.step, "tokens": checkpoint.tokens, "published": checkpoint.published},
            circumstance=checkpoint.manifest.circumstance,
        )
    return out


def complete_published(run: Path, recipe: TrainRecipe, shards: Shards) -> list[Path]:
    """Write the model folders that a kill kept from being written; those written."""
    missing = []
    for folder in sealed_folders(run):
        number = manifest.read(folder).counts.get("published")
        if number is not None and not (published_folder(run) / f"ckpt_{number:03d}").exists():
            missing.append(write_published(run, read_checkpoint(folder), recipe, shards))
    return missing


def _chunks_read(rows: int, chunk_rows: Sequence[int]) -> int:
    """Chunks, over all passes, of which every row is among the first `rows` read."""
    ends = np.cumsum(np.asarray(chunk_rows, np.int64))
    passes, place = divmod(rows, int(ends[-1]))
    return passes * len(ends) + int(np.searchsorted(ends, place, side="right"))
