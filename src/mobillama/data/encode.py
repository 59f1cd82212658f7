"""Encoding corpus parts to flat files of token ids, the bytes each token covers, and one record per document.

Per corpus part and split, in the work folder: `<part>.<split>.ids`, `.lengths` (uint16: UTF-8 bytes of each token),
`.bases` (int64: bytes before every BASE-th token), `.records` (int64, (documents, 3): number, tokens, bytes). Every
document ends with </s> and none begins with <s> (Amber). The shards' documents table is written on the way, and its
lines for look-ups.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from mobillama.data import document_lines
from mobillama.data.documents import reading
from mobillama.data.merge import part_name
from mobillama.data.parts import replacing, write_table
from mobillama.data.tensors import lay_out, write_arrays
from mobillama.errors import InputError
from mobillama.tokenizer import tokenizer as tokenizers

BASE = 1024
SPLITS = ("train", "validation")
TABLE_COLUMNS = ["source", "id", "url", "license", "file", "record", "raw_sha256", "bytes"]


@lru_cache(maxsize=2)
def load_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """A tokenizer for documents, loaded once per process (workers that are forked find it loaded).

    Error: InputError for one whose ids do not spell a document byte for byte, by which look-ups find their places.
    """
    found = tokenizers.Tokenizer.load(folder).for_documents()
    if not found.vocabulary.spells:
        raise InputError(
            f"the tokenizer in {folder} puts spaces behind pieces that it finds in a text, or takes some away, so that "
            "its ids do not spell a document; expected one without such added tokens, such as the base model's"
        )
    return found


def is_held_out(document_id: str, share: float) -> bool:
    """Whether a document belongs to the validation split: sha256 of its id, read as a fraction, is below `share`."""
    return int.from_bytes(hashlib.sha256(document_id.encode()).digest()[:8], "big") < share * 2.0**64


class TrainTokenizer(PipelineStep):  # type: ignore[misc]
    """Trains a tokenizer on evenly spaced documents of the corpus and saves it to `out`."""

    name, type = "train tokenizer", "tokenizer"

    def __init__(self, parts: list[Path], corpus_bytes: int, vocab_size: int, train_bytes: int, out: Path) -> None:
        super().__init__()
        self.parts, self.out, self.vocab_size = parts, out, vocab_size
        self.share = min(1.0, train_bytes / corpus_bytes)

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Train and save; yields nothing."""
        tokenizers.train(self._texts(), self.vocab_size).save(self.out)
        yield from ()

    def _texts(self) -> Iterator[str]:
        number = 0
        for path in self.parts:
            with reading(path):
                for batch in parquet.ParquetFile(path).iter_batches(64, columns=["text"]):
                    for text in batch.column(0):
                        number += 1
                        if int(number * self.share) > int((number - 1) * self.share):
                            yield text.as_py()


class Encode(PipelineStep):  # type: ignore[misc]
    """Encodes corpus part `rank`."""

    name, type = "encode", "tokenizer"
    counter: Any

    def __init__(self, parts: list[Path], firsts: list[int], tokenizer: Path, share: float, out: Path, table: Path):
        super().__init__()
        self.parts, self.firsts = parts, firsts  # part files, number of the first document of each
        self.tokenizer, self.share, self.out, self.table = tokenizer, share, out, table

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Encode every document of the part; yields nothing."""
        self.out.mkdir(parents=True, exist_ok=True)
        self.table.mkdir(parents=True, exist_ok=True)
        flat = {split: Flat(self.tokenizer) for split in SPLITS}
        number, tokens, splits = self.firsts[rank], [], []
        with self.counter.of(rank) as done, reading(self.parts[rank]):
            for batch in parquet.ParquetFile(self.parts[rank]).iter_batches(64, columns=["text", "id"]):
                for text, key in zip(batch.column(0), batch.column(1), strict=True):
                    split = SPLITS[is_held_out(key.as_py(), self.share)]
                    count, size = flat[split].add(number, text.as_py())
                    done += (1, size)
                    tokens.append(count)
                    splits.append(split)
                    number += 1
        for split, file in flat.items():
            file.write(self.out / f"{rank:05d}.{split}")
        with reading(self.parts[rank]):
            table = parquet.read_table(self.parts[rank], columns=TABLE_COLUMNS)
        table = table.append_column("tokens", pyarrow.array(tokens, pyarrow.uint64()))
        table = table.append_column("split", pyarrow.array(splits, pyarrow.large_string()))
        write_table(self.table / part_name(rank), table)
        write_lines((self.table / part_name(rank)).with_suffix(".safetensors"), table, self.firsts[rank])
        yield from ()


def write_lines(path: Path, table: Any, first: int) -> None:
    """Write what look-ups tell of the documents of one part, the first of which has number `first`."""
    columns = [table.column(name).to_pylist() for name in document_lines.COLUMNS]
    lines = [
        json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() for line in zip(*columns, strict=True)
    ]
    text = np.frombuffer(b"".join(lines), np.uint8)
    offsets = np.cumsum([0, *map(len, lines)], dtype=np.uint64)

    def fill(arrays: dict[str, NDArray[Any]]) -> None:
        arrays["lines"][:], arrays["offsets"][:] = text, offsets

    layout = lay_out(
        {"lines": (np.uint8, text.shape), "offsets": (np.uint64, offsets.shape)}, document_lines.metadata(first)
    )
    with replacing(path) as beside:
        write_arrays(beside, layout, fill)


class Flat:
    """Ids and byte lengths of documents, one after the other."""

    def __init__(self, tokenizer: Path) -> None:
        self.tokenizer = load_tokenizer(tokenizer)
        self.end = np.array([self.tokenizer.document_end], np.uint32)
        self.dtype = np.uint16 if self.tokenizer.vocab_size <= 1 << 16 else np.uint32
        self.ids: list[NDArray[Any]] = []
        self.lengths: list[NDArray[Any]] = []
        self.records: list[tuple[int, int, int]] = []

    def add(self, number: int, text: str) -> tuple[int, int]:
        """Encode document `number`; its tokens (with </s>) and its bytes."""
        ids = self.tokenizer.encode_array(text)
        lengths = self.tokenizer.byte_lengths(text, ids)
        if len(ids) and lengths.max() > np.iinfo(np.uint16).max:
            raise InputError(f"a token of document {number} covers {lengths.max()} bytes; at most 65,535 can be kept")
        size = int(lengths.sum())
        self.ids += (ids.astype(self.dtype), self.end.astype(self.dtype))
        self.lengths += (lengths.astype(np.uint16), np.zeros(1, np.uint16))
        self.records.append((number, len(ids) + 1, size))
        return len(ids) + 1, size

    def write(self, stem: Path) -> None:
        """Write the four files whose names begin with `stem`."""
        lengths = np.concatenate([*self.lengths, np.empty(0, np.uint16)])
        before = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])[:-1:BASE] if len(lengths) else np.empty(0)
        files = {
            "ids": np.concatenate([*self.ids, np.empty(0, self.dtype)]),
            "lengths": lengths,
            "bases": before.astype(np.int64),
            "records": np.array(self.records, np.int64).reshape(-1, 3),
        }
        for name, array in files.items():
            with replacing(stem.with_name(f"{stem.name}.{name}")) as beside, beside.open("wb") as file:
                file.write(np.ascontiguousarray(array).data)
