"""What ties tokens to documents: spans of a row, and places of a document."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """A run of tokens in a row that comes from one document.

    `byte_start` to `byte_end` are bytes of the cleaned document's UTF-8; the closing </s> counts as a token of its
    document and covers no bytes.
    """

    document_id: str
    source: str
    license: str
    url: str
    token_start: int
    token_count: int
    byte_start: int
    byte_end: int
    document: int


@dataclass(frozen=True)
class Place:
    """Where some tokens of one document lie: the fields of Span, and the row they are in.

    `row` is global in its split, `chunk` the number of the training chunk (None: held out).
    """

    document: int
    chunk: int | None
    row: int
    token_start: int
    token_count: int
    byte_start: int
    byte_end: int
