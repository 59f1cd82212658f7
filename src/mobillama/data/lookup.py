"""What a training step read: step -> rows (a pure function) -> documents -> text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mobillama.config import TrainConfig
from mobillama.data.shards import Shards, read_shards, require_tokenizer
from mobillama.data.stream import row_ids
from mobillama.errors import InputError
from mobillama.tokenizer.tokenizer import Tokenizer

ANCHOR = "a"  # decoded before a span, so that a space at its beginning stays


def show(run_or_shards: Path, step: int, row: int | None = None) -> list[dict[str, Any]]:
    """The rows that step `step` (from 1) read, or only its row number `row` (from 0), each with its documents.

    `run_or_shards` is a run, or shards (then with the default seed and rows per step of TrainConfig). Errors:
    InputError for a step or row that is not there or for shards that changed since the run began.
    """
    shards, seed, rows_per_step, steps = _open(run_or_shards)
    if step < 1 or (steps and step > steps):
        raise InputError(f"step {step}: {run_or_shards} has steps 1 to {steps}; give one of those")
    if row is not None and not 0 <= row < rows_per_step:
        raise InputError(f"row {row}: a step of {run_or_shards} has rows 0 to {rows_per_step - 1}; give one of those")
    tokenizer = Tokenizer.load(shards.folder / "tokenizer")
    require_tokenizer(shards, tokenizer.digest, shards.folder / "tokenizer")
    numbers = row_ids(seed, step, rows_per_step, shards.chunk_rows).tolist()
    places = range(rows_per_step) if row is None else [row]
    return [{"row": place, **show_row(shards, tokenizer, numbers[place])} for place in places]


def show_row(shards: Shards, tokenizer: Tokenizer, number: int) -> dict[str, Any]:
    """One training row by its global number: source, and per span the document, byte range and decoded text."""
    ids = shards.train_rows([number])[0]  # (row_len,)
    documents = []
    for span in shards.spans(number):
        tokens = ids[span.token_start : span.token_start + span.token_count].tolist()
        if tokens and tokens[-1] == tokenizer.eos_id:
            tokens.pop()
        anchor = tokenizer.encode(ANCHOR) if span.byte_start else []
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
                "text": tokenizer.decode([*anchor, *tokens])[len(ANCHOR) if anchor else 0 :],
            }
        )
    source = shards.sources[int(shards.row_sources([number])[0])]
    return {"row_id": int(number), "source": source, "documents": documents}


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


def _open(folder: Path) -> tuple[Shards, int, int, int]:
    """Shards, seed, rows per step and steps (0 = no end) of a run or of plain shards."""
    if not (folder / "run.json").is_file():
        defaults = TrainConfig()
        return read_shards(folder), defaults.seed, defaults.rows_per_step, 0
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    path = Path(run["shards"]["path"])
    if not path.is_dir():
        raise InputError(f"{folder} was trained on {path}, which is not there any more; put the shards back")
    shards = read_shards(path)
    if shards.digest != run["shards"]["digest"]:
        raise InputError(
            f"{path} has root digest {shards.digest}; {folder} was trained on {run['shards']['digest']}: "
            "put those shards back"
        )
    train = run["recipe"]["train"]
    return shards, train["seed"], train["rows_per_step"], run["steps"]
