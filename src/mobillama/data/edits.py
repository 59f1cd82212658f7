"""Edits: what cleaning changed, as byte ranges of the raw text and what stands there instead.

A list of edits (start, end, replacement) over the raw text's UTF-8 is sorted and in its shortest form: edits do not
touch each other. A document carries its list in `metadata["edits"]` (absent = nothing changed); the corpus has it in
the column `edits`. Every step that changes text does so through `edit`, which keeps the list true.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from datatrove.data import Document

from mobillama.errors import InputError

Edit = tuple[int, int, bytes]
Change = tuple[int, int, str]  # the same in characters of a text


def edit(document: Document, changes: Sequence[Change]) -> None:
    """Change the text of a document and keep its edits true.

    `changes` are (start, end, replacement) in characters of the current text, sorted and not overlapping. Error:
    ValueError if they are not.
    """
    if not changes:
        return
    text = document.text
    before = text.encode("utf-8")
    new = _in_bytes(text, changes)
    document.text = apply_edits(before, new).decode("utf-8")
    document.metadata["edits"] = compose(document.metadata.get("edits", ()), new, before)


def apply_edits(raw: bytes, edits: Iterable[Edit | Mapping[str, Any]]) -> bytes:
    """The UTF-8 of the cleaned text: `raw` with every edit carried out.

    Takes edits as this module has them or as the corpus's column gives them: {"start", "end", "text"}. Error:
    InputError for edits that are not sorted or go beyond `raw`.
    """
    pieces: list[bytes] = []
    done = 0
    for one in edits:
        start, end, put = (one["start"], one["end"], one["text"].encode()) if isinstance(one, Mapping) else one
        if not done <= start <= end <= len(raw):
            raise InputError(
                f"an edit covers bytes {start} to {end}; expected a range within {done} to {len(raw)}: these are not "
                "the edits of this raw text"
            )
        pieces += (raw[done:start], put)
        done = end
    pieces.append(raw[done:])
    return b"".join(pieces)


def compose(first: Sequence[Edit], second: Sequence[Edit], between: bytes) -> list[Edit]:
    """One list of edits that does what `first` and then `second` does, in time linear in their number.

    `between` is the text after `first`, whose bytes `second` counts. Replacements that touch become one edit.
    """
    composed: list[Edit] = []
    for start, end, moved_before, moved_after, inner in _groups(first, second):
        put = apply_edits(between[start:end], [(a - start, b - start, text) for a, b, text in inner])
        composed.append((start - moved_before, end - moved_after, put))
    return composed


def _groups(first: Sequence[Edit], second: Sequence[Edit]) -> Iterator[tuple[int, int, int, int, list[Edit]]]:
    """Runs of edits of both lists that touch, as (start, end) between the two, how far text before the run and after
    it was moved by `first`, and the edits of `second` inside.
    """
    moved = 0
    i, j = 0, 0
    while i < len(first) or j < len(second):
        start, end, moved_before = -1, -1, moved
        inner: list[Edit] = []
        while True:
            mine = first[i][0] + moved if i < len(first) else None
            other = second[j][0] if j < len(second) else None
            if mine is not None and (other is None or mine <= other):
                if end >= 0 and mine > end:
                    break
                stop = mine + len(first[i][2])
                start, end = (mine, stop) if end < 0 else (start, max(end, stop))
                moved += len(first[i][2]) - (first[i][1] - first[i][0])
                i += 1
            elif other is not None:
                if end >= 0 and other > end:
                    break
                start, end = (other, second[j][1]) if end < 0 else (start, max(end, second[j][1]))
                inner.append(second[j])
                j += 1
            else:
                break
        yield start, end, moved_before, moved, inner


def _in_bytes(text: str, changes: Sequence[Change]) -> list[Edit]:
    """Changes counted in characters of `text`, counted in bytes of its UTF-8 instead."""
    plain, at, size, found = text.isascii(), 0, 0, []
    for start, end, put in changes:
        if not at <= start <= end <= len(text):
            raise ValueError(f"change ({start}, {end}) is not within {at} to {len(text)}")
        low = start if plain else size + len(text[at:start].encode())
        size = end if plain else low + len(text[start:end].encode())
        at = end
        found.append((low, size, put.encode()))
    return found
