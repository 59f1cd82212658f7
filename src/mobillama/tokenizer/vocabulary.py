"""The vocabulary of a byte-fallback BPE: its pieces, its merges, and the `tokenizer.json` that holds them.

The file is that of the `tokenizers` library, so that transformers reads it too. Text is normalised by putting a space
before it and writing every space as U+2581; ids 0, 1, 2 are unknown, begin and end, then come the 256 bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobillama.errors import DamagedFileError, InputError
from mobillama.tokenizer.sentencepiece_model import Kind, SentencePieceModel

SPACE = "\u2581"  # how a space is written inside a piece
FILE = "tokenizer.json"  # of a saved tokenizer
UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"
UNKNOWN_SHOWN = " \u2047 "  # what sentencepiece writes for the unknown id
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
LONGEST_RUN = 16  # spaces in the longest piece made of spaces alone, for vocabularies trained here


@dataclass(frozen=True)
class Vocabulary:
    """Pieces in id order; merges in order of priority, first merged first."""

    pieces: list[str]
    merges: list[tuple[str, str]]
    dummy_prefix: bool = True

    def tree(self) -> dict[str, Any]:
        """The content of `tokenizer.json`.

        The control pieces are no `added_tokens`: text that spells one is ordinary text, as it is to sentencepiece.
        """
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        restore = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
        prepend = [{"type": "Prepend", "prepend": SPACE}] if self.dummy_prefix else []
        strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if self.dummy_prefix else []
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]},
            "pre_tokenizer": None,
            "post_processor": None,
            "decoder": {
                "type": "Sequence",
                "decoders": [restore, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
            },
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": UNKNOWN,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": True,
                "byte_fallback": True,
                "ignore_merges": False,
                "vocab": {piece: id_ for id_, piece in enumerate(self.pieces)},
                "merges": [list(merge) for merge in self.merges],
            },
        }


def run_merges(longest: int) -> list[tuple[str, str]]:
    """Merges that cut a run of spaces from the left into pieces of `longest`, the rest into one.

    sentencepiece gives all runs the same score and then merges the leftmost pair; growing the longest run first
    is the same order in ranks.
    """
    return [(SPACE * size, SPACE) for size in range(longest - 1, 0, -1)]


def from_sentencepiece(model: SentencePieceModel, origin: str) -> Vocabulary:
    """The merges that give sentencepiece's ids: every split of a piece in two pieces, in order of the piece's score.

    `origin` names the file in errors. Error: InputError where ranks could not reproduce the order of the scores.
    """
    normal = {piece.text for piece in model.pieces if piece.kind is Kind.NORMAL}
    by_score: dict[float, list[str]] = {}
    for piece in model.pieces:
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
    pieces = [piece.text for piece in model.pieces]
    _check_pieces(pieces, origin)
    return Vocabulary(pieces, merges, model.dummy_prefix)


def _check_runs(texts: list[str], score: float, origin: str) -> None:
    """Pieces of one score must be runs of spaces of every length from 2 on, as LLaMA's are."""
    if sorted(texts) != [SPACE * size for size in range(2, len(texts) + 2)]:
        raise InputError(
            f"{origin}: pieces {sorted(texts)[:4]} have the same score {score}; expected different scores, or runs of "
            "spaces of every length: this model cannot be converted exactly"
        )


def read_tokenizer_json(path: Path) -> Vocabulary:
    """The vocabulary in a `tokenizer.json`: one written here, or one of a LLaMA model from elsewhere.

    Errors: DamagedFileError if it is no JSON, InputError if it is a tokenizer of another kind.
    """
    try:
        tree = json.loads(path.read_bytes())
    except ValueError as error:
        raise DamagedFileError(
            f"{path} ({path.stat().st_size} bytes) is not whole JSON ({error}); restore it or make it again"
        ) from None
    model = tree.get("model") if isinstance(tree, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict) or "merges" not in model:
        raise InputError(f"{path} is no tokenizer.json with a BPE model; give the file of a LLaMA-style tokenizer")
    prefix = _dummy_prefix(tree)
    if model.get("type", "BPE") != "BPE" or not model.get("byte_fallback") or prefix is None:
        raise InputError(
            f"{path} is a tokenizer of another kind (model {model.get('type')!r}, byte_fallback="
            f"{model.get('byte_fallback')!r}); expected a byte-fallback BPE that writes spaces as {SPACE!r}, such as "
            "LLaMA's: train one with `mobillama tokenizer train` or convert a tokenizer.model"
        )
    by_id = {id_: piece for piece, id_ in model["vocab"].items()}
    if sorted(by_id) != list(range(len(model["vocab"]))):
        raise InputError(f"{path}: the ids of its {len(model['vocab'])} pieces are not 0 to {len(model['vocab']) - 1}")
    pieces = [by_id[id_] for id_ in range(len(by_id))]
    extra = [token for token in tree.get("added_tokens") or [] if token["content"] not in model["vocab"]]
    if extra:
        raise InputError(
            f"{path} adds {extra[0]['content']!r} (id {extra[0]['id']}) to its vocabulary of {len(pieces)} pieces; "
            "expected added tokens that are pieces: use the tokenizer of the base model"
        )
    _check_pieces(pieces, str(path))
    return Vocabulary(pieces, _merges(model["merges"], model["vocab"], path), prefix)


def _merges(found: Iterable[Any], vocab: dict[str, int], path: Path) -> list[tuple[str, str]]:
    merges = []
    for merge in found:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if len(parts) != 2 or not all(part in vocab for part in (*parts, "".join(parts))):
            raise InputError(f"{path}: merge {merge!r} does not join two pieces of the vocabulary into a third")
        merges.append((parts[0], parts[1]))
    return merges


def _dummy_prefix(tree: dict[str, Any]) -> bool | None:
    """Whether a space is put before the text; None if spaces are treated in a way we do not know."""
    normalizer, pre = tree.get("normalizer") or {}, tree.get("pre_tokenizer") or {}
    steps = [normalizer, *normalizer.get("normalizers", [])]
    kinds = [step.get("type") for step in steps if step.get("type") not in (None, "Sequence")]
    if kinds == ["Prepend", "Replace"] and not pre:
        return True
    if kinds == ["Replace"] and not pre:
        return False
    if not kinds and pre.get("type") == "Metaspace":
        return bool(pre.get("prepend_scheme", "always") != "never")
    return None


def _check_pieces(pieces: Sequence[str], origin: str) -> None:
    known = set(pieces)
    if len(known) != len(pieces):
        twice = next(piece for piece in pieces if pieces.count(piece) > 1)
        raise InputError(f"{origin}: piece {twice!r} is in the vocabulary twice; expected every piece once")
    for needed in (UNKNOWN, BEGIN, END, *BYTES):
        if needed not in known:
            raise InputError(
                f"{origin}: no piece {needed!r} among {len(pieces)}; expected {UNKNOWN}, {BEGIN}, {END} and all bytes"
            )
