"""`mobillama compare`: results beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobillama.cli.app import Json, app, show
from mobillama.errors import InputError


@app.command()
def compare(
    results: Annotated[list[Path], typer.Argument(help="Folders of results, one a model, of the same suite and data.")],
    names: Annotated[str, typer.Option(metavar="A,B", help="What to call the models [as in the results].")] = "",
    published: Annotated[
        list[int] | None, typer.Option(metavar="TABLE", help="Set the paper's Table 4 or 9 beside; may be repeated.")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="markdown or latex, on stdout.")] = "markdown",
    html: Annotated[Path | None, typer.Option(help="Write a page to this file as well.")] = None,
    as_json: Json = False,
) -> None:
    """Set models side by side: scores with standard errors, and how sure each difference is, on the same items.

    Example: `mobillama compare artefacts/results/shared artefacts/results/dense --published 4`
    """
    from mobillama.eval.comparison import compare as compare_results
    from mobillama.eval.published import published_rows
    from mobillama.report.comparison import FORMS, write_comparison_page

    if form not in FORMS:
        raise InputError(f"--format {form}; expected one of {', '.join(FORMS)}")
    found = compare_results(results, [name.strip() for name in names.split(",")] if names else [])
    found["published"] = published_rows(published or ())
    if html is not None:
        write_comparison_page(found, html)
    show(found, as_json, FORMS[form](found))
