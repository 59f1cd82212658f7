"""The order of rows as a pure function of (seed, step): no sampler state, restarts, world size or workers.

Chunks are read one after the other; inside a chunk the rows come in the order of a keyed permutation, and every pass
over the data has keys of its own. The arithmetic is specified in docs/formats.md and needs only unsigned 64-bit
integers: a key from `order.key`, then a Feistel network over the next even number of bits, walked until it lands
inside. The network runs backwards as well, so that the step that reads a row is computed, not searched for. `order` has
the same row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mobillama.data.order import FIRST, GOLDEN, READING, SECOND, half_bits, key, round_keys


def row_ids(seed: int, step: int, rows_per_step: int, chunk_rows: Sequence[int]) -> NDArray[np.int64]:
    """Global numbers of the rows that step `step` (counted from 1) reads, in order: (rows_per_step,).

    `chunk_rows` are the rows of each chunk; row 0 is the first of chunk 0. A step may reach into the next pass.

    >>> row_ids(11111, 1, 4, [3, 2]).tolist() == [*row_ids(11111, 1, 2, [3, 2]), *row_ids(11111, 2, 2, [3, 2])]
    True
    """
    if step < 1 or rows_per_step < 1:
        raise ValueError(f"step={step}, rows_per_step={rows_per_step}: both count from 1")
    return rows_from(seed, (step - 1) * rows_per_step, rows_per_step, chunk_rows)


def rows_from(seed: int, first: int, count: int, chunk_rows: Sequence[int]) -> NDArray[np.int64]:
    """Global numbers of the rows at positions `first` to `first` + `count` - 1 of the reading order: (count,)."""
    ends = np.cumsum(np.asarray(chunk_rows, dtype=np.int64))  # (chunks,)
    total = int(ends[-1]) if len(ends) else 0
    if total < 1:
        raise ValueError(f"chunk_rows={list(chunk_rows)[:4]} hold no rows; there is nothing to read")
    rows = np.empty(count, np.int64)
    done = 0
    while done < count:
        epoch, place = divmod(first + done, total)
        chunk = int(np.searchsorted(ends, place, side="right"))
        start = int(ends[chunk - 1]) if chunk else 0
        size = int(ends[chunk]) - start
        more = min(count - done, start + size - place)
        inside = np.arange(place - start, place - start + more, dtype=np.uint64)
        rows[done : done + more] = start + permute(key(READING, seed, epoch, chunk), size, inside)
        done += more
    return rows


def positions(seed: int, rows: Sequence[int], epoch: int, chunk_rows: Sequence[int]) -> NDArray[np.int64]:
    """Where in the reading order pass `epoch` (from 0) reads each of `rows` (global numbers): (n,), counted from 0.

    The inverse of `row_ids`: position p is row p % B of step p // B + 1, with B rows a step.

    >>> rows = row_ids(11111, 1, 10, [3, 2])  # two passes
    >>> [positions(11111, rows[5 * epoch :][:5], epoch, [3, 2]).tolist() for epoch in (0, 1)]
    [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    """
    numbers = np.asarray(rows, np.int64)
    ends = np.cumsum(np.asarray(chunk_rows, np.int64))  # (chunks,)
    if len(numbers) and (numbers.min() < 0 or numbers.max() >= ends[-1]):
        raise ValueError(f"rows {numbers.min()} to {numbers.max()}; expected rows 0 to {ends[-1] - 1}")
    chunks = np.searchsorted(ends, numbers, side="right")
    found = np.empty(len(numbers), np.int64)
    for chunk in np.unique(chunks).tolist():
        start = int(ends[chunk - 1]) if chunk else 0
        here = np.nonzero(chunks == chunk)[0]
        inside = (numbers[here] - start).astype(np.uint64)
        found[here] = start + unpermute(key(READING, seed, epoch, chunk), int(ends[chunk]) - start, inside)
    return epoch * int(ends[-1]) + found


def steps_per_pass(rows_per_step: int, chunk_rows: Sequence[int]) -> int:
    """Whole steps in one pass over the rows, at least 1."""
    return max(1, sum(chunk_rows) // rows_per_step)


def permute(secret: int, size: int, places: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where a permutation of range(size), chosen by the key `secret`, sends each of `places` (all below `size`)."""
    return _walk(secret, size, places, _network)


def unpermute(secret: int, size: int, places: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The inverse of `permute`: what it sends to each of `places` (all below `size`).

    >>> unpermute(7, 5, permute(7, 5, np.arange(5, dtype=np.uint64)).astype(np.uint64)).tolist()
    [0, 1, 2, 3, 4]
    """
    return _walk(secret, size, places, _network_back)


Pass = Callable[[list[int], int, NDArray[np.uint64]], NDArray[np.uint64]]


def _walk(secret: int, size: int, places: NDArray[np.uint64], network: Pass) -> NDArray[np.int64]:
    """Pass each place through the network again and again until it lands below `size` (cycle walking)."""
    half, keys = half_bits(size), round_keys(secret)
    value = places.astype(np.uint64)
    outside = np.arange(len(value))
    while len(outside):
        value[outside] = network(keys, half, value[outside])
        outside = outside[value[outside] >= np.uint64(size)]
    return value.astype(np.int64)


def _network(keys: list[int], half: int, value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One pass of the Feistel network: a permutation of range(4**half)."""
    low = np.uint64((1 << half) - 1)
    left, right = value >> np.uint64(half), value & low
    for secret in keys:
        left, right = right, left ^ (_mix_array(right ^ np.uint64(secret)) & low)
    return (left << np.uint64(half)) | right


def _network_back(keys: list[int], half: int, value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The inverse of `_network`: the rounds undone, last first."""
    low = np.uint64((1 << half) - 1)
    left, right = value >> np.uint64(half), value & low
    for secret in reversed(keys):
        left, right = right ^ (_mix_array(left ^ np.uint64(secret)) & low), left
    return (left << np.uint64(half)) | right


def _mix_array(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`order.mix` of every element."""
    with np.errstate(over="ignore"):
        words = words + np.uint64(GOLDEN)
        words = (words ^ (words >> np.uint64(30))) * np.uint64(FIRST)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(SECOND)
        return words ^ (words >> np.uint64(31))
