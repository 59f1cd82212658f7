"""A sample of what a data recipe would read, as JSON lines, and how much there is in all.

Every source at hand is read through its own reader: all of it up to COUNT_BYTES a subset on disk, beyond that files
spread evenly (of one file too large, its first COUNT_BYTES), so that documents and bytes are counted or extrapolated by
size on disk. The sample takes every n-th document, the same ones in every call.
"""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
from datatrove.data import Document

from mobillama.data.ingest import read_task
from mobillama.data.sources import Task
from mobillama.errors import InputError, MobillamaError

COUNT_BYTES = 256 << 20  # on disk, a subset: read in some seconds
PART_BYTES = 1 << 20  # of a file of the sample, so that several workers share it
SPREAD = 4  # files of a remote subset that the sample is taken from


@dataclass
class Sample:
    """What is known of one subset: in all (exact if `scale` is 1), and of the documents in the sample.

    `documents` and `text_bytes` (raw text) are those of the files that were read, `scale` is all bytes on disk over
    theirs; None: how much there is in all is not known. `sizes`: raw bytes of each document of the sample by its file
    there and line, `unreadable` those that cannot be written to it, which no build keeps, and `reasons` why not.
    """

    disk_bytes: int
    documents: int = 0
    text_bytes: int = 0
    scale: float | None = 1.0
    sizes: dict[tuple[str, int], int] = field(default_factory=dict)
    unreadable: list[int] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def whole(self) -> bool:
        """Whether the sample is all there is."""
        return self.scale == 1.0 and len(self.sizes) + len(self.unreadable) == self.documents


def take_sample(subset: str, tasks: list[Task], root: Path, budget: int) -> Sample:
    """Count a subset and write about `budget` bytes of its text to `<root>/<subset>/part_NNN.jsonl`.

    Errors: those of reading; InputError if nothing can be read of a file that is too large to be read whole.
    """
    disk = sum(_size(path) for task in tasks for path in task.paths)
    if any(not isinstance(path, Path) for task in tasks for path in task.paths):
        return _take_remote(subset, tasks, root, budget, disk)
    chosen, cut = _choose(tasks, root)
    try:
        sample = Sample(disk)
        for size in _sizes(chosen, cut):
            sample.documents += 1
            sample.text_bytes += size
        read = sum(_size(path) for task in chosen for path in task.paths)
        sample.scale = disk / read if read and read != disk else 1.0
        if not sample.documents:
            raise InputError(f"nothing could be read of the first {COUNT_BYTES >> 20} MiB of {tasks[0].names[0]}")
        share = min(1.0, budget / max(sample.text_bytes, 1))
        every = (document for task in chosen for document in _read(task, cut))
        thin = (d for n, d in enumerate(every, 1) if int(n * share) > int((n - 1) * share))
        _write(subset, thin, root, sample)
        return sample
    finally:
        if cut:
            shutil.rmtree(root / ".cut", ignore_errors=True)


def _take_remote(subset: str, tasks: list[Task], root: Path, budget: int, disk: int) -> Sample:
    """The first documents of a few files, until `budget` bytes are read: how much there is in all stays unknown."""
    sample = Sample(disk, scale=None)
    spread = [tasks[number * len(tasks) // SPREAD] for number in range(SPREAD)] if len(tasks) > SPREAD else tasks

    def first(task: Task) -> Iterator[Document]:
        read = 0
        for document in read_task(task):
            yield document
            sample.documents += 1
            read += document.metadata["raw_bytes"]
            sample.text_bytes += document.metadata["raw_bytes"]
            if read >= budget / len(spread):
                return

    _write(subset, itertools.chain.from_iterable(map(first, spread)), root, sample)
    return sample


def _choose(tasks: list[Task], root: Path) -> tuple[list[Task], bool]:
    """The tasks to read, and whether the one chosen was cut: all, or some spread evenly, or the beginning of one."""
    sizes = [sum(_size(path) for path in task.paths) for task in tasks]
    if sum(sizes) <= COUNT_BYTES or any(task.max_bytes for task in tasks):
        return tasks, False
    count = max(1, int(COUNT_BYTES / (sum(sizes) / len(sizes))))
    count = min(count, len(tasks))
    chosen = [tasks[(2 * number + 1) * len(tasks) // (2 * count)] for number in range(count)]
    if len(chosen) > 1 or len(chosen[0].paths) > 1 or chosen[0].how == "parquet":
        return chosen, False
    (path,) = chosen[0].paths
    assert isinstance(path, Path)
    (root / ".cut").mkdir(parents=True)
    beginning = root / ".cut" / path.name
    with path.open("rb") as file, beginning.open("wb") as out:
        left = COUNT_BYTES
        while left and (data := file.read(min(left, 1 << 20))):
            out.write(data)
            left -= len(data)
    strict = chosen[0].source.model_copy(update={"damaged_files": "stop"})  # the damage is ours
    return [replace(chosen[0], paths=(beginning,), source=strict)], path.stat().st_size > COUNT_BYTES


def _sizes(tasks: Iterable[Task], cut: bool) -> Iterator[int]:
    for task in tasks:
        for document in _read(task, cut):
            yield document.metadata["raw_bytes"]


def _read(task: Task, cut: bool) -> Iterator[Document]:
    """The documents of a task; of a file that was cut here, those before the cut."""
    if not cut:
        yield from read_task(task)
        return
    last: Document | None = None
    try:
        for document in read_task(task):
            if last is not None:
                yield last
            last = document
    except MobillamaError:  # where a compressed file was cut
        pass
    if last is not None and "why" not in last.metadata:  # else the line that was cut
        yield last


def _write(subset: str, documents: Iterable[Document], root: Path, sample: Sample) -> None:
    folder = root / subset
    folder.mkdir(parents=True)
    lines: list[bytes] = []
    size = number = 0

    def close() -> None:
        nonlocal lines, size, number
        if lines:
            (folder / f"part_{number:03d}.jsonl").write_bytes(b"".join(lines))
            lines, size, number = [], 0, number + 1

    for document in documents:
        metadata: dict[str, Any] = document.metadata
        if reason := metadata.get("dropped"):
            sample.unreadable.append(metadata["raw_bytes"])
            sample.reasons[reason] += 1
            continue
        record = {"text": document.text, "id": document.id, "url": metadata["url"], "license": metadata["license"]}
        lines.append(orjson.dumps(record) + b"\n")
        sample.sizes[f"{subset}/part_{number:03d}.jsonl", len(lines)] = metadata["raw_bytes"]
        size += metadata["raw_bytes"]
        if size >= PART_BYTES:
            close()
    close()


def _size(file: Any) -> int:
    """Bytes on disk of a local or remote file; 0 where a server does not say."""
    return file.stat().st_size if isinstance(file, Path) else max(int(file.size), 0)
