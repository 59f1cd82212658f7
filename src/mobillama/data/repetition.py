"""Gopher's repetition filter as datatrove has it, several times faster.

The decision and its reason are those of datatrove's class for every document (Rae et al. 2021, arXiv 2112.11446, table
A1). Runs of words are compared by a 64-bit hash that is cut out of the text's running hash, so that no run is ever
built as a string; by chance two different runs have the same hash once in about 10^19.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.filters import GopherRepetitionFilter
from datatrove.pipeline.filters.gopher_repetition_filter import find_duplicates
from datatrove.utils.text import split_into_words
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
Hashes = NDArray[np.uint64]
# An odd number has an inverse modulo 2^64, so that a run's hash can be cut out of a running sum of c[i] * BASE^i.
BASE = 0x9E3779B97F4A7C15
INVERSE = pow(BASE, -1, 1 << 64)


class Repetition(GopherRepetitionFilter):  # type: ignore[misc]
    """datatrove's filter with the same settings and the same answers."""

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """True to keep, else False and the reason."""
        text = doc.text
        if not text:
            return False, "empty"
        for parts, most, most_characters, kind in (
            (self.paragraph_exp.split(text.strip()), self.dup_para_frac, self.dup_para_char_frac, "para"),
            (self._line_splitter.split(text), self.dup_line_frac, self.dup_line_char_frac, "line"),
        ):
            repeated, characters = find_duplicates(parts)
            if most and repeated / len(parts) > most:
                return False, f"dup_{kind}_frac"
            if most_characters and characters / len(text) > most_characters:
                return False, f"dup_{kind}_char_frac"
        words = split_into_words(text, self.language)
        runs = Runs(words)
        for n, share in self.top_n_grams:
            if n <= len(words) and runs.top(n) / len(text) > share:
                return False, f"top_{n}_gram"
        for n, share in self.dup_n_grams:
            if n <= len(words) and runs.repeated(n, share * len(text)) / len(text) > share:
                return False, f"duplicated_{n}_n_grams"
        return True


class Runs:
    """Runs of n words of a document: W words."""

    def __init__(self, words: list[str]) -> None:
        lengths = np.fromiter(map(len, words), np.int64, len(words))
        self.joined = Cut("".join(words), lengths, 0)
        self.spaced = Cut(" ".join(words), lengths, 1)

    def top(self, n: int) -> int:
        """Characters of the run that occurs most (of several the first), its spaces counted, times its occurrences."""
        hashes, lengths = self.spaced.runs(n)
        order = np.sort(hashes)
        starts = np.flatnonzero(np.concatenate(([True], order[1:] != order[:-1])))
        counts = np.diff(starts, append=len(order))
        most = int(counts.max())
        if most == 1:
            return int(lengths[0])
        first = int(np.flatnonzero(np.isin(hashes, order[starts[counts == most]]))[0])
        return int(lengths[first]) * most

    def repeated(self, n: int, allowed: float) -> int:
        """Characters in runs of n that occurred before, a run that did skipped as a whole; exact if above `allowed`,
        else possibly less. Runs are equal here if their characters are, however they are cut into words.
        """
        hashes, lengths = self.joined.runs(n)
        order = np.sort(hashes)
        again = order[1:][order[1:] == order[:-1]]
        if len(again) * int(lengths.max()) <= allowed:
            return 0
        places = np.flatnonzero(np.isin(hashes, again))
        seen, characters, next_place = set(), 0, 0
        for place, told, length in zip(places.tolist(), hashes[places].tolist(), lengths[places].tolist(), strict=True):
            if place < next_place:
                continue
            if told in seen:
                characters += length
                next_place = place + n
            else:
                seen.add(told)
        return characters


class Cut:
    """A text of C characters whose W words have `gap` characters between them, ready to cut hashes out of."""

    def __init__(self, text: str, lengths: Numbers, gap: int) -> None:
        characters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)  # (C,)
        self.gap = gap
        self.starts = np.zeros(len(lengths) + 1, np.int64)  # (W + 1,) the last: where another word would start
        np.cumsum(lengths + gap, out=self.starts[1:])
        self.inverses = powers(INVERSE, len(characters) + 1)
        self.sums = np.zeros(len(characters) + 1, np.uint64)  # (C + 1,) of (c[i] + 1) * BASE^i before each place
        np.cumsum((characters.astype(np.uint64) + np.uint64(1)) * powers(BASE, len(characters)), out=self.sums[1:])

    def runs(self, n: int) -> tuple[Hashes, Numbers]:
        """Hash and length in characters of every run of n words, in order: (W - n + 1,) each."""
        low, high = self.starts[:-n], self.starts[n:] - self.gap
        return (self.sums[high] - self.sums[low]) * self.inverses[low], high - low


def powers(base: int, count: int) -> Hashes:
    """base^0, base^1, ... modulo 2^64: (count,)."""
    found: Hashes = _powers.get(base, np.empty(0, np.uint64))
    if len(found) < count:
        steps = np.full(max(count, 1 << 16), base, np.uint64)
        steps[0] = 1
        found = np.cumprod(steps)
        if count <= KEPT_POWERS:
            _powers[base] = found
    return found[:count]


# Most documents need the same few powers.
KEPT_POWERS = 1 << 20
_powers: dict[int, Any] = {}
