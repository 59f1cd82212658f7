"""Training: shards and a recipe in, a run folder out. The same command goes on after any interruption.

Reads a shards folder; writes `RUN/` (docs/formats.md, section Run): run.json, ledger.jsonl, checkpoints/, tensorboard/
and, at the end, model/. Recipe after the paper's section 4.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobillama import manifest
from mobillama.config import TrainRecipe
from mobillama.data.shards import Shards, read_shards
from mobillama.data.stream import row_ids
from mobillama.device import Place, computing, place
from mobillama.model.initialise import build_model
from mobillama.train.batch import Batch, read_batch
from mobillama.train.checkpoint import newest_checkpoint, sweep_checkpoints
from mobillama.train.curves import Curves
from mobillama.train.interruption import Interruption, interruption
from mobillama.train.ledger import Ledger
from mobillama.train.progress import Display
from mobillama.train.run import begin_run, check_fit, compare_run, read_run
from mobillama.train.schedule import due, learning_rate
from mobillama.train.session import Session, summarise
from mobillama.train.step import TrainStep

OnProgress = Callable[[dict[str, Any]], None]


def train(recipe: TrainRecipe, shards: Path, out: Path, *, on_progress: OnProgress | None = None) -> dict[str, Any]:
    """Train, or go on where the run in `out` stands; a summary of plain JSON types.

    on_progress: called after every step with its numbers; without it progress is shown on stderr.
    Errors: RecipeError and InputError before anything is written; DamagedFileError for shards or a checkpoint whose
    bytes changed; TrainingError if a loss is not a number or a repeated step does not repeat.
    """
    data = read_shards(shards)
    steps = check_fit(recipe, data)
    here = place(recipe.train)
    data.check()
    out.mkdir(parents=True, exist_ok=True)
    with (
        manifest.locked(out, f"{out} is being trained by another process; wait for it or choose another --out"),
        computing(here, deterministic=recipe.train.deterministic),
        interruption() as asked,
    ):
        return _train(recipe, data, out, steps, here, asked, on_progress)


def _train(
    recipe: TrainRecipe,
    shards: Shards,
    out: Path,
    steps: int,
    here: Place,
    asked: Interruption,
    on_progress: OnProgress | None,
) -> dict[str, Any]:
    """Find out where the run stands, and take the steps that are left."""
    config = recipe.train
    sweep_checkpoints(out)
    earlier = read_run(out)
    newest = newest_checkpoint(out)
    stands = newest.step if newest else 0
    display = Display(stands, steps, config.rows_per_step * shards.seq_len, quiet=on_progress is not None)
    with Ledger.open(out, repeats_after=stands if config.deterministic else None) as ledger, display:
        changed = compare_run(out, earlier, recipe, shards, steps, ledger.last_step) if earlier else {}
        if not earlier or changed:
            begin_run(out, recipe, shards, steps)
        done = summarise(out, ledger, steps)
        if done["finished"]:
            display.say(f"{out} is finished: {steps} steps; the model is in {done['model']}")
            return done

        display.say(f"training on {here.words()}")
        trainer = TrainStep(build_model(recipe.model, config.seed), config, here.device, here.dtype)
        session = Session(out, recipe, shards, steps, here, ledger, trainer, display)
        if ledger.lines:
            session.resume(newest, changed)
        else:
            session.begin()
        with contextlib.closing(Curves(out / "tensorboard", after=session.step)) as curves:
            take_steps(session, curves, asked, on_progress)
        if session.step == steps:
            session.finish()
        else:
            display.say(f"stopped after step {session.step} of {steps}, saved; the same command goes on from there")
        return session.summary()


def take_steps(session: Session, curves: Curves, asked: Interruption, on_progress: OnProgress | None) -> None:
    """Every step that is left, each with its line in the ledger; asked to stop, the last one is saved."""
    config, shards, steps = session.config, session.shards, session.steps
    for step in range(session.step + 1, steps + 1):
        started = time.monotonic()
        ids = row_ids(config.seed, step, config.rows_per_step, shards.chunk_rows)  # (rows_per_step,)
        batch = read_batch(shards, ids, "train", document_mask=config.document_mask)
        lr = learning_rate(config, step, steps)
        details = f" (learning rate {lr:.3g}, rows {', '.join(map(str, ids[:8]))}{' ...' if len(ids) > 8 else ''})"

        loss = accumulate(session.trainer, batch, config.micro_batch_rows)
        session.require_number("loss", loss, step, details)
        norm = float(session.trainer.update(lr))
        session.require_number("gradient norm", norm, step, details)

        session.step, session.tokens = step, session.tokens + batch.tokens
        seconds = time.monotonic() - started
        result = {"step": step, "rows": digest_rows(ids, batch.rows), "tokens": session.tokens}
        result |= {"loss": loss, "grad_norm": norm, "lr": lr}
        session.ledger.append("step", result, {"seconds": round(seconds, 6)})
        session.seconds.append(seconds)
        session.trained.append(batch.tokens)
        curves.add(step, time.time(), {"loss": loss, "grad_norm": norm, "lr": lr})
        shown = session.display.show(step, loss, seconds)
        if on_progress:
            on_progress(shown)

        leaving = asked.wanted
        if due(step, config.validate_every) or step == steps:
            session.validate(curves)
        if due(step, config.checkpoint_every) or step == steps or leaving:
            session.save()
        if leaving:
            break


def accumulate(trainer: TrainStep, batch: Batch, rows: int) -> float:
    """Forward and backward over one step's rows, `rows` at a time: mean nats per token; NaN if no target counts."""
    if batch.counted is None:
        share = rows / len(batch.rows)
        losses = [trainer.accumulate(torch.from_numpy(part.rows), share) for part in batch.parts(rows)]
        return float(torch.stack(losses).mean())
    shares = [(part, part.tokens / batch.tokens) for part in batch.parts(rows) if part.tokens]
    nats = [float(_accumulate(trainer, part, share)) * share for part, share in shares]
    return math.fsum(nats) if nats else math.nan


def _accumulate(trainer: TrainStep, part: Batch, share: float) -> Tensor:
    rows, documents, counted = part.tensors()
    return trainer.accumulate(rows, share, documents, counted)


def digest_rows(ids: NDArray[np.int64], rows: NDArray[np.int64]) -> str:
    """sha256 (hex) of what a step read: row numbers as int64, then the ids of those rows as uint32, little-endian.

    >>> digest_rows(np.array([7]), np.array([[1, 2]]))[:8]
    'cff4ea1e'
    """
    digest = hashlib.sha256(np.ascontiguousarray(ids, "<i8").data)
    digest.update(np.ascontiguousarray(rows, "<u4").data)
    return digest.hexdigest()
