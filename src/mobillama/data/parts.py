"""The last step of cleaning: kept documents go to Parquet parts, dropped ones to counts.

Per task: `<task>-<part>.parquet` of about PART_BYTES of text each, `<task>.hashes` (32 bytes of sha256 of each kept
text), `<task>.sizes` (its UTF-8 bytes, uint32) and `<task>.json` (counts; written last).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
from datatrove.pipeline.base import PipelineStep

from mobillama import manifest

PART_BYTES = 4 << 20
GROUP_BYTES = 1 << 20
COLUMNS = ("text", "source", "id", "url", "license", "file", "record", "raw_sha256", "bytes")
SCHEMA = pyarrow.schema(
    [(name, pyarrow.uint64() if name in ("record", "bytes") else pyarrow.large_string()) for name in COLUMNS]
)


class WriteParts(PipelineStep):  # type: ignore[misc]
    """Writes the documents of one task and says what became of each."""

    name, type = "write parts", "writer"
    counter: Any

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Consume all documents; yields none."""
        self.folder.mkdir(parents=True, exist_ok=True)
        hashes, sizes, counts = bytearray(), [], Counts()
        parts: list[int] = []
        rows: list[tuple[Any, ...]] = []
        size = 0

        def close_part() -> None:
            nonlocal rows, size
            write_part(self.folder / f"{rank:05d}-{len(parts):05d}.parquet", rows)
            parts.append(len(rows))
            rows, size = [], 0

        with self.counter.of(rank) as done:
            for document in data:
                metadata = document.metadata
                done += (1, metadata["raw_bytes"])
                if dropped := metadata.get("dropped"):
                    counts.drop(dropped, metadata["raw_bytes"])
                    continue
                row, digest = _row(document)
                counts.keep(metadata["raw_bytes"], row[-1])
                hashes += digest
                sizes.append(row[-1])
                rows.append(row)
                size += row[-1]
                if size >= PART_BYTES:
                    close_part()
        if rows:
            close_part()
        manifest.write_file(self.folder / f"{rank:05d}.hashes", bytes(hashes))
        manifest.write_file(self.folder / f"{rank:05d}.sizes", np.asarray(sizes, np.uint32).tobytes())
        manifest.write_file(self.folder / f"{rank:05d}.json", json.dumps({"parts": parts, **counts.tree()}).encode())
        yield from ()


class Counts:
    """Documents and bytes read, and dropped by reason."""

    def __init__(self) -> None:
        self.read, self.kept = [0, 0], [0, 0]
        self.dropped: dict[str, list[int]] = {}

    def keep(self, raw_bytes: int, text_bytes: int) -> None:
        """Count one document that stays."""
        self._add(self.read, raw_bytes)
        self._add(self.kept, text_bytes)

    def drop(self, reason: str, raw_bytes: int) -> None:
        """Count one document that goes."""
        self._add(self.read, raw_bytes)
        self._add(self.dropped.setdefault(reason, [0, 0]), raw_bytes)

    def tree(self) -> dict[str, Any]:
        """Plain JSON types; pairs are [documents, bytes]."""
        return {"read": self.read, "kept": self.kept, "dropped": self.dropped}

    @staticmethod
    def _add(pair: list[int], size: int) -> None:
        pair[0] += 1
        pair[1] += size


def _row(document: Any) -> tuple[tuple[Any, ...], bytes]:
    """The line of one document in a part, and the sha256 of its text."""
    metadata = document.metadata
    text = document.text.encode("utf-8")
    digest = hashlib.sha256(text)
    raw = digest if metadata["raw"] == text else hashlib.sha256(metadata["raw"])
    keep = (metadata[name] for name in ("url", "license", "file", "record"))
    return (document.text, metadata["source"], document.id, *keep, raw.hexdigest(), len(text)), digest.digest()


def write_part(path: Path, rows: list[tuple[Any, ...]]) -> None:
    """Write one Parquet part whole or not at all, in row groups of about GROUP_BYTES of text."""
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(COLUMNS)
    table = pyarrow.table(
        {name: pyarrow.array(column, SCHEMA.field(name).type) for name, column in zip(COLUMNS, columns, strict=True)}
    )
    write_table(path, table)


def write_table(path: Path, table: Any) -> None:
    """Write a table of documents as Parquet. The same table gives the same bytes."""
    sizes = np.cumsum(table.column("bytes").to_numpy()).astype(np.int64)
    cuts = np.unique(np.searchsorted(sizes, np.arange(0, int(sizes[-1]) if len(sizes) else 0, GROUP_BYTES)))
    with (
        replacing(path) as beside,
        parquet.ParquetWriter(
            beside, table.schema, compression="zstd", compression_level=1, use_dictionary=["source", "license"]
        ) as writer,
    ):
        for start, stop in zip(cuts, [*cuts[1:], len(table)], strict=True):
            if stop > start:
                writer.write_table(table.slice(start, stop - start), row_group_size=stop - start)


class replacing:
    """Gives a temporary path beside `path`; on success it is synced and takes the place of `path`, else it goes."""

    def __init__(self, path: Path) -> None:
        self.path, self.beside = path, path.with_name(f".{path.name}.{os.getpid()}.tmp")

    def __enter__(self) -> Path:
        return self.beside

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None:
            self.beside.unlink(missing_ok=True)
            return
        manifest.sync(self.beside)
        self.beside.rename(self.path)
