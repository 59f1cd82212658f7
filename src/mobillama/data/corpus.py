"""The corpus artefact: cleaned, deduplicated documents in Parquet and the funnel that led to them.

A folder of kind "corpus" holds documents/part_00000.parquet ... (columns: parts.COLUMNS) and manifest.json, whose
counts have the funnel per subset. Stages: clean (read, normalise, filter, write), dedup, corpus.
Format: docs/formats.md.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
from datatrove.pipeline.base import PipelineStep

from mobillama import manifest
from mobillama.config import DataRecipe
from mobillama.data.clean import Filter, Normalise
from mobillama.data.dedup import FindDuplicates, buckets, merge_duplicates
from mobillama.data.executor import OnProgress, run_stage
from mobillama.data.ingest import Read
from mobillama.data.parts import WriteParts, replacing, write_table
from mobillama.data.sources import Task, describe, list_tasks, state
from mobillama.errors import InputError


def build_corpus(
    recipe: DataRecipe, out: Path, *, workers: int, on_progress: OnProgress | None = None
) -> manifest.Manifest:
    """Build the corpus of a recipe at `out`, or take the one there if it was built from the same recipe."""
    settings = {"source": recipe.source.tree(), "clean": recipe.clean.tree()}
    if out.exists():
        found = manifest.read(out, "corpus")
        if found.recipe != settings:
            raise InputError(f"{out} was built from another source or clean recipe; remove it or choose another --out")
        drop_work(out)
        return found
    tasks = list_tasks(recipe.source)
    with manifest.building(out) as partial:
        work = work_folder(out, {"recipe": settings, "inputs": state(tasks)})
        seconds = {"clean": _clean(recipe, tasks, work, workers, on_progress)}
        told = [json.loads((work / "parts" / f"{task:05d}.json").read_text()) for task in range(len(tasks))]
        kept = sum(task["kept"][0] for task in told)
        if recipe.clean.deduplicate:
            hashes = [work / "parts" / f"{task:05d}.hashes" for task in range(len(tasks))]
            step = FindDuplicates(hashes, work / "duplicates")
            seconds["dedup"] = run_stage("dedup", [step], buckets(kept), work, workers, on_progress)
        merge_duplicates(work / "duplicates", work / "duplicates.npy")
        duplicates = np.load(work / "duplicates.npy", mmap_mode="r")
        funnel = _funnel(tasks, told, work / "parts", duplicates)
        if kept == len(duplicates):
            raise InputError(f"no document is left of what was read: {json.dumps(funnel)}; check source and clean")
        merge = Merge(work / "parts", partial / "documents", told, work / "duplicates.npy")
        seconds["corpus"] = run_stage("corpus", [merge], len(merge.parts), work, workers, on_progress)
        clear_strays(partial)
        counts = {
            "documents": kept - len(duplicates),
            "bytes": sum(subset["bytes_out"] for subset in funnel.values()),
            "funnel": funnel,
        }
        sealed = manifest.seal(
            partial,
            out,
            "corpus",
            made_from=describe(tasks),
            recipe=settings,
            counts=counts,
            circumstance={"seconds": seconds},
        )
    drop_work(out)
    return sealed


def read_texts(path: Path) -> Iterator[str]:
    """The texts of a corpus artefact in order, or the lines of a text file."""
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            yield from (line.rstrip("\n") for line in file)
        return
    manifest.read(path, "corpus")
    for part in sorted((path / "documents").glob("*.parquet")):
        for batch in parquet.ParquetFile(part).iter_batches(64, columns=["text"]):
            yield from (text.as_py() for text in batch.column(0))


def part_name(number: int) -> str:
    """File name of part `number` of a documents table."""
    return f"part_{number:05d}.parquet"


def work_folder(out: Path, plan: dict[str, Any]) -> Path:
    """The folder for what is between the stages of a build. One left by another plan is thrown away."""
    work, text = _work_path(out), json.dumps(plan, sort_keys=True).encode()
    if work.is_dir() and (not (work / "plan.json").is_file() or (work / "plan.json").read_bytes() != text):
        manifest.remove(work)
        shutil.rmtree(manifest.partial_path(out))
        manifest.partial_path(out).mkdir()
    work.mkdir(exist_ok=True)
    manifest.write_file(work / "plan.json", text)
    clear_strays(work)
    return work


def drop_work(out: Path) -> None:
    """Remove what a finished build no longer needs; a kill may have left it behind."""
    shutil.rmtree(_work_path(out), ignore_errors=True)


def _work_path(out: Path) -> Path:
    return out.with_name(out.name + ".work")


def clear_strays(folder: Path) -> None:
    """Remove temporary files that a killed process left behind."""
    for path in [*folder.rglob(".*.tmp")]:
        path.unlink()


def _clean(recipe: DataRecipe, tasks: list[Task], work: Path, workers: int, on_progress: OnProgress | None) -> float:
    steps = [Read(tasks), Normalise(), Filter(recipe.clean), WriteParts(work / "parts")]
    return run_stage("clean", steps, len(tasks), work, workers, on_progress)


def _funnel(tasks: list[Task], told: list[dict[str, Any]], parts: Path, duplicates: Any) -> dict[str, Any]:
    """Documents and bytes in, dropped by reason, and out, per subset in order."""
    funnel: dict[str, Any] = {}
    start = 0
    for number, (task, counts) in enumerate(zip(tasks, told, strict=True)):
        sizes = np.fromfile(parts / f"{number:05d}.sizes", np.uint32)
        again = duplicates[np.searchsorted(duplicates, start) : np.searchsorted(duplicates, start + len(sizes))] - start
        pair = [len(again), int(sizes[again].sum(dtype=np.int64))]
        start += len(sizes)
        subset = funnel.setdefault(
            task.subset, {"documents_in": 0, "bytes_in": 0, "dropped": {}, "documents_out": 0, "bytes_out": 0}
        )
        subset["documents_in"] += counts["read"][0]
        subset["bytes_in"] += counts["read"][1]
        subset["documents_out"] += counts["kept"][0] - pair[0]
        subset["bytes_out"] += counts["kept"][1] - pair[1]
        for reason, (documents, size) in {**counts["dropped"], **({"duplicate": pair} if pair[0] else {})}.items():
            dropped = subset["dropped"].setdefault(reason, {"documents": 0, "bytes": 0})
            dropped["documents"] += documents
            dropped["bytes"] += size
    return funnel


class Merge(PipelineStep):  # type: ignore[misc]
    """Takes each cleaned part over into the corpus, without its duplicates."""

    name, type = "corpus", "writer"
    counter: Any

    def __init__(self, parts: Path, folder: Path, told: list[dict[str, Any]], duplicates: Path) -> None:
        super().__init__()
        self.folder, self.duplicates = folder, duplicates
        self.parts: list[tuple[Path, int, int]] = []  # part file, number of its first document, documents
        start = 0
        for task, counts in enumerate(told):
            for part, documents in enumerate(counts["parts"]):
                self.parts.append((parts / f"{task:05d}-{part:05d}.parquet", start, documents))
                start += documents

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Write part `rank` of the corpus; yields nothing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path, start, documents = self.parts[rank]
        duplicates = np.load(self.duplicates, mmap_mode="r")
        low, high = np.searchsorted(duplicates, [start, start + documents])
        out = self.folder / part_name(rank)
        with self.counter.of(rank) as done:
            if low == high:
                with replacing(out) as beside:
                    _link(path, beside)
            else:
                table = parquet.read_table(path)
                keep = np.delete(np.arange(documents), duplicates[low:high] - start)
                write_table(out, table.take(keep))
            done += (documents, 0)
        yield from ()


def _link(path: Path, to: Path) -> None:
    """The same file under a second name, or a copy where the file system has no links."""
    try:
        os.link(path, to)
    except OSError:
        shutil.copyfile(path, to)
