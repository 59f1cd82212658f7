"""The vocabulary of a byte-fallback BPE: its pieces, its merges, and the `tokenizer.json` that holds them.

The file is that of the `tokenizers` library, so that transformers reads it too. Text is normalised by putting a space
before it and writing every space as U+2581; ids 0, 1, 2 are unknown, begin and end, then come the 256 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple

from mobillama.errors import InputError
from mobillama.tokenizer.matching import Matched
from mobillama.tokenizer.sentencepiece_model import Kind, Piece, SentencePieceModel

SPACE = "\u2581"  # how a space is written inside a piece
FILE = "tokenizer.json"  # of a saved tokenizer
UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"
UNKNOWN_SHOWN = " \u2047 "  # what sentencepiece writes for the unknown id
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
KINDS = {UNKNOWN: Kind.UNKNOWN, BEGIN: Kind.CONTROL, END: Kind.CONTROL, **dict.fromkeys(BYTES, Kind.BYTE)}
LONGEST_RUN = 16  # spaces in the longest piece made of spaces alone, for vocabularies trained here


class Specials(NamedTuple):
    """Ids of the unknown, the begin and the end piece; None where there is none."""

    unk: int | None
    bos: int | None
    eos: int | None


class Prefix(StrEnum):
    """Where a space is put before text."""

    NONE = "none"
    START = "start"  # before a text, whatever it begins with: sentencepiece
    EACH = "each"  # before a text and behind each piece that was matched in it: llama.cpp, tokenizers' Prepend
    FIRST = "first"  # before a text that begins with neither a space nor a matched piece: tokenizers' Metaspace
    ALWAYS = "always"  # before each stretch of text between matched pieces that begins with no space: Metaspace


@dataclass(frozen=True)
class Vocabulary:
    """Pieces in id order; merges in order of priority, first merged first.

    What is left out follows from the pieces' names: "<unk>", "<s>", "</s>" and the bytes are what LLaMA's are, all
    others are normal.
    """

    pieces: list[str]
    merges: list[tuple[str, str]]
    prefix: Prefix = Prefix.START
    kinds: list[Kind] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)  # where given they say what merges, in place of `merges`
    matched: tuple[Matched, ...] = ()  # pieces found in a text before all others
    named: Specials | None = None  # None = the pieces with LLaMA's names
    end_ids: frozenset[int] = frozenset()  # at which a text ends, beside the end id
    adds_bos: bool = False  # whether a prompt begins with the begin id
    adds_eos: bool = False  # whether it ends with the end id

    def __post_init__(self) -> None:
        if not self.kinds:
            object.__setattr__(self, "kinds", [KINDS.get(piece, Kind.NORMAL) for piece in self.pieces])

    @cached_property
    def specials(self) -> Specials:
        """Ids of the unknown, the begin and the end piece."""
        return self.named or Specials(*(self.pieces.index(piece) for piece in (UNKNOWN, BEGIN, END)))

    @cached_property
    def has_bytes(self) -> bool:
        """Whether every byte is a piece, so that no text needs the unknown id."""
        return {piece for piece, kind in zip(self.pieces, self.kinds, strict=True) if kind is Kind.BYTE} == set(BYTES)

    @cached_property
    def ranked(self) -> bool:
        """Whether the list of merges says it all to the tokenizers library, which takes every piece by its name."""
        normal = {piece for piece, kind in zip(self.pieces, self.kinds, strict=True) if kind is Kind.NORMAL}
        return (
            not self.scores
            and self.has_bytes
            and len(set(self.pieces)) == len(self.pieces)
            and all(left in normal and right in normal and left + right in normal for left, right in self.merges)
            and len(set(self.merges)) == len(self.merges)
            and is_text("".join(self.pieces))
        )

    @property
    def expressible(self) -> bool:
        """Whether a `tokenizer.json` can hold it."""
        return self.ranked and not (self.matched and self.prefix is Prefix.START)

    @property
    def dummy_prefix(self) -> bool:
        """Whether a space is put before a text."""
        return self.prefix is not Prefix.NONE

    @property
    def spells(self) -> bool:
        """Whether the bytes of a text's ids are the text's, but for one space in front."""
        found = [piece for piece in self.matched if not piece.special]
        inside = self.prefix in (Prefix.EACH, Prefix.ALWAYS)
        return not found or not (inside or any(piece.lstrip or piece.rstrip for piece in found))

    def tree(self) -> dict[str, Any]:
        """The content of `tokenizer.json`.

        "<s>" and "</s>" are no `added_tokens`: text that spells one is ordinary text, as it is to sentencepiece.
        Error: InputError for a vocabulary that the file cannot express.
        """
        if not self.expressible:
            raise InputError(
                "tokenizer.json cannot hold this vocabulary: its pieces merge by scores or have doubled names, or its "
                "space stands elsewhere; use it from the file it was read from"
            )
        unk_id = self.specials.unk
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        restore = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
        metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": str(self.prefix), "split": False}
        normalizers = self.prefix in (Prefix.NONE, Prefix.START, Prefix.EACH)
        prepend = [{"type": "Prepend", "prepend": SPACE}] if self.dummy_prefix else []
        strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if self.dummy_prefix else []
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": self._added(),
            "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]} if normalizers else None,
            "pre_tokenizer": None if normalizers else metaspace,
            "post_processor": self._template() if self.adds_bos or self.adds_eos else None,
            "decoder": {
                "type": "Sequence",
                "decoders": [restore, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
            },
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None if unk_id is None else self.pieces[unk_id],
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": True,
                "byte_fallback": True,
                "ignore_merges": False,
                "vocab": {piece: id_ for id_, piece in enumerate(self.pieces)},
                "merges": [list(merge) for merge in self.merges],
            },
        }

    def _template(self) -> dict[str, Any]:
        """What puts the begin and the end id around a prompt."""
        ids = {name: id_ for name, id_ in self.specials._asdict().items() if id_ is not None}
        first = [ids["bos"]] if self.adds_bos else []
        last = [ids["eos"]] if self.adds_eos else []

        def around(sequence: str, number: int) -> list[dict[str, Any]]:
            names = [[self.pieces[id_] for id_ in some] for some in (first, last)]
            before, after = ([{"SpecialToken": {"id": name, "type_id": number}} for name in some] for some in names)
            return [*before, {"Sequence": {"id": sequence, "type_id": number}}, *after]

        return {
            "type": "TemplateProcessing",
            "single": around("A", 0),
            "pair": around("A", 0) + around("B", 1),
            "special_tokens": {
                self.pieces[id_]: {"id": self.pieces[id_], "ids": [id_], "tokens": [self.pieces[id_]]}
                for id_ in (*first, *last)
            },
        }

    def _added(self) -> list[dict[str, Any]]:
        """Control pieces with names of their own, and the pieces that are matched in text, in order of their ids."""
        named = {
            id_: Matched(id_, piece)
            for id_, (piece, kind) in enumerate(zip(self.pieces, self.kinds, strict=True))
            if kind is Kind.CONTROL and KINDS.get(piece) is not Kind.CONTROL
        }
        found = named | {piece.id: piece for piece in self.matched}
        return [
            {
                "id": id_,
                "content": piece.content,
                "single_word": False,
                "lstrip": piece.lstrip,
                "rstrip": piece.rstrip,
                "normalized": piece.normalized,
                "special": id_ in named or piece.special,
            }
            for id_, piece in sorted(found.items())
        ]


def is_text(piece: str) -> bool:
    """Whether a piece is UTF-8 in its file; what is not has half surrogates here, and is in no text."""
    try:
        piece.encode()
    except UnicodeEncodeError:
        return False
    return True


def run_merges(longest: int) -> list[tuple[str, str]]:
    """Merges that cut a run of spaces from the left into pieces of `longest`, the rest into one.

    sentencepiece gives all runs the same score and then merges the leftmost pair; growing the longest run first
    is the same order in ranks.
    """
    return [(SPACE * size, SPACE) for size in range(longest - 1, 0, -1)]


def from_sentencepiece(model: SentencePieceModel, origin: str) -> Vocabulary:
    """The vocabulary of a model, with sentencepiece's ids.

    `origin` names the file in errors. Error: InputError where ranks could not reproduce the order of the scores.
    """
    pieces = [piece.text for piece in model.pieces]
    check_pieces(pieces, origin)
    defined = (id_ for id_, piece in enumerate(model.pieces) if piece.kind is Kind.USER_DEFINED)
    return Vocabulary(
        pieces,
        rank_merges(model.pieces, origin),
        Prefix.START if model.dummy_prefix else Prefix.NONE,
        [piece.kind for piece in model.pieces],
        matched=tuple(Matched(id_, pieces[id_], normalized=True) for id_ in defined),
    )


def rank_merges(pieces: Sequence[Piece], origin: str) -> list[tuple[str, str]]:
    """The merges that scores stand for: every split of a piece in two pieces, in order of the piece's score.

    Error: InputError where ranks could not reproduce the order of the scores.
    """
    normal = {piece.text for piece in pieces if piece.kind is Kind.NORMAL}
    by_score: dict[float, list[str]] = {}
    for piece in pieces:
        if piece.kind is Kind.NORMAL and len(piece.text) > 1:
            by_score.setdefault(piece.score, []).append(piece.text)
            if missing := set(piece.text) - normal:
                raise InputError(
                    f"{origin}: piece {piece.text!r} holds {sorted(missing)}, which are no pieces; expected every "
                    "character of a piece to be one: this model cannot be converted exactly"
                )
    merges: list[tuple[str, str]] = []
    for score in sorted(by_score, reverse=True):
        texts = by_score[score]
        if len(texts) > 1:
            _check_runs(texts, score, origin)
            merges += run_merges(len(texts) + 1)
        else:
            splits = ((texts[0][:at], texts[0][at:]) for at in range(1, len(texts[0])))
            merges += [(left, right) for left, right in splits if left in normal and right in normal]
    return merges


def _check_runs(texts: list[str], score: float, origin: str) -> None:
    """Pieces of one score must be runs of spaces of every length from 2 on, as LLaMA's are."""
    if sorted(texts) != [SPACE * size for size in range(2, len(texts) + 2)]:
        raise InputError(
            f"{origin}: pieces {sorted(texts)[:4]} have the same score {score}; expected different scores, or runs of "
            "spaces of every length: this model cannot be converted exactly"
        )


def check_pieces(pieces: Sequence[str], origin: str, expected: Sequence[str] = (UNKNOWN, BEGIN, END, *BYTES)) -> None:
    """Error: InputError if a piece is there twice, or one that is expected is not."""
    known = set(pieces)
    if len(known) != len(pieces):
        twice = next(piece for piece in pieces if pieces.count(piece) > 1)
        raise InputError(f"{origin}: piece {twice!r} is in the vocabulary twice; expected every piece once")
    for needed in expected:
        if needed not in known:
            named = "" if expected is BYTES else f"{UNKNOWN}, {BEGIN}, {END} and "
            raise InputError(f"{origin}: no piece {needed!r} among {len(pieces)}; expected {named}all bytes")
