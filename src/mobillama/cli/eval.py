"""`mobillama eval`, `perplexity` and `memorisation`: what a model can do, and what it can say by heart."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mobillama.cli.app import Json, app, show
from mobillama.errors import InputError, printable

if TYPE_CHECKING:
    from mobillama.eval.checkpoints import Stand
    from mobillama.eval.subject import Subject

Model = Annotated[str, typer.Argument(help="A model folder, a run, a hub name, or a .gguf file.")]
Bos = Annotated[bool | None, typer.Option("--bos/--no-bos", help="Put <s> before every text [as the tokenizer says].")]
Backend = Annotated[str, typer.Option(help="auto, torch, transformers or engine.")]
Device = Annotated[str, typer.Option(help="auto, cuda, mps or cpu.")]
Dtype = Annotated[str, typer.Option(help="auto, bfloat16 or float32.")]
Threads = Annotated[int, typer.Option(min=0, help="0 = one per core.")]
IgnoreKey = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="Of a .gguf file: compute without this key; several times.")
]


@app.command("eval")
def evaluate(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    suite: Annotated[str, typer.Option(help="paper9, table5, quick, or the path of a suite.")] = "quick",
    data: Annotated[Path | None, typer.Option(help="Folder with one folder a benchmark [the hub].")] = None,
    shards: Annotated[
        Path | None, typer.Option(help="Shards MODEL was trained on, if they were moved [where they were, or beside].")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Most items of each task, a fixed sample; 0 = the suite's.")] = 0,
    bos: Bos = None,
    empty: Annotated[str | None, typer.Option(help="What stands for an empty context: bos or eos [bos].")] = None,
    backend: Backend = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = 0,
    ignore_key: IgnoreKey = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Run code that the suite brings or names; read it first.")
    ] = False,
    share: Annotated[
        str, typer.Option(metavar="K/N", help="Only the K-th of N equal shares; the last to finish merges all.")
    ] = "",
    every: Annotated[
        int, typer.Option(min=0, help="MODEL is a run: its checkpoints, one every so many steps (1 = all).")
    ] = 0,
    follow: Annotated[bool, typer.Option("--follow", help="With --every: wait for more until the run ends.")] = False,
    as_json: Json = False,
) -> None:
    """Score a model on a suite of benchmarks, with standard errors; an interrupted evaluation goes on.

    Under torchrun the same command splits the items over its processes. With --every: results of each checkpoint,
    curves of each benchmark over tokens, and a page.

    Example: `mobillama eval artefacts/runs/mini-amber --suite quick --data shared/benchmarks --out artefacts/quick`

    Example: `mobillama eval artefacts/runs/mini-amber --every 1000 --data shared/benchmarks --out artefacts/curves`
    """
    check_choices(empty, backend, share, every, follow)
    if every and ignore_key:
        raise InputError("--ignore-key is about a .gguf file, and --every about a run; leave one of them out")
    from mobillama.eval import evaluation, ranks

    if data is not None:
        from mobillama.eval.data import stay_offline

        stay_offline()  # before anything imports the hub's client
    chosen = read_share(share) if share else ranks.torchrun_share()
    choices = evaluation.Choices(data, limit, bos, empty, chosen or (0, 1), allow_code, shards)
    if every:
        if chosen:
            raise InputError("--every evaluates in one process; start it without torchrun")

        def evaluate_one(stand: Stand, folder: Path) -> dict[str, Any]:
            opened = open_stand(stand, model, device, dtype, threads, shards)
            return evaluation.evaluate(opened, suite, folder, choices, show_items, again=True)

        show_run(Path(model), out, every, evaluate_one, follow, as_json)
        return
    if chosen and not share:
        from mobillama.device import cores

        device, threads = ranks.place_of_rank(device, threads, cores())
    opened = opener(model, backend, device, dtype, threads, ignore_key)
    if chosen is None:
        result = evaluation.evaluate(opened, suite, out, choices, show_items)
    else:
        result = ranks.evaluate_share(
            lambda folder: evaluation.evaluate(opened, suite, folder, choices, show_items, again=True), out, *chosen
        )
        if "waits_for" in result:
            others = f"; waits for {', '.join(result['waits_for'])}" if result["waits_for"] else ""
            print(f"share {chosen[0] + 1} of {chosen[1]} is done: {result['out']}{others}", file=sys.stderr)
            if not share:
                return  # under torchrun one process speaks for all
    from mobillama.eval.scores import table

    show(result, as_json, f"{table(result)}\n{result['out']}")


@app.command()
def perplexity(
    model: Model,
    of: Annotated[Path, typer.Argument(help="A text file, or a folder of shards.")],
    rows: Annotated[int, typer.Option(min=0, help="Of shards: rows of each subset, spread evenly; 0 = all.")] = 0,
    split: Annotated[str, typer.Option(help="Of shards: validation or train.")] = "validation",
    bos: Bos = None,
    backend: Backend = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = 0,
    ignore_key: IgnoreKey = None,
    as_json: Json = False,
) -> None:
    """Perplexity and bits per byte of a text file, or of held-out rows, subset by subset.

    Example: `mobillama perplexity artefacts/runs/mini-amber README.md`

    Example: `mobillama perplexity artefacts/runs/mini-amber artefacts/shards/mini-amber --rows 8`
    """
    check_backend(backend)
    if split not in ("validation", "train"):
        raise InputError(f"--split {split}; expected validation or train")
    from mobillama.eval import perplexity as measured

    if not of.exists():
        raise InputError(f"{of} is not there; expected a text file or a folder of shards")
    if of.is_dir():
        if bos:
            raise InputError("rows of shards are read as they lie there, without <s>; leave --bos out")
        from mobillama.data.shards import read_shards

        shards = read_shards(of)
        subject = opener(model, backend, device, dtype, threads, ignore_key)()
        same_tokenizer(subject, shards)
        which: Literal["validation", "train"] = "train" if split == "train" else "validation"
        found = measured.score_rows(subject.scorer, shards, which, rows)
    else:
        if rows or split != "validation":
            raise InputError(f"--rows and --split have no effect on {of}, which is a file; leave them out")
        from mobillama.eval.adapter import Adapter

        try:
            text = of.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{of} is not UTF-8 text ({error}); convert it first") from None
        subject = opener(model, backend, device, dtype, threads, ignore_key)()
        adapter = Adapter(subject.scorer, subject.encoder, bos=subject.bos if bos is None else bos)
        found = {**measured.score_text(adapter, text), "bos": adapter.bos}
    result = {"model": subject.name, "made_from": subject.made_from, **ignored(subject), "of": str(of), **found}
    show(result, as_json, measured.table(found))


@app.command()
def memorisation(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    chunks: Annotated[str, typer.Option(metavar="A,B", help="Chunks of its shards, by number.")] = "0",
    samples: Annotated[int, typer.Option(min=2, help="Prompts of each chunk, and held-out ones.")] = 1000,
    model: Annotated[str, typer.Option(help="Another model or .gguf file made from the run [its last].")] = "",
    step: Annotated[int, typer.Option(min=0, help="With --model: the steps it had taken [all].")] = 0,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the run's shards [where they were, or beside the run].")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write every sample, with its document and steps, here.")] = None,
    backend: Backend = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = 0,
    ignore_key: IgnoreKey = None,
    as_json: Json = False,
) -> None:
    """How much of what it read a model says by heart: 32 tokens given, the next 32 compared, beside held-out text.

    Example: `mobillama memorisation artefacts/runs/mini-amber --chunks 0,15 --samples 200`
    """
    check_backend(backend)
    if step and not model:
        raise InputError("--step says how far --model had come; give --model too")
    if not all(part.strip().isdigit() for part in chunks.split(",")):
        raise InputError(f"--chunks {chunks}; expected numbers such as 0,15")
    from mobillama.data.reading import open_reading
    from mobillama.eval import memorisation as measured

    if not (run / "run.json").is_file():
        raise InputError(f"{run} is no run (it has no run.json); give the --out folder of a training")
    reading = open_reading(run, data)
    subject = opener(model or str(run), backend, device, dtype, threads, ignore_key)()
    same_tokenizer(subject, reading.shards)
    numbers = list(dict.fromkeys(int(part) for part in chunks.split(",")))
    known = step or subject.trained.get("step")
    found = measured.measure(subject.scorer, reading, numbers, samples, step=known, progress=show_items)
    result = {"model": subject.name, "made_from": subject.made_from, **ignored(subject), "run": str(run), **found}
    if out is not None:
        from mobillama.eval.results import write_tree

        write_tree(out, result)
    show(result, as_json, measured.table(found))


def check_choices(empty: str | None, backend: str, share: str, every: int, follow: bool) -> None:
    """Raise InputError for options of `eval` that are none, or do not go together."""
    if empty not in (None, "bos", "eos"):
        raise InputError(f"--empty {empty}; expected bos or eos")
    check_backend(backend)
    if follow and not every:
        raise InputError("--follow waits for checkpoints; say how far apart with --every")
    if every and (share or backend not in ("auto", "torch")):
        raise InputError("--every evaluates whole suites with torch; leave --share and --backend out")


def check_backend(backend: str) -> None:
    """Raise InputError for a backend there is not."""
    if backend not in ("auto", "torch", "transformers", "engine"):
        raise InputError(f"--backend {backend}; expected auto, torch, transformers or engine")


def opener(
    model: str, backend: str, device: str, dtype: str, threads: int, ignore_key: list[str] | None = None
) -> Callable[[], Subject]:
    """A function that opens the model when it is called."""

    def opened() -> Subject:
        from mobillama.eval.subject import open_subject

        subject = open_subject(
            model,
            backend=backend,  # type: ignore[arg-type]
            device=device,
            dtype=dtype,
            threads=threads,
            ignore_keys=ignore_key or (),
        )
        for key in subject.ignored_keys:
            print(f"note: {model} is computed without its key {printable(key)}", file=sys.stderr)
        return subject

    return opened


def ignored(subject: Subject) -> dict[str, list[str]]:
    """The keys of a .gguf file that a result was computed without, for its record."""
    return {"ignored_keys": list(subject.ignored_keys)} if subject.ignored_keys else {}


def open_stand(
    stand: Stand, run: str, device: str, dtype: str, threads: int, shards: Path | None = None
) -> Callable[[], Subject]:
    """As `opener`, for one state of a run: a model folder, or a checkpoint of its training."""
    if stand.is_model:
        return opener(str(stand.folder), "torch", device, dtype, threads)

    def opened() -> Subject:
        from mobillama import manifest
        from mobillama.config import TrainRecipe, resolve
        from mobillama.data.reading import open_reading
        from mobillama.device import place
        from mobillama.eval.subject import subject_of
        from mobillama.model.transformer import Transformer
        from mobillama.train.checkpoint import SavedState, read_checkpoint

        checkpoint = read_checkpoint(stand.folder)
        recipe = resolve(TrainRecipe, checkpoint.manifest.recipe, str(stand.folder))
        model, saved = Transformer(recipe.model), SavedState(checkpoint)
        model.load_state_dict({name: saved[f"model.{name}"] for name in model.state_dict()})
        words = open_reading(Path(run), shards, "--shards").folder / "tokenizer"
        origin = manifest.origin(stand.folder, checkpoint.manifest)
        return subject_of(str(stand.folder), model, words, place(device, dtype, threads), [origin], stand.folder)

    return opened


def show_run(
    run: Path,
    out: Path,
    every: int,
    evaluate_one: Callable[[Stand, Path], dict[str, Any]],
    follow: bool,
    as_json: bool,
) -> None:
    """Evaluate a run's checkpoints, with curves and a page, and show the last line of each."""
    from mobillama.eval.checkpoints import evaluate_run
    from mobillama.report.evaluation import write_curves_page
    from mobillama.report.score import unit_of, with_error

    out.mkdir(parents=True, exist_ok=True)
    curves = evaluate_run(
        run,
        out,
        every,
        evaluate_one,
        follow=follow,
        on_curves=write_curves_page,
        say=lambda words: print(words, file=sys.stderr),
    )
    lines = []
    for point in curves["points"]:
        scores = ", ".join(
            f"{row['benchmark']} {with_error(row['value'], None, unit_of(row))}" for row in point["benchmarks"]
        )
        found = point["average"]
        average = f"; average {with_error(found['value'], None, unit_of(found))}" if found else ""
        lines.append(f"step {point['step']:>8,} {point['tokens']:>14,} tokens: {scores}{average}")
    show({**curves, "page": str(out / "index.html")}, as_json, "\n".join([*lines, str(out / "index.html")]))


def same_tokenizer(subject: Subject, shards: Any) -> None:
    """Raise InputError where the model's tokenizer is known not to be that of the shards."""
    from mobillama.data.shards import require_tokenizer

    if (digest := getattr(subject.encoder, "text_digest", None)) is not None:
        require_tokenizer(shards, digest, subject.name)


def read_share(text: str) -> tuple[int, int]:
    """(rank from 0, size) of `K/N`. Error: InputError."""
    part, _, size = text.partition("/")
    if not (part.isdigit() and size.isdigit() and 1 <= int(part) <= int(size)):
        raise InputError(f"--share {text}; expected K/N with K from 1 to N, such as 2/4")
    return int(part) - 1, int(size)


def show_items(benchmark: str, done: int, total: int) -> None:
    """Show how far a benchmark is in one line on stderr; where that is no terminal, only its end."""
    if sys.stderr.isatty():
        bar = "#" * (30 * done // total)
        end = "\n" if done == total else ""
        print(f"\r{benchmark:<16} [{bar:<30}] {done:,}/{total:,}", end=end, file=sys.stderr, flush=True)
    elif done == total:
        print(f"{benchmark}: {total:,} items", file=sys.stderr)
