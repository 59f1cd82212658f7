"""Which document each position of a row belongs to, and from that which positions are trained on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
PADDING = -1


def number_segments(counts: Ints, first: Ints, tokens: Ints, row_len: int) -> Ints:
    """Number in its row of the span that each position belongs to, PADDING after the last: (rows, row_len).

    A row without spans, whose documents nobody knows, counts as one.
    `counts` (rows,) spans of each row; `first` and `tokens` (spans,) first position and positions of each, in order.
    """
    ends = np.cumsum(counts)
    row = np.repeat(np.arange(len(counts)), counts)  # (spans,)
    inside = np.arange(len(row)) - (ends - counts)[row]
    segments = np.full((len(counts), row_len), PADDING, np.int64)
    start = row * row_len + first
    position = np.arange(tokens.sum()) + np.repeat(start - np.cumsum(tokens) + tokens, tokens)
    segments.reshape(-1)[position] = np.repeat(inside, tokens)
    segments[counts == 0] = 0
    return segments


def counted_targets(segments: Ints, *, document_mask: bool) -> NDArray[np.bool_]:
    """Which of ids[1:] of each row are trained on (rows, row_len - 1).

    Padding never; with a document mask neither the first token of a document, as nothing before it may be looked at.
    """
    before, targets = segments[:, :-1], segments[:, 1:]
    counted: NDArray[np.bool_] = targets != PADDING
    if document_mask:
        counted &= targets == before
    return counted
