"""`mobillama replay`: a part of a run trained again and compared bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from mobillama.cli.app import Json, app, show


@app.command()
def replay(
    run: Annotated[Path, typer.Argument(help="A run: the --out folder of a training.")],
    first: Annotated[
        int | None,
        typer.Option("--from", min=0, help="Step of a checkpoint, 0 = initial weights [newest with steps after it]."),
    ] = None,
    last: Annotated[int | None, typer.Option("--to", min=1, help="Last step to take [the ledger's last].")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the shards [where they were, or beside the run].")
    ] = None,
    anyway: Annotated[bool, typer.Option(help="Go on although recipe or shards are not the run's.")] = False,
    as_json: Json = False,
) -> None:
    """Train steps of a run again, in memory, and compare every result and the weights bit for bit.

    Nothing is written into the run. Prints the first step and field, or tensor, that differs, and what in environment,
    code, recipe and shards is not as it was (exit status 1 if anything differs). A run of several ranks is replayed
    under torchrun with as many.

    Example: `mobillama replay artefacts/runs/mini-amber --from 5250 --to 5300`
    """
    from mobillama.train.replay import replay as train_again
    from mobillama.train.world import read_world

    found = train_again(run, first, last, data=data, anyway=anyway)
    if read_world().is_main:
        show(found, as_json, "\n".join(_lines(found)))
    if not found["ok"]:
        raise typer.Exit(1 if found["differences"] or found["inputs"] else 130)


def _lines(found: dict[str, Any]) -> Iterator[str]:
    yield from (f"changed: {text}" for text in found["inputs"])
    yield from map(_difference, found["differences"])
    yield from map(_environment, found["environment"])
    yield from (f"not compared: {text}" for text in found["not_compared"])
    compared = ", ".join(f"{count} {kind}" for kind, count in found["compared"].items())
    steps = f"steps {found['from'] + 1} to {found['reached']}"
    if found["ok"]:
        yield f"{steps} repeated bit for bit ({compared})"
    elif found["reached"] < found["to"]:
        yield f"stopped after step {found['reached']} of {found['to']}; compared so far: {compared}"
    else:
        yield f"{steps} were taken and compared ({compared})"
    if found["differences"] and not found["deterministic"]:
        yield "the run was trained with train.deterministic = false: its bits need not repeat"


def _environment(each: dict[str, Any]) -> str:
    text = f"environment: {each['key']} is {each['here']!r}; it was {each['run']!r} in the run"
    return f"{text}; changed: {', '.join(each['files'])}" if each.get("files") else text


def _difference(each: dict[str, Any]) -> str:
    where = f"step {each['step']}: {each['kind']}"
    if each["kind"] != "state":
        more = f", and in {each['lines'] - 1} later lines" if each["lines"] > 1 else ""
        return f"{where} {each['field']} is {each['found']!r}, expected {each['expected']!r}{more}"
    where = f"step {each['step']}: checkpoint {each['field']}"
    if "damaged" in each:
        return f"{where} was not compared: {each['damaged']}"
    where += f" differs in {each['tensors']} of {each['of_tensors']} tensors, first {each['tensor']}"
    if "only_in" in each:
        return f"{where}, which only {each['only_in']} has"
    if "found" in each:
        return f"{where}: {each['found']}, expected {each['expected']}"
    return f"{where}: {each['elements']} of {each['of']} numbers, by {each['largest']} at most"
