"""Where a run stands when a process takes it up: found by rank 0 from the run folder, and told to all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobillama.config import TrainRecipe
from mobillama.data.shards import Shards
from mobillama.errors import DamagedFileError
from mobillama.train.anomaly import Watch
from mobillama.train.branch import take_over
from mobillama.train.checkpoint import Newest, newest_checkpoint, set_aside, sweep_checkpoints
from mobillama.train.ledger import Ledger, read_ledger
from mobillama.train.run import Parent, begin_run, compare_run, read_run, renew_place


@dataclass(frozen=True)
class Standing:
    """What every rank needs to go on."""

    newest: Newest
    begun: bool  # whether the ledger has lines
    changed: Mapping[str, Any]  # keys of the recipe that are not as they were, with the new values
    watch: Watch
    done: Mapping[str, Any] | None  # the summary of a run that is finished

    @property
    def step(self) -> int:
        """The step that training goes on after."""
        return self.newest.checkpoint.step if self.newest.checkpoint else 0


def find_standing(
    recipe: TrainRecipe, shards: Shards, run: Path, steps: int, parent: Parent | None = None
) -> tuple[Standing, Ledger]:
    """Where the run in a folder stands, its ledger open to go on (the caller closes it); a new run gets its run.json.

    Leftovers of a kill are swept and damaged checkpoints set aside. Errors: those of the files read, and RecipeError
    for a recipe that the run cannot go on with; then nothing was written.
    """
    sweep_checkpoints(run)
    earlier = read_run(run)
    if parent:
        if not earlier:
            begin_run(run, recipe, shards, steps, parent)
        take_over(parent, run)
    newest = newest_checkpoint(run)
    if parent and newest.checkpoint is None:
        raise DamagedFileError(
            f"the checkpoint that the branch {run} begins with is damaged: {'; '.join(newest.refused.values())}. "
            f"Remove it and give the same command again: it is taken from {parent.run} once more"
        )
    step = newest.checkpoint.step if newest.checkpoint else 0
    ledger = Ledger.open(run, repeats_after=step if recipe.train.deterministic else None)
    try:
        changed = compare_run(run, earlier, recipe, shards, steps, ledger.last_step) if earlier else {}
        if (not earlier and not parent) or (changed and not ledger.lines):
            begin_run(run, recipe, shards, steps, parent)
        elif earlier and earlier["shards"]["path"] != str(shards.folder.resolve()):
            renew_place(run, earlier, shards)
        if max(ledger.last_step, parent.step if parent else 0) < step and newest.checkpoint:
            raise DamagedFileError(
                f"{ledger.path} ends at step {ledger.last_step}, but {newest.checkpoint.folder} is of step {step}: "
                "lines were lost; restore the file from a copy, or train into a new --out"
            )
        done = summarise(run, ledger, steps)
        if not done["finished"]:
            set_aside(newest)
        watch = Watch.after(recipe.train, read_ledger(run), step)
        return Standing(newest, ledger.lines > 0, changed, watch, done if done["finished"] else None), ledger
    except BaseException:
        ledger.__exit__()
        raise


def summarise(run: Path, ledger: Ledger, steps: int) -> dict[str, Any]:
    """What a run has come to, from its ledger: plain JSON types."""
    finished = ledger.is_ended(steps) and (run / "model").exists()
    newest, held_out = ledger.newest.get("step"), ledger.newest.get("validation")
    return {
        "run": str(run),
        "model": str(run / "model") if finished else None,
        "finished": finished,
        "step": newest.step if newest else 0,
        "steps": steps,
        "tokens": newest.result["tokens"] if newest else 0,
        "loss": newest.result["loss"] if newest else None,
        "validation": dict(held_out.result) if held_out else None,
    }
