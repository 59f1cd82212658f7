"""Encode long text fast: cut it where no merge can reach across, and look the words up.

A merge joins two neighbours into a piece, so two characters that stand side by side in no piece of the vocabulary are
never joined: text may be cut between them and the parts encoded alone, with exactly the same ids. `find_cuts` checks
three families of such places against a vocabulary. Words repeat, so most of them are found in a dictionary.
"""

from __future__ import annotations

import itertools
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from mobillama.tokenizer.vocabulary import SPACE

# Raised digits count as word characters to `re`, but LLaMA's vocabulary joins them with punctuation.
LETTERS, OTHERS = r"[^\W\d_¹²³]", r"(?:[^\w ]|[_¹²³])"
LETTER = re.compile(LETTERS)
DIGIT = re.compile(r"\d")
WORDS_KEPT = 200_000  # words in the dictionary before it is emptied
LONGEST_KEPT = 64  # characters of the longest word that is kept
BLOCK = 1 << 20  # characters cut into words at a time

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class Cuts:
    """Where a vocabulary lets text be cut."""

    spaces: bool  # before a space that follows something else
    newlines: bool  # on both sides of a newline
    letters: bool  # between letters, single digits and all else, a space before them staying with them

    def words(self) -> re.Pattern[str] | None:
        """Pattern whose matches tile a text into parts that encode alone; None where no cut is known to be exact."""
        if not self.spaces:
            return None
        return re.compile(r"\n| *[^ \n]+| +" if self.newlines else r" *[^ ]+| +")

    def atoms(self) -> re.Pattern[str] | None:
        """Pattern that tiles a word into smaller parts; None if letters are not to be parted from the rest."""
        if not (self.spaces and self.letters):
            return None
        return re.compile(rf" *{LETTERS}+| *\d| *{OTHERS}+| +")


def find_cuts(pieces: Iterable[str]) -> Cuts:
    """Check each family of cuts against every pair of neighbours in a vocabulary's mergeable pieces."""
    pairs = {(left, right) for piece in pieces for left, right in itertools.pairwise(piece)}
    inner = [(left, right) for left, right in pairs if left != SPACE]
    return Cuts(
        spaces=all(right != SPACE for _, right in inner),
        newlines=all("\n" not in pair for pair in pairs),
        letters=all(_group(left) == _group(right) != "digit" for left, right in inner),
    )


def _group(character: str) -> str:
    if LETTER.match(character):
        return "letter"
    return "digit" if DIGIT.match(character) else "other"


class Words(dict[str, bytes]):
    """Word -> its ids as bytes in the machine's order; a word not seen yet is encoded when it is asked for.

    Words hold plain spaces. Holds at most `WORDS_KEPT` words of at most `LONGEST_KEPT` characters.
    """

    def __init__(self, encode: Encode, typecode: str, atoms: re.Pattern[str] | None) -> None:
        super().__init__()
        self._encode = encode
        self._typecode = typecode
        self._cut = atoms.findall if atoms else None
        self._atoms = Words(encode, typecode, None) if atoms else None

    def __missing__(self, word: str) -> bytes:
        if self._cut is not None and self._atoms is not None:
            ids = b"".join(map(self._atoms.__getitem__, self._cut(word)))
        else:
            ids = array(self._typecode, self._encode(word)).tobytes()
        if len(word) <= LONGEST_KEPT:
            if len(self) >= WORDS_KEPT:
                self.clear()
            self[word] = ids
        return ids


def blocks(text: str, size: int = BLOCK) -> Iterator[str]:
    """Parts of at least `size` characters, cut before a space that follows something else; they tile the text."""
    start = 0
    while len(text) - start > size:
        cut = CUT_BLOCK.search(text, start + size)
        if cut is None:
            break
        yield text[start : cut.start() + 1]
        start = cut.start() + 1
    yield text[start:]


CUT_BLOCK = re.compile(r"[^ ] ")
