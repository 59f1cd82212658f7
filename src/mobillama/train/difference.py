"""What differs between what a run was trained with and what is here: environment, code, recipe, shards.

Reads run.json, the ledger, manifests, shards and the model to start from; changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mobillama import manifest
from mobillama.config import TrainRecipe, resolve
from mobillama.errors import MobillamaError
from mobillama.train.environment import changed_files
from mobillama.train.initial import start_digest
from mobillama.train.ledger import Line
from mobillama.train.run import FILE, promised_recipe, recipe_leaves


def environment_differences(
    run: Path, then: Iterable[Mapping[str, Any]], here: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Each {"key", "run", "here"} in which an environment of the run is not this one; of code, the `files` too.

    What a run of an older version did not write down is no difference.

    >>> environment_differences(Path("run"), [{"threads": 2, "torch": "2.13"}], {"threads": 1, "torch": "2.13"})
    [{'key': 'threads', 'run': 2, 'here': 1}]
    """
    found: list[dict[str, Any]] = []
    for environment in then:
        for key, was in environment.items():
            difference = {"key": key, "run": was, "here": here.get(key)}
            if key == "code" and was != here.get(key):
                difference["files"] = changed_files(run, str(was))
            if was != here.get(key) and difference not in found:
                found.append(difference)
    return found


def recipe_differences(run: Path, told: Mapping[str, Any], lines: Sequence[Line]) -> list[str]:
    """Whether `told`, the run.json at hand, has the recipe and the steps that the ledger says; each key that changed.

    The ledger has a digest alone, so keys are named by the recipe in the manifests of checkpoints and model.
    """
    said = [line.result for line in lines if line.kind in ("start", "resumed")]
    expected = promised_recipe(told, said)
    digest = tree_digest(told["recipe"])
    found = []
    if digest != expected:
        found.append(
            f"{FILE}: its recipe has digest {digest}; expected {expected}: {_changed_keys(run, told, expected)}"
        )
    if said and told["steps"] != said[-1]["steps"]:
        found.append(f"{FILE}: steps is {told['steps']}; expected {said[-1]['steps']} as in the ledger")
    return found


def tree_digest(recipe: Mapping[str, Any]) -> str:
    """The digest of a resolved recipe as run.json and ledger say it, of the tree as it stands there."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def shard_differences(folder: Path, told: Mapping[str, Any], lines: Sequence[Line]) -> list[str]:
    """Whether `folder` holds the shards that the run was trained on: their identity, then each file by its bytes."""
    found = []
    digest = manifest.read(folder, "shards").digest()
    said = [(FILE, told["shards"]["digest"]), *(("the ledger", line.result["shards"]) for line in lines[:1])]
    for where, expected in said:
        if digest != expected:
            found.append(f"shards {folder}: found digest {digest}; expected {expected} as in {where}")
    return found + [f"shards {folder / text}" for text in manifest.differences(folder)]


def initial_differences(recipe: TrainRecipe, lines: Sequence[Line]) -> list[str]:
    """Whether the trained model that a run started from, if it did, is the one that the `start` line names."""
    expected = lines[0].result.get("initial_model")
    found = start_digest(recipe)
    if found == expected:
        return []
    return [f"initial model {recipe.init.model or 'none'}: found digest {found}; expected {expected} as in the ledger"]


def _changed_keys(run: Path, told: Mapping[str, Any], expected: str) -> str:
    """The keys in which the recipe of run.json is not that of a checkpoint or of the model, in words."""
    recipes = _sealed_recipes(run)
    if not recipes:
        return "no checkpoint or model is there whose recipe tells which key changed"
    # The recipe of that very digest, else the newest: keys that may change on a restart can be among those named.
    name, recipe = next((pair for pair in recipes if tree_digest(pair[1]) == expected), recipes[-1])
    now, was = (_leaves(tree, origin) for tree, origin in ((told["recipe"], str(run / FILE)), (recipe, name)))
    changed = [
        f"{key} is {now.get(key)!r}, was {was.get(key)!r}"
        for key in {**was, **now}
        if (key in now, now.get(key)) != (key in was, was.get(key))
    ]
    return f"{'; '.join(changed)} ({name})" if changed else f"no key differs from {name}"


def _sealed_recipes(run: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """Name and recipe of every readable manifest below the run, fewest steps first."""
    found = []
    for path in run.glob(f"*/**/{manifest.FILE}"):
        try:
            sealed = manifest.read(path.parent)
            if sealed.recipe:
                found.append((int(sealed.counts["step"]), path.relative_to(run).as_posix(), sealed.recipe))
        except (MobillamaError, KeyError, TypeError, ValueError):
            continue  # a damaged manifest names nothing; `mobillama verify` tells of it
    return [(name, recipe) for _, name, recipe in sorted(found, key=lambda item: item[:2])]


def _leaves(recipe: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Dotted keys and values, with the defaults of fields that an older version did not have, where it can be read."""
    try:
        tree: Mapping[str, Any] = resolve(TrainRecipe, dict(recipe), origin).tree()
    except MobillamaError:
        tree = recipe
    return dict(recipe_leaves(tree))
