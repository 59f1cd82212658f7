"""`mobillama model`, `export` and `quantize`: what a model is, and its forms for other programs and the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mobillama.cli.app import Json, Set, app, model_app, show, show_progress


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


Types = Annotated[str, typer.Option("--type", metavar="TYPE", help="A type, or mixed; then kind=type. See above.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads that round; 0 = one per core.")]


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    out: Annotated[Path, typer.Argument(help="Folder (hf, llama) or file (llama.cpp) to write.")],
    form: Annotated[
        str, typer.Option("--format", help="hf (FFN once), llama or llama.cpp (FFN copied into every layer).")
    ] = "hf",
    types: Annotated[
        str | None,
        typer.Option("--type", metavar="TYPE", help="Of llama.cpp, as quantize takes it [the stored type]."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a model for other programs: a Hugging Face folder, or the GGUF file that stock llama.cpp runs.

    Example: `mobillama export artefacts/quickstart/shared/model llama-folder --format llama`

    Example: `mobillama export artefacts/quickstart/shared/model copies.gguf --format llama.cpp --type q8_0`
    """
    from mobillama.export.folder import export_model

    result = export_model(model, out, form, types)
    show(result, as_json, written(result) if "types" in result else str(out))


@app.command()
def quantize(
    model: Annotated[str, typer.Argument(help="A model folder, run or hub name; a preset: random weights.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.gguf", help="File to write.")],
    types: Types = "mixed",
    calibrate: Annotated[
        Path | None,
        typer.Option(metavar="SHARDS", help="Weigh the error of a column by its inputs on training rows of these."),
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Tokenizer to put inside [the model's own].")] = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Write a model as one GGUF file for the engine: each FFN block once, rounded, with its tokenizer.

    Types: f32, f16, bf16, q8_0, q6_k, q5_0, q4_0, q3_k; mixed (the default) spends more bits where they count more.
    Kinds of matrices that can be given a type of their own: attention, ffn, embedding, head.

    Example: `mobillama quantize artefacts/quickstart/shared/model shared.gguf --type q4_0,head=q6_k`

    Example: `mobillama quantize artefacts/runs/mini-amber mini.gguf --calibrate artefacts/shards/mini-amber`

    Example: `mobillama quantize mobillama-0.5b random-0.5b.gguf --type q4_0`
    """
    from mobillama.export.gguf_file import quantize_model

    importance = None if calibrate is None else collect_importance(model, calibrate)
    progress = show_progress(f"writing {out}")
    result = quantize_model(
        model, out, types, importance=importance, tokenizer=tokenizer, threads=threads, progress=progress
    )
    show(result, as_json, written(result))


def collect_importance(model: str, data: Path) -> dict[str, Any]:
    """What the columns of a model's matrices count on a few training rows of its shards, spread evenly."""
    from mobillama.data.shards import read_shards, require_tokenizer
    from mobillama.export import calibration
    from mobillama.model.hub import find_folder
    from mobillama.tokenizer.tokenizer import Tokenizer
    from mobillama.train.validate import choose_rows

    shards = read_shards(data)
    require_tokenizer(shards, Tokenizer.load(find_folder(model)).text_digest, model)
    rows = shards.train_rows(choose_rows(shards.num_rows, calibration.ROWS))
    return dict(calibration.collect_importance(model, rows[:, :-1]))


def written(result: dict[str, Any]) -> str:
    """What was written, in words: size, bits, types, and every row that could not have the type asked for."""
    types = ", ".join(f"{kind} {name}" for kind, name in result["types"].items())
    lines = [
        f"{result['out']}: {result['bytes'] / 1e6:,.1f} MB, {result['bits_per_weight']:.2f} bits per weight ({types})"
    ]
    lines += [f"{tensor}: {why}" for tensor, why in result["fallbacks"].items()]
    ends = result["end_ids"]
    if sum(map(len, ends.values())) > 1:
        lines.append(
            "a text ends at any of: " + ", ".join(f"{', '.join(map(str, ids))} ({key})" for key, ids in ends.items())
        )
    if result["end_ids_left_out"]:
        left_out = ", ".join(map(str, result["end_ids_left_out"]))
        lines.append(f"left out: the end ids {left_out}, of which the tokenizer in the file has no piece")
    return "\n".join(lines)
