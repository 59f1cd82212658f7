"""Merging by the rule of GGUF's "llama" vocabularies, for those that no ranked list of merges can express.

The two neighbours whose union is of the highest priority become one, the leftmost first among equals. What is left
without a piece is written as bytes, or as the unknown id, once for all in a row. native/program/tokenizer.cpp does the
same; the tokenizers library is several times faster and takes over wherever it gives the same ids.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence

from tokenizers import models

from mobillama.errors import InputError
from mobillama.tokenizer.sentencepiece_model import Kind
from mobillama.tokenizer.vocabulary import BYTES, Vocabulary, is_text

Priority = Callable[[str, int], float | None]  # (union of two neighbours, characters of the left one) -> priority


def of(vocab: Vocabulary) -> Callable[[str], list[int]]:
    """What turns text with its spaces as U+2581 into ids, by the vocabulary's merges, or else by its scores."""
    ids: dict[str, int] = {}
    byte_ids: list[int | None] = [None] * 256
    for id_, (piece, kind) in enumerate(zip(vocab.pieces, vocab.kinds, strict=True)):
        if kind is Kind.NORMAL:
            ids.setdefault(piece, id_)  # of doubled pieces the first counts
        elif kind is Kind.BYTE:
            byte_ids[BYTES.index(piece)] = id_
    unk_id = vocab.specials.unk
    if vocab.ranked:
        return _ranked(vocab, ids)
    if not vocab.scores:
        ranks: dict[tuple[str, int], float] = {}
        for rank, (left, right) in enumerate(vocab.merges):
            ranks.setdefault((left + right, len(left)), -float(rank))
        return Merger(ids, lambda both, left: ranks.get((both, left)), byte_ids, unk_id).encode
    scores = {piece: vocab.scores[id_] for piece, id_ in ids.items()}
    return Merger(ids, lambda both, left: scores.get(both), byte_ids, unk_id).encode


def products(vocab: Vocabulary) -> Iterator[str]:
    """Every piece that merging can make."""
    if not vocab.scores:
        return (left + right for left, right in vocab.merges)
    normal = (piece for piece, kind in zip(vocab.pieces, vocab.kinds, strict=True) if kind is Kind.NORMAL)
    return (piece for piece in normal if is_text(piece))


def _ranked(vocab: Vocabulary, ids: Mapping[str, int]) -> Callable[[str], list[int]]:
    """The tokenizers library's merging: the lowest rank first, the leftmost first among equals."""
    unk_id = vocab.specials.unk
    known = {**ids, **{piece: id_ for id_, piece in enumerate(vocab.pieces) if vocab.kinds[id_] is Kind.BYTE}}
    unk = None if unk_id is None else vocab.pieces[unk_id]
    if unk is not None and unk_id is not None:
        known.setdefault(unk, unk_id)
    model = models.BPE(
        vocab=known, merges=vocab.merges, unk_token=unk, fuse_unk=True, byte_fallback=True, cache_capacity=0
    )
    return lambda text: [token.id for token in model.tokenize(text)]


class Merger:
    """Text with its spaces as U+2581 to ids. Time: n log n of the characters."""

    def __init__(
        self, ids: Mapping[str, int], priority: Priority, byte_ids: Sequence[int | None], unk_id: int | None
    ) -> None:
        """ids: of the normal pieces. byte_ids: of the 256 bytes, None where there is none."""
        self._ids, self._priority, self._byte_ids, self._unk_id = ids, priority, byte_ids, unk_id

    def encode(self, text: str) -> list[int]:
        """Errors: InputError for a character without piece or bytes, if there is no unknown id; UnicodeEncodeError."""
        text.encode()  # no character is half a surrogate pair, by which pieces that are no UTF-8 are written here
        size = len(text)
        lengths = [1] * size  # of the run that begins at each character; 0 = merged into its left neighbour
        before, after = list(range(-1, size - 1)), list(range(1, size + 1))
        queue: list[tuple[float, int, int, int]] = []

        def consider(left: int, right: int) -> None:
            if left >= 0 and right < size:
                both = lengths[left] + lengths[right]
                priority = self._priority(text[left : left + both], lengths[left])
                if priority is not None:
                    heapq.heappush(queue, (-priority, left, both, right))

        for at in range(1, size):
            consider(at - 1, at)
        while queue:
            _, left, both, right = heapq.heappop(queue)
            if not lengths[left] or not lengths[right] or lengths[left] + lengths[right] != both:
                continue  # one of the two was merged with another since
            lengths[left], lengths[right] = both, 0
            after[left] = after[right]
            if after[left] < size:
                before[after[left]] = left
            consider(before[left], left)
            consider(left, after[left])
        found: list[int] = []
        at = 0
        while at < size:
            self._append(text[at : at + lengths[at]], found)
            at = after[at]
        return found

    def _append(self, piece: str, found: list[int]) -> None:
        if (id_ := self._ids.get(piece)) is not None:
            found.append(id_)
            return
        spelt = [self._byte_ids[byte] for byte in piece.encode()]
        whole = [id_ for id_ in spelt if id_ is not None]
        if len(whole) == len(spelt):
            found += whole
        elif self._unk_id is None:
            raise InputError(
                f"the tokenizer has no piece for '{piece}', no bytes and no unknown id: give ids, or text without it"
            )
        elif not found or found[-1] != self._unk_id:
            found.append(self._unk_id)
