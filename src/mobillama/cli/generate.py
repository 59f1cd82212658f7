"""`mobillama generate`: text from a model."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, Any

import typer

from mobillama.cli.app import Json, app, show
from mobillama.cli.prompts import read_prompts
from mobillama.errors import InputError, printable


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="A model folder, a hub name, or a .gguf file.")],
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT...", help="One prompt or several; - is all of stdin.")
    ] = None,
    prompt_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="One prompt a line, instead of PROMPT; - is stdin.")
    ] = None,
    text_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="The whole file is one prompt, instead of PROMPT; - is stdin.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 = always the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Keep the k likeliest tokens; 0 = all.")] = 0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Keep the likeliest of this total share.")] = 0.95,
    repetition_penalty: Annotated[float, typer.Option(min=0.0, help="Above 1 discourages repeats.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same text.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text; may be given several times.")] = None,
    device: Annotated[str | None, typer.Option(help="Of a folder or hub name: auto, cuda, mps or cpu [auto].")] = None,
    dtype: Annotated[str | None, typer.Option(help="The same: auto, bfloat16 or float32 [auto].")] = None,
    threads: Annotated[int | None, typer.Option(min=0, help="Of a .gguf file: 0 = one per core [0].")] = None,
    kv: Annotated[str | None, typer.Option(help="The same, keys and values: f16, int8 or f32 [f16].")] = None,
    ignore_key: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="The same: compute without this key; several times.")
    ] = None,
    lookup: Annotated[int | None, typer.Option(help="The same: guess up to this many ids from repeats [0].")] = None,
    bos: Annotated[
        bool | None, typer.Option("--bos/--no-bos", help="Put <s> before the prompt [as the tokenizer says].")
    ] = None,
    as_json: Json = False,
) -> None:
    """Let a model go on from a prompt; one prompt is streamed.

    A .gguf file runs in the engine, a folder or a hub name in PyTorch. What is read from stdin or a file is UTF-8; of
    it a byte order mark and one newline at the end are left out, all other newlines are part of the prompt (lines of
    --prompt-file end with LF or CR LF).

    Example: `mobillama generate artefacts/quickstart/shared/model "def main():" --temperature 0.7 --stop "def "`

    Example: `mobillama generate artefacts/quickstart/shared.gguf "def main():" --threads 2 --kv int8`
    """
    texts = read_prompts(prompts or (), prompt_file, text_file)
    from mobillama.generation.text import ContextWarning
    from mobillama.loading import load

    given: dict[str, Any] = {"device": device, "dtype": dtype, "threads": threads, "kv": kv, "ignore_keys": ignore_key}
    loaded = load(model, **{name: value for name, value in given.items() if value is not None})
    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "stop": list(stop or ()),
        "bos": bos,
    }
    if lookup is not None:
        if "lookup" not in loaded.OWN_CHOICES:
            raise InputError(f"--lookup {lookup} was given, but {model} is no .gguf file; leave it out")
        settings["lookup"] = lookup
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", ContextWarning)
        if len(texts) == 1 and not as_json:
            print(texts[0], end="", flush=True)
            for piece in loaded.generate(texts[0], stream=True, **settings):
                print(piece, end="", flush=True)
            print()
        else:
            answers = loaded.complete(texts, **settings)
            rows = [{"prompt": one.prompt, "text": one.text, "ending": one.ending} for one in answers]
            noted = {"ignored_keys": ignore_key} if ignore_key else {}
            show(
                {"model": model, **noted, "rows": rows},
                as_json,
                "\n---\n".join(one.prompt + one.text for one in answers),
            )
    for key in ignore_key or ():
        print(f"note: {model} is computed without its key {printable(key)}", file=sys.stderr)
    for note in notes:
        print(f"note: {note.message}", file=sys.stderr)
