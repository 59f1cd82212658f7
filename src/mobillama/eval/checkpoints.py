"""A run's checkpoints, each evaluated: LLM360's transparency as one command, also while training goes on.

OUT holds an artefact of results for each (`step_000100`), and `curves.json`, made from them anew after each one. What
is evaluated is a model folder where the run has one (`model/`, `published/ckpt_NNN`), else the checkpoint itself.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobillama import manifest
from mobillama.errors import InputError
from mobillama.eval.results import read_results, write_tree

CURVES = "curves.json"
CURVED = (
    "benchmark",
    "metric",
    "shots",
    "value",
    "stderr",
    "unit",
    "higher_is_better",
    "items",
)  # of a benchmark's row
FORMAT, FORMAT_VERSION = "mobillama.curves", 1
POLL_SECONDS = 10.0

EvaluateOne = Callable[["Stand", Path], dict[str, Any]]


@dataclass(frozen=True)
class Stand:
    """One state of a run's model."""

    step: int
    tokens: int
    folder: Path
    is_model: bool  # a model folder; else a checkpoint, which holds the training state
    is_last: bool  # the model at the end of the run


def stands(run: Path) -> list[Stand]:
    """What a run holds now, by step: one of each, model folders before checkpoints. Damaged ones are not looked at."""
    folders = sorted((run / "checkpoints").glob("step_*")), sorted((run / "published").glob("ckpt_*")), [run / "model"]
    found: dict[int, Stand] = {}
    for kind, group in enumerate(folders):
        for folder in group:
            if re.fullmatch(r"step_\d+|ckpt_\d+|model", folder.name) and (folder / manifest.FILE).is_file():
                counts = manifest.read(folder).counts
                step = int(counts["step"])
                found[step] = Stand(step, int(counts["tokens"]), folder, kind > 0, kind == 2)
    return [found[step] for step in sorted(found)]


def due(every: int, there: list[Stand]) -> list[Stand]:
    """Those to evaluate: the first at or after each multiple of `every` steps, and the model at the end.

    >>> [stand.step for stand in due(20, [Stand(step, 0, Path(), False, step == 45) for step in (10, 20, 30, 41, 45)])]
    [20, 41, 45]
    """
    chosen: list[Stand] = []
    last = 0
    for stand in there:
        if stand.step // every > last or stand.is_last:
            chosen.append(stand)
            last = max(last, stand.step // every)
    return chosen


def evaluate_run(
    run: Path,
    out: Path,
    every: int,
    evaluate_one: EvaluateOne,
    *,
    follow: bool = False,
    on_curves: Callable[[Path], object] = lambda out: None,
    say: Callable[[str], None] = lambda words: None,
    poll_seconds: float = POLL_SECONDS,
) -> dict[str, Any]:
    """Evaluate a run's checkpoints into OUT; gives the curves (docs/formats.md, Results). What is there stays.

    every: steps; 1 = all. evaluate_one: into a folder, or what is there (`again`). follow: go on until the run has
    ended. on_curves: called with OUT when curves.json is new. Errors: InputError for a folder that is no run, or a run
    without a checkpoint; what evaluate_one raises.
    """
    if not (run / "run.json").is_file():
        raise InputError(f"{run} is no run (it has no run.json); --every takes the --out folder of a training")
    done: set[int] = set()
    curves: dict[str, Any] = {}
    while True:
        ended = (run / "model" / manifest.FILE).is_file()  # asked before what is there: nothing can come after
        for stand in due(every, stands(run)):
            if stand.step in done:
                continue
            say(f"step {stand.step:,}, {stand.tokens:,} tokens: {stand.folder}")
            try:
                evaluate_one(stand, out / f"step_{stand.step:06d}")
            except (OSError, InputError):
                if stand.folder.exists():
                    raise
                say(f"step {stand.step:,} was removed by the run before it was read; left out")
            else:
                curves = collect(run, out)
                on_curves(out)
            done.add(stand.step)
        if ended or not follow:
            break
        time.sleep(poll_seconds)
    if not curves:
        raise InputError(
            f"{run} holds no checkpoint at or after step {every}; wait for one (--follow) or lower --every"
        )
    return curves


def collect(run: Path, out: Path) -> dict[str, Any]:
    """Write OUT/curves.json from the results in OUT, and give what it holds."""
    points = []
    for folder in sorted(out.glob("step_*")):
        if re.fullmatch(r"step_\d+", folder.name) and (folder / manifest.FILE).is_file():
            found = read_results(folder)
            origin = found.manifest.made_from[0]
            points.append(
                {
                    "step": int(folder.name.removeprefix("step_")),
                    "tokens": int(found.scores["trained"]["tokens"]),
                    "results": folder.name,
                    "digest": found.manifest.digest(),
                    "model": origin,
                    "suite": found.scores["suite"],
                    "benchmarks": [{key: row.get(key) for key in CURVED} for row in found.scores["benchmarks"]],
                    "average": found.scores["average"],
                    "average_without_bias": found.scores["average_without_bias"],
                }
            )
    points.sort(key=lambda point: int(point["step"]))
    tree = {"format": FORMAT, "format_version": FORMAT_VERSION, "run": run.resolve().name, "points": points}
    write_tree(out / CURVES, tree)
    return tree
