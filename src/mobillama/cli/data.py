"""`mobillama data`: shards from raw text, and looks into them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mobillama.cli.app import DryRun, Json, Set, Workers, data_app, show, show_recipe
from mobillama.cli.short import show_rows

if TYPE_CHECKING:
    from mobillama.config import DataRecipe
    from mobillama.data.sources import Unread


@data_app.command("build")
def data_build(
    recipe: Annotated[str, typer.Argument(help="A data recipe: a .toml file or a shipped name.")],
    out: Annotated[
        str,
        typer.Option(help="Folder of shards to write, or address (s3://...) to send them to [artefacts/shards/NAME]."),
    ] = "",
    workers: Workers = 0,
    executor: Annotated[
        Literal["local", "ray", "slurm"], typer.Option(help="Where the tasks run: this machine, or a cluster.")
    ] = "local",
    executor_options: Annotated[
        list[str] | None,
        typer.Option(
            "--executor-option",
            metavar="key=value",
            help="ray: address, cpus, memory (GB a task), retries. slurm: partition (needed), time, cpus, memory "
            "(GB a CPU), qos, setup, max_array, tasks_per_job, srun, poll, sbatch.NAME.",
        ),
    ] = None,
    settings: Set = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Ingest, clean, deduplicate, tokenise and pack documents into shards.

    The same recipe gives the same bytes on any number of workers and machines; after a kill, the same command goes on.
    Files below the source that are of another kind are counted and shown, by --dry-run too.
    On a cluster --out must lie where every node sees it, under the same path.

    Example: `mobillama data build mini-amber --set source.root=corpora --set tokenizer.root=tokenizer`
    """
    from mobillama.config import DataRecipe, read_recipe

    resolved = read_recipe(DataRecipe, recipe, settings or ())
    if dry_run:
        show_recipe(resolved, files=list_files(resolved))
        return
    from mobillama.data.bad_records import describe_bad
    from mobillama.data.build import build_shards
    from mobillama.data.executor import make_executor, read_pairs
    from mobillama.data.publish import build_at, local_folder
    from mobillama.data.remote import is_remote, local_path
    from mobillama.data.sources import describe_unread

    where = make_executor(executor, workers, read_pairs(executor_options or ()))
    if is_remote(out):
        made = build_at(resolved, out, executor=where)
        folder = local_folder(out)
    else:
        folder = Path(local_path(out) or Path("artefacts/shards") / resolved.name)
        made = build_shards(resolved, folder, executor=where)
    page = write_page(folder) if folder.is_dir() else None
    counts = corpus_counts(folder)
    result = {
        "shards": out or str(folder),
        "digest": made.digest(),
        "kind": made.kind,
        "counts": made.counts,
        "page": page,
        "unread": counts.get("unread", {}),
        "bad_records": counts.get("bad_records", {}),
    }
    unread = describe_unread(result["unread"])
    bad = f"bad records, dropped: {describe_bad(result['bad_records'])}" if result["bad_records"] else ""
    waste = f"packing wastes {made.counts['train']['waste']:.2%} of the training tokens"
    lines = [
        out or str(folder),
        f"root digest {made.digest()}",
        waste,
        unread,
        bad,
        f"page {page}" if page else "",
    ]
    show(result, as_json, "\n".join(filter(None, lines)))


def list_files(recipe: DataRecipe) -> dict[str, Any]:
    """Which files a recipe would read, and what lies beside them; where that cannot be told, `why`."""
    from mobillama.data.remote import is_remote
    from mobillama.data.sources import recipe_tasks
    from mobillama.errors import MobillamaError

    sources = [recipe.source, *(subset.source for subset in recipe.subset.values() if subset.source)]
    if any(is_remote(address) for source in sources for address in (source.root, source.url_list)):
        return {"why": "files behind addresses are listed when they are read; `mobillama plan` asks for them now"}
    unread: Unread = {}
    try:
        tasks = recipe_tasks(recipe, unread)
    except MobillamaError as error:
        return {"why": str(error)}
    stamps = [stamp for task in tasks for stamp in task.stamps]
    return {"read": len(stamps), "bytes": sum(int(stamp.partition(":")[0]) for stamp in stamps), "unread": unread}


def corpus_counts(shards: Path) -> dict[str, Any]:
    """The counts of the corpus beside shards; none where it does not lie there."""
    from mobillama import manifest
    from mobillama.data.build import corpus_folder

    corpus = corpus_folder(shards)
    return manifest.read(corpus, "corpus").counts if corpus.is_dir() else {}


@data_app.command("page")
def data_page(
    shards: Annotated[Path, typer.Argument(help="A folder of shards; its corpus is looked for beside it.")],
    out: Annotated[Path | None, typer.Option(help="File to write [SHARDS.html, beside the folder].")] = None,
    as_json: Json = False,
) -> None:
    """Write a page about shards and their corpus: what was dropped and why, the mix, times, digests.

    `data build` writes it at its end. It is one file that runs no script and fetches nothing.

    Example: `mobillama data page artefacts/shards/mini-amber`
    """
    from mobillama.report.data import write_data_page

    page = write_data_page(shards, out)
    show({"page": str(page)}, as_json, str(page))


def write_page(shards: Path) -> str | None:
    """The page of shards, or None (and a word on stderr) where the library that pages need is not installed."""
    from mobillama.errors import MissingExtraError
    from mobillama.report.data import write_data_page

    try:
        return str(write_data_page(shards))
    except MissingExtraError as error:
        print(f"no page was written: {error}", file=sys.stderr)
        return None


MovedShards = Annotated[
    Path | None, typer.Option(help="Folder of the run's shards [where they were, or beside the run].")
]


@data_app.command("show")
def data_show(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run, or shards read with the default seed.")],
    step: Annotated[int, typer.Option(min=1, help="Training step, counted from 1.")],
    row: Annotated[int | None, typer.Option(min=0, help="Only this row of the step.")] = None,
    data: MovedShards = None,
    as_json: Json = False,
) -> None:
    """Print what a training step read: text, source, document, licence and byte range.

    Example: `mobillama data show artefacts/runs/mini-amber --step 100 --row 0`
    """
    show_rows(folder, step, row, as_json, data)


@data_app.command("find")
def data_find(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run, or shards read with the default seed.")],
    document: Annotated[str | None, typer.Option(metavar="ID", help="The id of a document.")] = None,
    text: Annotated[str | None, typer.Option(help="Any piece of a document, cut anywhere.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Occurrences of the text to show; the rest are counted.")] = 20,
    corpus: Annotated[Path | None, typer.Option(help="The shards' corpus [beside them]; for --text.")] = None,
    data: MovedShards = None,
    as_json: Json = False,
) -> None:
    """Print every step that read a document or a text, and what of it no step read.

    Example: `mobillama data find artefacts/runs/mini-amber --text "call me Ishmael. Some years ago"`
    """
    from mobillama.data import find
    from mobillama.errors import InputError

    if (document is None) == (text is None):
        raise InputError("give either --document ID or --text TEXT: what is to be found")
    if document is not None:
        if corpus:
            raise InputError("--corpus is where --text is searched; leave it out with --document")
        found = find.find_document(folder, document, data=data)
    else:
        found = find.find_text(folder, text or "", limit=limit, corpus=corpus, data=data)
    show(found, as_json, find.describe(found))


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
        f"{name:8} {figures['nats_per_token']:.4f} nats per token"
        + ("" if figures["bits_per_byte"] is None else f"  {figures['bits_per_byte']:.4f} bits per byte")
        for name, figures in result["models"].items()
    ]
    show(result, as_json, "\n".join(lines))


@data_app.command("import")
def data_import(
    files: Annotated[list[Path], typer.Argument(help="train_000.jsonl (.gz, .zst), ..., or folders that hold them.")],
    out: Annotated[Path, typer.Option(help="Folder of shards to write.")],
    vocab_size: Annotated[int, typer.Option(min=1, help="Ids in the vocabulary of the files.")] = 32000,
    seq_len: Annotated[int, typer.Option(min=1, help="Positions trained per row: one less than ids in a line.")] = 2048,
    validation: Annotated[list[Path] | None, typer.Option(help="File of held-out rows; may be repeated.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of the tokenizer, for bytes of text and models.")
    ] = None,
    workers: Workers = 0,
    as_json: Json = False,
) -> None:
    """Make shards of Amber's own files, one chunk a file, in the order of the numbers in their names.

    Every id is checked. After a kill, the same command goes on. Without --tokenizer, bits per byte are not known.

    Example: `mobillama data import AmberDatasets/train --out artefacts/shards/amber --tokenizer tokenizer`
    """
    from mobillama.data.amber_import import import_amber

    made = import_amber(
        files,
        out,
        vocab_size=vocab_size,
        seq_len=seq_len,
        validation=validation or (),
        tokenizer=tokenizer,
        workers=workers,
    )
    counts, seconds = made.counts, made.circumstance["seconds"]
    tokens = counts["train"]["tokens"] + counts["validation"]["tokens"]
    held_out = counts["validation_rows"]
    lines = [
        f"{out}\nroot digest {made.digest()}",
        f"{counts['train_rows']:,} rows in {counts['chunks']} chunks, {held_out or 'no'} held-out rows"
        + ("" if held_out else " (give them with --validation)"),
        f"{tokens / max(sum(seconds.values()), 1e-9):,.0f} tokens/s",
    ]
    show({"shards": str(out), "digest": made.digest(), "counts": counts, "seconds": seconds}, as_json, "\n".join(lines))


@data_app.command("export")
def data_export(
    shards: Annotated[Path, typer.Argument(help="A folder of shards.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    compress: Annotated[str, typer.Option(help="gz or zst; nothing = plain .jsonl.")] = "",
    workers: Workers = 0,
    as_json: Json = False,
) -> None:
    """Write shards in Amber's own form: train_000.jsonl, ... and valid.jsonl, a row a line.

    After a kill, the same command goes on.

    Example: `mobillama data export artefacts/shards/mini-amber artefacts/amber --compress zst`
    """
    from mobillama.data.amber_export import export_amber

    made = export_amber(shards, out, compress=compress, workers=workers)
    seconds = made.circumstance["seconds"]
    speed = f"{made.counts['tokens'] / max(sum(seconds.values()), 1e-9):,.0f} tokens/s"
    result = {"folder": str(out), "digest": made.digest(), "counts": made.counts, "seconds": seconds}
    show(result, as_json, f"{out}\nroot digest {made.digest()}\n{made.counts['train_rows']:,} rows, {speed}")
