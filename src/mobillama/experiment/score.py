"""Nats and bytes of each held-out document under a trained model, from the spans of the shards."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from mobillama.data.shards import Shards
from mobillama.device import Place
from mobillama.model.transformer import Transformer
from mobillama.model.weights import load_model
from mobillama.train.validate import choose_rows

BATCH_ROWS = 8


@dataclass
class DocumentScore:
    """What a model makes of the evaluated part of one held-out document."""

    document: int
    source: str
    nats: float = 0.0
    tokens: int = 0
    bytes: int = 0


def rows_of_each_source(shards: Shards, per_source: int) -> NDArray[np.int64]:
    """Held-out rows: `per_source` of each source, spread evenly over its rows, or all it has; ascending."""
    sources = shards.row_sources(np.arange(shards.num_validation_rows), "validation")
    found = [np.nonzero(sources == source)[0] for source in np.unique(sources)]
    chosen = [rows[choose_rows(len(rows), per_source)] for rows in found]
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)


def score_model(model: Path, shards: Shards, rows: NDArray[np.int64], here: Place) -> list[dict[str, Any]]:
    """`score_documents` of a model folder, computed at a place; plain JSON types."""
    loaded = load_model(model).to(device=here.device, dtype=here.dtype)
    return [asdict(score) for score in score_documents(loaded, shards, rows)]


@torch.no_grad()
def score_documents(model: Transformer, shards: Shards, rows: NDArray[np.int64]) -> list[DocumentScore]:
    """Nats, tokens and bytes of every document that has a predicted token in these held-out rows.

    Each row is read from its first token on, as in training; that token is not predicted. Error: InputError if the
    shards have no spans.
    """
    shards.require_spans()
    device = model.embed_tokens.weight.device
    scores: dict[int, DocumentScore] = {}
    for start in range(0, len(rows), BATCH_ROWS):
        part = rows[start : start + BATCH_ROWS]
        ids = torch.from_numpy(shards.validation_rows(part)).to(device)  # (b, seq_len + 1)
        hidden = model.hidden_states(ids[:, :-1])  # (b, seq_len, D)
        logits = F.linear(hidden, model.head_weight).float()  # (b, seq_len, V)
        nats = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(part), -1)
        for row, size, found in zip(
            part, shards.row_bytes(part, "validation"), nats.double().cpu().numpy(), strict=True
        ):
            _add_row(scores, shards, int(row), int(size), found)
    return [scores[document] for document in sorted(scores)]


def _add_row(scores: dict[int, DocumentScore], shards: Shards, row: int, size: int, nats: NDArray[np.float64]) -> None:
    """Share out one row: `nats` (seq_len,) of its predicted tokens, which cover `size` bytes."""
    spans = shards.spans(row, "validation")
    sizes = [span.byte_end - span.byte_start for span in spans]
    # The row's first token is not predicted; the row knows the bytes of the others.
    sizes[0] = size - sum(sizes[1:])
    for span, covered in zip(spans, sizes, strict=True):
        first, end = max(0, span.token_start - 1), span.token_start + span.token_count - 1
        if end <= first:
            continue
        score = scores.setdefault(span.document, DocumentScore(span.document, span.source))
        score.nats += float(nats[first:end].sum())
        score.tokens += end - first
        score.bytes += covered
