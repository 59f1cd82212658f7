"""The results of a quickstart, gathered from its manifests, ledgers and plan: what `results.json` holds.

Specified in docs/formats.md, section Quickstart.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mobillama import manifest
from mobillama.cores import cores
from mobillama.report.run import Run, read_run

FORMAT, FORMAT_VERSION = "mobillama.quickstart", 1
SIZES_WITHIN = 0.01  # relative difference in stored parameters
STAGES = {  # stages of a data build, by the names in the manifests' circumstance
    "clean": "read and clean the text",
    "dedup": "find duplicates",
    "corpus": "write the corpus",
    "tokenizer": "train the tokenizer",
    "encode": "tokenise",
    "pack": "pack into shards",
}


def gather(
    folder: Path,
    *,
    models: Sequence[Mapping[str, Any]],
    unigram: Mapping[str, Any],
    samples: Mapping[str, Any],
    engine: Mapping[str, Any],
    plan: Mapping[str, Any],
    reused: Sequence[str],
    wanted: Mapping[str, float],
) -> dict[str, Any]:
    """The tree of results.json. `models` name the runs in `folder`; `wanted`: bytes, tokens and margin to reach."""
    corpus = manifest.read(folder / "shards-corpus", "corpus")
    runs = {str(model["name"]): read_run(folder / str(model["name"])) for model in models}
    described = [{**model, **_scores(runs[str(model["name"])], unigram)} for model in models]
    sampling = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in samples["settings"].items())
    stages = [_stage("load libraries", "setup", plan["setup"]), *_data_stages(folder, corpus)]
    stages.append(_stage("measure this machine's speed", "setup", plan["probe"]))
    for model in described:
        stages += run_stages(runs[model["name"]], model["title"])
    stages.append(_stage("round the models, look at the engine's speed", "work", engine["seconds"]))
    stages.append(_stage("write samples", "work", samples["seconds"]))
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "corpus": "shards-corpus",
        "shards": "shards",
        "models": described,
        "unigram": dict(unigram),
        "wanted_margin": wanted["margin"],
        "goals": judge(described, list(runs.values()), corpus.counts["bytes"], wanted),
        "notes": list(plan["notes"]),
        "sampling": f"Settings: {sampling}.",
        "samples": samples["samples"],
        "engine": {key: value for key, value in engine.items() if key not in ("digests", "seconds")},
        "stages": stages,
        "reused": list(reused),
        "machine": describe_machine(next(iter(runs.values())), plan),
    }


def judge(
    models: Sequence[Mapping[str, Any]], runs: Sequence[Run], size: int, wanted: Mapping[str, float]
) -> list[dict[str, Any]]:
    """What was to be reached, and whether it was: text, sizes, order, tokens, loss."""
    sizes = [model["stored_parameters"] for model in models]
    apart = max(sizes) / min(sizes) - 1
    orders = [[step["rows"] for step in run.steps] for run in runs]
    goals = [
        _goal(size >= wanted["bytes"], f"The corpus holds {size:,} bytes of text (at least {wanted['bytes']:,})."),
        _goal(
            apart <= SIZES_WITHIN,
            f"The models store {' and '.join(f'{found:,}' for found in sizes)} parameters: {apart:.2%} apart "
            f"(at most {SIZES_WITHIN:.0%}).",
        ),
        _goal(
            all(order == orders[0] for order in orders),
            f"Both ledgers name the same rows in the same order, {len(orders[0])} steps.",
        ),
    ]
    for model in models:
        goals.append(
            _goal(
                model["tokens"] >= wanted["tokens"],
                f"The model with {model['title']} has seen {model['tokens']:,} tokens (at least {wanted['tokens']:,}).",
            )
        )
        goals.append(
            _goal(
                model["margin"] >= wanted["margin"],
                f"The model with {model['title']} ends {model['margin']:.3f} nats per token below the unigram entropy "
                f"of the validation split (at least {wanted['margin']:g}).",
            )
        )
    return goals


def run_stages(run: Run, title: str) -> list[dict[str, Any]]:
    """Where the time of a run went. What the first step of a process takes beyond a later one is compiling."""
    steps = run.seconds["step"]
    usual = statistics.median(steps) if steps else 0.0
    firsts = run.seconds["first"]
    compiling = sum(max(0.0, seconds - usual) for seconds in firsts)
    return [
        _stage(f"{title}: compile and first touch", "compile", compiling),
        _stage(f"{title}: train", "work", sum(steps) + sum(firsts) - compiling),
        _stage(f"{title}: validate", "work", sum(run.seconds["validation"])),
        _stage(f"{title}: write checkpoints", "work", sum(run.seconds["checkpoint"])),
    ]


def describe_machine(run: Run, plan: Mapping[str, Any]) -> dict[str, Any]:
    """The machine in words, as the run recorded it."""
    found = {"computed on": plan["place"], "system": platform.platform(), "cores": cores()}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        found["memory"] = f"{memory / 2**30:.1f} GiB"
    return found | {key: run.environment[key] for key in ("python", "torch", "mobillama") if key in run.environment}


def _scores(run: Run, unigram: Mapping[str, Any]) -> dict[str, Any]:
    last = run.validations[-1]
    steps = run.seconds["step"]
    tokens_per_step = run.tokens / len(run.steps)
    return {
        "run": run.folder.name,
        "tokens": run.tokens,
        "tokens_per_second": tokens_per_step * len(steps) / sum(steps) if sum(steps) else 0.0,
        "validation_loss": last["loss"],
        "bits_per_byte": last["bits_per_byte"],
        "margin": unigram["entropy"] - last["loss"],
    }


def _data_stages(folder: Path, corpus: manifest.Manifest) -> list[dict[str, Any]]:
    shards = manifest.read(folder / "shards", "shards")
    seconds = {**corpus.circumstance.get("seconds", {}), **shards.circumstance.get("seconds", {})}
    return [_stage(STAGES.get(name, name), "work", found) for name, found in seconds.items()]


def _stage(name: str, kind: str, seconds: float) -> dict[str, Any]:
    return {"name": name, "kind": kind, "seconds": round(seconds, 3)}


def _goal(met: bool, text: str) -> dict[str, Any]:
    return {"met": bool(met), "text": text}
