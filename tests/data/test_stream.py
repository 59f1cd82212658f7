"""The order of rows: every row once a pass, the same from any step on, as docs/formats.md specifies it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobillama.data.order import DEALING, READING, key, permuted, row_at
from mobillama.data.stream import permute, row_ids, steps_per_pass

M = 2**64


def spec_mix(x: int) -> int:
    z = (x + 0x9E3779B97F4A7C15) % M
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % M
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % M
    return z ^ (z >> 31)


def spec_key(*words: int) -> int:
    state = 0
    for word in words:
        state = spec_mix(state ^ (word % M))
    return state


def spec_permute(secret: int, size: int, place: int) -> int:
    half = max(1, -(-(size - 1).bit_length() // 2))
    while True:
        left, right = place >> half, place & (2**half - 1)
        for number in range(1, 9):
            left, right = right, left ^ (spec_mix(right ^ spec_mix(secret ^ number)) & (2**half - 1))
        place = left << half | right
        if place < size:
            return place


def spec_row(seed: int, position: int, chunk_rows: list[int]) -> int:
    epoch, place = divmod(position, sum(chunk_rows))
    start = 0
    for chunk, size in enumerate(chunk_rows):
        if place < start + size:
            return start + spec_permute(spec_key(1, seed, epoch, chunk), size, place - start)
        start += size
    raise AssertionError


chunks = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@given(st.integers(0, 2**63), chunks, st.integers(1, 17), st.integers(1, 60))
@settings(max_examples=150, deadline=None)
def test_order_equals_the_one_written_from_the_specification(seed, chunk_rows, rows_per_step, step):
    expected = [spec_row(seed, (step - 1) * rows_per_step + i, chunk_rows) for i in range(rows_per_step)]
    assert row_ids(seed, step, rows_per_step, chunk_rows).tolist() == expected


@given(st.integers(0, 2**32), chunks, st.integers(1, 17), st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_every_row_is_read_once_a_pass_and_chunks_come_in_order(seed, chunk_rows, rows_per_step, passes):
    total = sum(chunk_rows)
    steps = -(-total * passes // rows_per_step)
    rows = np.concatenate([row_ids(seed, step, rows_per_step, chunk_rows) for step in range(1, steps + 1)])
    edges = [0, *itertools.accumulate(chunk_rows)]
    for epoch in range(passes):
        once = rows[epoch * total : (epoch + 1) * total]
        for start, stop in itertools.pairwise(edges):
            assert sorted(once[start:stop].tolist()) == list(range(start, stop))


@given(st.integers(0, 2**32), chunks, st.integers(1, 6), st.integers(1, 4), st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_rows_of_a_step_split_over_ranks_are_the_rows_of_smaller_steps(seed, chunk_rows, rows, ranks, step):
    whole = row_ids(seed, step, rows * ranks, chunk_rows)
    smaller = [row_ids(seed, (step - 1) * ranks + rank + 1, rows, chunk_rows) for rank in range(ranks)]
    assert whole.tolist() == np.concatenate(smaller).tolist()


@given(st.integers(0, 2**32), chunks, st.integers(1, 5), st.integers(1, 4), st.data())
@settings(max_examples=100, deadline=None)
def test_a_pass_stopped_anywhere_goes_on_with_any_world_size(seed, chunk_rows, rows, ranks, data):
    """Before and after the stop the same rows a step are spread over other numbers of ranks."""
    total, step_rows = sum(chunk_rows), rows * ranks
    steps = total // step_rows
    stop = data.draw(st.integers(0, steps))
    worlds = data.draw(st.sampled_from([world for world in range(1, step_rows + 1) if step_rows % world == 0]))
    read: list[int] = []
    for step in range(1, steps + 1):
        world = ranks if step <= stop else worlds
        each = step_rows // world
        read += [row for rank in range(world) for row in row_ids(seed, (step - 1) * world + rank + 1, each, chunk_rows)]
    assert len(set(read)) == steps * step_rows
    left = row_ids(seed, 1, total, chunk_rows)[steps * step_rows :].tolist()
    assert sorted([*read, *left]) == list(range(total))


def test_order_is_the_recorded_one():
    assert row_ids(11111, 1, 12, [7, 5]).tolist() == RECORDED
    assert row_ids(11111, 3, 4, [7, 5]).tolist() == RECORDED[8:]


def test_passes_and_seeds_have_orders_of_their_own():
    orders = {tuple(row_ids(seed, step, 100, [100]).tolist()) for seed in (1, 2) for step in (1, 2)}
    assert len(orders) == 4


def test_shuffle_spreads_rows_evenly():
    """Where each of 64 rows lands over 4,000 keys: the chi-square of every row stays near its 63 degrees of freedom."""
    places = np.array([permute(key(READING, seed), 64, np.arange(64, dtype=np.uint64)) for seed in range(4000)])
    counts = np.stack([np.bincount(places[:, row], minlength=64) for row in range(64)])
    chi = ((counts - 4000 / 64) ** 2 / (4000 / 64)).sum(axis=1)
    assert chi.max() < 63 + 6 * np.sqrt(2 * 63)
    neighbours = np.abs(np.diff(places, axis=1)) == 1
    assert abs(neighbours.mean() - 2 / 64) < 0.003


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 1000, 4097])
def test_permutation_reaches_every_place_once(size):
    places = permute(key(DEALING, 7), size, np.arange(size, dtype=np.uint64))
    assert sorted(places.tolist()) == list(range(size))


def test_steps_per_pass_counts_whole_steps():
    assert steps_per_pass(4, [7, 5]) == 3
    assert steps_per_pass(5, [7, 5]) == 2
    assert steps_per_pass(50, [7, 5]) == 1


def test_impossible_steps_are_refused():
    with pytest.raises(ValueError, match="step=0"):
        row_ids(1, 0, 4, [3])
    with pytest.raises(ValueError, match="no rows"):
        row_ids(1, 1, 4, [0])


RECORDED = [5, 6, 1, 4, 2, 3, 0, 8, 10, 11, 7, 9]


@given(seed=st.integers(0, 2**64 - 1), size=st.integers(1, 3000), data=st.data())
def test_plain_integers_permute_as_arrays_do(seed: int, size: int, data: st.DataObject):
    places = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20))
    expected = permute(key(READING, seed), size, np.array(places, np.uint64)).tolist()
    assert [permuted(key(READING, seed), size, place) for place in places] == expected


@given(
    seed=st.integers(0, 2**32),
    step=st.integers(1, 200),
    rows_per_step=st.integers(1, 9),
    chunk_rows=st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(sum),
)
def test_a_row_alone_is_the_one_its_step_reads(seed: int, step: int, rows_per_step: int, chunk_rows: list[int]):
    first = (step - 1) * rows_per_step
    alone = [row_at(seed, first + place, chunk_rows) for place in range(rows_per_step)]
    assert alone == row_ids(seed, step, rows_per_step, chunk_rows).tolist()


def test_no_rows_have_no_order():
    with pytest.raises(ValueError, match="nothing to read"):
        row_at(1, 0, [0, 0])
