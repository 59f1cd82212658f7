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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mobillama import manifest
from mobillama.config import TrainConfig, TrainRecipe
from mobillama.data.order import Steps
from mobillama.data.shards import Shards, read_shards
from mobillama.data.stream import row_ids, rows_from
from mobillama.device import Place, computing, place
from mobillama.errors import InputError
from mobillama.train.anomaly import SKIPS, Watch
from mobillama.train.batch import Batch, read_batch
from mobillama.train.branch import own_parent
from mobillama.train.checkpoint_writer import CheckpointWriter
from mobillama.train.curves import Curves
from mobillama.train.float8 import check_float8
from mobillama.train.initial import check_start, initial_model
from mobillama.train.interruption import Interruption, interruption
from mobillama.train.ledger import Ledger
from mobillama.train.progress import Display
from mobillama.train.run import FILE, Parent, check_fit
from mobillama.train.schedule import due, learning_rate
from mobillama.train.session import Session
from mobillama.train.sharded_step import ShardedStep
from mobillama.train.standing import Standing, find_standing
from mobillama.train.step import TrainStep
from mobillama.train.world import World, copies, joined

OnProgress = Callable[[dict[str, Any]], None]
Trainer = TrainStep | ShardedStep
NORMS = {"grad_norm": "all", "grad_norm_ffn": "ffn", "grad_norm_attention": "attention"}  # in a line -> in Norms


def train(
    recipe: TrainRecipe,
    shards: Path,
    out: Path,
    *,
    parent: Parent | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Train, or go on where the run in `out` stands; a summary of plain JSON types.

    Under torchrun every rank calls it alike, and rank 0 writes the run. parent: the run and checkpoint that a new run
    is branched off (train/branch.py); one that was begun knows its own. on_progress: called on rank 0 after every step
    with its numbers; without it progress is shown on stderr.
    Errors: RecipeError and InputError before anything is written; DamagedFileError for shards whose bytes changed;
    TrainingError if a step is an anomaly (train/anomaly.py), a repeated step does not repeat or a rank was lost.
    """
    data = read_shards(shards)
    parent = own_parent(out, parent)
    steps = check_fit(recipe, data, parent)
    check_start(recipe)
    with joined(recipe.train.device) as world, contextlib.ExitStack() as held:
        if not world.once(lambda: (out / FILE).is_file()):  # a run that was begun goes on with the ranks that are left
            copies(world.size, recipe.train.shard_ranks)
        here = place(recipe.train)
        if recipe.train.float8:
            check_float8(here.device)
        _check_alike(recipe, data, world)
        world.once(data.check)
        world.once(lambda: _hold(out, held))
        held.enter_context(computing(here, deterministic=recipe.train.deterministic))
        asked = held.enter_context(interruption())
        return _train(recipe, data, out, steps, parent, here, world, asked, on_progress)


def _check_alike(recipe: TrainRecipe, shards: Shards, world: World) -> None:
    """All ranks must have been given the same. Error: InputError."""
    mine = {"recipe": recipe.digest(), "shards": shards.digest}
    for what, digest in world.share(mine).items():
        if mine[what] != digest:
            raise InputError(
                f"rank {world.rank} was given {what} {mine[what]}, rank 0 {digest}: give the same to all ranks"
            )


def _hold(out: Path, held: contextlib.ExitStack) -> None:
    """Make the run folder, and let nobody else train in it meanwhile."""
    out.mkdir(parents=True, exist_ok=True)
    busy = f"{out} is being trained by another process; wait for it or choose another --out"
    held.enter_context(manifest.locked(out, busy))


def _train(
    recipe: TrainRecipe,
    shards: Shards,
    out: Path,
    steps: int,
    parent: Parent | None,
    here: Place,
    world: World,
    asked: Interruption,
    on_progress: OnProgress | None,
) -> dict[str, Any]:
    """Find out where the run stands, and take the steps that are left."""
    ledger: Ledger | None = None
    with contextlib.ExitStack() as held:

        def look() -> Standing:
            nonlocal ledger
            found, ledger = find_standing(recipe, shards, out, steps, parent)
            held.enter_context(ledger)
            return found

        standing = world.once(look)
        quiet = on_progress is not None or not world.is_main
        tokens_per_step = recipe.train.rows_per_step * shards.seq_len
        display = held.enter_context(Display(standing.step, steps, tokens_per_step, quiet=quiet))
        if standing.done:
            display.say(f"{out} is finished: {steps} steps; the model is in {standing.done['model']}")
            return dict(standing.done)

        ranks = f", one of {world.size} ranks" if world.size > 1 else ""
        display.say(f"training on {here.words()}{ranks}")
        trainer = make_trainer(recipe, shards, here, world)
        writer = held.enter_context(CheckpointWriter(out, world, asynchronous=recipe.train.asynchronous))
        session = Session(
            out, recipe, shards, steps, parent, here, world, ledger, trainer, writer, display, standing.watch
        )
        if standing.begun:
            session.resume(standing)
        else:
            session.begin(standing)
        if world.is_main:
            session.curves = held.enter_context(contextlib.closing(Curves(out / "tensorboard", after=session.step)))
        take_steps(session, asked, on_progress)
        if session.step == steps:
            session.finish()
        else:
            display.say(f"stopped after step {session.step} of {steps}, saved; the same command goes on from there")
        return session.summary()


def make_trainer(recipe: TrainRecipe, shards: Shards, here: Place, world: World) -> Trainer:
    """The step of a run at its initial weights, for one process or for several. Training and replay both call it."""
    config = recipe.train

    def read_rows(count: int) -> NDArray[np.int64]:
        return shards.train_rows(row_ids(config.seed, 1, count, shards.chunk_rows))

    model = initial_model(recipe, read_rows)
    if world.size == 1:
        return TrainStep(model, config, here.device, here.dtype)
    return ShardedStep(model, config, here.device, here.dtype, world)


def take_steps(session: Session, asked: Interruption, on_progress: OnProgress | None) -> None:
    """Every step that is left, each with its line in the ledger; asked to stop, on any rank, the last one is saved."""
    config, shards, steps, watch = session.config, session.shards, session.steps, session.watch
    for step in range(session.step + 1, steps + 1):
        started = time.monotonic()
        taken = take_step(session.trainer, config, shards, session.order, step, steps, session.tokens, watch)
        if taken.wrong and not taken.skipped:
            session.stop(step, f"{taken.wrong}{taken.details}")
        session.count(taken.result, taken.tokens, time.monotonic() - started)
        shown = session.display.show(step, taken.loss, session.seconds[-1])
        if taken.skipped:
            session.display.say(f"step {step} was skipped: {taken.wrong}")
        if watch.skips == SKIPS:
            session.stop(step, f"{taken.wrong}{taken.details}; this and the {SKIPS - 1} steps before were skipped")
        if on_progress and session.world.is_main:
            on_progress(shown)

        leaving = session.world.agree(asked.wanted)
        session.settle()
        if due(step, config.validate_every) or step == steps:
            session.validate()
        ends = step == steps or leaving
        if due(step, config.checkpoint_every) or session.publishes(step) or ends:
            session.save(ends=ends)
        if leaving:
            break
    session.settle(wait=True)


@dataclass(frozen=True)
class Taken:
    """A step that was taken."""

    result: dict[str, Any]  # of its line in the ledger
    loss: float
    tokens: int  # trained on in this step
    wrong: str  # what is not to be trusted in it, in words; empty if all is well
    skipped: bool  # the update was left out for it
    details: str  # what it read and how, in words, for an error


def take_step(
    trainer: Trainer,
    config: TrainConfig,
    shards: Shards,
    order: Steps,
    step: int,
    steps: int,
    tokens: int,
    watch: Watch,
) -> Taken:
    """Fetch, forward, backward, clip, update: step `step` of `steps`, after `tokens`. Training and replay both call it.

    Where the `watch` finds something wrong, no weight is changed; unless the recipe skips such steps, the caller stops.
    """
    first = order.first_position(step)
    ids = rows_from(config.seed, first, order.rows_per_step, shards.chunk_rows)  # (rows_per_step,)
    batch = read_batch(shards, ids, "train", document_mask=config.document_mask)
    lr = learning_rate(config, step, steps)
    loss = accumulate(trainer, batch, config.micro_batch_rows)
    norms = dict.fromkeys(NORMS, math.nan)
    if math.isfinite(loss):
        found = trainer.update(lr, watch.limit)
        norms = {key: float(getattr(found, part)) for key, part in NORMS.items()}
    wrong = watch.judge(step, loss, norms["grad_norm"])
    skipped = bool(wrong) and watch.skipping
    if skipped:
        trainer.discard()
    watch.note(norms["grad_norm"], skipped=skipped)

    numbers = {"loss": loss, **norms}
    result = {"step": step, "rows": digest_rows(ids, batch.rows), "tokens": tokens + batch.tokens}
    result |= {key: value if math.isfinite(value) or not skipped else None for key, value in numbers.items()}
    result |= {"lr": lr, "skipped": True} if skipped else {"lr": lr}
    shown = f"{', '.join(map(str, ids[:8]))}{' ...' if len(ids) > 8 else ''}"
    return Taken(result, loss, batch.tokens, wrong, skipped, f" (learning rate {lr:.3g}, rows {shown})")


def accumulate(trainer: Trainer, batch: Batch, rows: int) -> float:
    """Forward and backward over one step's rows, `rows` at a time: mean nats per token; NaN if no target counts.

    The parts go round the ranks, so that every rank has one at a time. In the last round a rank may be left without:
    it runs one once more with a share of 0, as the units of a sharded model are gathered by all ranks together.
    """
    parts = [part for part in batch.parts(rows) if part.tokens]
    if not parts:
        return math.nan
    world = trainer.world
    turns = [range(first, first + world.size) for first in range(0, len(parts), world.size)]
    losses = []
    for turn in turns:
        mine = turn[world.rank]
        has_one = mine < len(parts)
        part = parts[mine if has_one else 0]
        share = part.tokens / batch.tokens if has_one else 0.0
        taken, documents, counted = part.tensors()
        loss = trainer.accumulate(taken, share, documents, counted, last=turn is turns[-1])
        losses += [loss] if has_one else []
    each = world.gather([float(loss) for loss in losses], len(parts))
    if batch.counted is None:
        return float(torch.tensor(each).mean())
    return math.fsum(loss * (part.tokens / batch.tokens) for loss, part in zip(each, parts, strict=True))


def digest_rows(ids: NDArray[np.int64], rows: NDArray[np.int64]) -> str:
    """sha256 (hex) of what a step read: row numbers as int64, then the ids of those rows as uint32, little-endian.

    >>> digest_rows(np.array([7]), np.array([[1, 2]]))[:8]
    'cff4ea1e'
    """
    digest = hashlib.sha256(np.ascontiguousarray(ids, "<i8").data)
    digest.update(np.ascontiguousarray(rows, "<u4").data)
    return digest.hexdigest()
