"""`mobillama data`: shards from raw text, and looks into them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobillama.cli.app import DryRun, Json, Set, Workers, data_app, show, show_recipe


@data_app.command("build")
def data_build(
    recipe: Annotated[str, typer.Argument(help="A data recipe: a .toml file or a shipped name.")],
    out: Annotated[Path | None, typer.Option(help="Folder of shards to write [artefacts/shards/NAME].")] = None,
    workers: Workers = 0,
    settings: Set = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Ingest, clean, deduplicate, tokenise and pack documents into shards.

    The same recipe gives the same bytes on any number of workers; after a kill, the same command goes on.

    Example: `mobillama data build mini-amber --set source.root=corpora --set tokenizer.root=tokenizer`
    """
    from mobillama.config import DataRecipe, read_recipe

    resolved = read_recipe(DataRecipe, recipe, settings or ())
    if dry_run:
        show_recipe(resolved)
        return
    from mobillama import manifest
    from mobillama.data.build import build_shards

    out = out or Path("artefacts/shards") / resolved.name
    made = build_shards(resolved, out, workers=workers)
    result = {"shards": str(out), "digest": made.digest(), "kind": made.kind, "counts": made.counts}
    show(result, as_json, f"{out}\nroot digest {manifest.read(out).digest()}")


@data_app.command("show")
def data_show(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run, or shards read with the default seed.")],
    step: Annotated[int, typer.Option(min=1, help="Training step, counted from 1.")],
    row: Annotated[int | None, typer.Option(min=0, help="Only this row of the step.")] = None,
    as_json: Json = False,
) -> None:
    """Print what a training step read: text, source, document, licence and byte range.

    Example: `mobillama data show artefacts/runs/mini-amber --step 100 --row 0`
    """
    from mobillama.data import lookup

    rows = lookup.show(folder, step, row)
    show({"step": step, "rows": rows}, as_json, lookup.describe(rows))


@data_app.command("baseline")
def data_baseline(
    shards: Annotated[Path, typer.Argument(help="A folder of shards.")],
    rows: Annotated[int, typer.Option(min=0, help="Training rows to count; 0 = all.")] = 0,
    as_json: Json = False,
) -> None:
    """Bits per byte of a unigram and a bigram model on the held-out rows: what a model must beat.

    Example: `mobillama data baseline artefacts/shards/mini-amber`
    """
    from mobillama.data import baseline

    result = baseline.measure(shards, rows)
    lines = [
        f"{name:8} {figures['nats_per_token']:.4f} nats per token  {figures['bits_per_byte']:.4f} bits per byte"
        for name, figures in result["models"].items()
    ]
    show(result, as_json, "\n".join(lines))
