"""A vocabulary as GGUF's tokenizer keys hold it, and back.

The keys are those of llama.cpp's "llama" tokenizer: it merges the two neighbours whose union has the highest score,
leftmost first among equals, and writes what is left without a piece as bytes. Scores here are ranks, so that they
order merges as our list does. GGUF numbers the kinds of pieces as sentencepiece does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobillama.errors import DamagedFileError, InputError
from mobillama.tokenizer.gguf_keys import read_keys
from mobillama.tokenizer.sentencepiece_model import Kind, Piece, SentencePieceModel
from mobillama.tokenizer.tokenizer import Tokenizer
from mobillama.tokenizer.vocabulary import BEGIN, BYTES, END, SPACE, UNKNOWN, Vocabulary, from_sentencepiece, run_merges

if TYPE_CHECKING:
    from gguf import GGUFWriter

KINDS = {UNKNOWN: Kind.UNKNOWN, BEGIN: Kind.CONTROL, END: Kind.CONTROL, **dict.fromkeys(BYTES, Kind.BYTE)}
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
    dummy_prefix: bool


def to_gguf(vocab: Vocabulary, size: int) -> GgufVocabulary:
    """The keys' values for a model of `size` embeddings. Error: InputError if the vocabulary has more pieces."""
    missing = size - len(vocab.pieces)
    if missing < 0:
        raise InputError(
            f"the tokenizer has {len(vocab.pieces)} pieces, the model only {size} embeddings; "
            "expected the tokenizer that the model was trained with"
        )
    fillers = [FILLER.format(id_) for id_ in range(len(vocab.pieces), size)]
    scores = _scores(vocab)
    result = GgufVocabulary(
        tokens=[*vocab.pieces, *fillers],
        scores=[*scores, *[min(scores)] * missing],
        kinds=[*(int(KINDS.get(piece, Kind.NORMAL)) for piece in vocab.pieces), *[int(Kind.UNUSED)] * missing],
        merges=[],
        dummy_prefix=vocab.dummy_prefix,
    )
    if _scores_suffice(result, vocab):
        return result
    return replace(result, merges=[f"{left} {right}" for left, right in vocab.merges])


def from_gguf(found: GgufVocabulary, origin: str) -> Vocabulary:
    """The vocabulary whose ids are those of the file. `origin` names the file in errors.

    Errors: InputError for vocabularies that our tokenizer cannot reproduce; DamagedFileError for keys that disagree.
    """
    if not len(found.tokens) == len(found.scores) == len(found.kinds):
        raise DamagedFileError(
            f"{origin}: {len(found.tokens)} tokens, {len(found.scores)} scores and {len(found.kinds)} kinds; "
            "expected as many of each: get the file again"
        )
    try:
        kinds = [Kind(kind) for kind in found.kinds]
    except ValueError as error:
        raise DamagedFileError(f"{origin}: {error}; expected kinds of pieces from 1 to 6: get the file again") from None
    pieces = [Piece(*row) for row in zip(found.tokens, found.scores, kinds, strict=True)]
    while pieces and pieces[-1].kind is Kind.UNUSED:
        pieces.pop()
    if found.merges:
        return _with_merges([piece.text for piece in pieces], found, origin)
    return from_sentencepiece(SentencePieceModel(pieces, found.dummy_prefix), origin)


def write_tokenizer(writer: GGUFWriter, tokenizer: Tokenizer, size: int) -> None:
    """Add the tokenizer's keys to a GGUF file that is being written. size, errors: as `to_gguf`."""
    values = to_gguf(tokenizer.vocabulary, size)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(values.tokens)
    writer.add_token_scores(values.scores)
    writer.add_token_types(values.kinds)
    writer.add_token_merges(values.merges)
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_unk_token_id(tokenizer.unk_id)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(values.dummy_prefix)


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer inside a GGUF file. Errors: InputError if there is none or one of another kind; as `from_gguf`."""
    keys = read_keys(path)
    if (model := keys.get("tokenizer.ggml.model")) != "llama":
        raise InputError(
            f"{path} holds a tokenizer of kind {model!r}; expected 'llama': give a tokenizer beside the file"
        )
    lists = {name: keys.get(f"tokenizer.ggml.{name}", []) for name in ("tokens", "scores", "token_type", "merges")}
    for name, value in lists.items():
        if not isinstance(value, list):
            raise DamagedFileError(f"{path}: tokenizer.ggml.{name} is {value!r}; expected a list: get the file again")
    found = GgufVocabulary(
        tokens=lists["tokens"],
        scores=lists["scores"],
        kinds=lists["token_type"],
        merges=lists["merges"],
        dummy_prefix=bool(keys.get("tokenizer.ggml.add_space_prefix", True)),
    )
    vocab = from_gguf(found, str(path))
    return Tokenizer(vocab, _end_ids(keys, len(vocab.pieces), path))


def _end_ids(keys: Mapping[str, Any], size: int, path: Path) -> Iterator[int]:
    """The ids of a file at which a text ends. Error: DamagedFileError for what is no id of `size` pieces."""
    more = keys.get(MORE_ENDS, [])
    if not isinstance(more, list):
        raise DamagedFileError(f"{path}: {MORE_ENDS} is {more!r}; expected a list of ids: get the file again")
    found = [(key, keys[key]) for key in END_KEYS if key in keys] + [(MORE_ENDS, id_) for id_ in more]
    for key, id_ in found:
        if not isinstance(id_, int) or isinstance(id_, bool) or not 0 <= id_ < size:
            raise DamagedFileError(f"{path}: {key} is {id_!r}; expected 0 to {size - 1}: the file is damaged")
        yield id_


def _scores_suffice(values: GgufVocabulary, vocab: Vocabulary) -> bool:
    try:
        return from_gguf(values, "the tokenizer").merges == vocab.merges
    except InputError:
        return False


def _with_merges(pieces: list[str], found: GgufVocabulary, origin: str) -> Vocabulary:
    known = set(pieces)
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in found.merges)]
    if any(not {left, right, left + right} <= known for left, right in merges):
        raise DamagedFileError(f"{origin}: a merge does not join two pieces into a third; get the file again")
    if len(known) != len(pieces) or not {UNKNOWN, BEGIN, END, *BYTES} <= known:
        raise DamagedFileError(
            f"{origin}: {len(known)} different pieces among {len(pieces)}; expected each once, "
            f"{UNKNOWN}, {BEGIN}, {END} and all bytes among them: get the file again"
        )
    return Vocabulary(pieces, merges, found.dummy_prefix)


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
