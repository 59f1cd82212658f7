"""The run folder: what is trained on what, written down before the first step and compared at every restart.

Reads and writes `RUN/run.json` (docs/formats.md, section Run). A run goes on only with the recipe and the shards it
began with; keys that change no result may be changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mobillama import manifest, strict_json
from mobillama.config import TrainConfig, TrainRecipe, resolve
from mobillama.data.run_folder import FORMAT, FORMAT_VERSION, PARENT
from mobillama.data.shards import Shards
from mobillama.data.stream import steps_per_pass
from mobillama.errors import DamagedFileError, InputError, RecipeError
from mobillama.train.schedule import check_schedule, same_so_far

FILE = "run.json"
TYPES = {"format": str, "format_version": int, "recipe": dict, "recipe_digest": str, "steps": int, "shards": dict}
# Names and cadence: no result depends on them.
FREE = {
    "name",
    "model.name",
    "data.recipe",
    "data.shards",
    "train.validate_every",
    "train.checkpoint_every",
    "train.keep_last",
    "train.asynchronous",
    "train.publish_chunks",
    "train.publish_tokens",
}
# Where and in which order sums are computed: free where results need not repeat bit for bit.
ROUNDING = {
    "train.activation_checkpointing",
    "train.compile",
    "train.deterministic",
    "train.device",
    "train.dtype",
    "train.loss_chunk_tokens",
    "train.micro_batch_rows",
    "train.threads",
    "train.validation_rows",
}


@dataclass(frozen=True)
class Parent:
    """Where a branch left the run it continues: written into its run.json and its ledger's `start` line."""

    run: str  # the parent's folder when the branch began
    ledger: str  # sha256 (hex) of the parent's last line then: by the chain it stands for all before it
    checkpoint: str  # root digest of the checkpoint that the branch begins with
    step: int  # of it; the branch's own steps count from there
    first_row: int  # position, over all passes, of the first row that the branch reads

    def tree(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    def result(self) -> dict[str, Any]:
        """What the ledger says of it: all but the place."""
        return {key: value for key, value in self.tree().items() if key != "run"}


def parent_of(told: Mapping[str, Any]) -> Parent | None:
    """The parent that a run.json names; None if the run is no branch."""
    return Parent(**{key: told["parent"][key] for key in PARENT}) if "parent" in told else None


def check_fit(recipe: TrainRecipe, shards: Shards, parent: Parent | None = None) -> int:
    """Number of steps, once model, shards and schedule are seen to fit each other; a branch counts on.

    Errors: RecipeError, InputError.
    """
    model, config = recipe.model, recipe.train
    if model.vocab_size < shards.vocab_size:
        raise InputError(
            f"model.vocab_size={model.vocab_size} is smaller than the vocabulary of the shards in {shards.folder}, "
            f"{shards.vocab_size} ids: use shards made with this model's tokenizer, or "
            f"--set model.vocab_size={shards.vocab_size}"
        )
    if shards.seq_len > model.max_position_embeddings:
        raise InputError(
            f"the rows of {shards.folder} have seq_len={shards.seq_len} positions; the model has "
            f"max_position_embeddings={model.max_position_embeddings}: use shorter rows, or "
            f"--set model.max_position_embeddings={shards.seq_len}"
        )
    if not config.steps and shards.num_rows < config.rows_per_step:
        raise RecipeError(
            f"train.rows_per_step={config.rows_per_step}, but {shards.folder} has {shards.num_rows} rows in all, less "
            "than one step of one pass: use fewer rows per step, or say how many steps with --set train.steps=N"
        )
    if config.document_mask:
        shards.require_spans()
    if parent:
        left = shards.num_rows - parent.first_row % shards.num_rows  # of the pass
        steps = config.steps or parent.step + left // config.rows_per_step
        if steps <= parent.step:
            raise RecipeError(
                f"train.steps={config.steps} comes to {steps} steps, but the branch begins after step {parent.step}, "
                f"which they count from: give more, for example --set train.steps={parent.step + 100}"
            )
    else:
        steps = config.steps or steps_per_pass(config.rows_per_step, shards.chunk_rows)
    check_schedule(config, steps)
    return steps


def begin_run(run: Path, recipe: TrainRecipe, shards: Shards, steps: int, parent: Parent | None = None) -> None:
    """Write run.json: the resolved recipe, the number of steps, which shards, and what a branch was branched off."""
    tree = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION if parent else 2,  # what an older version reads, it may read
        "recipe": recipe.tree(),
        "recipe_digest": recipe.digest(),
        "steps": steps,
        "shards": {"path": str(shards.folder.resolve()), "digest": shards.digest},
        **({"parent": parent.tree()} if parent else {}),
    }
    _write(run, tree)


def renew_place(run: Path, told: Mapping[str, Any], shards: Shards) -> None:
    """Write into run.json where the run's shards are now; all else in `told`, the run.json at hand, stays as it is."""
    _write(run, {**told, "shards": {**told["shards"], "path": str(shards.folder.resolve())}})


def _write(run: Path, tree: Mapping[str, Any]) -> None:
    manifest.write_file(run / FILE, json.dumps(tree, indent=1, ensure_ascii=False).encode() + b"\n")


def read_run(run: Path) -> dict[str, Any] | None:
    """run.json as plain values; None if the folder is new. Errors: InputError if it holds something else."""
    path = run / FILE
    if not path.is_file():
        if other := [entry.name for entry in run.iterdir() if not entry.name.startswith(".")]:
            raise InputError(f"{run} exists and is not a run (it holds {other[0]}); choose another --out")
        return None
    try:
        tree = strict_json.require(strict_json.parse(path.read_bytes()), TYPES)
        strict_json.require(tree["shards"], {"path": str, "digest": str})
        if "parent" in tree:
            strict_json.require(strict_json.require(tree, {"parent": dict})["parent"], PARENT)
        if tree["format"] != FORMAT or tree["format_version"] < 1:
            raise ValueError(f"it is not of format {FORMAT!r}, version 1 to {FORMAT_VERSION}")
    except ValueError as error:
        raise DamagedFileError(f"{path} is not a run's description ({error}); restore it from a copy") from None
    if tree["format_version"] > FORMAT_VERSION:
        raise InputError(f"{path} has format version {tree['format_version']}; this mobillama reads {FORMAT_VERSION}")
    return tree


def promised_recipe(told: Mapping[str, Any], said: Sequence[Mapping[str, Any]]) -> str:
    """The digest that the recipe of `told`, a run.json, should have by `said`, results of `start` and `resumed` lines.

    The newest in the ledger, unless it changed since in a way that an older version did not write down.
    """
    for result in reversed(said):
        if "recipe" in result:
            return str(result["recipe"])
        if result.get("changed"):
            break
    return str(told["recipe_digest"])


def compare_run(
    run: Path, began: Mapping[str, Any], recipe: TrainRecipe, shards: Shards, steps: int, done: int
) -> dict[str, Any]:
    """The keys that changed since the run began, new values; `done` is the last step in its ledger.

    Errors: InputError for other shards; RecipeError naming the keys that may not change. `train.steps` may, as long as
    every step done so far had the learning rate that the new number gives it (always true during warm-up).
    """
    if began["shards"]["digest"] != shards.digest:
        raise InputError(
            f"{run} was begun on shards {began['shards']['digest']} ({began['shards']['path']}); found "
            f"{shards.digest} in {shards.folder}: give the earlier ones with --data, or a new --out"
        )
    old = resolve(TrainRecipe, began["recipe"], str(run / FILE))
    before, now = dict(recipe_leaves(old.tree())), dict(recipe_leaves(recipe.tree()))
    changed = {key: now.get(key) for key in {**before, **now} if before.get(key) != now.get(key)}
    allowed = FREE | (set() if recipe.train.deterministic else ROUNDING)
    if began["steps"] != steps and _may_lengthen(old.train, began["steps"], recipe.train, steps, done):
        allowed = allowed | {"train.steps"}
    if refused := sorted(changed.keys() - allowed):
        listed = "; ".join(f"{key} was {before.get(key)!r}, now {now.get(key)!r}" for key in refused)
        hint = ""
        if "train.steps" in refused:
            hint = f" (train.steps shapes the learning rate of the {done} steps already taken)"
        elif ROUNDING & set(refused) and recipe.train.deterministic:
            hint = " (with train.deterministic=false, keys that change only the rounding may change)"
        raise RecipeError(
            f"{run} was begun with another recipe: {listed}{hint}. Put these back, or train into a new --out"
        )
    return changed


def _may_lengthen(old: TrainConfig, old_steps: int, new: TrainConfig, steps: int, done: int) -> bool:
    return steps >= done and same_so_far(old, old_steps, new, steps, done)


def recipe_leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a nested mapping."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from recipe_leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
