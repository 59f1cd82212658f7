"""A vocabulary as GGUF's tokenizer keys hold it, and back.

The keys are those of llama.cpp's "llama" tokenizer: it merges the two neighbours whose union has the highest score,
leftmost first among equals, and writes what is left without a piece as bytes. Scores here are ranks, so that they
order merges as our list does. GGUF numbers the kinds of pieces as sentencepiece does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobillama.errors import DamagedFileError, InputError
from mobillama.tokenizer.gguf_keys import read_keys
from mobillama.tokenizer.matching import Matched
from mobillama.tokenizer.sentencepiece_model import Kind, Piece
from mobillama.tokenizer.tokenizer import Tokenizer
from mobillama.tokenizer.vocabulary import BYTES, SPACE, Prefix, Specials, Vocabulary, rank_merges, run_merges

if TYPE_CHECKING:
    from gguf import GGUFWriter

PREFIX_KEY = "tokenizer.mobillama.space_prefix"  # our own key: a Prefix that is not what add_space_prefix means
LISTS = {"tokens": str, "scores": float, "token_type": int, "merges": str}  # under tokenizer.ggml, with their items
NAMES = {str: "strings", float: "finite numbers", int: "whole numbers"}
BYTES_SET = frozenset(BYTES)
END_KEYS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))  # ids at which a text ends
MORE_ENDS = "mobillama.end_token_ids"  # our own key: further ones, an array of UINT32
FILLER = "[PAD{}]"  # rows of the embedding that have no piece; llama.cpp's name for them


@dataclass(frozen=True)
class GgufVocabulary:
    """What the keys `tokenizer.ggml.*` hold. merges: "left right", only where scores do not say which they are."""

    tokens: list[str]
    scores: list[float]
    kinds: list[int]
    merges: list[str]
    prefix: Prefix
    specials: Specials
    adds_bos: bool = False
    adds_eos: bool = False
    end_ids: frozenset[int] = frozenset()


def to_gguf(vocab: Vocabulary, size: int) -> GgufVocabulary:
    """The keys' values for a model of `size` embeddings. Error: InputError if the vocabulary has more pieces."""
    missing = size - len(vocab.pieces)
    if missing < 0:
        raise InputError(
            f"the tokenizer has {len(vocab.pieces)} pieces, the model only {size} embeddings; "
            "expected the tokenizer that the model was trained with"
        )
    fillers = [FILLER.format(id_) for id_ in range(len(vocab.pieces), size)]
    found = [piece for piece in vocab.matched if not piece.special]
    for piece in found:
        if any(piece.content in other.content for other in vocab.matched if other.special):
            raise InputError(
                f"the tokenizer's piece {piece.id} {piece.content!r} is part of a special one's name, which stays text "
                "as a whole; no GGUF file can say that: use the model's folder"
            )
        spaced = piece.normalized and (SPACE in piece.content or " " in piece.content or vocab.prefix is Prefix.EACH)
        if piece.lstrip or piece.rstrip or spaced:
            raise InputError(
                f"the tokenizer's piece {piece.id} {piece.content!r} takes spaces of the text with it, which no GGUF "
                "file can say; expected pieces that match by their letters alone: use the model's folder"
            )
    scores = vocab.scores or _scores(vocab)
    result = GgufVocabulary(
        tokens=[*vocab.pieces, *fillers],
        scores=[*scores, *[min(scores)] * missing],
        kinds=[*map(int, vocab.kinds), *[int(Kind.UNUSED)] * missing],
        merges=[],
        prefix=vocab.prefix,
        specials=vocab.specials,
        adds_bos=vocab.adds_bos,
        adds_eos=vocab.adds_eos,
        end_ids=vocab.end_ids,
    )
    if vocab.scores or _scores_suffice(result, vocab):
        return result
    return replace(result, merges=[f"{left} {right}" for left, right in vocab.merges])


def from_gguf(found: GgufVocabulary, origin: str) -> Vocabulary:
    """The vocabulary whose ids are those of the file. `origin` names the file in errors.

    Pieces are what their kinds say, whatever their names: nothing is asked of them but that the lists fit together.
    Error: DamagedFileError for lists that do not.
    """
    sizes = len(found.tokens), len(found.scores), len(found.kinds)
    if len(set(sizes)) > 1 or not found.tokens:
        raise _damaged(
            origin,
            f"the tokenizer has {sizes[0]} tokens, {sizes[1]} scores and {sizes[2]} types; expected equally many, one "
            "at least",
        )
    for id_, kind in enumerate(found.kinds):
        if not isinstance(kind, int) or not 1 <= kind <= 6:
            raise _damaged(origin, f"token {id_} is of type {kind}; expected 1 to 6")
        if kind == Kind.BYTE and found.tokens[id_] not in BYTES_SET:
            shown = found.tokens[id_].encode(errors="replace").decode()
            raise _damaged(origin, f"token {id_}, a byte, is '{shown}'; expected <0x00> to <0xFF>")
    size = len(found.tokens)
    while size and found.kinds[size - 1] == Kind.UNUSED:
        size -= 1  # rows of the embedding that stand for no piece
    pieces, kinds = found.tokens[:size], [Kind(kind) for kind in found.kinds[:size]]
    matched = tuple(
        Matched(id_, pieces[id_], normalized=found.prefix is Prefix.START)
        for id_, kind in enumerate(kinds)
        if kind is Kind.USER_DEFINED
    )
    vocab = Vocabulary(
        pieces,
        _read_merges(found, {piece for piece, kind in zip(pieces, kinds, strict=True) if kind is Kind.NORMAL}, origin),
        found.prefix,
        kinds,
        matched=matched,
        named=found.specials,
        adds_bos=found.adds_bos,
        adds_eos=found.adds_eos,
        end_ids=found.end_ids,
    )
    if vocab.merges:
        return vocab
    by_score = replace(vocab, scores=found.scores[:size])
    try:
        rows = [Piece(*row) for row in zip(pieces, by_score.scores, kinds, strict=True)]
        ranked = replace(vocab, merges=rank_merges(rows, origin))
    except InputError:  # ranks cannot say what these scores say
        return by_score
    return ranked if ranked.ranked else by_score


def write_tokenizer(writer: GGUFWriter, tokenizer: Tokenizer, size: int) -> None:
    """Add the tokenizer's keys to a GGUF file that is being written. size, errors: as `to_gguf`."""
    values = to_gguf(tokenizer.vocabulary, size)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(values.tokens)
    writer.add_token_scores(values.scores)
    writer.add_token_types(values.kinds)
    writer.add_token_merges(values.merges)
    if values.specials.bos is not None:
        writer.add_bos_token_id(values.specials.bos)
    if values.specials.eos is not None:
        writer.add_eos_token_id(values.specials.eos)
    if values.specials.unk is not None:
        writer.add_unk_token_id(values.specials.unk)
    writer.add_add_bos_token(values.adds_bos)
    writer.add_add_eos_token(values.adds_eos)
    writer.add_add_space_prefix(values.prefix is not Prefix.NONE)
    matches = Kind.USER_DEFINED in values.kinds
    if values.prefix in (Prefix.FIRST, Prefix.ALWAYS) or (values.prefix is Prefix.START and matches):
        writer.add_string(PREFIX_KEY, str(values.prefix))


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer inside a GGUF file. Errors: InputError if there is none or one of another kind; as `from_gguf`."""
    keys = read_keys(path)
    if (model := keys.get("tokenizer.ggml.model")) != "llama":
        raise InputError(
            f"{path} holds a tokenizer of kind {model!r}; expected 'llama': give a tokenizer beside the file"
        )
    lists = {name: _list(keys, f"tokenizer.ggml.{name}", kind, path) for name, kind in LISTS.items()}
    kinds = lists["token_type"]
    unk, bos, eos = (
        _special_id(keys, f"tokenizer.ggml.{name}_token_id", kinds, usual, kind, path)
        for name, usual, kind in (("unknown", 0, Kind.UNKNOWN), ("bos", 1, Kind.CONTROL), ("eos", 2, Kind.CONTROL))
    )
    found = GgufVocabulary(
        tokens=lists["tokens"],
        scores=lists["scores"],
        kinds=kinds,
        merges=lists["merges"],
        prefix=_prefix(keys, path),
        specials=Specials(unk, bos, eos),
        # Where a file is silent, llama.cpp puts the begin id in front and nothing behind.
        adds_bos=_flag(keys, "tokenizer.ggml.add_bos_token", True, path) and bos is not None,
        adds_eos=_flag(keys, "tokenizer.ggml.add_eos_token", False, path) and eos is not None,
        end_ids=frozenset(_end_ids(keys, len(kinds), path)),
    )
    return Tokenizer(from_gguf(found, str(path)))


def _list(keys: Mapping[str, Any], key: str, kind: type, path: Path) -> list[Any]:
    """A list of strings, whole numbers or finite numbers; empty where the file has none."""
    found = keys.get(key, [])
    items: list[Any] = found if isinstance(found, list) else [found]
    taken = (int, float) if kind is float else (kind,)
    wrong = [item for item in items if not isinstance(item, taken) or item in (math.inf, -math.inf) or item != item]
    if wrong or not isinstance(found, list):
        raise _damaged(str(path), f"key '{key}' holds {(wrong or items)[0]!r}; expected a list of {NAMES[kind]}")
    return items


def _flag(keys: Mapping[str, Any], key: str, absent: bool, path: Path) -> bool:
    found = keys.get(key, absent)
    if not isinstance(found, int):
        raise _damaged(str(path), f"key '{key}' is {found!r}; expected true or false")
    return bool(found)


def _special_id(
    keys: Mapping[str, Any], key: str, kinds: Sequence[int], usual: int, kind: Kind, path: Path
) -> int | None:
    """The id that a key names; of a file without the key, llama.cpp's usual one if its piece is of that kind."""
    if key in keys:
        return _checked_id(key, keys[key], len(kinds), path)
    return usual if kinds[usual : usual + 1] == [kind] else None


def _prefix(keys: Mapping[str, Any], path: Path) -> Prefix:
    if not _flag(keys, "tokenizer.ggml.add_space_prefix", True, path):
        return Prefix.NONE
    own = keys.get(PREFIX_KEY, Prefix.EACH)
    if own not in tuple(Prefix):
        raise _damaged(str(path), f"{PREFIX_KEY} is '{own}'; expected none, start, each, first or always")
    return Prefix(own)


def _end_ids(keys: Mapping[str, Any], size: int, path: Path) -> Iterator[int]:
    """The ids of a file at which a text ends. Error: DamagedFileError for what is no row of the embedding."""
    more = _list(keys, MORE_ENDS, int, path)
    for key, id_ in [(key, keys[key]) for key in END_KEYS if key in keys] + [(MORE_ENDS, id_) for id_ in more]:
        yield _checked_id(key, id_, size, path)


def _checked_id(key: str, id_: Any, size: int, path: Path) -> int:
    if not isinstance(id_, int) or not 0 <= id_ < size:
        raise _damaged(str(path), f"{key} is {id_!r}; expected 0 to {size - 1}")
    return int(id_)


def _damaged(origin: str, words: str) -> DamagedFileError:
    return DamagedFileError(f"{origin}: {words}: the file is damaged; get the file again")


def _read_merges(found: GgufVocabulary, normal: set[str], origin: str) -> list[tuple[str, str]]:
    merges = []
    for rank, merge in enumerate(found.merges):
        left, between, right = merge.partition(" ")
        if not between or left + right not in normal:
            shown = merge.encode(errors="replace").decode()
            raise _damaged(origin, f"merge {rank} is '{shown}'; expected two pieces that together are one")
        merges.append((left, right))
    return merges


def _scores_suffice(values: GgufVocabulary, vocab: Vocabulary) -> bool:
    return from_gguf(values, "the tokenizer").merges == vocab.merges


def _scores(vocab: Vocabulary) -> list[float]:
    """A score for each piece: minus the place of its first merge; pieces that nothing merges into come last.

    Runs of spaces that are cut from the left share one score, as in sentencepiece's own models.
    """
    runs = _equal_runs(vocab)
    places: dict[str, int] = {}
    for left, right in vocab.merges:
        piece = left + right
        places.setdefault(SPACE if piece in runs else piece, len(places))
    for piece in vocab.pieces:
        if piece not in runs:
            places.setdefault(piece, len(places))
    return [-float(places[SPACE if piece in runs else piece]) for piece in vocab.pieces]


def _equal_runs(vocab: Vocabulary) -> Sequence[str]:
    """The runs of two spaces and more, where their merges are those of `run_merges`; else none."""
    runs = [piece for piece in vocab.pieces if len(piece) > 1 and not piece.strip(SPACE)]
    merges = [(left, right) for left, right in vocab.merges if left + right in runs]
    return runs if merges == run_merges(len(runs) + 1) else ()
