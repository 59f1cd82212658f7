"""A branch: a run that goes on from another's checkpoint with another learning rate, batch or schedule.

Weights, optimiser state and step count are those of the checkpoint, which is taken over into the branch's folder; rows
are read on from where the other run stood, whatever a step reads now. Format: docs/formats.md, section Branches.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobillama import manifest
from mobillama.config import InitConfig, TrainRecipe, change_recipe, resolve
from mobillama.data.order import steps_of
from mobillama.errors import DamagedFileError, InputError, RecipeError
from mobillama.train import ledger
from mobillama.train.checkpoint import Checkpoint, checkpoints_folder, sealed_folders
from mobillama.train.run import FILE, Parent, parent_of, read_run

# What may not change: the state is of this shape and optimizer, and the order of rows is of this seed.
FIXED = ("model", "train.seed", "train.optimizer")


def read_origin(origin: str, out: Path) -> Parent:
    """The parent that `RUN@step` names for a branch in `out`; one that was begun knows its own, which may be gone.

    The checkpoint of that step must be there, and the ledger must tell of it.
    Errors: InputError for another form, a run or checkpoint that is not there, or a run in `out` that was begun
    otherwise; DamagedFileError for a damaged one.
    """
    folder, _, step = origin.rpartition("@")
    if not folder or not (step.isascii() and step.isdigit()):
        raise InputError(f"--from {origin!r} is not of the form RUN@step, for example artefacts/runs/base@1000")
    run = Path(folder)
    if (out / FILE).is_file():
        own = parent_of(read_run(out) or {})
        if own is None or own.step != int(step) or Path(own.run).name != run.resolve().name:
            began = f"was branched off {own.run} after step {own.step}" if own else "is no branch"
            raise InputError(f"{out} {began}; --from names {origin}: choose another --out")
        return own
    told = read_run(run) if run.is_dir() else None
    if told is None:
        raise InputError(f"{run} has no {FILE}, so it is not a run; give --from the --out folder of a training")
    there = {path.name: path for path in sealed_folders(run)}
    name = _name(int(step))
    if name not in there:
        steps = ", ".join(str(int(each.removeprefix("step_"))) for each in there) or "none"
        raise InputError(f"{run} has no checkpoint of step {step}; those that are there: {steps}")
    lines = ledger.read_ledger(run)
    found = Checkpoint(there[name], manifest.read(there[name], "checkpoint"))
    if found.step != int(step) or found.result() not in [line.result for line in lines if line.kind == "checkpoint"]:
        raise DamagedFileError(
            f"{found.folder} is not the checkpoint that the ledger of {run} tells of; see mobillama verify {run}"
        )
    tip = hashlib.sha256((run / ledger.FILE).read_bytes().rpartition(b"\n")[0].rpartition(b"\n")[2]).hexdigest()
    first_row = steps_of(told).first_position(found.step + 1)
    return Parent(str(run.resolve()), tip, found.manifest.digest(), found.step, first_row)


def branch_recipe(run: Path, recipe: TrainRecipe | None, settings: Sequence[str] = ()) -> TrainRecipe:
    """The recipe of a branch: one that is given, or that of `run` (its parent, or itself once begun) with `settings`.

    Errors: RecipeError naming a key that a branch cannot change.
    """
    told = read_run(run) or {}
    was = resolve(TrainRecipe, told["recipe"], str(run / FILE))
    # What the parent began with is in the checkpoint.
    now = recipe or change_recipe(was.model_copy(update={"init": InitConfig()}), settings)
    if now.init.model:
        raise RecipeError(f"init.model={now.init.model!r}: a branch begins with its parent's weights; leave it out")
    for key in FIXED:
        before, after = (_value(each, key) for each in (was, now))
        if before != after:
            raise RecipeError(
                f"{key} is {after!r}; {run} was trained with {before!r}, and a branch goes on from its state and in "
                "its order of rows: leave it as it was, or train a new run"
            )
    return now


def own_parent(run: Path, given: Parent | None) -> Parent | None:
    """The parent of a run that was begun, else the one given. Error: InputError if these are two."""
    told = read_run(run) if (run / FILE).is_file() else None
    if told is None:
        return given
    own = parent_of(told)
    if given is not None and (own is None or own.result() != given.result()):
        raise InputError(f"{run} was begun otherwise than from {given.run} at step {given.step}: choose another --out")
    return own


def take_over(parent: Parent, run: Path) -> None:
    """Put the parent's checkpoint into the run's own folder, unless it is there; its files are linked where they can.

    Errors: InputError if the parent is not there any more; DamagedFileError if its checkpoint is another.
    """
    name = _name(parent.step)
    out = checkpoints_folder(run) / name
    if out.exists():
        return
    source = checkpoints_folder(Path(parent.run)) / name
    if not (source / manifest.FILE).is_file():
        raise InputError(f"{source}, which the branch {run} begins with, is not there any more; put it back")
    if (digest := manifest.read(source).digest()) != parent.checkpoint:
        raise DamagedFileError(f"{source} has root digest {digest}; the branch {run} was begun on {parent.checkpoint}")
    partial = manifest.partial_path(out)
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, copy_function=_link_or_copy)
    for path in [*partial.rglob("*"), partial]:
        manifest.sync(path)
    partial.rename(out)
    manifest.sync(out.parent)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def _name(step: int) -> str:
    return f"step_{step:06d}"


def _value(recipe: TrainRecipe, key: str) -> Any:
    """A value of a recipe by its dotted key; of the model without its name."""
    tree: Any = recipe.tree()
    for part in key.split("."):
        tree = tree[part]
    return {name: value for name, value in tree.items() if name != "name"} if isinstance(tree, dict) else tree
