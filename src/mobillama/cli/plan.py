"""`mobillama plan`: what a recipe will need, before anything runs."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from mobillama.cli.app import Json, Set, Workers, app, show
from mobillama.errors import InputError, RecipeError


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="A .toml file, or a shipped name such as data/mini-amber.")],
    workers: Workers = 0,
    sample_mb: Annotated[float, typer.Option(min=0.1, help="Megabytes of text of each subset to build and see.")] = 8,
    data: Annotated[Path | None, typer.Option(help="Shards that a train recipe will read.")] = None,
    tokens_per_second: Annotated[float, typer.Option(min=0, help="Speed of training, if you know it.")] = 0,
    like: Annotated[Path | None, typer.Option(help="A run whose speed to take.")] = None,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs that a train recipe will run on, with --kind.")] = 0,
    kind: Annotated[str, typer.Option(help="Their kind, such as a100-80g.")] = "",
    mfu: Annotated[float, typer.Option(min=0, max=1, help="Share of their stated peak it will reach [paper's].")] = 0,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """What a data or train recipe will need: documents, tokens, bytes, hours.

    A data recipe: sizes from the sources, the rest measured now on a sample that is really built. A train recipe: from
    its shapes; hours only from a speed that you give or that a run had. With GPUs: memory of each, bytes sent per step,
    hours at a utilisation that you give or else at the paper's, and the paper's own figures for its models.

    Example: `mobillama plan data/mini-amber --set source.root=corpora --workers 8`

    Example: `mobillama plan train/mini-amber --like artefacts/runs/mini-amber`

    Example: `mobillama plan train/mobillama-0.5b --gpus 160 --kind a100-80g`
    """
    stage, name = kind_of(recipe)
    if stage == "data":
        if data or tokens_per_second or like or gpus or kind or mfu:
            raise InputError(
                f"{recipe} is a data recipe; --data, --tokens-per-second, --like, --gpus, --kind and --mfu are for "
                "train recipes"
            )
        from mobillama.config import DataRecipe, read_recipe
        from mobillama.data.plan import plan_data

        resolved = read_recipe(DataRecipe, name, settings or ())
        result = plan_data(resolved, workers=workers, sample_bytes=round(sample_mb * 1e6))
        show(result, as_json, data_words(result))
        return
    if tokens_per_second and like:
        raise InputError("--tokens-per-second and --like both give a speed; leave one out")
    speed = tokens_per_second or (speed_of(like) if like else 0.0)
    result = plan_train(name, data, settings or [], speed, gpus=gpus, kind=kind, mfu=mfu)
    show(result, as_json, train_words(result))


def kind_of(recipe: str) -> tuple[str, str]:
    """Whether `recipe` is a data or a train recipe, and the name to read it by. Error: RecipeError if it is neither."""
    from mobillama.config import presets

    path = Path(recipe)
    if path.suffix == ".toml" and path.is_file():
        try:
            tree = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path} is not valid TOML: {error}") from None
        return ("train" if {"model", "train"} & set(tree) else "data"), recipe
    kind, slash, name = recipe.partition("/")
    if slash and kind in ("data", "train"):
        return kind, name
    having = [kind for kind in ("data", "train") if recipe in presets(kind)]
    if len(having) == 2:
        raise RecipeError(f"{recipe!r} is a data and a train recipe; say data/{recipe} or train/{recipe}")
    if not having:
        known = [f"{kind}/{name}" for kind in ("data", "train") for name in presets(kind)]
        raise RecipeError(f"no data or train recipe {recipe!r}: give a .toml file or one of {', '.join(known)}")
    return having[0], recipe


def plan_train(name: str, data: Path | None, settings: list[str], speed: float, **gpus: Any) -> dict[str, Any]:
    """The plan of a train recipe, with the shards it names where they are built; `gpus` as `plan_training` has it."""
    from mobillama.config import DataRecipe, TrainRecipe, read_recipe
    from mobillama.train.plan import plan_training

    resolved = read_recipe(TrainRecipe, name, settings)
    seq_len = 0
    if data is None and resolved.data.shards:
        data = Path(resolved.data.shards)
    elif data is None and resolved.data.recipe:
        source = read_recipe(DataRecipe, resolved.data.recipe)
        seq_len, built = source.pack.seq_len, Path("artefacts/shards") / source.name
        data = built if built.is_dir() else None
    return plan_training(resolved, data, seq_len=seq_len, tokens_per_second=speed, **gpus)


def speed_of(run: Path) -> float:
    """Tokens per second of the median step of a run. Error: InputError if it has taken none."""
    import statistics

    from mobillama.report.run import read_run

    found = read_run(run)
    if not found.seconds["step"]:
        raise InputError(f"{run} has taken no step after its first; give a run that has")
    return found.tokens / int(found.steps[-1]["step"]) / statistics.median(found.seconds["step"])


def data_words(result: dict[str, Any]) -> str:
    """The plan of a data recipe in words."""
    from mobillama.data.sources import describe_unread

    head = ("documents", "text", "tokens", "kept", "share", "target", "ratio")
    widths = (12, 10, 18, 6, 7, 7, 6)
    lines = [" ".join([f"{'subset':16}", *(f"{name:>{width}}" for name, width in zip(head, widths, strict=True))])]
    for name, told in result["subsets"].items():
        doubt = f" ± {count(told['tokens_plus_minus'])}" if told["tokens_plus_minus"] else ""
        cells = (
            count(told["documents"]),
            size(told["text_bytes"]),
            count(told["tokens"]) + doubt,
            percent(told["kept_documents"]),
            percent(told["share"]),
            percent(told["target_share"]),
            "" if told["ratio"] is None else f"{told['ratio']:.2f}",
        )
        row = " ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        lines.append(f"{name:16} {row}  {told['basis']}")
    total = result["total"]
    doubt = f" ± {count(total['tokens_plus_minus'])}" if total["tokens_plus_minus"] else ""
    tokens = count(total["tokens"]) + doubt
    lines.append(f"{'all':16} {count(total['documents']):>12} {size(total['text_bytes']):>10} {tokens:>18}")
    reasons: dict[str, list[str]] = {}
    for name, told in result["subsets"].items():
        reasons.setdefault(told["why"], []).append(name)
    lines += [f"{', '.join(names)}: {why}" for why, names in reasons.items() if why]
    for name, told in result["subsets"].items():
        if told["dropped"]:
            dropped = ", ".join(f"{reason} {number:,}" for reason, number in sorted(told["dropped"].items()))
            lines.append(f"{name}: dropped of the sample: {dropped}")
    if result["mix_distance"] is not None:
        lines.append(f"mix: {result['mix_distance']:.3f} from the target (total variation distance, 0 to 1)")
    disk = result["disk"]
    each = f", {disk['bytes_per_token']:.2f} bytes a token" if disk["bytes_per_token"] else " for the ids alone"
    lines.append(f"shards: {size(disk['shards'] or disk['ids'])}{each} (Amber's form: {size(disk['amber_form'])})")
    lines.append(f"corpus: {size(disk['corpus'])}; temporary while building: {size(disk['temporary'])}")
    memory = result["memory"]
    lines.append(
        f"memory of a worker, reading: at most {size(memory['all'])}: {size(memory['record'])} for the longest record "
        f"(source.max_record_bytes), {size(memory['window'])} for the largest window of a compressed file"
    )
    if said := describe_unread(result["unread"]):
        lines.append(said)
    if result["hours"] is None:
        lines.append(f"hours: not known, {result['hours_why']}")
    else:
        speed = result["speed"]
        each = speed["bytes_per_second_and_worker"] / 1e6
        lines.append(
            f"hours: {result['hours']:.3g} on {result['workers']} workers, at {each:.2f} MB/s each, measured now on "
            f"{result['workers_measured']} workers and {size(speed['sample_bytes'])} of text"
        )
    if any(told["basis"] == "extrapolated" for told in result["subsets"].values()):
        lines.append("a sample sees fewer repeats than the whole, so somewhat less may be kept")
    return "\n".join(lines)


def train_words(result: dict[str, Any]) -> str:
    """The plan of a train recipe in words."""
    memory = result["memory"]
    lines = [
        f"steps: {count(result['steps'])} of {count(result['tokens_per_step'])} tokens"
        + f", {count(result['tokens'])} in all"
        + (f", {result['passes']:.2f} passes over the shards" if result["passes"] else ""),
        f"FLOPs: {result['flops_per_token'] / 1e9:.3g} G a token"
        + (f", {result['flops']:.3g} in all" if result["flops"] else ""),
        f"checkpoints: {size(result['checkpoint_bytes'])} each, {size(result['disk_bytes'])} with the final model",
        f"memory of one device: {size(memory['all'])}, of it state {size(memory['state'])}; activations "
        f"{size(memory['activations'])} and logits {size(memory['logits'])} are estimates",
    ]
    if result["hours"] is None:
        lines.append(f"hours: not known, {result['hours_why']}")
    else:
        lines.append(f"hours: {result['hours']:.3g} at {result['tokens_per_second']:,.0f} tokens per second")
    if cluster := result["cluster"]:
        lines += cluster_words(cluster)
    return "\n".join(lines)


def cluster_words(cluster: dict[str, Any]) -> list[str]:
    """What many GPUs will hold, send and take, in lines."""
    memory = dict(cluster["memory"])
    whole = memory.pop("all")
    copies = f", {cluster['copies']} copies" if cluster["copies"] > 1 else ""
    lines = [
        f"on {cluster['gpus']} x {cluster['kind']}{copies}: passes a step on each: {cluster['passes_per_step']}"
        + (f", {cluster['idle_share']:.1%} of all idle" if cluster["idle_share"] else ""),
        f"memory of each GPU: {size(whole)} of {size(cluster['memory_of_gpu'])}"
        + ("" if cluster["fits"] else ", which is too little: fewer rows in --set train.micro_batch_rows, or")
        + ("" if cluster["fits"] else " --set train.activation_checkpointing=true")
        + f" ({', '.join(f'{name} {size(value)}' for name, value in memory.items())})",
    ]
    lines += [
        f"{name.replace('_', '-')}: {told['count']} a step, {size(told['bytes'])} sent by each GPU"
        for name, told in cluster["collectives"].items()
    ]
    lines.append(
        f"speed: {cluster['tokens_per_second_per_gpu']:,.0f} tokens/s per GPU, from {cluster['speed_basis']}"
        + (f"; {count(cluster['gpu_hours'])} GPU-hours" if cluster["gpu_hours"] else "")
    )
    if paper := cluster["paper"]:
        lines.append(
            f"the paper's {paper['model']}: {count(paper['gpu_hours'])} GPU-hours ({paper['days']:.1f} days on 160), "
            f"{paper['tokens_per_second_per_gpu']:,.0f} tokens/s per GPU, a utilisation of {paper['utilisation']:.1%}; "
            f"this plan for its {count(paper['tokens'])} tokens: {count(paper['planned_gpu_hours'])} GPU-hours, "
            f"{paper['ratio']:.2f} times as many"
        )
        lines += [f"  - {reason}" for reason in paper["differences"]]
    return lines


def count(value: float | None) -> str:
    """A count for people: 950, 21.7 M."""
    if value is None:
        return "?"
    for unit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if value >= unit:
            return f"{value / unit:.3g} {suffix}"
    return f"{value:,.0f}"


def size(value: float | None) -> str:
    """Bytes for people: 75.2 MB, in powers of ten."""
    if value is None:
        return "?"
    for unit, suffix in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= unit:
            return f"{value / unit:.3g} {suffix}"
    return f"{value:.0f} bytes"


def percent(value: float | None) -> str:
    """A share for people."""
    return "" if value is None else f"{value:.1%}"
