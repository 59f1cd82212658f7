"""`mobillama bench`: measurements on this machine, beside peers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mobillama.cli.app import Json, Set, Workers, bench_app, show, show_progress
from mobillama.errors import InputError


@bench_app.command("train")
def bench_train(
    against: Annotated[
        str, typer.Option(help="Measure beside transformers, beside ours nondeterministic, or beside none.")
    ] = "transformers",
    recipe: Annotated[str, typer.Option(help="Train recipe to measure, with its rows [a small model].")] = "",
    preset: Annotated[str, typer.Option(help="Model preset to measure in its place, such as mobillama-0.5b.")] = "",
    rows: Annotated[int, typer.Option(min=0, help="Rows of a step [8, or the recipe's].")] = 0,
    micro_rows: Annotated[int, typer.Option(min=0, help="Rows of one pass [all of the step's, or the recipe's].")] = 0,
    seq_len: Annotated[int, typer.Option(min=0, help="Tokens of a row [the model's context].")] = 0,
    rounds: Annotated[int, typer.Option(min=0, help="Rounds to measure [9; with --overhead 3].")] = 0,
    steps: Annotated[int, typer.Option(min=0, help="Steps of each side in a round [2; with --overhead 100].")] = 0,
    ranks: Annotated[
        int, typer.Option(min=0, help="In place of speed: what so many ranks send each other in a step.")
    ] = 0,
    overhead: Annotated[
        bool, typer.Option("--overhead", help="In place of that: what ledger, digests and checkpoints cost a run.")
    ] = False,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Training tokens per second, interleaved with a peer in one run, and the share of the machine's arithmetic.

    With --ranks: collectives and bytes per step by kind, from PyTorch's profiler, on this machine's CPU. With
    --overhead: the recipe (mini-amber) with a checkpoint every 100 steps, beside its bare steps.

    Example: `mobillama bench train --against transformers`

    Example: `mobillama bench train --recipe mini-amber --against nondeterministic --rounds 5 --steps 10`

    Example: `mobillama bench train --preset mobillama-0.5b --against none --set train.deterministic=false`
    """
    from mobillama.bench import train as bench

    shape: dict[str, Any] = {"preset": preset, "rows": rows, "micro_rows": micro_rows, "seq_len": seq_len}
    if overhead:
        if ranks or any(shape.values()):
            raise InputError("--overhead measures a recipe as it is; change it with --set, not with other options")
        from mobillama.bench import train_overhead

        result = train_overhead.measure(
            recipe or train_overhead.RECIPE, rounds or 3, steps or train_overhead.EVERY, settings or ()
        )
        words = [f"{kind}: {share:.2%} of a step's time" for kind, share in result["overhead"].items()]
        limit = verdict(-result["overhead"]["asynchronous"], -result["most"], -result["most"])
        print(f"{'; '.join(words)}; at most {result['most']:.0%} in the background: {limit}", file=sys.stderr)
    elif ranks:
        from mobillama.bench import train_collectives

        result = train_collectives.measure(ranks, recipe=recipe, settings=settings or (), **shape)
    else:
        result = bench.measure(
            against=against,
            rounds=rounds or 9,
            steps_per_round=steps or 2,
            recipe=recipe,
            settings=settings or (),
            **shape,
        )
    show_bench(result, as_json)


@bench_app.command("data")
def bench_data(
    corpora: Annotated[Path | None, typer.Option(help="Folder of corpora [MOBILLAMA_CORPORA].")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of the tokenizer [MOBILLAMA_TOKENIZER].")] = None,
    against: Annotated[str, typer.Option(help="Encode and pack beside a peer: datatrove [none].")] = "",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds beside the peer.")] = 3,
    copies: Annotated[int, typer.Option(min=1, help="Make the corpora so many times larger, texts changed.")] = 1,
    workers: Workers = 2,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Megabytes of text per second from compressed corpora to packed shards, seconds of each step, peak memory.

    The peer runs from the installed package (extra `data`). Memory is that of a build of all copies.

    Example: `mobillama bench data --corpora corpora --tokenizer tokenizer --against datatrove`
    """
    from mobillama.bench import data as bench
    from mobillama.config import external_folder

    found = external_folder("--corpora", str(corpora or ""), "MOBILLAMA_CORPORA")
    words = external_folder("--tokenizer", str(tokenizer or ""), "MOBILLAMA_TOKENIZER")
    result = bench.measure(
        found, words, workers, against=against, rounds=rounds, copies=copies, settings=settings or ()
    )
    lines = [row_words(row) + data_verdict(row, result) for row in result["rows"]]
    lines += [f"{key}: {value}" for key, value in result.items() if key not in ("rows", "targets", "limits")]
    show(result, as_json, "\n".join(lines))


def data_verdict(row: dict[str, Any], result: dict[str, Any]) -> str:
    """What a row of the data bench must reach or stay below, and whether it does."""
    name, said = row["name"], ""
    if name in result["targets"]:
        must, goal = result["targets"][name]
        said += f"; must {must:,g}, goal {goal:,g}: {verdict(row['ours'], must, goal)}"
    if (ratio := f"{name} ratio") in result["targets"]:
        must, goal = result["targets"][ratio]
        said += f"; ratio must {must:g}: {verdict(row['ratio'], must, goal)}"
    if name in result["limits"]:
        most, goal = result["limits"][name]
        said += f"; at most {most:,g}: {verdict(-row['ours'], -most, -goal)}"
    return said


@bench_app.command("eval")
def bench_eval(
    against: Annotated[str, typer.Option(help="The peer to measure beside: lm_eval.")] = "lm_eval",
    data: Annotated[Path | None, typer.Option(help="Folder of the benchmarks [MOBILLAMA_BENCHMARKS].")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of the tokenizer [MOBILLAMA_TOKENIZER].")] = None,
    rows: Annotated[
        str, typer.Option(metavar="A,B", help="hellaswag, arc_challenge, mmlu, european_history [the first three].")
    ] = "",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, fewer where they would take ten minutes.")] = 3,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16 or float32, of both sides.")] = "auto",
    as_json: Json = False,
) -> None:
    """Items per second of evaluation beside lm_eval's own model class, from request strings to results.

    A dense model of 52M random weights, on this machine's CPU; the peer at its fastest batch size of 1, 4, 8 and 16.

    Example: `mobillama bench eval --against lm_eval`
    """
    from mobillama.bench import eval as bench
    from mobillama.config import external_folder

    found = external_folder("--data", str(data or ""), "MOBILLAMA_BENCHMARKS")
    words = external_folder("--tokenizer", str(tokenizer or ""), "MOBILLAMA_TOKENIZER")
    chosen = tuple(filter(None, (name.strip() for name in rows.split(","))))
    result = bench.measure(against, found, words, rows=chosen, rounds=rounds, dtype=dtype)
    lines = []
    for row in result["rows"]:
        line = row_words(row)
        if row["name"] in result["targets"]:
            must, goal = result["targets"][row["name"]]
            line += f"; must {must:g}, goal {goal:g}: {verdict(row['ratio'], must, goal)}"
        lines.append(line)
    show(result, as_json, "\n".join([*lines, *bench.words(result)]))


Rounds = Annotated[int, typer.Option(min=1, help="Clean rounds to measure.")]
Rows = Annotated[str, typer.Option(metavar="A,B", help="Only these parts; a name that is none lists all.")]
Folder = Annotated[Path, typer.Option(help="Folder of the files measured and of the results.")]
Placed = Annotated[
    Literal["any", "near", "far"], typer.Option(help="Of the cores, in which rounds count; near: they share a cache.")
]
FOLDER = Path("artefacts/bench")
Peer = Annotated[str, typer.Option(help='The peer to measure beside: llama.cpp or transformers; "" = none.')]


@bench_app.command("decode")
def bench_decode(
    against: Peer = "llama.cpp",
    rows: Rows = "",
    rounds: Rounds = 5,
    placement: Placed = "any",
    folder: Folder = FOLDER,
    as_json: Json = False,
) -> None:
    """Tokens per second of the engine beside a peer, and memory, first token, long contexts, busy cores, energy.

    Weights are random, in the shapes of the paper's models. Exit status 1 if a part found too few clean rounds.

    Example: `mobillama bench decode --against llama.cpp --rows decode-0.5b,memory`
    """
    from mobillama.bench import decode as bench

    chosen = tuple(filter(None, (name.strip() for name in rows.split(","))))
    show_engine_bench(bench.measure(against, chosen, rounds, folder, placement), as_json)


@bench_app.command("prefill")
def bench_prefill(
    against: Peer = "llama.cpp", rounds: Rounds = 5, folder: Folder = FOLDER, as_json: Json = False
) -> None:
    """Tokens per second of reading a prompt of 256, beside a peer and the peak of the dot-product unit.

    Example: `mobillama bench prefill --against llama.cpp`
    """
    from mobillama.bench import prefill as bench

    show_engine_bench(bench.measure(against, rounds, folder), as_json)


@bench_app.command("table6")
def bench_table6(
    against: Annotated[str, typer.Option(help="A peer to measure beside [none].")] = "",
    rounds: Rounds = 3,
    folder: Folder = FOLDER,
    as_json: Json = False,
) -> None:
    """The columns of the paper's Table 6 for MobiLlama 0.5B, 0.8B and large-base 1.2B, on this machine.

    Example: `mobillama bench table6`
    """
    from mobillama.bench import table6 as bench

    show_engine_bench(bench.measure(against, rounds, folder), as_json)


@bench_app.command("quality")
def bench_quality(
    model: Annotated[str, typer.Argument(help="A model folder, run or hub name.")],
    data: Annotated[Path, typer.Option(help="The model's shards, for held-out rows.")],
    types: Annotated[
        list[str] | None,
        typer.Option("--type", metavar="TYPE", help="Only this, as quantize takes it; may be repeated."),
    ] = None,
    rows: Annotated[int, typer.Option(min=0, help="Held-out rows, spread evenly; 0 = all.")] = 32,
    threads: Annotated[int, typer.Option(min=0, help="Threads of the engine; 0 = one per core.")] = 0,
    folder: Folder = FOLDER,
    as_json: Json = False,
) -> None:
    """What rounding costs: perplexity and divergence from the f32 file on held-out text, beside bytes.

    By type, by kind of matrix, with columns weighed by their inputs, and with rounded activations, keys and values.

    Example: `mobillama bench quality artefacts/runs/mini-amber --data artefacts/shards/mini-amber`
    """
    from mobillama.bench import quality as bench

    progress = show_progress("measured")
    found = bench.measure(model, data, types or (), rows, folder=folder, threads=threads, progress=progress)
    show(found, as_json, bench.words(found))


@bench_app.command("peers")
def bench_peers(
    name: Annotated[str, typer.Argument(help="The peer to build.")] = "llama.cpp",
    jobs: Annotated[int, typer.Option(min=0, help="Compilers at once; 0 = one per core.")] = 0,
    as_json: Json = False,
) -> None:
    """Build a peer in an environment of its own (.peers/NAME), compiled for this machine: takes long.

    The build is tried on a small model. If it crashes, the next fastest is compiled (without AMX, then without
    repacked weights), and every figure names the build.

    Example: `mobillama bench peers llama.cpp`
    """
    from mobillama.bench import peers

    built = peers.build(name, jobs=jobs)
    lines = [f"{tried['build']} was tried first: {tried['end']}" for tried in built["tried"]]
    lines.append(f"{peers.called(built)} is built: {peers.python_of(name)}")
    show(built, as_json, "\n".join(lines))


def row_words(row: dict[str, Any]) -> str:
    """One row: ours, the peer's, and their ratio where there is a peer."""
    line = f"{row['name']:24} {figure(row['ours']):>12} {row['unit']}"
    if row.get("peer") is not None:
        line += f"   {row['peer_name']} {figure(row['peer'])}   ratio {row['ratio']:.3f}"
        line += f" (median of {len(row['pairs'])} pairs)"
    return line


def figure(value: float) -> str:
    """A number with one decimal, small ones with three."""
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3f}"


def show_bench(result: dict[str, Any], as_json: bool) -> None:
    """Print a bench's rows, then everything else that it says."""
    lines = [row_words(row) for row in result["rows"]]
    lines += [f"{key}: {value}" for key, value in result.items() if key != "rows"]
    show(result, as_json, "\n".join(lines))


def show_engine_bench(result: dict[str, Any], as_json: bool) -> None:
    """Print the rows of an engine's bench with what they must reach, and what failed; exit status 1 if anything did."""
    lines = [result["table"]] if "table" in result else []
    for row in result["rows"]:
        name, line = row["name"], row_words(row)
        if name in result["targets"]:
            must, goal = result["targets"][name]
            line += f"; must {must:.2f}, goal {goal:.2f}: {verdict(row['ratio'], must, goal)}"
        if name in result["limits"]:
            most, goal = result["limits"][name]
            line += f"; at most {most:g}, goal {goal:g}: {verdict(-row['ours'], -most, -goal)}"
        lines.append(line)
    lines += [f"{name} gives no figure: {why}" for name, why in result["failed"].items()]
    lines += result["notes"]
    lines += [f"{key}: {value}" for key, value in result["machine"].items()]
    lines.append(f"threads: {result['threads']}; all of it, rounds and discards included: {result['saved']}")
    show(result, as_json, "\n".join(lines))
    if result["failed"]:
        raise typer.Exit(1)


def verdict(found: float | None, must: float, goal: float) -> str:
    """Whether a figure reaches what it must, and its goal."""
    if found is None:
        return "nothing to compare with"
    return "goal reached" if found >= goal else "reached" if found >= must else "missed"
