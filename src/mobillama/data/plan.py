"""What a data recipe will need, before anything runs: documents, tokens, bytes on disk, hours, and how the mix ends up.

Sizes come from the sources themselves (sample.py), everything else from a sample of their documents that is really
built with the recipe's steps, by `build_shards`, in a temporary folder. What is not known is None and its reason said:
a source that cannot be reached stands with the recipe's target_tokens.

What a sample cannot show: repeats of documents outside it (so fewer tokens may be kept), and the mix of the whole where
subsets are sampled at different rates (the speed is that of the sample's mix).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from mobillama import manifest
from mobillama.config import DataRecipe, SourceConfig
from mobillama.errors import MobillamaError, missing_extra

try:
    import pyarrow.parquet as parquet

    from mobillama.data.build import build_shards, corpus_folder
    from mobillama.data.compressed import window_bytes
    from mobillama.data.executor import make_executor
    from mobillama.data.remote import is_remote
    from mobillama.data.sample import Sample, take_sample
    from mobillama.data.sources import SUFFIXES, Task, Unread, list_tasks, subset_tasks
except ImportError as error:
    raise missing_extra("data", error) from None

AMBER_BYTES_PER_TOKEN = 20.8e9 * 360 / 1259.13e9  # 360 files of 20.8 GB (LLM360/AmberDatasets)
ID_BYTES = {True: 2, False: 4}  # a token id, whether the vocabulary fits 16 bits
LENGTH_BYTES = 2  # beside each id between encoding and packing (encode.py)
RECORD_COPIES = 5  # a line, its record, its text, that as UTF-8, and cleaned
CERTAIN = 2.0  # standard errors in what is said as plus or minus: about 95%
LEAST_RATE_BYTES = 1 << 20  # of a sample, below which its seconds say nothing about a large build


def plan_data(recipe: DataRecipe, *, workers: int = 0, sample_bytes: int = 8_000_000) -> dict[str, Any]:
    """What a build of `recipe` on `workers` processes (0 = all cores here) will need, as plain JSON types.

    `sample_bytes`: text of each subset that is built to see. Gives `subsets` (by name: `basis` counted, extrapolated,
    target or unknown, `why`, and figures), `total`, `disk`, `speed`, `hours`,
    `mix_distance`, `unread`, and `memory`: what a worker holds of its input at most, in bytes.
    Errors: InputError for a recipe or local input that a build could not use either.
    """
    here = make_executor("local").workers
    unread: Unread = {}
    found = list_subsets(recipe, unread)
    with tempfile.TemporaryDirectory(prefix="mobillama-plan-") as folder:
        samples: dict[str, Sample] = {}
        absent: dict[str, str] = {}
        for name, tasks in found.items():
            if isinstance(tasks, str):
                absent[name] = tasks
                continue
            try:
                samples[name] = take_sample(name, tasks, Path(folder) / "sample", sample_bytes)
            except MobillamaError as error:
                if not place_of(source_of(recipe, name)):
                    raise
                absent[name] = str(error)
        measured = _build(recipe, {n: s for n, s in samples.items() if s.sizes}, Path(folder))
    subsets = {name: _describe(recipe, name, samples.get(name), measured, absent.get(name, "")) for name in found}
    _fill_bytes(subsets, measured)
    mix_distance = _mix(subsets)
    total = {key: _sum(subset[key] for subset in subsets.values()) for key in ("documents", "text_bytes", "tokens")}
    total["tokens_plus_minus"] = math.sqrt(sum((s["tokens_plus_minus"] or 0.0) ** 2 for s in subsets.values()))
    workers = workers or here
    speed = measured["speed"] if measured else None
    hours, hours_why = None, ""
    if not measured:
        hours_why = "no source could be read, so no speed was measured"
    elif speed is None:
        hours_why = "the sample is too small to measure a speed"
    elif total["text_bytes"] is None:
        hours_why = "bytes of text are not known of every subset"
    else:
        hours = total["text_bytes"] / (speed["bytes_per_second_and_worker"] * workers) / 3600
    return {
        "recipe": recipe.name,
        "workers": workers,
        "workers_measured": here if measured else 0,
        "subsets": subsets,
        "total": total,
        "mix_distance": mix_distance,
        "disk": _disk(total, measured),
        "speed": speed,
        "unread": unread,
        "memory": _memory(recipe, found),
        "hours": hours,
        "hours_why": hours_why,
    }


def list_subsets(recipe: DataRecipe, unread: Unread | None = None) -> dict[str, list[Task] | str]:
    """The tasks of each subset, in the order of a build; for a remote source that cannot be listed, why.

    Files of other kinds are counted in `unread`.

    Of several remote sources of one place, the first that fails speaks for all.
    """
    own = {name: subset.source for name, subset in recipe.subset.items() if subset.source is not None}
    named = recipe.source.subsets
    found: dict[str, list[Task] | str] = {}
    failed: dict[str, str] = {}

    def add(source: SourceConfig, names: list[str], tasks: Callable[[], list[Task]]) -> None:
        place = place_of(source)
        try:
            if place not in failed:
                for task in tasks():
                    if task.subset in names or (not names and task.subset not in own):
                        found.setdefault(task.subset, []).append(task)  # type: ignore[union-attr]
                return
        except MobillamaError as error:
            if not place:
                raise
            failed[place] = (
                f"{place} could not be read: {str(error).removeprefix(f'subset {names[0]}: ' if names else '')}"
            )
        found.update(dict.fromkeys(names or [place], failed[place]))

    shared = [name for name in named if name not in own]
    if shared or (not named and (not own or recipe.source != SourceConfig())):
        narrowed = recipe.source.model_copy(update={"subsets": tuple(shared)})
        add(recipe.source, shared, lambda: list_tasks(narrowed, unread))
    for name, source in own.items():
        add(source, [name], lambda name=name, source=source: subset_tasks(name, source, unread))  # type: ignore[misc]
    order = [*named, *(name for name in found if name not in own and name not in named), *sorted(own)]
    return {name: found[name] for name in dict.fromkeys(order)}


def source_of(recipe: DataRecipe, name: str) -> SourceConfig:
    """Where a subset comes from."""
    own = recipe.subset[name].source if name in recipe.subset else None
    return own or recipe.source


def place_of(source: SourceConfig) -> str:
    """The server of a remote source, or its data set on the hub; "" for a local source."""
    for address in (source.url_list, source.root):
        if is_remote(address):
            parts = urlsplit(address)
            inside = "/".join(parts.path.split("/")[:3]) if parts.scheme == "hf" else ""
            return f"{parts.scheme}://{parts.netloc}{inside}"
    return ""


def _build(recipe: DataRecipe, samples: Mapping[str, Sample], folder: Path) -> dict[str, Any] | None:
    """Build the sample with the recipe's steps and say what came out; None without a sample."""
    if not samples:
        return None
    source = SourceConfig(kind="jsonl", root=str(folder / "sample"), subsets=tuple(samples))
    subset = {n: s.model_copy(update={"source": None}) for n, s in recipe.subset.items() if n in samples}
    pack = recipe.pack.model_copy(update={"chunks": 1})
    small = recipe.model_copy(update={"source": source, "subset": subset, "pack": pack})
    out = folder / "shards"
    executor = make_executor("local")
    shards = build_shards(small, out, executor=executor, on_progress=lambda _: None)
    corpus = manifest.read(corpus_folder(out))
    seconds = {k: v for made in (corpus, shards) for k, v in made.circumstance["seconds"].items()}
    text = sum(sum(sample.sizes.values()) for sample in samples.values())
    whole = all(sample.whole for sample in samples.values())
    tokens: dict[tuple[str, int], int] = {}
    for path in sorted((out / "documents").glob("*.parquet")):
        table = parquet.read_table(path, columns=["file", "record", "tokens"])
        columns = [table.column(name).to_pylist() for name in ("file", "record", "tokens")]
        tokens.update({(file, record): count for file, record, count in zip(*columns, strict=True)})
    files = {name: entry["bytes"] for name, entry in shards.files.items() if not name.startswith("tokenizer/")}
    speed = None
    if text >= LEAST_RATE_BYTES or whole:
        speed = {
            "bytes_per_second_and_worker": text / sum(seconds.values()) / executor.workers,
            "sample_bytes": text,
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
        }
    return {
        "tokens": tokens,
        "funnel": corpus.counts["funnel"],
        "shards_bytes_per_token": sum(files.values()) / sum(tokens.values()),
        "corpus_bytes_per_text_byte": sum(entry["bytes"] for entry in corpus.files.values()) / text,
        "id_bytes": ID_BYTES[shards.counts["vocab_size"] <= 1 << 16],
        "tokens_per_byte": sum(tokens.values()) / text,
        "speed": speed,
    }


def _describe(
    recipe: DataRecipe, name: str, sample: Sample | None, measured: dict[str, Any] | None, why: str
) -> dict[str, Any]:
    """The figures of one subset; None where they are not known."""
    target = recipe.subset[name].target_tokens if name in recipe.subset else 0
    told: dict[str, Any] = {
        "basis": "target" if target else "unknown",
        "why": why or ("" if sample else "nothing could be read"),
        "target_tokens": target,
        "documents": None,
        "text_bytes": None,
        "disk_bytes": sample.disk_bytes if sample else None,
        "tokens": target or None,
        "tokens_plus_minus": None,
        "kept_documents": None,
        "sample_documents": 0,
        "dropped": dict(sample.reasons) if sample else {},
    }
    if sample is None or measured is None or not sample.sizes:
        return told
    sizes = np.array([*sample.sizes.values(), *sample.unreadable], np.float64)  # raw bytes
    tokens = np.array([*(measured["tokens"].get(key, 0) for key in sample.sizes), *([0] * len(sample.unreadable))])
    ratio = tokens.sum() / max(sizes.sum(), 1.0)
    told["sample_documents"] = len(sizes)
    told["kept_documents"] = float((tokens > 0).mean())
    dropped = {why: pair["documents"] for why, pair in measured["funnel"][name]["dropped"].items()}
    told["dropped"] = {**dropped, **sample.reasons}
    if sample.scale is None:
        told["why"] = "a remote source: its size is taken from the recipe's target, the rest from a sample"
        if target and ratio:
            told["text_bytes"] = target / ratio
            told["documents"] = told["text_bytes"] / sizes.mean()
        return told
    told["basis"] = "counted" if sample.whole else "extrapolated"
    told["documents"] = round(sample.documents * sample.scale)
    told["text_bytes"] = round(sample.text_bytes * sample.scale)
    told["tokens"] = round(told["text_bytes"] * ratio)
    told["tokens_plus_minus"] = 0.0
    if not sample.whole:
        # Standard error of a ratio estimate; documents already in the sample leave no doubt (Cochran 1977, 6.4).
        count, rest = len(sizes), max(0.0, 1 - len(sizes) / told["documents"])
        spread = math.sqrt(((tokens - ratio * sizes) ** 2).sum() / max(count - 1, 1) * rest / count)
        told["tokens_plus_minus"] = CERTAIN * spread / sizes.mean() * told["text_bytes"]
        told["why"] = (
            f"{count} of its documents were built to see"
            if sample.scale == 1.0
            else f"files with 1/{sample.scale:.3g} of its bytes were counted, {count} documents built to see"
        )
    return told


def _fill_bytes(subsets: dict[str, dict[str, Any]], measured: dict[str, Any] | None) -> None:
    """Bytes of text of subsets that could not be read, by the tokens a byte of those that could."""
    for told in subsets.values():
        if told["text_bytes"] is None and told["tokens"] and measured and measured["tokens_per_byte"]:
            told["text_bytes"] = told["tokens"] / measured["tokens_per_byte"]
            told["why"] += "; bytes of text as in the subsets that could be read"


def _mix(subsets: dict[str, dict[str, Any]]) -> float | None:
    """Add shares to every subset; the total variation distance from the target.

    None if a subset or all targets are not known, or if nothing but targets is.
    """
    total = _sum(told["tokens"] for told in subsets.values())
    wanted = sum(told["target_tokens"] for told in subsets.values())
    for told in subsets.values():
        told["share"] = told["tokens"] / total if total else None
        told["target_share"] = told["target_tokens"] / wanted if wanted else None
        both = told["share"] is not None and told["target_share"]
        told["ratio"] = told["share"] / told["target_share"] if both else None
    if not total or not wanted or all(told["basis"] == "target" for told in subsets.values()):
        return None
    distance: float = 0.5 * sum(abs(told["share"] - told["target_share"]) for told in subsets.values())
    return distance


def _disk(total: Mapping[str, Any], measured: dict[str, Any] | None) -> dict[str, Any]:
    """Bytes on disk: `ids` alone, `shards` with spans and documents tables, `corpus`, `temporary` beside them at the
    most, and `amber_form`, the same tokens in Amber's JSON lines."""
    tokens, text = total["tokens"], total["text_bytes"]
    id_bytes = measured["id_bytes"] if measured else ID_BYTES[True]
    known = measured is not None and tokens is not None
    return {
        "bytes_per_token": measured["shards_bytes_per_token"] if measured else None,
        "ids": tokens * id_bytes if tokens is not None else None,
        "shards": tokens * measured["shards_bytes_per_token"] if measured and tokens is not None else None,
        "corpus": text * measured["corpus_bytes_per_text_byte"] if measured and text is not None else None,
        "temporary": tokens * (id_bytes + LENGTH_BYTES) if known else None,
        "amber_form": tokens * AMBER_BYTES_PER_TOKEN if tokens is not None else None,
    }


def _memory(recipe: DataRecipe, found: Mapping[str, list[Task] | str]) -> dict[str, int]:
    """What a worker holds of its input at most: `window`, the largest that a compressed file here asks for, `record`,
    the longest record that its source allows, in RECORD_COPIES forms, and `all`."""
    tasks = [task for listed in found.values() if not isinstance(listed, str) for task in listed]
    paths = {path for task in tasks for path in task.paths if isinstance(path, Path) and task.how in SUFFIXES}
    window = max(map(window_bytes, paths), default=0)
    record = RECORD_COPIES * max((task.source.max_record_bytes for task in tasks), default=0)
    return {"window": window, "record": record, "all": window + record}


def _sum(values: Any) -> Any:
    """The sum, or None if one is not known."""
    listed = list(values)
    return None if any(value is None for value in listed) else sum(listed)
