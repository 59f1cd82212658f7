"""`mobillama data export`: shards in Amber's own form, a file a chunk, in a folder that appears whole or not at all."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mobillama import manifest
from mobillama.errors import InputError, missing_extra

try:
    from datatrove.pipeline.base import PipelineStep

    from mobillama.data.amber import train_name, write_row
    from mobillama.data.chunk import open_chunk
    from mobillama.data.corpus import clear_strays, drop_work, work_folder
    from mobillama.data.display import Display
    from mobillama.data.executor import OnProgress, run_stage
    from mobillama.data.header import VALIDATION, chunk_names
    from mobillama.data.parts import replacing
except ImportError as error:
    raise missing_extra("data", error) from None
from mobillama.data.shards import Shards, read_shards

GZIP_LEVEL, ZSTD_LEVEL = 6, 3


def export_amber(
    shards: Path, out: Path, *, compress: str = "", workers: int = 0, on_progress: OnProgress | None = None
) -> manifest.Manifest:
    """Write train_000.jsonl, ... and, where there are held-out rows, valid.jsonl to the folder `out`.

    `compress`: gz, zst or nothing. Padding is written as the `</s>` it consists of. The same call goes on after an
    interruption, and gives a finished folder of the same shards back. Errors: InputError; OSError for a full disk.
    """
    if compress not in ("", "gz", "zst"):
        raise InputError(f"--compress {compress!r}; expected gz, zst or nothing")
    opened = read_shards(shards)
    settings = {"export": {"compress": compress}}
    made_from = [manifest.origin(shards, opened.manifest)]
    if out.exists():
        found = manifest.read(out, "amber")
        if (found.recipe, found.made_from) != (settings, made_from):
            raise InputError(f"{out} exists already, made of other shards; choose another folder or remove it")
        drop_work(out)
        return found
    display = Display() if on_progress is None else None
    try:
        with manifest.building(out) as partial:
            work = work_folder(out, {**settings, "shards": opened.digest})
            step = WriteLines(opened, partial, compress)
            seconds = run_stage("export", [step], len(step.files), work, workers, on_progress or display)
            clear_strays(partial)
            sealed = manifest.seal(
                partial,
                out,
                "amber",
                made_from=made_from,
                recipe=settings,
                counts={
                    "train_rows": opened.num_rows,
                    "validation_rows": opened.num_validation_rows,
                    "tokens": (opened.num_rows + opened.num_validation_rows) * opened.row_len,
                },
                circumstance={"seconds": {"export": seconds}},
            )
        drop_work(out)
        return sealed
    finally:
        if display:
            display.close()


class WriteLines(PipelineStep):  # type: ignore[misc]
    """Writes the rows of chunk file `rank` as lines."""

    name, type = "export", "writer"
    counter: Any

    def __init__(self, shards: Shards, out: Path, compress: str) -> None:
        super().__init__()
        trained = chunk_names(shards.manifest.files, shards.folder)
        self.files = [(shards.folder / name, train_name(number, compress)) for number, name in enumerate(trained)]
        if shards.num_validation_rows:
            held_out = "valid.jsonl" + (f".{compress}" if compress else "")
            self.files.append((shards.folder / VALIDATION, held_out))
        self.out, self.compress = out, compress

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Write one file; yields nothing."""
        path, name = self.files[rank]
        arrays, header = open_chunk(path)
        labels = [header.sources[number] for number in arrays["row_source"].tolist()]
        with (
            self.counter.of(rank) as done,
            replacing(self.out / name) as beside,
            _writing(beside, self.compress) as file,
        ):
            for ids, label in zip(arrays["ids"].view(np.ndarray), labels, strict=True):
                line = write_row(ids, label)
                file.write(line)
                done += (1, len(line))
        yield from ()


@contextmanager
def _writing(path: Path, compress: str) -> Iterator[Any]:
    """A file to write to, compressed so that the same lines give the same bytes."""
    file: BinaryIO
    with path.open("wb", buffering=1 << 20) as file:
        if compress == "gz":
            with gzip.GzipFile("", "wb", GZIP_LEVEL, file, mtime=0) as packed:
                yield packed
        elif compress == "zst":
            try:
                import zstandard
            except ImportError as error:
                raise missing_extra("data", error) from None
            with zstandard.ZstdCompressor(ZSTD_LEVEL).stream_writer(file, closefd=False) as packed:
                yield packed
        else:
            yield file
