"""Shards: rows of token ids in memory-mapped chunks, each row with its source, bytes of text and document spans.

A folder of kind "shards" holds chunk_000.safetensors ..., validation.safetensors, documents/*.parquet (one line per
document, in the order that spans count them), tokenizer/ and manifest.json. Format: docs/formats.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mobillama import manifest
from mobillama.data.chunk import Arrays, write_chunk
from mobillama.data.document_lines import DocumentLines, open_lines
from mobillama.data.documents import DocumentTable
from mobillama.data.header import VALIDATION, Header, chunk_name, read_headers
from mobillama.data.segments import number_segments
from mobillama.data.span import Place, Span
from mobillama.data.tensors import map_extents
from mobillama.errors import InputError

Split = Literal["train", "validation"]


def write_shards(
    out: Path,
    train: ArrayLike,
    validation: ArrayLike,
    *,
    vocab_size: int,
    chunks: int = 1,
    sources: Sequence[str] = ("text",),
    row_source: ArrayLike = 0,
    validation_source: ArrayLike = 0,
    bytes_per_token: int = 1,
    tokenizer: Path | None = None,
    tokenizer_digest: str = "",
) -> manifest.Manifest:
    """A small shards folder from rows in memory: `train` and `validation` are (rows, seq_len + 1) ids.

    Rows are cut into `chunks` runs in the order given. Such rows have no documents, so no spans; each trained token
    counts `bytes_per_token` bytes. `tokenizer` is a folder to copy.
    """
    splits = [np.asarray(train), np.asarray(validation)]
    header = Header(vocab_size, splits[0].shape[1] - 1, tokenizer_digest, tuple(sources))
    labels = [np.broadcast_to(np.asarray(row_source), len(splits[0]))]
    labels.append(np.broadcast_to(np.asarray(validation_source), len(splits[1])))
    cuts = [len(splits[0]) * number // chunks for number in range(chunks + 1)]
    parts = [
        (chunk_name(number, chunks), splits[0][start:stop], labels[0][start:stop])
        for number, (start, stop) in enumerate(itertools.pairwise(cuts))
    ]
    with manifest.building(out) as partial:
        for name, ids, label in [*parts, (VALIDATION, splits[1], labels[1])]:

            def fill(arrays: Arrays, ids: NDArray[Any] = ids, label: NDArray[Any] = label) -> None:
                if ids.size:
                    arrays["ids"][:] = ids
                arrays["row_source"][:] = label
                arrays["row_bytes"][:] = bytes_per_token * header.seq_len

            write_chunk(partial / name, header, len(ids), 0, fill)
        if tokenizer is not None:
            (partial / "tokenizer").mkdir(exist_ok=True)
            for path in sorted(tokenizer.iterdir()):
                (partial / "tokenizer" / path.name).write_bytes(path.read_bytes())
        counts = {"train_rows": len(splits[0]), "validation_rows": len(splits[1]), "documents": 0}
        return manifest.seal(partial, out, "shards", counts=counts)


class Shards:
    """Rows of one shards folder, memory-mapped. Row numbers are global: row 0 is the first of chunk 0."""

    def __init__(self, folder: Path) -> None:
        """Open every chunk file and check its header. Errors: InputError, DamagedFileError naming the file."""
        self.folder = folder
        self.manifest = manifest.read(folder, "shards")
        self.header, extents = read_headers(folder, self.manifest.files)
        opened = [map_extents(folder / name, found) for name, found in extents.items()]
        self._chunks: list[Arrays] = opened[:-1]
        self._validation: Arrays = opened[-1]
        self.chunk_rows: tuple[int, ...] = tuple(len(chunk["ids"]) for chunk in self._chunks)
        self._ends = np.cumsum(self.chunk_rows)
        self.num_rows = int(self._ends[-1])
        self.num_validation_rows = len(self._validation["ids"])
        self.seq_len, self.row_len = self.header.seq_len, self.header.row_len
        self.vocab_size, self.sources = self.header.vocab_size, self.header.sources
        self.tokenizer_digest = self.header.tokenizer_digest

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the manifest without its circumstance: the identity of these shards."""
        return self.manifest.digest()

    def check(self) -> None:
        """Hash every file. Error: DamagedFileError naming the first ones whose bytes are not the manifest's."""
        manifest.check(self.folder)

    def train_rows(self, indices: ArrayLike) -> NDArray[np.int64]:
        """Ids of training rows: (n, row_len). Errors: InputError for a row or an id that cannot be."""
        return self._rows("train", indices)

    def validation_rows(self, indices: ArrayLike) -> NDArray[np.int64]:
        """Ids of held-out rows: (n, row_len)."""
        return self._rows("validation", indices)

    def row_bytes(
        self, indices: ArrayLike, split: Split = "train", *, document_mask: bool = False
    ) -> NDArray[np.int64]:
        """UTF-8 bytes of text that the trained positions of each row cover (n,): ids[1:], without padding.

        With a document mask also without the first token of each document. Error: InputError if the shards do not
        know its bytes (format version 1).
        """
        found = self._gather("row_bytes", split, indices)
        if document_mask:
            self.require_spans()
            counts, first, unseen = self._spans_of(indices, split, "span_token", "span_first_bytes")
            row = np.repeat(np.arange(len(counts)), counts)
            np.subtract.at(found, row[first > 0], unseen[first > 0])
        return found

    @property
    def padded(self) -> bool:
        """Whether rows may end in padding."""
        return self.header.padded

    def segments(self, indices: ArrayLike, split: Split = "train") -> NDArray[np.int64]:
        """Which document of its row each position belongs to, counted from 0; -1 is padding: (n, row_len)."""
        counts, first, tokens = self._spans_of(indices, split, "span_token", "span_tokens")
        return number_segments(counts, first, tokens, self.row_len)

    def require_spans(self) -> None:
        """Raise InputError if these shards do not know where documents begin, or the bytes of their first tokens."""
        for chunk in [*self._chunks, self._validation]:
            if len(chunk["ids"]) and not len(chunk["span_document"]):
                raise InputError(
                    f"{self.folder} holds no document spans, so nobody knows where documents begin in its rows: build "
                    "it with `mobillama data build`, or train with train.document_mask=false"
                )
            if "span_first_bytes" not in chunk:
                raise InputError(
                    f"{self.folder} is of format version 1, which lacks the bytes of each document's first token: "
                    "build the shards again, or train with train.document_mask=false"
                )

    def table(self, chunk: int | Literal["validation"]) -> Any:
        """Training chunk number `chunk`, or the held-out rows, as a pyarrow table over the memory map (no copy).

        Columns: ids (fixed-size list), source (text), row_bytes and spans (list of structs); see docs/formats.md.
        """
        files = [self._validation] if chunk == "validation" else self._chunks[chunk : chunk + 1]
        if not files or (chunk != "validation" and chunk < 0):
            raise InputError(
                f"{self.folder} has no chunk {chunk}; it has 0 to {len(self._chunks) - 1} and 'validation'"
            )
        from mobillama.data.arrow import chunk_table

        return chunk_table(files[0], self.sources)

    def row_sources(self, indices: ArrayLike, split: Split = "train") -> NDArray[np.int64]:
        """Index into `sources` of each row: (n,)."""
        return self._gather("row_source", split, indices)

    def spans(self, row: int, split: Split = "train") -> list[Span]:
        """The documents that row `row` was cut from, in order, with their byte ranges."""
        (number, inside), chunks = self._place(split, np.asarray([row])), self._files(split)
        chunk, place = chunks[int(number[0])], int(inside[0])
        first, last = (int(edge) for edge in chunk["span_offsets"][place : place + 2])
        numbers = [int(document) for document in chunk["span_document"][first:last]]
        records = self._documents.lines(numbers) if numbers else []
        return [
            Span(
                **{name: record[name] for name in ("source", "license", "url")},
                document_id=record["id"],
                token_start=int(chunk["span_token"][span]),
                token_count=int(chunk["span_tokens"][span]),
                byte_start=int(chunk["span_byte_start"][span]),
                byte_end=int(chunk["span_byte_end"][span]),
                document=number,
            )
            for number, record, span in zip(numbers, records, range(first, last), strict=True)
        ]

    def places(self, documents: Iterable[int]) -> list[Place]:
        """Every place of some documents (by number), document by document from its beginning on.

        Looks at every span of every chunk: 8 bytes a span are read.
        """
        wanted = np.unique(np.fromiter(documents, np.uint64))
        found: list[Place] = []
        before = 0
        for number, chunk in enumerate([*self._chunks, self._validation]):
            held_out = number == len(self._chunks)
            owners, offsets = chunk["span_document"], chunk["span_offsets"]
            here = np.nonzero(np.isin(owners, wanted))[0]
            rows = np.searchsorted(offsets, here, side="right") - 1 + (0 if held_out else before)
            names = ("span_token", "span_tokens", "span_byte_start", "span_byte_end")
            columns = [owners[here].tolist(), rows.tolist(), *(chunk[name][here].tolist() for name in names)]
            found += [
                Place(document, None if held_out else number, row, *rest)
                for document, row, *rest in zip(*columns, strict=True)
            ]
            before += len(chunk["ids"])
        return sorted(found, key=lambda place: (place.document, place.byte_start, place.byte_end))

    @cached_property
    def _documents(self) -> DocumentLines | DocumentTable:
        return open_lines(self.folder / "documents")

    def _files(self, split: Split) -> list[Arrays]:
        return self._chunks if split == "train" else [self._validation]

    def _place(self, split: Split, indices: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """File number and row inside the file of each global row number."""
        rows = np.asarray(indices, dtype=np.int64)
        ends = self._ends if split == "train" else np.asarray([self.num_validation_rows])
        if len(rows) and (rows.min() < 0 or rows.max() >= ends[-1]):
            raise InputError(f"{self.folder}: row {rows.max()} of {split}; it has rows 0 to {ends[-1] - 1}")
        number = np.searchsorted(ends, rows, side="right")
        return number, rows - np.concatenate([[0], ends])[number]

    def _gather(self, name: str, split: Split, indices: ArrayLike) -> NDArray[np.int64]:
        number, inside = self._place(split, indices)
        files = self._files(split)
        found = np.empty((len(number), *files[0][name].shape[1:]), np.int64)
        for file in np.unique(number):
            here = number == file
            found[here] = files[file][name][inside[here]]
        return found

    def _spans_of(self, indices: ArrayLike, split: Split, *names: str) -> tuple[NDArray[np.int64], ...]:
        """Spans of some rows in order: how many each row has (n,), and the named arrays of all (spans,)."""
        number, inside = self._place(split, indices)
        files = self._files(split)
        first, stop = np.empty((2, len(number)), np.int64)
        for file in np.unique(number):
            here = number == file
            first[here] = files[file]["span_offsets"][inside[here]]
            stop[here] = files[file]["span_offsets"][inside[here] + 1]
        counts = stop - first
        place = np.arange(counts.sum()) + np.repeat(first - np.cumsum(counts) + counts, counts)
        owner = np.repeat(number, counts)
        found = np.empty((len(names), len(place)), np.int64)
        for file in np.unique(owner):
            here = owner == file
            for name, values in zip(names, found, strict=True):
                values[here] = files[file][name][place[here]]
        return counts, *found

    def _rows(self, split: Split, indices: ArrayLike) -> NDArray[np.int64]:
        ids = self._gather("ids", split, indices)  # (n, row_len)
        if ids.size and ids.max() >= self.vocab_size:
            row, place = (int(edge[0]) for edge in np.nonzero(ids >= self.vocab_size))
            raise InputError(
                f"{self.folder}: {split} row {np.asarray(indices)[row]} holds id {ids[row, place]}; the vocabulary has "
                f"{self.vocab_size} ids (0 to {self.vocab_size - 1}): check the files with `mobillama verify`"
            )
        return ids


def read_shards(folder: str | Path) -> Shards:
    """Open a shards folder. Errors: InputError if it is none, DamagedFileError if a file is cut short.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write_shards(Path(folder) / "shards", [[1, 2, 3], [4, 5, 6]], [[7, 8, 9]], vocab_size=16)
    ...     shards = read_shards(Path(folder) / "shards")
    ...     shards.seq_len, shards.num_rows, shards.train_rows(np.array([1])).tolist()
    (2, 2, [[4, 5, 6]])
    """
    return Shards(Path(folder))


def require_tokenizer(shards: Shards, digest: str, origin: object) -> None:
    """Raise InputError if the tokenizer of `digest` is not the one these shards were encoded with."""
    if shards.tokenizer_digest != digest:
        raise InputError(
            f"{origin} has tokenizer {digest[:16]}; the shards in {shards.folder} were encoded with "
            f"{shards.tokenizer_digest[:16]} (a copy is in {shards.folder / 'tokenizer'}): use that one or build anew"
        )


def tokenizer_files(folder: Path) -> Mapping[str, Path]:
    """Name -> path of the tokenizer files that travel with the shards, to be copied beside a trained model."""
    return {path.name: path for path in sorted((folder / "tokenizer").glob("*")) if path.is_file()}
