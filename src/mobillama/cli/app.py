"""The application, its groups of commands, options that several commands take, and how results are shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

import mobillama
from mobillama.cli.output import STDOUT, to_json
from mobillama.errors import naming

if TYPE_CHECKING:
    from mobillama.config import Section

app = typer.Typer(
    name="mobillama",
    help="Small language models with one shared feed-forward network: from raw text to an answer on your own device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(no_args_is_help=True, help="Build shards from raw text and look into them.")
tokenizer_app = typer.Typer(no_args_is_help=True, help="Train a byte-fallback BPE or convert a SentencePiece model.")
model_app = typer.Typer(no_args_is_help=True, help="Look at a preset or a model.")
bench_app = typer.Typer(no_args_is_help=True, help="Measure speed and memory side by side with peers, on this machine.")
app.add_typer(data_app, name="data")
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(model_app, name="model")
app.add_typer(bench_app, name="bench")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and stop.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c", help="Override a field of the recipe.")]
Workers = Annotated[int, typer.Option(min=0, help="Worker processes; 0 = one per core.")]


def show(result: dict[str, Any], as_json: bool, text: str) -> None:
    """Print a command's result: one JSON object, or words."""
    with naming(STDOUT):
        print(to_json(result) if as_json else text)


def show_recipe(recipe: Section, **more: Any) -> None:
    """Print a resolved recipe and its digest, and what else is known before anything runs."""
    print(json.dumps({"recipe": recipe.tree(), "digest": recipe.digest(), **more}, indent=1))


def show_progress(what: str) -> Callable[[float], None]:
    """A function that shows a share from 0 to 1 in one line on stderr; nothing where stderr is no terminal."""

    def progress(share: float) -> None:
        if sys.stderr.isatty():
            print(f"\r{what} {share:4.0%}", end="" if share < 1 else "\n", file=sys.stderr, flush=True)

    return progress


def version(value: bool) -> None:
    """Print the version and stop."""
    if value:
        print(mobillama.__version__)
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass
