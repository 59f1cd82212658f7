"""`mobillama verify`: whether an artefact is what it promised, and whether it was made from what is at hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from mobillama.cli.app import Json, app, show, show_progress
from mobillama.errors import InputError
from mobillama.runtime.gguf_file import is_gguf


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="Any artefact folder, a run, or a GGUF file.")],
    model: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Of a GGUF file: what it was made from, as quantize took it.")
    ] = None,
    importance: Annotated[
        Path | None, typer.Option(metavar="SHARDS", help="Of a GGUF file: the shards it was calibrated with.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Of a GGUF file: the tokenizer put inside [the model's own].")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check every hash of an artefact, and what it was made from as far as that lies beside it.

    Prints its root digest, or each difference (exit status 1). Of a run: the ledger's chain, and shards, checkpoints
    and model against it; its root digest is the hash of the last line. Of a GGUF file that quantize wrote: the model's
    weights are rounded again with the file's own types, and every tensor's bytes and every key compared.

    Example: `mobillama verify artefacts/shards/mini-amber`

    Example: `mobillama verify shared.gguf --model artefacts/quickstart/shared/model`
    """
    if is_gguf(folder):
        if model is None:
            raise InputError(
                f"{folder} is a GGUF file, which is checked against the model it was made from: give --model FOLDER"
            )
        _gguf(folder, model, importance, tokenizer, as_json)
        return
    if any(given is not None for given in (model, importance, tokenizer)):
        raise InputError(
            f"{folder} is no GGUF file; --model, --importance and --tokenizer are for those: leave them out"
        )
    result = _run(folder) if (folder / "run.json").is_file() else _artefact(folder)
    lines = [*result["differences"], *(f"not checked: {text}" for text in result["not_checked"])]
    if result["ok"]:
        lines.append(f"{result['kind']} as promised, root digest {result['digest']}")
    show(result, as_json, "\n".join(lines))
    if not result["ok"]:
        raise typer.Exit(1)


def _gguf(path: Path, model: str, shards: Path | None, tokenizer: Path | None, as_json: bool) -> None:
    from mobillama.cli.model import collect_importance
    from mobillama.export.gguf_check import check_gguf

    weights = None if shards is None else collect_importance(model, shards)
    progress = show_progress(f"comparing {path}")
    found = check_gguf(path, model, importance=weights, tokenizer=tokenizer, progress=progress)
    lines = [*found.differences, *(f"not compared: {text}" for text in found.not_compared)]
    if not found.differences:
        compared = f"{found.tensors} tensors and {found.keys} keys of {path} are what quantize makes of {model}"
        lines.append(f"{compared}; the whole file is equal, byte for byte" if found.whole else compared)
    ok = not found.differences
    show({"ok": ok, **dataclasses.asdict(found), "kind": "gguf"}, as_json, "\n".join(lines))
    if not ok:
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
