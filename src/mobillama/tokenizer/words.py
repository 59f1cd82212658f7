"""Encode long text fast: cut it where no merge can reach across, and look the parts up.

A merge joins two neighbours into one piece, so two characters that stand side by side in no product of a merge are
never joined: text may be cut between them and the parts encoded alone, with exactly the same ids. `find_cuts` reads
from the vocabulary between which classes of characters that holds. The parts are short and repeat, so nearly all of
them are found, many at once, in a table of fixed size.
"""

from __future__ import annotations

import itertools
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobillama.tokenizer.vocabulary import SPACE

Keys = tuple[NDArray[np.uint64], NDArray[np.uint64]]
Encode = Callable[[str], Sequence[int]]

# Classes of UTF-8 bytes; a character above ASCII begins with a LEAD and ends with a REST byte.
BLANK, NEWLINE, LETTER, DIGIT, SIGN, LEAD, REST = range(7)
CLASSES = 8  # rows and columns of the matrix of cuts

BLOCK = 1 << 16  # bytes cut at a time, so that all that belongs to them stays in the processor's cache
SLOTS_LOG2 = 19  # log2 of the slots of the table
LONGEST = 15  # bytes of the longest part kept in the table: two 64-bit words less one byte for the length
MOST_IDS = 7  # ids of the parts kept in the table
PARTS_KEPT = 200_000  # parts in the dictionary behind the table before it is emptied
LONGEST_KEPT = 64  # bytes of the longest part kept there


def _classes() -> NDArray[np.uint8]:
    table = np.full(256, SIGN, np.uint8)
    for byte in range(128):
        if chr(byte).isalpha():
            table[byte] = LETTER
        elif chr(byte).isdigit():
            table[byte] = DIGIT
    table[ord(" ")], table[ord("\n")] = BLANK, NEWLINE
    table[0x80:0xC0], table[0xC0:] = REST, LEAD
    return table


CLASS_OF = _classes()
MASKS = np.array([(1 << 8 * size) - 1 for size in range(9)], np.uint64)  # the first `size` bytes of eight
MIX_LENGTH, MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)  # odd multipliers of the hash
TAKEN = np.arange(MOST_IDS) < np.arange(MOST_IDS + 1)[:, None]  # (count, position) -> whether an id stands there


def find_cuts(products: Iterable[str]) -> NDArray[np.bool_]:
    """Where text may be cut: (class of a byte * CLASSES + class of the next byte) -> bool.

    True where no product of a merge has a character of the one class followed by one of the other. Never true inside a
    character.
    """
    joined = {pair for product in set(products) for pair in itertools.pairwise(product)}
    cuts = np.ones((CLASSES, CLASSES), np.bool_)
    for left, right in joined:
        cuts[_class(left, -1), _class(right, 0)] = False
    cuts[LEAD, :] = cuts[:, REST] = False
    return cuts.ravel()


def _class(character: str, byte: int) -> int:
    return int(CLASS_OF[(" " if character == SPACE else character).encode()[byte]])


class Parts(dict[bytes, bytes]):
    """UTF-8 of a part of a text -> its ids as bytes in the machine's order; encoded when first asked for.

    Spaces are plain. Holds at most `PARTS_KEPT` parts of at most `LONGEST_KEPT` bytes.
    """

    def __init__(self, encode: Encode, typecode: str) -> None:
        super().__init__()
        self._encode = encode
        self._typecode = typecode

    def __missing__(self, part: bytes) -> bytes:
        ids = array(self._typecode, self._encode(part.decode())).tobytes()
        if len(part) <= LONGEST_KEPT:
            if len(self) >= PARTS_KEPT:
                self.clear()
            self[part] = ids
        return ids


class Words:
    """Encodes UTF-8 text with plain spaces by its parts.

    A row of the table holds a part's key, its ids and their number; a part
    has one slot, and the last one to need it has it. What the table has not, the dictionary behind it finds. One thread
    encodes at a time.
    """

    def __init__(self, products: Iterable[str], encode: Encode, dtype: np.dtype[Any]) -> None:
        self._cuts = find_cuts(products)
        self._dtype = dtype
        self._known = Parts(encode, "H" if dtype.itemsize == 2 else "I")
        self._table = np.zeros((1 << SLOTS_LOG2, 2 + (MOST_IDS + 1) * dtype.itemsize // 8), np.uint64)
        self._counts = {count * dtype.itemsize: np.array(count, dtype).tobytes() for count in range(MOST_IDS + 1)}
        self._lock = threading.Lock()

    def encode(self, data: bytes) -> NDArray[Any]:
        """Ids of a text (tokens,) in the dtype given."""
        with self._lock:
            found = b"".join([part for block in self._blocks(data) for part in self._encode_block(block)])
        return np.frombuffer(found, self._dtype)

    def _blocks(self, data: bytes) -> Iterator[bytes]:
        """Parts of the text of about BLOCK bytes; they tile it and end where it may be cut."""
        start, size = 0, len(data)
        while size - start > BLOCK:
            end = start + BLOCK
            step = BLOCK // 16
            while end < size:  # look for the last cut in a window, else go on to the next
                classes = CLASS_OF[np.frombuffer(data, np.uint8, min(step, size - end) + 1, end - 1)]
                found = np.flatnonzero(self._cuts[classes[:-1] * CLASSES + classes[1:]])
                if found.size:
                    end += int(found[-1])
                    break
                end += step
            end = min(end, size)
            yield data[start:end]
            start = end
        if start < size:
            yield data[start:]

    def _encode_block(self, block: bytes) -> list[Any]:
        """Buffers that hold the ids of a block, in order."""
        text = np.frombuffer(block + bytes(16), np.uint8)
        classes = CLASS_OF[text[: len(block)]]
        inner = np.flatnonzero(self._cuts[classes[:-1] * CLASSES + classes[1:]]) + 1
        edges = np.concatenate(([0], inner, [len(block)]))
        starts, sizes = edges[:-1], np.diff(edges)
        keys = _keys(text, starts, sizes)
        slots = _slots(keys)
        rows = self._table.take(slots, axis=0)  # (W, 2 + words of ids)
        missing = np.flatnonzero((rows[:, 0] != keys[0]) | (rows[:, 1] != keys[1]))
        irregular = self._fill(block, edges, missing, rows, keys, slots) if missing.size else []
        cells = rows[:, 2:].view(self._dtype)  # (W, MOST_IDS + 1)
        counts = cells[:, MOST_IDS]
        ids = cells[:, :MOST_IDS][TAKEN[counts]]
        if not irregular:
            return [ids]
        ends = np.cumsum(counts, dtype=np.int64)
        parts: list[Any] = []
        at = 0
        for word, encoded in irregular:
            end = int(ends[word])
            parts += (ids[at:end], encoded)
            at = end
        return [*parts, ids[at:]]

    def _fill(
        self,
        block: bytes,
        edges: NDArray[np.int64],
        missing: NDArray[np.int64],
        rows: NDArray[np.uint64],
        keys: Keys,
        slots: NDArray[np.int64],
    ) -> list[tuple[int, bytes]]:
        """Look up the parts that the table has not: those that fit go into rows and table, the others are returned."""
        bounds = zip(missing.tolist(), edges[missing].tolist(), edges[missing + 1].tolist(), strict=True)
        known, most = self._known, MOST_IDS * self._dtype.itemsize
        fitting: list[int] = []
        cells: list[bytes] = []
        irregular: list[tuple[int, bytes]] = []
        for word, start, end in bounds:
            ids = known[block[start:end]]
            if end - start <= LONGEST and len(ids) <= most:
                fitting.append(word)
                cells += (ids.ljust(most, b"\0"), self._counts[len(ids)])
            else:
                irregular.append((word, ids))
        rows[missing] = 0  # no ids
        if fitting:
            new = np.empty((len(fitting), rows.shape[1]), np.uint64)
            new[:, 0], new[:, 1] = keys[0][fitting], keys[1][fitting]
            new[:, 2:] = np.frombuffer(b"".join(cells), np.uint64).reshape(len(fitting), -1)
            rows[fitting] = new
            self._table[slots[fitting]] = new
        return irregular


def _keys(text: NDArray[np.uint8], starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> Keys:
    """Two 64-bit words for each part, (W,) each: its first 8 bytes; the next 7 and its length, at most 255.

    Parts of at most LONGEST bytes have equal keys only if they are equal; longer ones equal none of those.
    """
    eights = np.ndarray((len(text) - 7,), "<u8", text.data, strides=(1,)).copy()  # the 8 bytes from each byte on
    heads = np.minimum(sizes, 8)
    first = eights[starts] & MASKS[heads]
    second = eights[starts + heads] & MASKS[np.clip(sizes - 8, 0, 7)]
    return first, second | (np.minimum(sizes, 255).astype(np.uint64) << np.uint64(56))


def _slots(keys: Keys) -> NDArray[np.int64]:
    """The slot of each part (W,): a multiplicative hash of both words of its key."""
    first, second = keys
    mixed: NDArray[np.uint64] = (first ^ (second >> np.uint64(29)) ^ (second * MIX_LENGTH)) * MIX
    mixed = (mixed ^ (mixed >> np.uint64(32))) * MIX
    return (mixed >> np.uint64(64 - SLOTS_LOG2)).astype(np.int64)
