"""Near-duplicates over the whole corpus by MinHash: equal signatures in one bucket make two documents one cluster.

Gives the signatures of datatrove's MinhashDedupSignature (64-bit xxhash, seed 1, words split at spaces) and the
clusters of its later stages, with three differences: a licence notice at the head of code counts for nothing, of a
cluster the first document in order (source, file, record) stays, and in a text that is mostly written without spaces
between words (Chinese, Japanese, Thai, Lao, Khmer, ...) each such character is a word. Three stages: `Signatures`
while cleaning, `MatchBuckets` with one task per bucket and share of the hashes, `cluster` at the end.

`<task>.minhash` holds the signatures of the task's kept documents as uint64, (buckets, hashes, documents), so that one
hash of all documents is one run of bytes. NO_SHINGLE stands for a document with fewer words than a shingle has.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import xxhash
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from mobillama.config import CleanConfig
from mobillama.data.parts import replacing
from mobillama.data.words import bounds, pieces, simplified
from mobillama.errors import DamagedFileError

Hashes = NDArray[np.uint64]

SEED = 1  # datatrove's
PRIME = np.uint64((1 << 61) - 1)  # a Mersenne prime: x modulo it needs shifts and additions alone
HIGH = np.uint64(61)
NO_SHINGLE = np.uint64((1 << 64) - 1)
# A block of hashes stays in the cache of its core: 1,024 shingles x 16 hashes x 8 bytes, twice.
BLOCK_SHINGLES, BLOCK_HASHES = 1024, 16
SHARE_DOCUMENTS = 1 << 22
# Shingles and documents whose signatures are made in one go.
KEPT_BYTES, KEPT_DOCUMENTS = 16 << 20, 1 << 12
# A comment at the beginning of a file of code, after a "#!" line. No part gives back what it took: linear.
HEADER = re.compile(
    r"\s*+(?:#![^\n]*+\n)?(?:/\*.*?\*/|(?:[ \t]*+//[^\n]*+(?:\n|$))++|(?:[ \t]*+#[^\n]*+(?:\n|$))++)", re.DOTALL
)
# Characters of scripts that put no space between words: Thai, Lao, Tibetan, Myanmar, Khmer, and from Kana to Han.
UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9d\U0001b000-\U0001b16f\U00020000-\U000323af]"
)
THREE_BYTES = 0xE0  # the least first byte of a character of three bytes or more in UTF-8, as all of those are
NOTICE = re.compile(r"copyright|licen[cs]e", re.IGNORECASE)


def body(text: str) -> str:
    """The text without a licence notice in its first comment: short files that share one would be near-duplicates.

    >>> body("/* Copyright 2024 A. Person */\\nint one;")
    '\\nint one;'
    """
    header = HEADER.match(text)
    return text[header.end() :] if header and NOTICE.search(header[0]) else text


def unspaced(text: str) -> bool:
    """Whether most characters of a text, white space left out, are of scripts that put no space between words.

    >>> unspaced("他们在海边看见了一艘船 (ship)"), unspaced("The word 海 is sea.")
    (True, False)
    """
    if text.isascii():
        return False
    data = np.frombuffer(text.encode("utf-8", "replace"), np.uint8)
    if 4 * int(np.count_nonzero(data >= THREE_BYTES)) <= len(text):
        return False
    characters = len("".join(text.split()))
    return 2 * len(UNSPACED.findall(text)) > characters


class MinHash:
    """Signatures of documents under the settings of a recipe."""

    def __init__(self, clean: CleanConfig) -> None:
        self.words, self.buckets, self.hashes = clean.minhash_words, clean.minhash_buckets, clean.minhash_hashes
        random = np.random.RandomState(SEED)
        size = (self.buckets * self.hashes, 1)
        self.factor = random.randint(1, int(PRIME), dtype=np.uint64, size=size)
        self.offset = random.randint(0, int(PRIME), dtype=np.uint64, size=size)

    def shingles(self, text: str) -> Hashes:
        """Hashes of all runs of `words` words of a text's body, in order: (its words - words + 1,), or none."""
        found: list[Hashes] = []
        before = b""
        whole = body(text)
        apart = unspaced(whole)
        for piece in pieces(whole):
            words = simplified(piece)
            if apart:
                words = " ".join(UNSPACED.sub(r" \g<0> ", words.decode()).split()).encode()
            line = b" ".join(part for part in (before, words) if part)
            starts, ends = bounds(line)
            count = len(starts) - self.words + 1
            if count > 0:
                edges = zip(starts[:count].tolist(), ends[self.words - 1 :].tolist(), strict=True)
                hashes = (xxhash.xxh64_intdigest(line[start:end]) for start, end in edges)
                found.append(np.fromiter(hashes, np.uint64, count))
            # The runs that reach into the next piece begin in the last words of this one.
            keep = max(0, len(starts) - self.words + 1)
            before = line[starts[keep] :] if keep < len(starts) else b""
        return np.concatenate(found) if found else np.empty(0, np.uint64)

    def signatures(self, documents: Sequence[Hashes]) -> Hashes:
        """Smallest value of every hash function over each document's shingles: (buckets * hashes, D)."""
        size = self.buckets * self.hashes
        signature = np.full((size, len(documents)), NO_SHINGLE)
        numbers = [number for number, shingles in enumerate(documents) if len(shingles)]
        if not numbers:
            return signature
        shingles = np.concatenate([documents[number] for number in numbers])
        firsts = np.cumsum([0, *(len(documents[number]) for number in numbers)])[:-1]
        values, high = (np.empty((BLOCK_HASHES, BLOCK_SHINGLES), np.uint64) for _ in range(2))
        for start in range(0, len(shingles), BLOCK_SHINGLES):
            block = shingles[start : start + BLOCK_SHINGLES]
            low, stop = np.searchsorted(firsts, [start, start + len(block)])
            inside = firsts[low:stop] - start
            if not len(inside) or inside[0]:  # the block begins inside a document
                low, inside = low - 1, np.concatenate([[0], inside])
            columns = numbers[low:stop]
            for row in range(0, size, BLOCK_HASHES):
                rows = slice(row, min(row + BLOCK_HASHES, size))
                shape = (rows.stop - row, len(block))
                hashed, carry = values[: shape[0], : shape[1]], high[: shape[0], : shape[1]]
                np.multiply(self.factor[rows], block, out=hashed)
                np.add(hashed, self.offset[rows], out=hashed)
                _modulo(hashed, carry)
                smallest = np.minimum.reduceat(hashed, inside, axis=1)
                signature[rows, columns] = np.minimum(signature[rows, columns], smallest)
        return signature


def _modulo(values: Hashes, high: Hashes) -> None:
    """values %= PRIME in place: 2**61 is 1 modulo it, so the bits above count as ones. `high` is room of that shape."""
    np.right_shift(values, HIGH, out=high)
    np.bitwise_and(values, PRIME, out=values)
    np.add(values, high, out=values)
    if values.max() >= PRIME:  # once in 2**58 values
        values[values >= PRIME] -= PRIME


class Signatures(PipelineStep):  # type: ignore[misc]
    """Writes `<task>.minhash` for the kept documents of a task; the documents pass through unchanged."""

    name, type = "minhash signatures", "dedup"

    def __init__(self, clean: CleanConfig, folder: Path) -> None:
        super().__init__()
        self.minhash, self.folder = MinHash(clean), folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The same documents; the file is there, whole, once they are all taken."""
        self.folder.mkdir(parents=True, exist_ok=True)
        waiting: list[Hashes] = []
        size = 0
        # A file without a name, document by document, turned round at the end: memory does not grow with the task.
        with tempfile.TemporaryFile(dir=self.folder) as spool:

            def sign() -> None:
                spool.write(np.ascontiguousarray(self.minhash.signatures(waiting).T, "<u8").data)
                waiting.clear()

            for document in data:
                if "dropped" not in document.metadata:
                    waiting.append(self.minhash.shingles(document.text))
                    size += waiting[-1].nbytes
                    if size >= KEPT_BYTES or len(waiting) >= KEPT_DOCUMENTS:
                        sign()
                        size = 0
                yield document
            sign()
            self._turn(spool, self.folder / f"{rank:05d}.minhash")

    def _turn(self, spool: IO[bytes], out: Path) -> None:
        """Write the signatures of `spool`, (documents, buckets * hashes), as (buckets * hashes, documents)."""
        spool.flush()
        buckets, hashes = self.minhash.buckets, self.minhash.hashes
        with replacing(out) as beside, beside.open("wb") as file:
            if os.fstat(spool.fileno()).st_size:
                whole = np.memmap(spool, "<u8", "r").reshape(-1, buckets, hashes)
                for bucket in range(buckets):
                    file.write(np.ascontiguousarray(whole[:, bucket].T).data)


@dataclass(frozen=True)
class SignatureFile:
    """Where a task's signatures lie, and the number of its first kept document among those of all tasks."""

    path: Path
    first: int
    documents: int


def signature_files(folder: Path, kept: Sequence[int]) -> list[SignatureFile]:
    """The files that `Signatures` left in `folder`; `kept` = kept documents of each task."""
    firsts = np.cumsum([0, *kept]).tolist()
    return [SignatureFile(folder / f"{task:05d}.minhash", firsts[task], count) for task, count in enumerate(kept)]


def shares(documents: int) -> int:
    """Into how many shares the hashes of a bucket of so many documents are dealt, one task each."""
    return max(1, -(-documents // SHARE_DOCUMENTS))


class MatchBuckets(PipelineStep):  # type: ignore[misc]
    """Writes `<rank>.npy`, (n, 2) int64: pairs of a document and the first one with the same signature in a bucket.

    Rank = bucket * shares + share, where a document's share of a bucket follows from its first hash there. A task holds
    16 bytes a document of its share, about four times over while it sorts (SHARE_DOCUMENTS: under 300 MB), and reads 8
    bytes of every document; the other hashes are read only where the first one occurs twice. In all,
    buckets * shares * documents * 8 bytes are read: 3 GB for ten million documents, 270 GB for a hundred million.
    """

    name, type = "near-duplicates", "dedup"

    def __init__(self, clean: CleanConfig, files: Sequence[SignatureFile], duplicates: Path, folder: Path) -> None:
        """`duplicates`: .npy of the sorted numbers of documents that are dropped already and match nothing."""
        super().__init__()
        self.buckets, self.hashes = clean.minhash_buckets, clean.minhash_hashes
        self.files, self.duplicates, self.folder = files, duplicates, folder

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Match one share of one bucket; yields nothing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        bucket, share = divmod(rank, world_size // self.buckets)
        numbers, first = self._again(bucket, share, world_size // self.buckets)
        signature = np.column_stack([first, *(self._hash(bucket, hash_, numbers) for hash_ in range(1, self.hashes))])
        # Stable: of equal signatures the first document comes first.
        order = np.lexsort(signature.T[::-1])
        numbers, signature = numbers[order], signature[order]
        new = np.ones(len(numbers), bool)
        new[1:] = (signature[1:] != signature[:-1]).any(axis=1)
        heads = numbers[new][np.cumsum(new) - 1] if len(numbers) else numbers
        pairs = np.column_stack([numbers[~new], heads[~new]])
        _save(self.folder / f"{rank:05d}.npy", pairs[np.argsort(pairs[:, 0])])
        yield from ()

    def _again(self, bucket: int, share: int, of: int) -> tuple[NDArray[np.int64], Hashes]:
        """Documents of a share, by number, whose first hash in a bucket another one has too, and that hash."""
        numbers, hashes = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
        for file in self.files:
            here = self._column(file, bucket, 0)
            place = np.flatnonzero((here % np.uint64(of) == share) & (here != NO_SHINGLE))
            numbers.append(file.first + place)
            hashes.append(here[place])
        number, first = np.concatenate(numbers), np.concatenate(hashes)
        dropped = np.load(self.duplicates, mmap_mode="r")
        if len(dropped):
            left = dropped[np.minimum(np.searchsorted(dropped, number), len(dropped) - 1)] != number
            number, first = number[left], first[left]
        order = np.argsort(first)
        ordered = first[order]
        same = ordered[1:] == ordered[:-1]
        again = np.zeros(len(first), bool)
        again[order[1:][same]] = again[order[:-1][same]] = True
        return number[again], first[again]

    def _hash(self, bucket: int, hash_: int, numbers: NDArray[np.int64]) -> Hashes:
        """One hash of some documents, whose numbers ascend."""
        found = np.empty(len(numbers), np.uint64)
        for file in self.files:
            low, high = np.searchsorted(numbers, [file.first, file.first + file.documents])
            if low < high:
                found[low:high] = self._column(file, bucket, hash_)[numbers[low:high] - file.first]
        return found

    def _column(self, file: SignatureFile, bucket: int, hash_: int) -> Hashes:
        """One hash of every document of a task. Error: DamagedFileError for a file of another size."""
        expected, found = self.buckets * self.hashes * file.documents * 8, file.path.stat().st_size
        if found != expected:
            raise DamagedFileError(f"{file.path}: found {found} bytes; expected {expected}; remove it and build again")
        place = (bucket * self.hashes + hash_) * file.documents * 8
        return np.fromfile(file.path, "<u8", file.documents, offset=place)


def cluster(folder: Path, out: Path) -> None:
    """Write the clusters that the pairs in `folder` make: (n, 2) int64, a document to drop and the one that stays.

    Sorted by the document to drop; the one that stays is the first of its cluster. Memory: five int64 a pair.
    """
    pairs = np.concatenate([np.empty((0, 2), np.int64), *(np.load(path) for path in sorted(folder.glob("*.npy")))])
    numbers, places = np.unique(pairs, return_inverse=True)
    left, right = places.reshape(-1, 2).T
    root = np.arange(len(numbers))
    while len(root):
        # Hang every root below the smallest root it is paired with, then shorten all paths to the root.
        roots = root[left], root[right]
        smallest = np.minimum(*roots)
        joined = root.copy()
        for side in roots:
            np.minimum.at(joined, side, smallest)
        while not np.array_equal(joined, shorter := joined[joined]):
            joined = shorter
        if np.array_equal(joined, root):
            break
        root = joined
    goes = root != np.arange(len(root))
    _save(out, np.column_stack([numbers[goes], numbers[root[goes]]]))


def _save(path: Path, array: NDArray[np.int64]) -> None:
    with replacing(path) as beside, beside.open("wb") as file:
        np.save(file, array)
