"""Replay: take steps of a run again, in memory, and compare every bit with what the run wrote down.

Reads `RUN/` and its shards, writes nothing into them. The steps are the ones of the training loop (`take_step`), begun
from a checkpoint of the run or from its initial weights. Every `result` of the ledger in the interval is compared, and
every checkpoint on the way tensor by tensor. Specified in docs/formats.md, section Replaying.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mobillama.config import TrainRecipe, resolve
from mobillama.data.order import steps_of
from mobillama.data.reading import find_shards
from mobillama.data.shards import Shards, read_shards
from mobillama.device import Place, computing, place
from mobillama.errors import DamagedFileError, InputError
from mobillama.train.anomaly import Watch
from mobillama.train.checkpoint import SavedState, load_checkpoint, read_checkpoint, sealed_folders
from mobillama.train.comparison import Comparison, compare_states
from mobillama.train.difference import (
    environment_differences,
    initial_differences,
    recipe_differences,
    shard_differences,
)
from mobillama.train.environment import environment
from mobillama.train.float8 import check_float8
from mobillama.train.interruption import interruption
from mobillama.train.ledger import Line, read_ledger
from mobillama.train.loop import Trainer, make_trainer, take_step
from mobillama.train.progress import Display
from mobillama.train.run import FILE, check_fit, parent_of, read_run
from mobillama.train.state_results import WholeTensors, checkpoint_result, model_digest
from mobillama.train.validate import validate
from mobillama.train.world import World, joined

OnProgress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Interval:
    """The steps to take again: `first` + 1 to `last`, from the checkpoint `folder` (None: the initial weights)."""

    first: int
    last: int
    folder: Path | None

    @property
    def steps(self) -> range:
        """The steps."""
        return range(self.first + 1, self.last + 1)


@dataclass(frozen=True)
class Said:
    """A line to repeat, and the environment of the process that wrote it."""

    line: Line
    environment: Mapping[str, Any]


@dataclass(frozen=True)
class Recorded:
    """What a run wrote down of itself."""

    run: Path
    told: Mapping[str, Any]  # run.json
    lines: Sequence[Line]
    recipe: TrainRecipe
    interval: Interval
    by_step: Mapping[int, Sequence[Said]]  # see `lines_to_repeat`

    def environments(self) -> list[Mapping[str, Any]]:
        """The environments that the steps of the interval were taken in, oldest first."""
        found: list[Mapping[str, Any]] = []
        for said in (said for step in self.interval.steps for said in self.by_step.get(step, ())):
            if said.environment not in found:
                found.append(said.environment)
        return found


def replay(
    run: Path,
    first: int | None = None,
    last: int | None = None,
    *,
    data: Path | None = None,
    anyway: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Train steps `first` + 1 to `last` of a run again and compare; what was found, in plain JSON types.

    first: 0 = from the initial weights, else the step of a checkpoint that is there; None = the newest checkpoint with
    steps after it. last: None = the ledger's last. data: the shards, where they are not where they were. anyway: go on
    although recipe or shards are not the run's. on_progress: as for `train`.
    Errors: InputError for steps that cannot be replayed, for a recipe or shards that are not the run's (naming what
    differs) and for another number of ranks; DamagedFileError for a damaged checkpoint, shard or ledger.
    """
    recorded = read_recorded(run, first, last)
    then = recorded.environments()
    config = recorded.recipe.train
    with joined(config.device) as world, interruption() as asked:
        check_world(run, then, world)
        folder = find_shards(run, recorded.told, data)
        wrong = world.once(lambda: input_differences(recorded, folder))
        if wrong and not anyway:
            raise InputError(
                f"what {run} was trained on has changed: {'; '.join(wrong)}. Restore it, or give --anyway to see at "
                "which step the results differ"
            )
        shards = read_shards(folder)
        if check_fit(recorded.recipe, shards, parent_of(recorded.told)) != recorded.told["steps"] and not wrong:
            raise DamagedFileError(
                f"{run / FILE}: steps is {recorded.told['steps']}; its recipe comes to another number"
            )
        here = recorded_place(recorded.recipe, then)
        if config.float8:
            check_float8(here.device)
        comparison = Comparison()
        started = time.monotonic()
        tokens_per_step = config.rows_per_step * shards.seq_len
        quiet = on_progress is not None or not world.is_main
        display = Display(
            recorded.interval.first, recorded.interval.last, tokens_per_step, quiet=quiet, what="replaying"
        )
        with display, computing(here, deterministic=config.deterministic):
            display.say(f"replaying steps {recorded.interval.first + 1} to {recorded.interval.last} on {here.words()}")
            trainer = make_trainer(recorded.recipe, shards, here, world)
            replayed = Replayed(recorded, shards, trainer, world, comparison, display)
            replayed.load()
            reached = replayed.take(on_progress, lambda: world.agree(asked.wanted))
        different = environment_differences(run, then, environment(here, world))
    return {
        "ok": not wrong and not comparison.differences and reached == recorded.interval.last,
        "run": str(run),
        "from": recorded.interval.first,
        "to": recorded.interval.last,
        "reached": reached,
        "deterministic": config.deterministic,
        "compared": dict(comparison.compared),
        "differences": comparison.differences,
        "inputs": wrong,
        "environment": different,
        "not_compared": comparison.not_compared,
        "seconds": round(time.monotonic() - started, 3),
    }


def read_recorded(run: Path, first: int | None, last: int | None) -> Recorded:
    """What a run says of itself, and the interval that `first` and `last` mean. Errors: as `replay`."""
    told = read_run(run) if run.is_dir() else None
    if told is None:
        raise InputError(f"{run} has no {FILE}, so it is not a run; give the --out folder of a training")
    lines = read_ledger(run)
    if not lines or lines[0].kind != "start":
        raise DamagedFileError(
            f"the ledger of {run} does not begin with a line of kind 'start'; restore it from a copy"
        )
    recipe = resolve(TrainRecipe, told["recipe"], str(run / FILE))
    by_step = lines_to_repeat(lines, deterministic=recipe.train.deterministic)
    there = {int(folder.name.removeprefix("step_")): folder for folder in sealed_folders(run)}
    interval = choose_interval(run, there, max(by_step, default=0), first, last, begins=steps_of(told).after)
    return Recorded(run, told, lines, recipe, interval, by_step)


def choose_interval(
    run: Path, there: Mapping[int, Path], ends: int, first: int | None, last: int | None, *, begins: int = 0
) -> Interval:
    """The interval that --from and --to mean.

    there: step -> folder of a checkpoint. ends: the ledger's last step. begins: the step that a branch begins with.
    """
    if first is None:
        first = max((step for step in there if step < (ends if last is None else last)), default=begins)
    if (first or begins) and first not in there:
        listed = ", ".join(map(str, sorted({*there} if begins else {0, *there})))
        words = f"a branch of step {begins}" if begins else "0: the initial weights"
        raise InputError(f"{run} has no checkpoint of step {first}; --from can be {listed} ({words})")
    last = ends if last is None else last
    if last > ends:
        raise InputError(f"the ledger of {run} ends at step {ends}; --to {last} is beyond it")
    if not first < last:
        raise InputError(f"nothing to replay in {run} from step {first} to step {last}: --to must be above --from")
    return Interval(first, last, there.get(first))


def lines_to_repeat(lines: Sequence[Line], *, deterministic: bool) -> dict[int, list[Said]]:
    """The lines whose results a replay must give, by step.

    Repetitions after a restart count once: in a deterministic run each distinct result of a kind and step (there is one
    unless something is wrong), else the newest. A restart at an earlier step makes later lines void where they need not
    repeat: without determinism, and on another number of ranks.
    """
    found: dict[int, dict[tuple[str, str], Said]] = {}
    now: Mapping[str, Any] = {}
    for line in lines:
        if line.kind in ("start", "resumed"):
            before, now = now, line.circumstance.get("environment", {})
            if line.kind == "resumed" and (not deterministic or ranks_of(before) != ranks_of(now)):
                found = {step: kinds for step, kinds in found.items() if step <= line.step}
        elif deterministic:
            which = json.dumps(line.result, sort_keys=True)
            found.setdefault(line.step, {}).setdefault((line.kind, which), Said(line, now))
        else:
            found.setdefault(line.step, {})[line.kind, ""] = Said(line, now)
    return {step: list(kinds.values()) for step, kinds in found.items()}


def ranks_of(environment_: Mapping[str, Any]) -> int:
    """The number of ranks in an environment; one where an older version did not say."""
    return int(environment_.get("world_size", 1))


def check_world(run: Path, then: Sequence[Mapping[str, Any]], world: World) -> None:
    """Refuse another number of ranks than the run's, which would round otherwise: InputError with the command."""
    for environment_ in then:
        ranks = ranks_of(environment_)
        if ranks != world.size:
            command = "mobillama replay" if ranks == 1 else f"torchrun --nproc-per-node {ranks} -m mobillama.cli replay"
            raise InputError(
                f"steps of {run} in this interval were taken on {ranks} ranks; found {world.size}. Sums over another "
                f"number of ranks have other bits: use `{command} {run} ...` (on as many machines as it was trained "
                "on), or another interval"
            )


def input_differences(recorded: Recorded, shards: Path) -> list[str]:
    """What of the run's recipe and shards is not what it was trained with, in words."""
    return [
        *recipe_differences(recorded.run, recorded.told, recorded.lines),
        *shard_differences(shards, recorded.told, recorded.lines),
        *(initial_differences(recorded.recipe, recorded.lines) if not recorded.interval.first else ()),
    ]


def recorded_place(recipe: TrainRecipe, then: Sequence[Mapping[str, Any]]) -> Place:
    """Where to compute: as the recipe says, and where it leaves compute type or threads open, as the run did."""
    config, was = recipe.train, then[0] if then else {}
    threads = config.threads or int(was.get("threads", 0))
    if config.dtype != "auto" or "dtype" not in was:
        return place(config.device, config.dtype, threads)
    return replace(place(config.device, was["dtype"], threads), why_dtype="as the run did")


@dataclass
class Replayed:
    """The replay while it goes on."""

    recorded: Recorded
    shards: Shards
    trainer: Trainer
    world: World
    comparison: Comparison
    display: Display
    tokens: int = 0  # trained on so far

    @property
    def recipe(self) -> TrainRecipe:
        """The run's."""
        return self.recorded.recipe

    def load(self) -> None:
        """Go to the beginning of the interval, and see that the ledger knows the checkpoint it is."""
        folder = self.recorded.interval.folder
        if folder is None:
            return
        checkpoint = read_checkpoint(folder)
        load_checkpoint(checkpoint, self.trainer.state())
        self.trainer.loaded()
        self.tokens = checkpoint.tokens
        said = [line for line in self.recorded.lines if line.kind == "checkpoint" and line.step == checkpoint.step]
        if not said:
            self.comparison.not_compared.append(f"{folder.name}: the ledger has no 'checkpoint' line of its step")
        elif checkpoint.result() not in [line.result for line in said]:
            self.comparison.result(said[-1], checkpoint.result())

    def take(self, on_progress: OnProgress | None, stop: Callable[[], bool]) -> int:
        """Take the steps and compare; the last step that was taken. `stop` is asked after each, on all ranks."""
        config, interval = self.recipe.train, self.recorded.interval
        step = interval.first
        watch = Watch.after(config, self.recorded.lines, step)
        order = steps_of(self.recorded.told)
        for step in interval.steps:
            started = time.monotonic()
            steps = self.recorded.told["steps"]
            taken = take_step(self.trainer, config, self.shards, order, step, steps, self.tokens, watch)
            self.tokens = taken.result["tokens"]
            self.compare(step, taken.result, [said.line for said in self.recorded.by_step.get(step, ())])
            shown = self.display.show(step, taken.loss, time.monotonic() - started)
            if on_progress and self.world.is_main:
                on_progress(shown)
            if taken.wrong and not taken.skipped:
                self.comparison.not_compared.append(f"steps after {step}: {taken.wrong}, where a run stops")
                break
            if stop():
                break
        return step

    def compare(self, step: int, taken: Mapping[str, Any], lines: Sequence[Line]) -> None:
        """Compare all that the run says of a step with what the replay has now."""
        if not any(line.kind == "step" for line in lines):
            self.comparison.not_compared.append(f"step {step}: the ledger has no line of it")
        state = self.trainer.state()
        for line in lines:
            if line.kind == "step":
                self.comparison.result(line, taken)
            elif line.kind == "validation":
                self.comparison.result(line, {"step": step, **self.validation()})
            elif line.kind == "checkpoint":
                form = int(line.result.get("form", 1))
                self.comparison.result(line, checkpoint_result(state, step, form, self.world))
            elif line.kind == "published":
                weights = model_digest(state, self.recipe.model)
                self.comparison.result(line, {"step": step, "weights": weights})
            elif line.kind == "end":
                weights = model_digest(state, self.recipe.model)
                self.comparison.result(line, {"step": step, "tokens": self.tokens, "weights": weights})
        self.compare_checkpoint(step)

    def compare_checkpoint(self, step: int) -> None:
        """Compare the state with the checkpoint of this step, where there is one, tensor by tensor."""
        folder = next((path for path in sealed_folders(self.recorded.run) if path.name == f"step_{step:06d}"), None)
        if folder is None:
            return
        try:
            saved = SavedState(read_checkpoint(folder))
        except DamagedFileError as error:
            self.comparison.state(step, folder.name, {"damaged": str(error)})
            return
        self.comparison.state(step, folder.name, compare_states(WholeTensors(self.trainer.state()), saved))

    def validation(self) -> dict[str, Any]:
        """The held-out figures of the state as it is."""
        config = self.recipe.train
        return validate(
            self.trainer,
            self.shards,
            rows=config.validation_rows,
            batch_rows=config.micro_batch_rows * self.world.size,
            document_mask=config.document_mask,
        )
