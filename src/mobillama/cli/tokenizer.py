"""`mobillama tokenizer`: train or convert one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mobillama.cli.app import Json, show, tokenizer_app


@tokenizer_app.command("train")
def tokenizer_train(
    corpus: Annotated[Path, typer.Argument(help="A corpus artefact, or a text file with one document a line.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    vocab_size: Annotated[int, typer.Option(min=300, help="Pieces, bytes and control tokens included.")] = 4096,
    as_json: Json = False,
) -> None:
    """Train a byte-fallback BPE on a corpus.

    Example: `mobillama tokenizer train artefacts/shards/mini-amber-corpus --out artefacts/tokenizer --vocab-size 4096`
    """
    from mobillama.data.corpus import read_texts
    from mobillama.tokenizer.tokenizer import train

    made = train(read_texts(corpus), vocab_size)
    save_tokenizer(made, out, as_json)


@tokenizer_app.command("convert")
def tokenizer_convert(
    model: Annotated[Path, typer.Argument(help="A SentencePiece .model file, such as LLaMA's.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    as_json: Json = False,
) -> None:
    """Convert a SentencePiece BPE model to tokenizer.json; ids equal SentencePiece's on every string.

    Example: `mobillama tokenizer convert tokenizer.model --out artefacts/tokenizer`
    """
    from mobillama.tokenizer.tokenizer import convert

    save_tokenizer(convert(model), out, as_json)


def save_tokenizer(tokenizer: Any, out: Path, as_json: bool) -> None:
    """Seal a tokenizer as an artefact and print where it is."""
    from mobillama import manifest

    with manifest.building(out) as partial:
        tokenizer.save(partial)
        made = manifest.seal(partial, out, "tokenizer", counts={"vocab_size": tokenizer.vocab_size})
    result = {"tokenizer": str(out), "vocab_size": tokenizer.vocab_size, "digest": made.digest()}
    show(result, as_json, f"{out}: {tokenizer.vocab_size} pieces")
