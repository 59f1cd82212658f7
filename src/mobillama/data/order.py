"""The order of rows in plain integers, a row at a time: what docs/formats.md specifies, word for word.

`stream` computes the same for whole arrays; look-ups, which follow a row or two, read it here without numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MASK = (1 << 64) - 1
GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # splitmix64 (Steele et al., 2014)
ROUNDS = 8
# First word of every key: what the permutation is for.
READING, DEALING = 1, 2


@dataclass(frozen=True)
class Steps:
    """Which positions of the reading order the steps of a run take: step `after` + 1 begins at `first_row`.

    A run that was branched off another's checkpoint of step `after` reads on where that one stood; any other begins
    with both 0. Positions count from 0 over all passes.

    >>> branch = Steps(rows_per_step=8, after=10, first_row=40)
    >>> branch.first_position(11), branch.first_position(12), branch.place_of(47), branch.place_of(39)
    (40, 48, (11, 7), None)
    """

    rows_per_step: int
    after: int = 0
    first_row: int = 0

    def first_position(self, step: int) -> int:
        """The position of the first row that a step (above `after`) reads."""
        return self.first_row + (step - self.after - 1) * self.rows_per_step

    def place_of(self, position: int) -> tuple[int, int] | None:
        """The step that reads a position, and the row in it (from 0); None if that was before these steps."""
        if position < self.first_row:
            return None
        step, row = divmod(position - self.first_row, self.rows_per_step)
        return self.after + step + 1, row


def steps_of(told: Mapping[str, Any]) -> Steps:
    """The steps of a run, by its run.json."""
    rows, parent = int(told["recipe"]["train"]["rows_per_step"]), told.get("parent")
    return Steps(rows, int(parent["step"]), int(parent["first_row"])) if parent else Steps(rows)


def row_at(seed: int, position: int, chunk_rows: Sequence[int]) -> int:
    """Global number of the row that is read at `position` (from 0, over all passes).

    `chunk_rows` are the rows of each chunk. Error: ValueError if they hold none.

    >>> sorted(row_at(11111, position, [3, 2]) for position in range(5))
    [0, 1, 2, 3, 4]
    """
    total = sum(chunk_rows)
    if total < 1:
        raise ValueError(f"chunk_rows={list(chunk_rows)[:4]} hold no rows; there is nothing to read")
    epoch, place = divmod(position, total)
    start = chunk = 0
    while place >= start + chunk_rows[chunk]:
        start += chunk_rows[chunk]
        chunk += 1
    return start + permuted(key(READING, seed, epoch, chunk), chunk_rows[chunk], place - start)


def key(*words: int) -> int:
    """One 64-bit key from any non-negative integers (each taken modulo 2**64), order included."""
    state = 0
    for word in words:
        state = mix(state ^ (word & MASK))
    return state


def permuted(secret: int, size: int, place: int) -> int:
    """Where a permutation of range(size), chosen by the key `secret`, sends `place` (below `size`).

    >>> sorted(permuted(7, 5, place) for place in range(5))
    [0, 1, 2, 3, 4]
    """
    half, keys = half_bits(size), round_keys(secret)
    low = (1 << half) - 1
    while True:  # a Feistel network over 4**half numbers, walked until it lands inside
        left, right = place >> half, place & low
        for number in keys:
            left, right = right, left ^ (mix(right ^ number) & low)
        place = left << half | right
        if place < size:
            return place


def half_bits(size: int) -> int:
    """Bits of each half of the network that permutes range(size)."""
    return max(1, -(-(size - 1).bit_length() // 2))


def round_keys(secret: int) -> list[int]:
    """The key of every round."""
    return [mix(secret ^ number) for number in range(1, ROUNDS + 1)]


def mix(word: int) -> int:
    """splitmix64's output function of one word."""
    word = (word + GOLDEN) & MASK
    word = ((word ^ (word >> 30)) * FIRST) & MASK
    word = ((word ^ (word >> 27)) * SECOND) & MASK
    return word ^ (word >> 31)
