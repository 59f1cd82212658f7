"""From cleaned parts to the corpus: documents that repeat others go, and if asked lie beside it with their reasons."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
from datatrove.pipeline.base import PipelineStep

from mobillama.data.documents import DocumentTable
from mobillama.data.funnel import Repeats
from mobillama.data.parts import REJECTED, replacing, write_table


def part_name(number: int) -> str:
    """File name of part `number` of a documents table."""
    return f"part_{number:05d}.parquet"


class Merge(PipelineStep):  # type: ignore[misc]
    """Takes each cleaned part over into `documents/`, without the documents that repeat others.

    With `keep_rejected`, `rejected/` gets what cleaning dropped, task by task, then what repeats others, part by part.
    One task a part, then one for each part of what cleaning dropped.
    """

    name, type = "corpus", "writer"
    counter: Any

    def __init__(
        self,
        parts: Path,
        out: Path,
        told: Sequence[Mapping[str, Any]],
        repeats: Mapping[str, Path],
        *,
        keep_rejected: bool = False,
    ) -> None:
        """`told`: what `WriteParts` left of each task. `repeats`: reason -> .npy of (document, the one it repeats),
        sorted, a document under one reason at most.
        """
        super().__init__()
        self.parts_folder, self.out, self.repeats, self.keep_rejected = parts, out, dict(repeats), keep_rejected
        self.parts: list[tuple[str, int, int]] = []  # name, number of its first document, documents
        self.rejected: list[Path] = []
        start = 0
        for task, counts in enumerate(told):
            for part, documents in enumerate(counts["parts"]):
                self.parts.append((f"{task:05d}-{part:05d}.parquet", start, documents))
                start += documents
            if keep_rejected:
                names = (f"{task:05d}-{part:05d}.parquet" for part in range(len(counts["rejected"])))
                self.rejected += [parts / "rejected" / name for name in names]
        # The parts of repeated documents are numbered in order after those of cleaning.
        firsts = np.array([first for _, first, _ in self.parts], np.int64)
        pairs = [np.load(path, mmap_mode="r")[:, 0] for path in self.repeats.values()]
        gone = np.concatenate([np.empty(0, np.int64), *pairs])
        holders = np.unique(np.searchsorted(firsts, gone, side="right") - 1).tolist()
        self.numbers = {part: len(self.rejected) + number for number, part in enumerate(holders)}

    @property
    def tasks(self) -> int:
        """How many tasks the stage has."""
        return len(self.parts) + len(self.rejected)

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Write what task `rank` is for; yields nothing."""
        for name in ("documents", "rejected") if self.keep_rejected else ("documents",):
            (self.out / name).mkdir(parents=True, exist_ok=True)
        with self.counter.of(rank) as done:
            if rank < len(self.parts):
                self._part(rank)
                done += (self.parts[rank][2], 0)
            else:
                number = rank - len(self.parts)
                _take_over(self.rejected[number], self.out / "rejected" / part_name(number))
        yield from ()

    def _part(self, rank: int) -> None:
        name, start, documents = self.parts[rank]
        repeats = {reason: np.load(path, mmap_mode="r") for reason, path in self.repeats.items()}
        here = {reason: _within(pairs, start, start + documents) for reason, pairs in repeats.items()}
        gone = np.sort(np.concatenate([np.empty(0, np.int64), *(pairs[:, 0] for pairs in here.values())])) - start
        path, out = self.parts_folder / name, self.out / "documents" / part_name(rank)
        if not len(gone):
            _take_over(path, out)
            return
        table = parquet.read_table(path)
        write_table(out, table.take(np.delete(np.arange(documents), gone)))
        if self.keep_rejected:
            beside = self.out / "rejected" / part_name(self.numbers[rank])
            self._write_rejected(beside, name, table, start, here)

    def _write_rejected(self, out: Path, name: str, table: Any, start: int, here: Mapping[str, Repeats]) -> None:
        """The raw text of the documents of a part that repeat others, with the ids of those."""
        pairs = np.concatenate(list(here.values()))
        reasons = np.repeat(list(here), [len(found) for found in here.values()])
        order = np.argsort(pairs[:, 0])
        numbers = pairs[order, 0] - start
        lines = table.take(numbers)
        raws = parquet.read_table(self.parts_folder / "raw" / name).column("raw").take(numbers)
        texts = [raw.as_py() if raw.is_valid else text.as_py() for raw, text in zip(raws, lines["text"], strict=True)]
        stays = DocumentTable(self.parts_folder, ("id",)).lines(pairs[order, 1].tolist())
        given = {
            "text": texts,
            "bytes": [len(text.encode()) for text in texts],
            "edits": [[]] * len(texts),
            "reason": reasons[order].tolist(),
            "duplicate_of": [line["id"] for line in stays],
        }
        columns = [
            pyarrow.array(given[field.name], field.type) if field.name in given else lines[field.name]
            for field in REJECTED
        ]
        write_table(out, pyarrow.table(columns, schema=REJECTED))


def _within(pairs: Repeats, start: int, stop: int) -> Repeats:
    """The pairs whose first document is one from `start` to before `stop`."""
    return pairs[slice(*np.searchsorted(pairs[:, 0], [start, stop]))]


def _take_over(path: Path, out: Path) -> None:
    """The same file under a second name, or a copy where the file system has no links."""
    with replacing(out) as beside:
        try:
            os.link(path, beside)
        except OSError:
            shutil.copyfile(path, beside)
