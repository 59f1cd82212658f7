"""Text as plain words, for the two comparisons of documents by runs of words.

`simplified` is the form of datatrove's MinHash (lower case, every number 0, no punctuation, no diacritics) and gives
exactly its words several times faster; `alphanumeric` keeps numbers and takes every sign for a separator, for finding
benchmark items. Both take text in pieces, so that a long document needs little memory, and give UTF-8 with words
between spaces, whose places `bounds` finds with numpy.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

import numpy as np
from datatrove.utils.text import NUMBERS_PATTERN, PUNCTUATION, simplify_text
from numpy.typing import NDArray

PIECE_CHARACTERS = 1 << 17
MEMO_RUNS, MEMO_CHARACTERS = 1 << 16, 1 << 8  # runs remembered, and the longest of them
NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
WHITE = re.compile(r"\s")
NUMBER = re.compile(r"[0-9]+(?:[.,][0-9]+)?")
SPACE = 32
# What is left of each byte: UTF-8 beyond ASCII passes, it was dealt with before.
PUNCTUATION_BYTES = bytes(SPACE if byte < 128 and chr(byte) in PUNCTUATION else byte for byte in range(256))
LETTER_BYTES = bytes(byte if byte > 127 or chr(byte).isalnum() else SPACE for byte in range(256))


def pieces(text: str) -> Iterator[str]:
    """The text cut before whitespace into pieces of about PIECE_CHARACTERS; together they are the text."""
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        cut = WHITE.search(text, start + PIECE_CHARACTERS)
        if cut is None:
            break
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:] if start else text


class _Runs(dict[str, str]):
    """What becomes of a run of characters beyond ASCII; bounded."""

    def __missing__(self, run: str) -> str:
        made = self.make(run)
        if len(run) <= MEMO_CHARACTERS:
            if len(self) >= MEMO_RUNS:
                self.clear()
            self[run] = made
        return made

    def make(self, run: str) -> str:
        """The form of one run."""
        raise NotImplementedError


class _SimpleRuns(_Runs):
    """Runs as `simplify_text` leaves them; KeyError for one that it treats together with the ASCII around."""

    def make(self, run: str) -> str:
        # Digits and decimal signs join with those beside them; a character that falls apart into ASCII signs does so
        # after signs were taken out.
        if NUMBERS_PATTERN.search("0" + run + "0").end() > 1 or NUMBERS_PATTERN.search(run):
            raise KeyError(run)
        simple: str = simplify_text(f"x{run}x")[1:-1]  # between letters, since it strips
        if any(char.isascii() and not char.isalpha() and char != " " for char in simple):
            raise KeyError(run)
        return simple


class _LetterRuns(_Runs):
    """Letters and digits in their compatible lower-case form without marks; a space for everything else."""

    def make(self, run: str) -> str:
        apart = unicodedata.normalize("NFKD", run).lower()
        return "".join(
            char if char.isalnum() else " " for char in apart if not unicodedata.category(char).startswith("M")
        )


_simple, _letters = _SimpleRuns(), _LetterRuns()


def simplified(piece: str) -> bytes:
    """The words of `simplify_text(piece).split()`, one space between each and the next.

    >>> simplified("The  café\\u2019s (old) price: 1,50 EUR").decode()
    'the cafe s old price 0 eur'
    """
    text = NUMBER.sub("0", piece.lower())
    if not text.isascii():
        try:
            text = NOT_ASCII.sub(lambda run: _simple[run[0]], text)
        except KeyError:
            return " ".join(simplify_text(piece).split()).encode()
    return b" ".join(text.encode().translate(PUNCTUATION_BYTES).split())


def alphanumeric(piece: str) -> bytes:
    """Runs of letters and digits in lower case, any number of spaces between.

    >>> alphanumeric("Don\\u2019t pay 1,50 for a naïve café!").split()
    [b'don', b't', b'pay', b'1', b'50', b'for', b'a', b'naive', b'cafe']
    """
    text = piece.lower()
    if not text.isascii():
        text = NOT_ASCII.sub(lambda run: _letters[run[0]], text)
    return text.encode().translate(LETTER_BYTES)


def bounds(words: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First byte of every word, and the byte after its last: (W,), (W,)."""
    inside = np.empty(len(words) + 2, bool)
    inside[0] = inside[-1] = False
    np.not_equal(np.frombuffer(words, np.uint8), SPACE, out=inside[1:-1])
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    return edges[0::2], edges[1::2]
