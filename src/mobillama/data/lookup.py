"""What a training step read: step -> rows (a pure function) -> documents -> text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobillama.data.run_folder import read_run_file
from mobillama.data.shards import Place, Shards, Span, read_shards, require_tokenizer
from mobillama.data.stream import row_ids
from mobillama.errors import InputError
from mobillama.tokenizer.pieces import Pieces
from mobillama.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Reading:
    """Which shards are read in which order. `steps` 0 = no end; `run` is None for plain shards."""

    shards: Shards
    seed: int
    rows_per_step: int
    steps: int
    run: Path | None


def show(run_or_shards: Path, step: int, row: int | None = None) -> list[dict[str, Any]]:
    """The rows that step `step` (from 1) read, or only its row number `row` (from 0), each with its documents.

    `run_or_shards` is a run, or shards (then with the default seed and rows per step of TrainConfig). Errors:
    InputError for a step or row that is not there or for shards that changed since the run began.
    """
    reading = open_reading(run_or_shards)
    steps, rows_per_step, shards = reading.steps, reading.rows_per_step, reading.shards
    if step < 1 or (steps and step > steps):
        raise InputError(f"step {step}: {run_or_shards} has steps 1 to {steps}; give one of those")
    if row is not None and not 0 <= row < rows_per_step:
        raise InputError(f"row {row}: a step of {run_or_shards} has rows 0 to {rows_per_step - 1}; give one of those")
    pieces = load_pieces(shards)
    numbers = row_ids(reading.seed, step, rows_per_step, shards.chunk_rows).tolist()
    places = range(rows_per_step) if row is None else [row]
    return [{"row": place, **show_row(shards, pieces, numbers[place])} for place in places]


def show_row(shards: Shards, pieces: Pieces | Tokenizer, number: int) -> dict[str, Any]:
    """One training row by its global number: source, and per span the document, byte range and decoded text."""
    if isinstance(pieces, Tokenizer):
        pieces = Pieces.of(pieces)
    ids = shards.train_rows([number])[0]  # (row_len,)
    documents = []
    for span in shards.spans(number):
        tokens = ids[span.token_start : span.token_start + span.token_count].tolist()
        documents.append(
            {
                "document_id": span.document_id,
                "source": span.source,
                "license": span.license,
                "url": span.url,
                "byte_start": span.byte_start,
                "byte_end": span.byte_end,
                "token_start": span.token_start,
                "token_count": span.token_count,
                "text": pieces.text(tokens, begins=begins_document(span, tokens, pieces)),
            }
        )
    source = shards.sources[int(shards.row_sources([number])[0])]
    return {"row_id": int(number), "source": source, "documents": documents}


def begins_document(span: Span | Place, tokens: list[int], pieces: Pieces) -> bool:
    """Whether the tokens of a span are its document's first.

    Byte 0 alone does not say so: a row can end behind the space that the tokenizer puts before a document, which
    covers no bytes. With that space the tokens have one byte more than the text they cover, and a U+2581 in the text,
    whose 3 bytes are one in the tokens, leaves odd what is odd.
    """
    return not span.byte_start and (sum(map(len, pieces.parts(tokens))) - span.byte_end) % 2 == 1


def describe(rows: list[dict[str, Any]]) -> str:
    """The rows as text for a terminal."""
    lines = []
    for row in rows:
        lines.append(f"== row {row['row']} (row {row['row_id']} of the shards), source {row['source']}")
        for document in row["documents"]:
            lines.append(
                f"-- {document['document_id']}  bytes {document['byte_start']:,} to {document['byte_end']:,}"
                f"  {document['license'] or 'licence unknown'}  {document['url']}".rstrip()
            )
            lines.append(document["text"])
    return "\n".join(lines)


def load_pieces(shards: Shards) -> Pieces:
    """What the ids of shards stand for. Error: InputError if the tokenizer beside them is another."""
    folder = shards.folder / "tokenizer"
    if pieces := Pieces.load(folder, shards.tokenizer_digest):
        return pieces
    tokenizer = Tokenizer.load(folder)  # written by another program, or another tokenizer
    require_tokenizer(shards, tokenizer.digest, folder)
    return Pieces.of(tokenizer)


def open_reading(folder: Path) -> Reading:
    """The shards and order of a run, or of plain shards: those with the defaults of TrainConfig.

    Errors: InputError for a newer format, for shards that are not there, or for others than those of the run. They are
    looked for where they were when the run began, then beside the run.
    """
    if not (folder / "run.json").is_file():
        from mobillama.config import TrainConfig  # costs more than the look-up, and a run does not need it

        defaults = TrainConfig()
        return Reading(read_shards(folder), defaults.seed, defaults.rows_per_step, 0, None)
    run = read_run_file(folder)
    path = Path(run["shards"]["path"])
    if not path.is_dir():
        beside = folder.resolve().parent / path.name
        if not beside.is_dir():
            raise InputError(
                f"{folder} was trained on {path}, which is not there any more (nor is {beside}); put the shards back"
            )
        path = beside
    shards = read_shards(path)
    if shards.digest != run["shards"]["digest"]:
        raise InputError(
            f"{path} has root digest {shards.digest}; {folder} was trained on {run['shards']['digest']}: "
            "put those shards back"
        )
    train = run["recipe"]["train"]
    return Reading(shards, train["seed"], train["rows_per_step"], run["steps"], folder)
