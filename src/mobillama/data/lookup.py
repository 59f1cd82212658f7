"""What a training step read: step -> rows (a pure function) -> documents -> text.

`mobillama data show` waits for nothing but this, so nothing here imports numpy or pyarrow (test_plain_rows.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobillama.data.order import row_at
from mobillama.data.plain_rows import PlainRows
from mobillama.data.reading import open_reading
from mobillama.data.span import Place, Span
from mobillama.errors import InputError
from mobillama.tokenizer.pieces import Pieces


def show(run_or_shards: Path, step: int, row: int | None = None, data: Path | None = None) -> list[dict[str, Any]]:
    """The rows that step `step` (from 1) read, or only its row number `row` (from 0), each with its documents.

    `run_or_shards` is a run, or shards (then with the default seed and rows per step of TrainConfig). data: where the
    run's shards are now, if not where they were. Errors: InputError for a step or row that is not there or for shards
    that changed since the run began.
    """
    reading = open_reading(run_or_shards, data)
    steps, rows_per_step, shards = reading.steps, reading.rows_per_step, PlainRows(reading.folder)
    first = reading.order.after + 1
    if reading.parent and 1 <= step < first:
        raise InputError(
            f"step {step}: {run_or_shards} was branched off {reading.parent} after step {first - 1}, which took the "
            "steps up to there; look there"
        )
    if step < first or (steps and step > steps):
        raise InputError(f"step {step}: {run_or_shards} has steps {first} to {steps}; give one of those")
    if row is not None and not 0 <= row < rows_per_step:
        raise InputError(f"row {row}: a step of {run_or_shards} has rows 0 to {rows_per_step - 1}; give one of those")
    pieces = load_pieces(shards.folder, shards.header.tokenizer_digest)
    before = reading.order.first_position(step)
    return [
        {"row": place, **show_row(shards, pieces, row_at(reading.seed, before + place, shards.chunk_rows))}
        for place in (range(rows_per_step) if row is None else [row])
    ]


def show_row(shards: PlainRows, pieces: Pieces, number: int) -> dict[str, Any]:
    """One training row by its global number: source, and per span the document, byte range and decoded text."""
    row = shards.row(number)
    documents = []
    for span in row.spans:
        tokens = row.ids[span.token_start : span.token_start + span.token_count]
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
    return {"row_id": number, "source": row.source, "documents": documents}


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


def load_pieces(folder: Path, digest: str) -> Pieces:
    """What the ids of the shards in `folder` stand for, which were encoded with the tokenizer of this digest.

    Error: InputError if the tokenizer beside them is another.
    """
    if pieces := Pieces.load(folder / "tokenizer", digest):
        return pieces
    from mobillama.data.shards import read_shards, require_tokenizer  # written by another program, or another tokenizer
    from mobillama.tokenizer.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(folder / "tokenizer")
    require_tokenizer(read_shards(folder), tokenizer.text_digest, folder / "tokenizer")
    return Pieces.of(tokenizer)
