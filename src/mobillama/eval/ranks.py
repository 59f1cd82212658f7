"""One evaluation by several processes: each takes a share of the items, the last to finish puts them together.

Shares need no connection: each is an artefact of its own beside OUT, on a disk that all see, and whoever finds all of
them there merges. So it is the same under torchrun, in a batch system's array of jobs, or one after the other.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mobillama import manifest
from mobillama.errors import InputError
from mobillama.eval.results import (
    ITEMS,
    SETTINGS,
    Results,
    read_results,
    seal_results,
    todays_settings,
    write_tree,
)


def share_folder(out: Path, rank: int, size: int) -> Path:
    """Where the share of rank `rank` (from 0) of `size` lies until all are put together."""
    return out.with_name(f"{out.name}.share-{rank + 1}-of-{size}")


def evaluate_share(evaluate: Callable[[Path], dict[str, Any]], out: Path, rank: int, size: int) -> dict[str, Any]:
    """Evaluate a share, and merge if it was the last; gives the merged scores, or the share's with `waits_for`.

    evaluate: evaluates this share into a folder, or gives the scores that are there (`again`).
    """
    if out.exists():
        raise InputError(f"{out} exists already; choose another --out or remove it")
    mine = share_folder(out, rank, size)
    found = evaluate(mine)
    folders = [share_folder(out, other, size) for other in range(size)]
    missing = [folder.name for folder in folders if not (folder / manifest.FILE).is_file()]
    if missing:
        return {**found, "waits_for": missing}
    try:
        merged = merge(folders, out)
    except (InputError, OSError):  # DamagedFileError among them: what is being removed behind us
        if not out.exists() and not manifest.partial_path(out).exists():
            raise
        return {**found, "waits_for": []}  # another process found them all at the same moment, and merges
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return merged


def merge(folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """Put all shares of one evaluation together as the artefact that one process would have made; gives its scores.

    Errors: InputError if they are not all shares of one evaluation, or a task adds its items up in a way of its own.
    """
    parts = [read_results(folder) for folder in folders]
    settings = _one_evaluation(parts)
    with manifest.building(out) as partial:
        lines = [(line, part) for part in parts for line in part.items().values()]
        suite = parts[0].suite
        order = {one.name: place for place, one in enumerate(suite.benchmarks)}
        tasks = {name: place for place, name in enumerate(dict.fromkeys(n for p in parts for n in p.scores["rows"]))}
        lines.sort(key=lambda pair: (order[pair[0]["benchmark"]], tasks[pair[0]["task"]], pair[0]["item"]))
        text = "".join(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n" for line, _ in lines)
        manifest.write_file(partial / ITEMS, text.encode())
        write_tree(partial / SETTINGS, settings)
        scores = _scores(parts, [line for line, _ in lines])
        circumstance = {
            "shares": [part.manifest.digest() for part in parts],
            "seconds": max(float(part.manifest.circumstance.get("seconds", 0)) for part in parts),
            "where": parts[0].manifest.circumstance.get("where", ""),
        }
        return seal_results(partial, out, scores, settings, parts[0].manifest.made_from, circumstance)


def _one_evaluation(parts: Sequence[Results]) -> dict[str, Any]:
    """The settings of the whole. Error: InputError if the parts do not make one whole."""
    size = parts[0].share[1]
    if sorted(part.share for part in parts) != [(rank, size) for rank in range(size)]:
        found = ", ".join(f"{part.share[0] + 1}/{part.share[1]} ({part.folder})" for part in parts)
        raise InputError(f"found the shares {found}; expected each of {size} once")
    settings = [{**todays_settings(part.manifest.recipe), "share": [0, 1]} for part in parts]
    for part, mine in zip(parts, settings, strict=True):
        if changed := [name for name in settings[0] if settings[0][name] != mine.get(name)]:
            raise InputError(
                f"{part.folder} was evaluated with another {changed[0]} than {parts[0].folder}; evaluate it again"
            )
    return settings[0]


def _scores(parts: Sequence[Results], lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The scores of all lines together."""
    from lm_eval.api.registry import get_aggregation

    from mobillama.eval.scores import average, score_benchmark, score_task

    suite = parts[0].suite
    by_task: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        by_task.setdefault(line["task"], []).append(line)
    rows = []
    for one in suite.benchmarks:
        mine = [row for part in parts for row in part.scores["benchmarks"] if row["benchmark"] == one.name]
        tasks: dict[str, Any] = {}
        for name in by_task:
            known = next((row["tasks"][name] for row in mine if name in row["tasks"]), None)
            if known is None:
                continue
            aggregate = get_aggregation(known["aggregation"]) if known["aggregation"] else None
            if aggregate is None:
                raise InputError(
                    f"task {name} adds its items up in a way of its own, so shares of it cannot be put together;"
                    " evaluate it in one process"
                )
            metric = known["metric"].partition(",")[0]
            better = {metric: known.get("higher_is_better")}
            tasks[name] = score_task(one.metric, by_task[name], {metric: aggregate}, better)
        rows.append(score_benchmark(one, tasks, mine[0]["lacking"]))
    first = parts[0].scores
    kept = {name: first[name] for name in ("model", "trained", "suite", "training_text")}
    origins = {name: row for part in parts for name, row in part.scores["rows"].items()}
    return {**kept, "benchmarks": rows, **average(suite, rows), "rows": origins}


def torchrun_share() -> tuple[int, int] | None:
    """(rank, size) where torchrun started this process beside others; None where it did not."""
    said = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE")}
    if not (said["RANK"].isdigit() and said["WORLD_SIZE"].isdigit()):
        return None
    rank, size = int(said["RANK"]), int(said["WORLD_SIZE"])
    return (rank, size) if size > 1 else None


def place_of_rank(device: str, threads: int, cores: int) -> tuple[str, int]:
    """Device and threads of this process beside the others that torchrun started on this machine."""
    local, beside = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device in ("auto", "cuda"):
        import torch

        if torch.cuda.is_available():
            device = f"cuda:{local % torch.cuda.device_count()}"
    return device, threads or max(1, cores // beside)
