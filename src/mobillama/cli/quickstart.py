"""`mobillama quickstart`: the whole chain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobillama.cli.app import Json, app, show


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for everything it makes.")] = Path("artefacts/quickstart"),
    as_json: Json = False,
) -> None:
    """The whole chain on text found on this machine: corpus, tokenizer, shards, two models, one page.

    Nothing is downloaded. A second run reuses what is there.

    Example: `mobillama quickstart`
    """
    from mobillama import quickstart as chain

    result = chain.run(out)
    show(result, as_json, str(result["page"]))
