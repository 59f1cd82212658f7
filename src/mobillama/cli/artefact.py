"""`mobillama verify`: whether an artefact is what it promised, and whether it was made from what is at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mobillama.cli.app import Json, app, show


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="Any artefact folder, or a run.")], as_json: Json = False
) -> None:
    """Check every hash of an artefact, and what it was made from as far as that lies beside it.

    Prints its root digest, or each difference (exit status 1). Of a run: the ledger's chain, and shards, checkpoints
    and model against it; its root digest is the hash of the last line.

    Example: `mobillama verify artefacts/shards/mini-amber`
    """
    result = _run(folder) if (folder / "run.json").is_file() else _artefact(folder)
    lines = [*result["differences"], *(f"not checked: {text}" for text in result["not_checked"])]
    if result["ok"]:
        lines.append(f"{result['kind']} as promised, root digest {result['digest']}")
    show(result, as_json, "\n".join(lines))
    if not result["ok"]:
        raise typer.Exit(1)


def _artefact(folder: Path) -> dict[str, Any]:
    from mobillama import manifest

    found = manifest.read(folder)
    runs = [above for above in folder.resolve().parents[:2] if (above / "run.json").is_file()]
    wrong, not_checked = manifest.lineage(folder, *(place for run in runs for place in (run, run.parent)))
    changed = [*manifest.verified(folder, found), *wrong]
    return _result(changed, not_checked, found.digest(), found.kind)


def _run(folder: Path) -> dict[str, Any]:
    from mobillama.train.check import check_run

    found = check_run(folder)
    return _result(found.differences, found.not_checked, found.digest, "run")


def _result(differences: list[str], not_checked: list[str], digest: str, kind: str) -> dict[str, Any]:
    told = {"ok": not differences, "differences": differences, "not_checked": not_checked}
    return {**told, "digest": digest, "kind": kind}
