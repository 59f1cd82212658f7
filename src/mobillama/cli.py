"""The command line: one verb per stage. The only reader of argv; every command imports what it needs when it runs.

Results go to stdout (with `--json` as one JSON object), progress and words to stderr. Errors of mobillama.errors are
printed without a traceback and exit with status 2.
"""

from __future__ import annotations

import errno
import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import mobillama
from mobillama.errors import InputError, MissingExtraError, MobillamaError, missing_extra

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


def main() -> None:
    """Run the command line and turn errors a user can mend into one message and exit status 2."""
    try:
        app()
    except MobillamaError as error:
        fail(str(error))
    except ModuleNotFoundError as error:
        extra = EXTRA_OF.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        fail(str(missing_extra(extra, error)))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            fail(
                f"no room to write {error.filename or 'a file'} ({error.strerror}); nothing finished was lost: "
                "free some space and run the same command again"
            )
        raise
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        sys.exit(130)


EXTRA_OF = {
    "torch": "train",
    "safetensors": "train",
    "tensorboard": "train",
    "datatrove": "data",
    "orjson": "data",
    "pyarrow": "data",
    "sentencepiece": "data",
    "zstandard": "data",
    "transformers": "hf",
    "huggingface_hub": "hf",
    "jinja2": "report",
}


def fail(message: str) -> None:
    """Print an error in the user's words and exit with status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def show(result: dict[str, Any], as_json: bool, text: str) -> None:
    """Print a command's result: one JSON object, or words."""
    print(json.dumps(result, ensure_ascii=False) if as_json else text)


def show_recipe(recipe: Section) -> None:
    """Print a resolved recipe and its digest."""
    print(json.dumps({"recipe": recipe.tree(), "digest": recipe.digest()}, indent=1))


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


@data_app.command("build")
def data_build(
    recipe: Annotated[str, typer.Argument(help="A data recipe: a .toml file or a shipped name.")],
    out: Annotated[Path | None, typer.Option(help="Folder of shards to write [artefacts/shards/NAME].")] = None,
    workers: Workers = 0,
    settings: Set = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Ingest, clean, deduplicate, tokenise and pack documents into shards.

    The same recipe gives the same bytes on any number of workers; after a kill, the same command goes on.

    Example: `mobillama data build mini-amber --set source.root=corpora --set tokenizer.root=tokenizer`
    """
    from mobillama.config import DataRecipe, read_recipe

    resolved = read_recipe(DataRecipe, recipe, settings or ())
    if dry_run:
        show_recipe(resolved)
        return
    from mobillama import manifest
    from mobillama.data.build import build_shards

    out = out or Path("artefacts/shards") / resolved.name
    made = build_shards(resolved, out, workers=workers)
    result = {"shards": str(out), "digest": made.digest(), "kind": made.kind, "counts": made.counts}
    show(result, as_json, f"{out}\nroot digest {manifest.read(out).digest()}")


@data_app.command("show")
def data_show(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run, or shards read with the default seed.")],
    step: Annotated[int, typer.Option(min=1, help="Training step, counted from 1.")],
    row: Annotated[int | None, typer.Option(min=0, help="Only this row of the step.")] = None,
    as_json: Json = False,
) -> None:
    """Print what a training step read: text, source, document, licence and byte range.

    Example: `mobillama data show artefacts/runs/mini-amber --step 100 --row 0`
    """
    from mobillama.data import lookup

    rows = lookup.show(folder, step, row)
    show({"step": step, "rows": rows}, as_json, lookup.describe(rows))


@data_app.command("baseline")
def data_baseline(
    shards: Annotated[Path, typer.Argument(help="A folder of shards.")],
    rows: Annotated[int, typer.Option(min=0, help="Training rows to count; 0 = all.")] = 0,
    as_json: Json = False,
) -> None:
    """Bits per byte of a unigram and a bigram model on the held-out rows: what a model must beat.

    Example: `mobillama data baseline artefacts/shards/mini-amber`
    """
    from mobillama.data import baseline

    result = baseline.measure(shards, rows)
    lines = [
        f"{name:8} {figures['nats_per_token']:.4f} nats per token  {figures['bits_per_byte']:.4f} bits per byte"
        for name, figures in result["models"].items()
    ]
    show(result, as_json, "\n".join(lines))


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


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A train recipe: a .toml file or a shipped name.")],
    data: Annotated[Path | None, typer.Option(help="Folder of shards [built from the recipe's data.recipe].")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run [artefacts/runs/NAME].")] = None,
    workers: Workers = 0,
    settings: Set = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train a model, or go on where the run stands.

    Example: `mobillama train recipes/train/mini-amber.toml`

    Example: `mobillama train mini-amber --data SHARDS --out RUN --set train.steps=50`
    """
    from mobillama.config import TrainRecipe, read_recipe

    resolved = read_recipe(TrainRecipe, recipe, settings or ())
    if dry_run:
        show_recipe(resolved)
        return
    from mobillama.train import loop

    shards = data or shards_of(resolved, workers)
    out = out or Path("artefacts/runs") / resolved.name
    result = loop.train(resolved, shards, out)
    page = write_page(out)
    lines = [str(out), f"model {result['model']}" if result["finished"] else "", f"page {page}" if page else ""]
    show({**result, "page": page}, as_json, "\n".join(filter(None, lines)))
    if not result["finished"]:
        raise typer.Exit(130)


def write_page(run: Path) -> str | None:
    """The page of a run, or None (and a word on stderr) where the library that pages need is not installed."""
    from mobillama.report.page import write_run_page

    try:
        return str(write_run_page(run, run / "index.html"))
    except MissingExtraError as error:
        print(f"no page was written: {error}", file=sys.stderr)
        return None


def shards_of(recipe: Any, workers: int) -> Path:
    """The shards a train recipe names, built first if they are not there."""
    from mobillama.config import DataRecipe, read_recipe

    if recipe.data.shards:
        return Path(recipe.data.shards)
    if not recipe.data.recipe:
        raise InputError(f"recipe {recipe.name!r} names no data; give a folder of shards with --data SHARDS")
    data = read_recipe(DataRecipe, recipe.data.recipe)
    shards = Path("artefacts/shards") / data.name
    if not shards.exists():
        from mobillama.data.build import build_shards

        build_shards(data, shards, workers=workers)
    return shards


@model_app.command("info")
def model_info(
    names: Annotated[
        list[str] | None, typer.Argument(help="Presets, model recipes or model folders [all presets].")
    ] = None,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Parameters, FLOPs per token and bytes: the columns of the paper's Table 1 that follow from shapes.

    Example: `mobillama model info mobillama-0.5b large-base-1.2b`
    """
    from mobillama.config import ModelConfig, presets, read_recipe
    from mobillama.model import cost

    costs = {}
    for name in names or presets("model"):
        if Path(name).is_dir():
            from mobillama.model.weights import read_config

            costs[name] = cost.cost(read_config(Path(name)))
        else:
            costs[name] = cost.cost(read_recipe(ModelConfig, name, settings or ()))
    rows = {name: found.tree() for name, found in costs.items()}
    result = next(iter(rows.values())) if len(rows) == 1 else {"models": rows}
    show(result, as_json, cost.table(costs))


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="A model folder or a hub name.")],
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="One prompt or several.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="One prompt a line, instead of PROMPT.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 = always the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Keep the k likeliest tokens; 0 = all.")] = 0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Keep the likeliest of this total share.")] = 0.95,
    repetition_penalty: Annotated[float, typer.Option(min=0.0, help="Above 1 discourages repeats.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same text.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text; may be given several times.")] = None,
    device: Annotated[str, typer.Option(help="auto, cuda, mps or cpu.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, bfloat16 or float32.")] = "auto",
    bos: Annotated[bool, typer.Option(help="Put <s> before the prompt (the base models never saw it).")] = False,
    as_json: Json = False,
) -> None:
    """Let a model go on from a prompt; one prompt is streamed.

    Example: `mobillama generate artefacts/quickstart/shared/model "def main():" --temperature 0.7 --stop "def "`
    """
    texts = prompt_file.read_text(encoding="utf-8").splitlines() if prompt_file else list(prompts or [])
    if not texts:
        raise InputError("no prompt; give one after the model, or --prompt-file FILE with one a line")
    from mobillama.generation.text import ContextWarning
    from mobillama.loading import load

    loaded = load(model, device=device, dtype=dtype)
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
            show({"model": model, "rows": rows}, as_json, "\n---\n".join(one.prompt + one.text for one in answers))
    for note in notes:
        print(f"note: {note.message}", file=sys.stderr)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    form: Annotated[str, typer.Option("--format", help="hf (FFN once) or llama (FFN copied into every layer).")] = "hf",
    as_json: Json = False,
) -> None:
    """Write a model for other programs.

    Example: `mobillama export artefacts/quickstart/shared/model llama-folder --format llama`
    """
    from mobillama.export.folder import export_model

    export_model(model, out, form)
    show({"model": str(out), "format": form}, as_json, str(out))


Against = Annotated[str, typer.Option(help="The peer to measure beside.")]


@bench_app.command("train")
def bench_train(against: Against = "transformers", as_json: Json = False) -> None:
    """Training tokens per second, interleaved with a peer in one run.

    Example: `mobillama bench train --against transformers`
    """
    from mobillama.bench import train as bench

    show_bench(bench.measure(against=against), as_json)


@bench_app.command("data")
def bench_data(
    corpora: Annotated[Path | None, typer.Option(help="Folder of corpora [MOBILLAMA_CORPORA].")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of the tokenizer [MOBILLAMA_TOKENIZER].")] = None,
    workers: Workers = 2,
    as_json: Json = False,
) -> None:
    """Megabytes of text per second from compressed corpora to packed shards, and peak memory.

    Example: `mobillama bench data --corpora corpora --tokenizer tokenizer`
    """
    from mobillama.bench import data as bench
    from mobillama.config import external_folder

    found = external_folder("--corpora", str(corpora or ""), "MOBILLAMA_CORPORA")
    words = external_folder("--tokenizer", str(tokenizer or ""), "MOBILLAMA_TOKENIZER")
    show_bench(bench.measure(found, words, workers=workers), as_json)


def show_bench(result: dict[str, Any], as_json: bool) -> None:
    """Print a bench's rows: ours, the peer's, and their ratio where there is a peer."""
    lines = []
    for row in result["rows"]:
        line = f"{row['name']:24} {row['ours']:12,.1f} {row['unit']}"
        if row.get("peer") is not None:
            line += f"   {row['peer_name']} {row['peer']:,.1f}   ratio {row['ratio']:.3f}"
            line += f" (median of {len(row['pairs'])} pairs)"
        lines.append(line)
    lines += [f"{key}: {value}" for key, value in result.items() if key != "rows"]
    show(result, as_json, "\n".join(lines))


if __name__ == "__main__":
    main()
