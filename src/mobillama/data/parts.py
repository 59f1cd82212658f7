"""The last step of cleaning: kept documents go to Parquet parts, dropped ones to counts, and beside the parts if asked.

Per task: `<task>-<part>.parquet` of about PART_BYTES of text each; of each kept text `<task>.hashes` (32 bytes:
sha256), `<task>.ids` (32 bytes: sha256 of the id), `<task>.sizes` (uint32: UTF-8 bytes), `<task>.tokens` (uint32, with
a tokenizer); and `<task>.json` (counts; written last). Where dropped documents are kept:
`rejected/<task>-<part>.parquet` with their raw texts, and `raw/<task>-<part>.parquet` with the raw texts of the kept
documents of a part, null where nothing was changed, since one of them may still turn out to be a duplicate.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
from datatrove.pipeline.base import PipelineStep

from mobillama import manifest
from mobillama.data.edits import Edit

if TYPE_CHECKING:
    from mobillama.tokenizer.tokenizer import Tokenizer

PART_BYTES = 4 << 20
GROUP_BYTES = 1 << 20
TOKEN_BLOCK = 4 << 20  # characters that are encoded at once to be counted
EDITS = pyarrow.list_(
    pyarrow.struct([("start", pyarrow.uint64()), ("end", pyarrow.uint64()), ("text", pyarrow.large_string())])
)
TYPES = {"record": pyarrow.uint64(), "bytes": pyarrow.uint64(), "overlap": pyarrow.list_(pyarrow.large_string())}
COLUMNS = (
    *("text", "source", "id", "url", "license", "file", "record", "raw_sha256", "bytes"),
    *("language", "overlap", "edits"),
)
SCHEMA = pyarrow.schema([(name, {**TYPES, "edits": EDITS}.get(name, pyarrow.large_string())) for name in COLUMNS])
REJECTED = SCHEMA.append(pyarrow.field("reason", pyarrow.large_string())).append(
    pyarrow.field("duplicate_of", pyarrow.large_string())
)
RAW = pyarrow.schema([("raw", pyarrow.large_string())])
Row = tuple[Any, ...]  # one value for each column


class WriteParts(PipelineStep):  # type: ignore[misc]
    """Writes the documents of one task and says what became of each."""

    name, type = "write parts", "writer"
    counter: Any

    def __init__(self, folder: Path, tokenizer: Tokenizer | None = None, *, keep_rejected: bool = False) -> None:
        """With a tokenizer, tokens are counted beside bytes."""
        super().__init__()
        self.folder, self.tokenizer, self.keep_rejected = folder, tokenizer, keep_rejected

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Consume all documents; yields none."""
        self.folder.mkdir(parents=True, exist_ok=True)
        hashes, ids = bytearray(), bytearray()
        sizes: list[int] = []
        tokens: list[int] = []
        counts = Counts()
        kept = Parts(self.folder, rank, SCHEMA)
        rejected = Parts(self.folder / "rejected", rank, REJECTED)
        raws = Parts(self.folder / "raw", rank, RAW)
        with self.counter.of(rank) as done:
            for document in data:
                metadata = document.metadata
                done += (1, metadata["raw_bytes"])
                read = (metadata["raw_bytes"], self._tokens(_raw_text(document)))
                if dropped := metadata.get("dropped"):
                    counts.drop(dropped, read, metadata.get("why"))
                    if self.keep_rejected and rejected.add(_rejected(document, dropped), len(metadata["raw"])):
                        rejected.close()
                    continue
                changed = bool(metadata.get("edits"))
                row, digest = _row(document)
                size = row[COLUMNS.index("bytes")]
                tokens.append(self._tokens(document.text) if changed else read[1])
                counts.keep(read, (size, tokens[-1]))
                hashes += digest
                ids += hashlib.sha256(document.id.encode()).digest()
                sizes.append(size)
                full = kept.add(row, size)
                if self.keep_rejected:
                    full |= raws.add((_raw_text(document) if changed else None,), changed * size)
                if full:
                    kept.close()
                    raws.close()
        for parts in (kept, rejected, raws):
            parts.close()
        manifest.write_file(self.folder / f"{rank:05d}.hashes", bytes(hashes))
        manifest.write_file(self.folder / f"{rank:05d}.ids", bytes(ids))
        manifest.write_file(self.folder / f"{rank:05d}.sizes", np.asarray(sizes, np.uint32).tobytes())
        if self.tokenizer is not None:
            manifest.write_file(self.folder / f"{rank:05d}.tokens", np.asarray(tokens, np.uint32).tobytes())
        told = {"parts": kept.documents, "rejected": rejected.documents, **counts.tree()}
        manifest.write_file(self.folder / f"{rank:05d}.json", json.dumps(told).encode())
        yield from ()

    def _tokens(self, text: str) -> int:
        """Tokens of a text without `</s>`; 0 without a tokenizer. A huge text is cut, which may add one a cut."""
        if self.tokenizer is None:
            return 0
        blocks = (text[start : start + TOKEN_BLOCK] for start in range(0, len(text), TOKEN_BLOCK))
        return sum(len(self.tokenizer.encode_array(block)) for block in blocks)


class Parts:
    """Rows of a task on their way into numbered Parquet files."""

    def __init__(self, folder: Path, task: int, schema: Any) -> None:
        self.folder, self.task, self.schema = folder, task, schema
        self.documents: list[int] = []  # of each part
        self._rows: list[Row] = []
        self._size = 0

    def add(self, row: Row, size: int) -> bool:
        """Take a row of about `size` bytes; whether the part is full."""
        self._rows.append(row)
        self._size += size
        return self._size >= PART_BYTES

    def close(self) -> None:
        """Write the part, if it has rows, and begin the next."""
        if self._rows:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{self.task:05d}-{len(self.documents):05d}.parquet"
            write_table(path, make_table(self._rows, self.schema))
            self.documents.append(len(self._rows))
            self._rows, self._size = [], 0


class Counts:
    """Documents, bytes and tokens read, kept, and dropped by reason."""

    def __init__(self) -> None:
        self.read, self.kept = [0, 0, 0], [0, 0, 0]
        self.dropped: dict[str, list[int]] = {}
        self.bad: dict[str, dict[str, Any]] = {}

    def keep(self, raw: tuple[int, int], text: tuple[int, int]) -> None:
        """Count one document that stays: bytes and tokens of its raw and of its cleaned text."""
        self._add(self.read, raw)
        self._add(self.kept, text)

    def drop(self, reason: str, raw: tuple[int, int], why: str | None = None) -> None:
        """Count one document that goes; `why` is given of a bad record: what was found, and where."""
        if why:
            self.bad.setdefault(reason, {"records": 0, "first": why})["records"] += 1
        self._add(self.read, raw)
        self._add(self.dropped.setdefault(reason, [0, 0, 0]), raw)

    def tree(self) -> dict[str, Any]:
        """Plain JSON types; lists are [documents, bytes, tokens]; bad records are among the dropped."""
        return {"read": self.read, "kept": self.kept, "dropped": self.dropped, "bad": self.bad}

    @staticmethod
    def _add(sums: list[int], sizes: tuple[int, int]) -> None:
        sums[0] += 1
        sums[1] += sizes[0]
        sums[2] += sizes[1]


def _row(document: Any) -> tuple[Row, bytes]:
    """The line of one kept document, and the sha256 of its text."""
    metadata = document.metadata
    text = document.text.encode("utf-8")
    digest = hashlib.sha256(text)
    raw = digest if metadata["raw"] == text else hashlib.sha256(metadata["raw"])
    where = (metadata[name] for name in ("url", "license", "file", "record"))
    cleaned = (metadata.get("language", ""), metadata.get("overlap", ()), metadata.get("edits", ()))
    row = (document.text, metadata["source"], document.id, *where, raw.hexdigest(), len(text), *cleaned)
    return row, digest.digest()


def _rejected(document: Any, reason: str) -> Row:
    """The line of one dropped document: its raw text, empty if that is no UTF-8."""
    metadata = document.metadata
    where = (metadata[name] for name in ("url", "license", "file", "record"))
    raw = metadata["raw"]
    cleaned = (metadata.get("language", ""), metadata.get("overlap", ()), ())
    digest = hashlib.sha256(raw).hexdigest()
    return (_raw_text(document), metadata["source"], document.id, *where, digest, len(raw), *cleaned, reason, "")


def _raw_text(document: Any) -> str:
    """The text as it was read: the document's, unless that was edited."""
    text: str = document.metadata["raw"].decode("utf-8") if document.metadata.get("edits") else document.text
    return text


def make_table(rows: Sequence[Row], schema: Any) -> Any:
    """Rows as an Arrow table of a schema."""
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(schema)
    return pyarrow.table(
        [
            _edits(column) if field.type == EDITS else pyarrow.array(column, field.type)
            for field, column in zip(schema, columns, strict=True)
        ],
        schema=schema,
    )


def _edits(column: Sequence[Sequence[Edit]]) -> Any:
    """Lists of edits as an Arrow array, without a dictionary for every one."""
    offsets = np.cumsum([0, *map(len, column)]).astype(np.int32)
    flat = [edit for edits in column for edit in edits]
    starts = np.fromiter((edit[0] for edit in flat), np.uint64, len(flat))
    ends = np.fromiter((edit[1] for edit in flat), np.uint64, len(flat))
    texts = pyarrow.array([edit[2].decode("utf-8") for edit in flat], pyarrow.large_string())
    values = [pyarrow.array(starts), pyarrow.array(ends), texts]
    inner = pyarrow.StructArray.from_arrays(values, fields=list(EDITS.value_type))
    return pyarrow.ListArray.from_arrays(pyarrow.array(offsets), inner, type=EDITS)


def write_table(path: Path, table: Any) -> None:
    """Write a table of documents as Parquet in row groups of about GROUP_BYTES of text, whole or not at all.

    The same table gives the same bytes.
    """
    cuts = _groups(table)
    with (
        replacing(path) as beside,
        parquet.ParquetWriter(
            beside,
            table.schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=[name for name in ("source", "license", "language", "reason") if name in table.column_names],
        ) as writer,
    ):
        for start, stop in pairwise([*cuts, len(table)]):
            writer.write_table(table.slice(start, stop - start), row_group_size=stop - start)


def _groups(table: Any) -> Any:
    """The first row of every row group: one at least, unless there are no rows."""
    if not len(table) or "bytes" not in table.column_names:
        return np.arange(min(1, len(table)))
    sizes = np.cumsum(table.column("bytes").to_numpy()).astype(np.int64)
    return np.unique(np.searchsorted(sizes, np.arange(0, max(1, int(sizes[-1])), GROUP_BYTES)))


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
