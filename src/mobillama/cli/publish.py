"""`mobillama publish`: checkpoints as hub revisions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mobillama.cli.app import Json, app, show


@app.command()
def publish(
    run: Annotated[Path, typer.Argument(help="Folder of a run that published checkpoints.")],
    repo: Annotated[str, typer.Option(help="The model on the hub: owner/name; made if it is not there.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Upload a run's published checkpoints (ckpt_000, ...) as revisions of a hub model; main is the newest.

    What is there already is not sent again. Log in with `hf auth login` first.

    Example: `mobillama publish artefacts/runs/mini-amber --repo owner/mini-amber --dry-run`
    """
    from mobillama.export.publish import publish_run

    result = publish_run(run, repo, dry_run=dry_run, on_revision=lambda words: print(words, file=sys.stderr))
    sent = [entry["revision"] for entry in result["revisions"] if entry["sent"]]
    verb = "would be sent" if dry_run else "sent"
    show(result, as_json, f"{repo}: {verb}: {', '.join(sent) or 'nothing, all is there'}")
