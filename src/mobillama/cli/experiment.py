"""`mobillama experiment`: the science of sharing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobillama.cli.app import Json, app, show


@app.command()
def experiment(
    name: Annotated[str, typer.Argument(help="table5, sharing or init.")],
    scale: Annotated[float, typer.Option(help="Widths times this, steps times its square.")] = 1.0,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each arm, each on an order of its own.")] = 3,
    data: Annotated[Path | None, typer.Option(help="Folder of shards [built from data recipe mini-amber-2k].")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the experiment [artefacts/experiments/NAME].")] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Trainings at once, a thread each; 0 = one per core.")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Measure, print the plan with its hours and stop.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train many small models, compare them pair by pair, and say what was found, or go on where it stands.

    table5: one FFN for all layers against dense models of the same size. sharing: how many FFN blocks, adapters, gains.
    init: how a shared FFN begins, and how it is trained.

    Example: `mobillama experiment table5`

    Example: `mobillama experiment sharing --seeds 5 --out artefacts/experiments/sharing-5`
    """
    from mobillama import experiment as experiments

    experiments.require_name(name)
    shards = data or experiments.build_data(Path("artefacts/shards"))
    result = experiments.run(
        name,
        shards,
        out or Path("artefacts/experiments") / name,
        scale=scale,
        seeds=seeds,
        jobs=jobs,
        dry_run=dry_run,
    )
    show(result, as_json, "" if dry_run else result["page"])
