"""`mobillama train`: a model from shards."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mobillama.cli.app import DryRun, Json, Set, Workers, app, show, show_recipe
from mobillama.errors import InputError, MissingExtraError


@app.command()
def train(
    recipe: Annotated[
        str, typer.Argument(help="A train recipe: a .toml file or a shipped name; with --from [the other run's].")
    ] = "",
    data: Annotated[Path | None, typer.Option(help="Folder of shards [built from the recipe's data.recipe].")] = None,
    origin: Annotated[
        str, typer.Option("--from", metavar="RUN@STEP", help="Begin with the checkpoint of another run; see below.")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="Folder of the run [artefacts/runs/NAME].")] = None,
    workers: Workers = 0,
    settings: Set = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train a model, or go on where the run stands; under torchrun on several GPUs or machines.

    With --from RUN@STEP a new run goes on from a checkpoint of another with a learning rate, batch or schedule of its
    own: weights and optimizer state are kept, steps count on, and each next row is read once.

    Example: `mobillama train recipes/train/mini-amber.toml`

    Example: `mobillama train mini-amber --data SHARDS --out RUN --set train.steps=50`

    Example: `mobillama train --from artefacts/runs/mini-amber@1000 --out BRANCH --set train.learning_rate=1e-4`

    Example: `torchrun --nproc-per-node=8 --no-python mobillama train mini-amber --data SHARDS --out RUN`
    """
    from mobillama.config import TrainRecipe, read_recipe

    if not recipe and not origin:
        raise InputError("give a train recipe (a .toml file or a shipped name), or --from RUN@STEP to branch off a run")
    resolved = read_recipe(TrainRecipe, recipe, settings or ()) if recipe else None
    parent = None
    if origin:
        from mobillama.train.branch import branch_recipe, read_origin

        if out is None:
            raise InputError("--from needs --out: the folder of the new run")
        parent = read_origin(origin, out)
        known = out if (out / "run.json").is_file() else Path(parent.run)
        resolved = branch_recipe(known, resolved, settings or ())
    assert resolved
    if dry_run:
        show_recipe(resolved)
        return
    from mobillama.train import loop
    from mobillama.train.world import read_world

    world = read_world()
    if parent and not data:
        from mobillama.data.reading import open_reading

        shards = open_reading(known).folder
    else:
        shards = data or shards_of(resolved, workers, build=world.size == 1)
    out = out or Path("artefacts/runs") / resolved.name
    result = loop.train(resolved, shards, out, parent=parent)
    if world.is_main:
        page = write_page(out)
        lines = [str(out), f"model {result['model']}" if result["finished"] else "", f"page {page}" if page else ""]
        show({**result, "page": page}, as_json, "\n".join(filter(None, lines)))
    if not result["finished"]:
        raise typer.Exit(130)


def write_page(run: Path) -> str | None:
    """The page of a run, or None (and a word on stderr) where the library that pages need is not installed."""
    from mobillama.report.page import write_run_page

    try:
        return str(write_run_page(run, run / "index.html"))
    except MissingExtraError as error:
        print(f"no page was written: {error}", file=sys.stderr)
        return None


def shards_of(recipe: Any, workers: int, *, build: bool = True) -> Path:
    """The shards a train recipe names, built first if they are not there; without `build` that is an InputError."""
    from mobillama.config import DataRecipe, read_recipe

    if recipe.data.shards:
        return Path(recipe.data.shards)
    if not recipe.data.recipe:
        raise InputError(f"recipe {recipe.name!r} names no data; give a folder of shards with --data SHARDS")
    data = read_recipe(DataRecipe, recipe.data.recipe)
    shards = Path("artefacts/shards") / data.name
    if not shards.exists() and not build:
        raise InputError(
            f"{shards} is not there, and several processes do not build shards together; build it first: "
            f"mobillama data build {recipe.data.recipe} --out {shards}"
        )
    if not shards.exists():
        from mobillama.data.build import build_shards

        build_shards(data, shards, workers=workers)
    return shards
