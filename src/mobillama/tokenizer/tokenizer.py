"""Text to ids and back: a byte-fallback BPE with LLaMA's conventions, saved as `tokenizer.json`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobillama import manifest
from mobillama.errors import InputError
from mobillama.tokenizer import merging, vocabulary
from mobillama.tokenizer.matching import Matched, Matcher, Part
from mobillama.tokenizer.sentencepiece_model import Kind, read_model
from mobillama.tokenizer.text_stream import TextStream, decode_bytes
from mobillama.tokenizer.tokenizer_json import CONFIG_FILE, read_tokenizer_json
from mobillama.tokenizer.training import learn
from mobillama.tokenizer.vocabulary import BYTES, FILE, SPACE, UNKNOWN_SHOWN, Prefix, Vocabulary
from mobillama.tokenizer.words import Words

MODEL_FILE = "tokenizer.model"
SHORT = 256  # characters below which text is encoded as a whole


class Tokenizer:
    """A vocabulary ready to encode and decode.

    `encode` gives sentencepiece's ids for every string; begin and end ids are never added, and text that spells a
    control piece, such as "<s>", is ordinary text: `control_id` gives the id of one that is asked for by name. A U+2581
    in the text counts as a space, as it does in sentencepiece.
    """

    def __init__(self, vocab: Vocabulary) -> None:
        self.vocabulary = vocab
        self.vocab_size = len(vocab.pieces)
        self.unk_id, self.bos_id, self.eos_id = vocab.specials
        # A text ends at any of them.
        self.end_ids: frozenset[int] = vocab.end_ids | ({self.eos_id} if self.eos_id is not None else frozenset())
        self._bytes = [_shown(piece, kind) for piece, kind in zip(vocab.pieces, vocab.kinds, strict=True)]
        controls = [id_ for id_, kind in enumerate(vocab.kinds) if kind is Kind.CONTROL]
        self._controls = frozenset(controls)
        self._control_ids = {vocab.pieces[id_]: id_ for id_ in reversed(controls)}  # of doubled names the first
        self._prefixed = frozenset(id_ for id_, piece in enumerate(vocab.pieces) if piece.startswith(SPACE))
        self.token_bytes: NDArray[np.int32] = np.array([len(part) for part in self._bytes], np.int32)
        self._dtype = np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)
        self._merge = merging.of(vocab)
        # Unknown ids in a row are one, across the parts of a text too: with all bytes there are none.
        self._words = Words(merging.products(vocab), self._encode_word, self._dtype) if vocab.has_bytes else None
        self._raw = Matcher([piece for piece in vocab.matched if not piece.normalized])
        self._normalized = Matcher(_normalized(vocab))
        self._plain = not vocab.matched and vocab.prefix not in (Prefix.FIRST, Prefix.ALWAYS)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a folder that holds `tokenizer.json` or `tokenizer.model`, or either file itself.

        Errors: InputError if there is none or it is of another kind, DamagedFileError if it is not whole.
        """
        path = Path(path)
        if path.is_dir():
            found = [path / name for name in (FILE, MODEL_FILE) if (path / name).is_file()]
            if not found:
                raise InputError(f"{path} holds neither {FILE} nor {MODEL_FILE}; give a folder that holds one of them")
            path = found[0]
        if not path.is_file():
            raise InputError(f"{path} does not exist; give a tokenizer's folder, {FILE} or {MODEL_FILE}")
        if path.suffix == ".model":
            return cls(vocabulary.from_sentencepiece(read_model(path), str(path)))
        return cls(read_tokenizer_json(path))

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[Vocabulary]]:
        return Tokenizer, (self.vocabulary,)

    @property
    def document_end(self) -> int:
        """The id that stands behind every document. Error: InputError if the vocabulary has none."""
        if self.eos_id is None:
            raise InputError("the tokenizer names no end id; expected one, such as that of </s>: use another tokenizer")
        return self.eos_id

    def control_id(self, name: str) -> int:
        """The id of the control piece with this name, such as "<|im_start|>", which no text is encoded to.

        Error: InputError if there is none.
        """
        if name not in self._control_ids:
            known = ", ".join(sorted(self._control_ids)[:8]) or "none"
            raise InputError(f"the tokenizer has no control piece {name!r}; it has {known}: choose one of them")
        return self._control_ids[name]

    def encode_prompt(self, text: str, bos: bool | None = None) -> list[int]:
        """`encode`, with the begin id before and the end id behind it where the tokenizer's own settings ask for them.

        bos: whether to put the begin id in front; None = as the settings say.
        Errors: as `encode`; InputError if the begin id is asked for and there is none.
        """
        if bos and self.bos_id is None:
            raise InputError("bos=True, but the tokenizer has no begin id; leave it out")
        begins = self.vocabulary.adds_bos if bos is None else bos
        first = [self.bos_id] if begins and self.bos_id is not None else []
        last = [self.eos_id] if self.vocabulary.adds_eos and self.eos_id is not None else []
        return [*first, *self.encode(text), *last]

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without begin and end ids. Error: InputError if it holds half a surrogate pair."""
        ids: list[int] = self.encode_array(text).tolist()
        return ids

    def encode_array(self, text: str) -> NDArray[np.uint32]:
        """`encode` as an array (tokens,): the fast way for long text."""
        try:
            if self._plain:
                return self._encode_spaced(self._spaced(text))
            found = [
                np.array([part.id], np.uint32) if part.id is not None else self._encode_spaced(spaced)
                for part, spaced in self._parts(text)
            ]
            return np.concatenate([np.zeros(0, np.uint32), *found])
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text holds {error.object[error.start]!r}, half a surrogate pair, which is no character; "
                "expected text that can be written as UTF-8: decode the source with errors='replace'"
            ) from None

    def byte_lengths(self, text: str, ids: Sequence[int] | NDArray[Any]) -> NDArray[np.int64]:
        """UTF-8 bytes of `text` that each of its ids covers (tokens,); the space put before the text covers none.

        Error: InputError if the ids do not cover the text.
        """
        if not self._plain:
            return self._part_lengths(text, self._checked(ids))
        lengths = self.token_bytes[self._checked(ids)].astype(np.int64)
        spaced = self._spaced(text)
        size = len(spaced.encode())
        if int(lengths.sum()) != size:
            raise InputError(
                f"the ids cover {int(lengths.sum())} bytes; expected {size}, those of the text and its leading space: "
                "give the ids that this tokenizer encodes the text to"
            )
        if not size:
            return lengths
        if SPACE not in text:
            lengths[0] -= self.vocabulary.dummy_prefix
            return lengths
        return _covered(text, lengths, int(self.vocabulary.dummy_prefix))

    def decode(self, ids: Sequence[int] | NDArray[Any]) -> str:
        """The text of some ids, as sentencepiece decodes them; a byte that is part of no character reads U+FFFD."""
        listed = self._checked(ids).tolist()
        if self._controls.isdisjoint(listed):
            data = b"".join(map(self._bytes.__getitem__, listed))
            return decode_bytes(data[1:] if listed and self._strips(listed[0]) else data)
        stream = self.stream()
        return "".join(map(stream.push, listed)) + stream.flush()

    def stream(self) -> TextStream:
        """A decoder that takes one id at a time; what it gives adds up to `decode`."""
        return TextStream(self._piece_bytes, self._strips)

    @property
    def tree(self) -> dict[str, Any]:
        """The content of `tokenizer.json`."""
        return self.vocabulary.tree()

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the `tokenizer.json` that `save` writes; of the vocabulary where no such file holds it."""
        return _digest(self.vocabulary)

    @cached_property
    def text_digest(self) -> str:
        """`digest`, were there nothing that belongs around a prompt: equal for tokenizers that give texts equal ids."""
        return _digest(_for_documents(self.vocabulary))

    def for_documents(self) -> Tokenizer:
        """The same ids for texts, with nothing around a prompt: what models learn from documents, which have no <s>."""
        vocab = _for_documents(self.vocabulary)
        return self if vocab is self.vocabulary else Tokenizer(vocab)

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json`, and what transformers needs beside it, into a folder.

        Error: InputError for a vocabulary that `tokenizer.json` cannot express.
        """
        folder = Path(folder)
        data = manifest.canonical(self.tree)
        folder.mkdir(parents=True, exist_ok=True)
        named = zip(("unk_token", "bos_token", "eos_token"), self.vocabulary.specials, strict=True)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{name: None if id_ is None else self.vocabulary.pieces[id_] for name, id_ in named},
            "add_bos_token": self.vocabulary.adds_bos,
            "add_eos_token": self.vocabulary.adds_eos,
            # Chat templates of transformers write control pieces as text; here they are never text (`control_id`).
            "split_special_tokens": False,
            "clean_up_tokenization_spaces": False,
        }
        manifest.write_file(folder / FILE, data)
        manifest.write_file(folder / CONFIG_FILE, json.dumps(config, indent=1).encode() + b"\n")

    def _spaced(self, text: str) -> str:
        """The text with its dummy prefix, U+2581 and spaces both as plain spaces."""
        if not text:
            return text
        text = text.replace(SPACE, " ")
        return " " + text if self.vocabulary.dummy_prefix else text

    def _parts(self, text: str) -> Iterator[tuple[Part, str]]:
        """Parts of a text with what is merged of each: a prefix where there is one, and plain spaces."""
        prefix = self.vocabulary.prefix
        for raw in self._raw.parts(text):
            if raw.id is not None:
                yield raw, ""
                continue
            # Metaspace writes spaces as U+2581 after all pieces were found.
            normal, first = text[raw.start : raw.end], raw.start == 0
            if prefix not in (Prefix.FIRST, Prefix.ALWAYS):
                normal = normal.replace(SPACE, " ")
            put = int(prefix is Prefix.EACH or (prefix is Prefix.START and first))
            for part in self._normalized.parts(" " * put + normal):
                start, end = max(part.start - put, 0) + raw.start, part.end - put + raw.start
                spaced = normal[start - raw.start : end - raw.start].replace(SPACE, " ")
                if part.id is None and put and part.start == 0:
                    spaced = " " + spaced
                elif part.id is None and not spaced.startswith(" "):
                    late = prefix is Prefix.ALWAYS or (prefix is Prefix.FIRST and start == 0)
                    spaced = " " * late + spaced
                yield Part(start, end, part.id), spaced

    def _encode_spaced(self, spaced: str) -> NDArray[np.uint32]:
        if len(spaced) < SHORT or self._words is None:
            return np.array(self._encode_word(spaced), np.uint32)
        return self._words.encode(spaced.encode()).astype(np.uint32)

    def _encode_word(self, word: str) -> list[int]:
        return self._merge(word.replace(" ", SPACE))

    def _part_lengths(self, text: str, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """`byte_lengths` where pieces are matched in the text, which can take white space with them."""
        found, lengths = [], [np.zeros(0, np.int64)]
        for part, spaced in self._parts(text):
            covered = text[part.start : part.end]
            if part.id is not None:
                found.append(part.id)
                lengths.append(np.array([len(covered.encode())], np.int64))
                continue
            own = self._encode_spaced(spaced)
            found += own.tolist()
            lengths.append(_covered(covered, self.token_bytes[own].astype(np.int64), len(spaced) - len(covered)))
        if found != ids.tolist():
            raise InputError(
                f"the {len(ids)} ids do not cover the text, which has {len(found)}: give the ids that this tokenizer "
                "encodes the text to"
            )
        return np.concatenate(lengths)

    def _piece_bytes(self, id_: int) -> bytes | None:
        """Bytes of a piece; None for a control piece."""
        if not 0 <= id_ < self.vocab_size:
            raise self._outside(id_)
        return None if id_ in self._controls else self._bytes[id_]

    def _strips(self, id_: int) -> bool:
        """Whether a text that starts with this piece loses its first space."""
        return self.vocabulary.dummy_prefix and id_ in self._prefixed

    def _checked(self, ids: Sequence[int] | NDArray[Any]) -> NDArray[np.int64]:
        array = np.asarray(ids, np.int64)
        if array.size and not 0 <= (low := int(array.min())) <= (high := int(array.max())) < self.vocab_size:
            raise self._outside(low if low < 0 else high)
        return array

    def _outside(self, id_: int) -> InputError:
        return InputError(
            f"id {id_} is outside the vocabulary; expected 0 to {self.vocab_size - 1}: "
            "use the tokenizer that the ids were made with"
        )


def _for_documents(vocab: Vocabulary) -> Vocabulary:
    plain = not vocab.adds_bos and not vocab.adds_eos
    return vocab if plain else dataclasses.replace(vocab, adds_bos=False, adds_eos=False)


def _digest(vocab: Vocabulary) -> str:
    if vocab.expressible:
        return hashlib.sha256(manifest.canonical(vocab.tree())).hexdigest()
    return hashlib.sha256(json.dumps(dataclasses.asdict(vocab), sort_keys=True, default=sorted).encode()).hexdigest()


def _covered(text: str, lengths: NDArray[np.int64], prefix: int) -> NDArray[np.int64]:
    """Bytes of `text` that ids cover (tokens,) which spell it with `prefix` spaces in front and plain ones inside."""
    width = np.ones(int(lengths.sum()), np.int64)  # bytes of text behind each byte of the spaced text
    at = prefix
    width[:at] = 0
    for part in text.split(SPACE)[:-1]:
        at += len(part.encode())
        width[at] = len(SPACE.encode())
        at += 1
    covered = np.concatenate(([0], np.cumsum(width)))  # at each byte of the spaced text
    return np.diff(covered[np.cumsum(lengths)], prepend=0)


def _normalized(vocab: Vocabulary) -> list[Matched]:
    """The pieces that are found in normalized text, as that text, its spaces plain, spells them.

    tokenizers normalizes such a piece as it does text: it has a space in front wherever text gets one.
    """
    if vocab.prefix in (Prefix.FIRST, Prefix.ALWAYS):
        return [piece for piece in vocab.matched if piece.normalized]
    front = " " * (vocab.prefix is Prefix.EACH)
    return [
        dataclasses.replace(piece, content=front + piece.content.replace(SPACE, " "))
        for piece in vocab.matched
        if piece.normalized and not (vocab.prefix is Prefix.START and " " in piece.content)  # there a space is U+2581
    ]


def _shown(piece: str, kind: Kind) -> bytes:
    """The bytes that a piece stands for; a piece that is no UTF-8 has the bytes of its file."""
    if kind is Kind.CONTROL:
        return b""
    if kind is Kind.UNKNOWN:
        return UNKNOWN_SHOWN.encode()
    if kind is Kind.BYTE:
        return bytes([BYTES.index(piece)])
    return piece.replace(SPACE, " ").encode(errors="surrogateescape")


def convert(model_file: str | Path) -> Tokenizer:
    """The tokenizer of a SentencePiece `.model` file: the same ids on every string.

    Errors: DamagedFileError if the file is not whole, InputError if its settings cannot be reproduced exactly.
    """
    path = Path(model_file)
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a SentencePiece .model file")
    vocab = vocabulary.from_sentencepiece(read_model(path), str(path))
    if vocab.matched:
        piece = vocab.matched[0]
        raise InputError(
            f"{path}: piece {piece.id} {piece.content!r} is of kind USER_DEFINED; expected none of that kind: "
            "tokenizer.json puts the space before a text elsewhere, so that such models cannot be converted exactly"
        )
    return Tokenizer(vocab)


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-fallback BPE of exactly `vocab_size` pieces learned from texts; the same texts give the same tokenizer.

    Error: InputError if the vocabulary is too small for its fixed pieces or larger than the texts can fill.
    """
    return Tokenizer(learn(texts, vocab_size))
