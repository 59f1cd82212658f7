"""`mobillama data import`: Amber's own files become shards, one chunk a file, in the order of their numbers.

Two stages, a task a file: `scan` hashes a file, counts its lines and notes its labels; `rows` reads and checks every
line and writes the chunk, which appears whole or not at all. No file is ever in memory as a whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobillama import manifest
from mobillama.errors import InputError, missing_extra

try:
    from datatrove.pipeline.base import PipelineStep

    from mobillama.data.amber import list_files, read_lines, read_row, read_source
    from mobillama.data.chunk import Arrays, write_chunk
    from mobillama.data.corpus import clear_strays, drop_work, work_folder
    from mobillama.data.display import Display
    from mobillama.data.encode import load_tokenizer
    from mobillama.data.executor import OnProgress, run_stage
    from mobillama.data.header import VALIDATION, Header, chunk_name
    from mobillama.data.parts import replacing
except ImportError as error:
    raise missing_extra("data", error) from None
from mobillama.tokenizer.tokenizer import Tokenizer
from mobillama.tokenizer.vocabulary import SPACE

LABELS = 256  # as many as row_source can tell apart
ROW_ARRAYS = ("ids", "row_source", "row_bytes")


def import_amber(
    files: Sequence[Path],
    out: Path,
    *,
    vocab_size: int = 32000,
    seq_len: int = 2048,
    validation: Sequence[Path] = (),
    tokenizer: Path | None = None,
    workers: int = 0,
    on_progress: OnProgress | None = None,
) -> manifest.Manifest:
    """Shards at `out` from Amber's files (or folders of them); the held-out rows are those of `validation`, or none.

    `tokenizer` is copied in, and tells the bytes of text of each row; without one they are 0. The same call goes on
    after an interruption, and gives finished shards of the same files back. Errors: InputError that names file and
    line, DamagedFileError for files cut short, OSError for a full disk.
    """
    listed = list_files(files)
    for path in validation:
        if not path.is_file():
            raise InputError(f"{path} does not exist; give Amber's file of held-out rows, or leave --validation out")
    used = load_tokenizer(tokenizer.resolve()) if tokenizer else None
    if used and used.vocab_size != vocab_size:
        raise InputError(
            f"the tokenizer in {tokenizer} has {used.vocab_size} ids, --vocab-size says {vocab_size}: make them agree"
        )
    settings = {
        "import": {
            "files": [[path.name, path.stat().st_size] for path in listed],
            "validation": [[path.name, path.stat().st_size] for path in validation],
            "vocab_size": vocab_size,
            "seq_len": seq_len,
            "tokenizer": used.digest if used else None,
        }
    }
    if out.exists():
        found = manifest.read(out, "shards")
        if found.recipe != settings:
            raise InputError(f"{out} exists already, made of other files; choose another --out or remove it")
        drop_work(out)
        return found
    if on_progress is not None:
        return _import(listed, validation, out, settings, used, workers, on_progress)
    display = Display()
    try:
        return _import(listed, validation, out, settings, used, workers, display)
    finally:
        display.close()


def _import(
    listed: Sequence[Path],
    validation: Sequence[Path],
    out: Path,
    settings: dict[str, Any],
    tokenizer: Tokenizer | None,
    workers: int,
    on_progress: OnProgress,
) -> manifest.Manifest:
    config = settings["import"]
    with manifest.building(out) as partial:
        every = [*listed, *validation]
        state = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in every]
        work = work_folder(out, {**settings, "inputs": state})
        seconds = {"scan": run_stage("scan", [Scan(every, work)], len(every), work, workers, on_progress)}
        scanned = [json.loads((work / f"{number:05d}.json").read_text()) for number in range(len(every))]
        rows = [sum(each["sources"].values()) for each in scanned]
        if not sum(rows[: len(listed)]):
            raise InputError(f"{listed[0]} and the other files hold no line; give files that hold rows")
        sources = tuple(dict.fromkeys(label for each in scanned for label in each["sources"]))
        if len(sources) > LABELS:
            raise InputError(f"the files name {len(sources)} sources; shards tell at most {LABELS} apart")
        digest = tokenizer.digest if tokenizer else ""
        header = Header(config["vocab_size"], config["seq_len"], digest, sources)
        chunks: list[tuple[tuple[Path, ...], tuple[int, ...]]] = []
        chunks += [((path,), (count,)) for path, count in zip(listed, rows[: len(listed)], strict=True)]
        chunks.append((tuple(validation), tuple(rows[len(listed) :])))
        names = [*(chunk_name(number, len(listed)) for number in range(len(listed))), VALIDATION]
        step = WriteRows(chunks, [partial / name for name in names], header, tokenizer)
        seconds["rows"] = run_stage("rows", [step], len(chunks), work, workers, on_progress)
        if tokenizer:
            tokenizer.save(partial / "tokenizer")
        clear_strays(partial)
        made_from = [
            {"kind": "source file", "name": path.name, "digest": each["sha256"]}
            for path, each in zip(every, scanned, strict=True)
        ]
        if tokenizer:
            made_from.append({"kind": "tokenizer", "name": "tokenizer", "digest": tokenizer.digest})
        sealed = manifest.seal(
            partial,
            out,
            "shards",
            made_from=made_from,
            recipe=settings,
            counts=_counts(header, scanned, len(listed)),
            circumstance={"seconds": seconds},
        )
    drop_work(out)
    return sealed


def _counts(header: Header, scanned: list[dict[str, Any]], chunks: int) -> dict[str, Any]:
    per_source: dict[str, Any] = {source: {} for source in header.sources}
    totals = {}
    for split, files in (("train", scanned[:chunks]), ("validation", scanned[chunks:])):
        for source, told in per_source.items():
            rows = sum(each["sources"].get(source, 0) for each in files)
            told[split] = {"rows": rows, "tokens": rows * header.row_len}
        rows = sum(told[split]["rows"] for told in per_source.values())
        totals[split] = {"rows": rows, "tokens": rows * header.row_len}
    return {
        "train_rows": totals["train"]["rows"],
        "validation_rows": totals["validation"]["rows"],
        "vocab_size": header.vocab_size,
        "seq_len": header.seq_len,
        "chunks": chunks,
        **totals,
        "sources": per_source,
    }


class Scan(PipelineStep):  # type: ignore[misc]
    """Notes of file `rank`: sha256 of its bytes, and its rows per source in order of appearance."""

    name, type = "scan", "reader"
    counter: Any

    def __init__(self, files: Sequence[Path], work: Path) -> None:
        super().__init__()
        self.files, self.work = files, work

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Write `<rank>.json`; yields nothing."""
        path = self.files[rank]
        sources: dict[str, int] = {}
        with self.counter.of(rank) as done:
            for number, line in read_lines(path):
                label = read_source(line, f"{path} line {number}")
                sources[label] = sources.get(label, 0) + 1
                done += (1, len(line))
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        notes = json.dumps({"sha256": digest, "sources": sources}).encode()
        manifest.write_file(self.work / f"{rank:05d}.json", notes)
        yield from ()


class WriteRows(PipelineStep):  # type: ignore[misc]
    """Writes the rows of the files of chunk `rank` to its chunk file."""

    name, type = "rows", "writer"
    counter: Any

    def __init__(
        self,
        chunks: Sequence[tuple[tuple[Path, ...], tuple[int, ...]]],
        outs: Sequence[Path],
        header: Header,
        tokenizer: Tokenizer | None,
    ) -> None:
        super().__init__()
        self.chunks, self.outs, self.header = chunks, outs, header  # files of each chunk, and the rows of each file
        self.sizes = RowBytes(tokenizer) if tokenizer else None

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Write one chunk; yields nothing."""
        files, rows = self.chunks[rank]
        with self.counter.of(rank) as done, replacing(self.outs[rank]) as beside:

            def fill(arrays: Arrays) -> None:
                start = 0
                for path, count in zip(files, rows, strict=True):
                    self._fill(path, {name: arrays[name][start : start + count] for name in ROW_ARRAYS}, done)
                    start += count

            write_chunk(beside, self.header, sum(rows), 0, fill)
        yield from ()

    def _fill(self, path: Path, arrays: Arrays, done: NDArray[np.int64]) -> None:
        numbers = {source: number for number, source in enumerate(self.header.sources)}
        read = 0
        for read, line in read_lines(path):
            where = f"{path} line {read}"
            ids, source = read_row(line, self.header.row_len, self.header.vocab_size, where)
            if read > len(arrays["ids"]) or source not in numbers:
                break
            arrays["ids"][read - 1] = ids
            arrays["row_source"][read - 1] = numbers[source]
            if self.sizes:
                arrays["row_bytes"][read - 1] = self.sizes.count(ids)
            done += (1, len(line))
        else:
            if read == len(arrays["ids"]):
                return
        raise InputError(f"{path} changed while it was read; leave it alone and run the same command again")


class RowBytes:
    """UTF-8 bytes of text that ids cover, as decoding them gives it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        vocabulary = tokenizer.vocabulary
        self.end_id, self.lengths = tokenizer.document_end, tokenizer.token_bytes.astype(np.int64)
        begins = [vocabulary.dummy_prefix and piece.startswith(SPACE) for piece in vocabulary.pieces]
        self.prefix = np.array(begins, np.int64)  # of the space put before a document

    def count(self, ids: NDArray[np.int64]) -> int:
        """Bytes of the trained positions ids[1:] of a row (row_len,)."""
        trained = ids[1:]
        return int(self.lengths[trained].sum() - self.prefix[trained[ids[:-1] == self.end_id]].sum())
