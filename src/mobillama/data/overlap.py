"""Documents that share thirteen words in a row with a benchmark item: marked with the benchmark's name, or dropped.

Thirteen words as in GPT-3 (Brown et al., 2020, appendix C), over letters and digits in lower case. An item whose texts
have 8 to 12 words must be in the document as a whole; one with fewer is left out, and counted. Runs of words are found
by hash in an index that every worker maps, and a hit counts only where the words themselves are equal.

The index is a file of arrays (tensors.py): `text` the items' words (UTF-8, one space between), and per run in order of
`hash` its place `start` and `size` in the text, its `words` and the bits of its `benchmark`s; a run of fewer than
thirteen words is found by the hash of its first eight. `filter` has one bit set for each hash.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from mobillama.config import CleanConfig
from mobillama.data.benchmarks import NAMES, items
from mobillama.data.parts import replacing
from mobillama.data.tensors import lay_out, map_arrays, write_arrays
from mobillama.data.words import alphanumeric, bounds, pieces

Array = NDArray[Any]
Hashes = NDArray[np.uint64]

RUN_WORDS, FEWEST_WORDS = 13, 8
LENGTHS = (FEWEST_WORDS, RUN_WORDS)  # words that are hashed together
# A word's hash is the sum of a random number for each (place modulo PLACES, byte); spaces add nothing.
PLACES, SPACE = 32, 32
NUMBERS = np.random.RandomState(RUN_WORDS).randint(0, 1 << 64, PLACES * 256, dtype=np.uint64)
NUMBERS[SPACE::256] = 0
FACTOR = 0x9E3779B97F4A7C15  # of the polynomial over the words of a run
FILTER_BITS = 32  # for each run in the index: one word in 32 is looked up in vain
BLOCK_BYTES = 1 << 16


def write_index(folder: Path, path: Path) -> None:
    """Index the nine benchmarks of `folder` at `path`, whole or not at all; nothing is done if it is there already."""
    if path.exists():
        return
    texts: list[bytes] = []
    sizes: list[tuple[int, bool, int]] = []  # of each text: words, to be met as a whole, bit of its benchmark
    counts: dict[str, dict[str, int]] = {}
    for bit, name in enumerate(NAMES):
        counts[name] = {"items": 0, "whole": 0, "left_out": 0}
        for item in items(folder, name):
            found, whole = searched(item)
            counts[name]["items"] += 1
            counts[name]["whole"] += whole and bool(found)
            counts[name]["left_out"] += not found
            texts += [b" ".join(words) for words in found]
            sizes += [(len(words), whole, 1 << bit) for words in found]
    _write(path, b" ".join(texts), np.array(sizes, np.int64).reshape(-1, 3), counts)


def searched(item: list[str]) -> tuple[list[list[bytes]], bool]:
    """The words of an item's texts that are looked for, and whether each must be met as a whole; none if too short."""
    split = [alphanumeric(text).split() for text in item]
    whole = max(map(len, split), default=0) < RUN_WORDS
    found, before = [], list[bytes]()
    for words in split:
        # What the text before began with too gives no new run.
        same = next(
            (i for i, (a, b) in enumerate(zip(words, before, strict=False)) if a != b), min(len(words), len(before))
        )
        new = words if whole else words[max(0, same - RUN_WORDS + 1) :]
        if len(new) >= (FEWEST_WORDS if whole else RUN_WORDS):
            found.append(new)
        before = words
    return found, whole


def _write(path: Path, text: bytes, sizes: NDArray[np.int64], counts: dict[str, dict[str, int]]) -> None:
    starts, ends = bounds(text)
    hashes = word_hashes(text, starts)
    words, whole, bits = sizes.T
    firsts = np.cumsum(words) - words
    runs = np.where(whole == 1, 1, words - RUN_WORDS + 1)  # of each text
    text_of = np.repeat(np.arange(len(words)), runs)
    place = np.arange(len(text_of)) - np.repeat(np.cumsum(runs) - runs, runs) + firsts[text_of]  # first word of a run
    length = np.where(whole == 1, words, RUN_WORDS)[text_of]
    short, full = run_hashes(hashes)
    hash_ = np.where(length < RUN_WORDS, short[place], full[np.minimum(place, len(full) - 1)])
    start, end, benchmark = starts[place], ends[place + length - 1], bits[text_of]
    order = np.argsort(hash_, kind="stable")
    start, end, length, benchmark, hash_ = (array[order] for array in (start, end, length, benchmark, hash_))
    new = np.ones(len(hash_), bool)
    for i in np.flatnonzero(hash_[1:] == hash_[:-1]) + 1:
        new[i] = text[start[i] : end[i]] != text[start[i - 1] : end[i - 1]]
    heads = np.flatnonzero(new)
    filter_bits = max(3, int(len(heads) * FILTER_BITS - 1).bit_length())
    arrays: dict[str, Array] = {
        "text": np.frombuffer(text, np.uint8),
        "hash": hash_[heads],
        "start": start[heads].astype(np.uint32),
        "size": (end - start)[heads].astype(np.uint32),
        "words": length[heads].astype(np.uint32),
        "benchmark": np.bitwise_or.reduceat(benchmark, heads).astype(np.uint16)
        if len(heads)
        else np.empty(0, np.uint16),
        "filter": _filter(hash_[heads], filter_bits),
    }
    metadata = {"counts": json.dumps(counts), "filter_bits": str(filter_bits)}
    layout = lay_out({name: (array.dtype, array.shape) for name, array in arrays.items()}, metadata)

    def fill(mapped: dict[str, Array]) -> None:
        for name, array in arrays.items():
            mapped[name][:] = array

    with replacing(path) as beside:
        write_arrays(beside, layout, fill)


def _filter(hashes: Hashes, filter_bits: int) -> NDArray[np.uint8]:
    table = np.zeros(1 << (filter_bits - 3), np.uint8)
    place = hashes >> np.uint64(64 - filter_bits)
    np.bitwise_or.at(table, place >> np.uint64(3), np.left_shift(1, place & np.uint64(7)).astype(np.uint8))
    return table


def word_hashes(words: bytes, starts: NDArray[np.int64]) -> Hashes:
    """A hash of every word: (W,). `starts` are the words' first bytes."""
    found = np.empty(len(starts), np.uint64)
    text = np.frombuffer(words, np.uint8)
    done = 0
    while done < len(starts):
        first = int(starts[done])
        stop = max(done + 1, int(np.searchsorted(starts, first + BLOCK_BYTES)))
        last = int(starts[stop]) if stop < len(starts) else len(text)
        inside = starts[done:stop] - first
        place = np.arange(last - first)
        place -= np.repeat(inside, np.diff(inside, append=last - first))
        place &= PLACES - 1
        place <<= 8
        place += text[first:last]
        found[done:stop] = np.add.reduceat(NUMBERS[place], inside)
        done = stop
    return found


def run_hashes(words: Hashes) -> tuple[Hashes, Hashes]:
    """For each of LENGTHS, the hashes of all runs of so many words: (W - length + 1,), or none."""
    runs = {1: words}
    for short, more in ((1, 1), (2, 2), (4, 4), (8, 4), (12, 1)):
        count = max(0, len(words) - short - more + 1)
        power = np.uint64(pow(FACTOR, more, 1 << 64))
        runs[short + more] = runs[short][:count] * power + runs[more][short : short + count]
    return runs[FEWEST_WORDS], runs[RUN_WORDS]


class Index:
    """The runs of words of all benchmark items, memory-mapped."""

    def __init__(self, path: Path) -> None:
        """Map the file. Error: DamagedFileError for one that is not whole."""
        self.arrays, metadata = map_arrays(path)
        self.hash, self.filter = self.arrays["hash"], self.arrays["filter"]
        self.shift = np.uint64(64 - int(metadata["filter_bits"]))
        self.counts: dict[str, dict[str, int]] = json.loads(metadata["counts"])

    def benchmarks(self, text: str) -> list[str]:
        """Names of the benchmarks that a text shares a run with, sorted."""
        found = 0
        before = b""
        for piece in pieces(text):
            line = before + b" " + alphanumeric(piece)
            starts, ends = bounds(line)
            for hashes in run_hashes(word_hashes(line, starts)):
                for place, at in self._maybe(hashes):
                    found |= self._bits(at, line, starts[place:], ends[place:])
            # The words alone: what lies between them would be read again with every piece.
            before = b" ".join((line[starts[-RUN_WORDS + 1] :] if len(starts) >= RUN_WORDS else line).split())
        return [name for bit, name in enumerate(NAMES) if found >> bit & 1]

    def _maybe(self, hashes: Hashes) -> list[tuple[int, int]]:
        """Places of the hashes that are in the index, each with the first place in the index."""
        bit = hashes >> self.shift
        byte = self.filter[bit >> np.uint64(3)]
        place = np.flatnonzero(byte >> (bit & np.uint64(7)).astype(np.uint8) & 1)
        at = np.searchsorted(self.hash, hashes[place])
        place, at = place[at < len(self.hash)], at[at < len(self.hash)]
        equal = self.hash[at] == hashes[place]
        return list(zip(place[equal].tolist(), at[equal].tolist(), strict=True))

    def _bits(self, at: int, line: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> int:
        """Benchmarks of the runs from `at` on that have its hash and the words that stand at the head of `starts`."""
        hash_, found = self.hash[at], 0
        while at < len(self.hash) and self.hash[at] == hash_:
            words, place, size = (int(self.arrays[name][at]) for name in ("words", "start", "size"))
            if words <= len(starts):
                run = b" ".join(line[starts[0] : ends[words - 1]].split())
                if run == self.arrays["text"][place : place + size].tobytes():
                    found |= int(self.arrays["benchmark"][at])
            at += 1
        return found


class Overlap(PipelineStep):  # type: ignore[misc]
    """Adds `overlap`, the names of the benchmarks a document overlaps with, to its metadata; may drop it for that."""

    name, type = "benchmark overlap", "filter"

    def __init__(self, clean: CleanConfig, index: Path) -> None:
        """`index`: what `write_index` made."""
        super().__init__()
        self.drop, self.index = clean.overlap == "drop", index

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The same documents; those that were dropped before are not looked at."""
        index = Index(self.index)
        for document in data:
            metadata = document.metadata
            if "dropped" not in metadata:
                metadata["overlap"] = index.benchmarks(document.text)
                if self.drop and metadata["overlap"]:
                    metadata["dropped"] = "benchmark_overlap"
            yield document
