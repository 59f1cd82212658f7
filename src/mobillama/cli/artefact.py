"""`mobillama verify`: whether an artefact is what it promised."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobillama.cli.app import Json, app, show


@app.command()
def verify(folder: Annotated[Path, typer.Argument(help="Any artefact folder.")], as_json: Json = False) -> None:
    """Check every hash of an artefact; prints its root digest, or each file that changed (exit status 1).

    Example: `mobillama verify artefacts/shards/mini-amber`
    """
    from mobillama import manifest

    found = manifest.read(folder)
    changed = manifest.differences(folder)
    result = {"ok": not changed, "differences": changed, "digest": found.digest(), "kind": found.kind}
    show(result, as_json, "\n".join(changed) or f"{found.kind} as promised, root digest {found.digest()}")
    if changed:
        raise typer.Exit(1)
