"""Pieces that are found in a text before anything is merged: user-defined ones, and added tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# What Unicode calls White_Space, which the tokenizers library strips; Python's own list is longer.
BLANK = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


@dataclass(frozen=True)
class Matched:
    """A piece that is one id wherever a text spells it."""

    id: int
    content: str
    normalized: bool = False  # found after the space was put in front and spaces became U+2581, else before
    lstrip: bool = False  # takes the white space before it too
    rstrip: bool = False  # and behind it
    special: bool = False  # text that spells it stays text, as a whole: no other piece is found in it


@dataclass(frozen=True)
class Part:
    """Characters `start` to `end` of a text: one piece that was found in it, or text to be merged (id None)."""

    start: int
    end: int
    id: int | None


class Matcher:
    """Finds pieces from left to right, of those that begin at one place the longest; time grows with the text."""

    def __init__(self, pieces: Sequence[Matched]) -> None:
        self._pieces: dict[str, Matched] = {}
        for piece in pieces:
            self._pieces.setdefault(piece.content, piece)  # of doubled pieces the first counts
        longest_first = sorted(filter(None, self._pieces), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def parts(self, text: str) -> Iterator[Part]:
        """The parts of a text, none empty; they tile it."""
        at = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            piece = self._pieces[match.group()]
            if piece.special:
                continue
            start, end = match.span()
            start = max(at, start)
            if piece.lstrip:
                start = at + len(text[at:start].rstrip(BLANK))
            if piece.rstrip:
                end = _end_of_blank(text, max(at, end))
            if at < start:
                yield Part(at, start, None)
            yield Part(start, end, piece.id)
            at = end
        if at < len(text):
            yield Part(at, len(text), None)


def _end_of_blank(text: str, at: int) -> int:
    """Where the white space from `at` on ends; what follows is not copied, as it would be for every piece found."""
    while at < len(text) and text[at] in BLANK:
        at += 1
    return at
