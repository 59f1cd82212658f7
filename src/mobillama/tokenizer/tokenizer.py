"""Text to ids and back: a byte-fallback BPE with LLaMA's conventions, saved as `tokenizer.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import models

from mobillama import manifest
from mobillama.errors import InputError
from mobillama.tokenizer import vocabulary
from mobillama.tokenizer.sentencepiece_model import read_model
from mobillama.tokenizer.text_stream import TextStream, decode_bytes
from mobillama.tokenizer.training import learn
from mobillama.tokenizer.vocabulary import BEGIN, BYTES, END, FILE, SPACE, UNKNOWN, UNKNOWN_SHOWN, Vocabulary
from mobillama.tokenizer.words import Words

MODEL_FILE = "tokenizer.model"
CONFIG_FILE = "tokenizer_config.json"
SHORT = 256  # characters below which text is encoded as a whole


class Tokenizer:
    """A vocabulary ready to encode and decode.

    `encode` gives sentencepiece's ids for every string; begin and end ids are never added, and text that spells a
    control piece, such as "<s>", is ordinary text. A U+2581 in the text counts as a space, as it does in sentencepiece.
    """

    def __init__(self, vocab: Vocabulary, end_ids: Iterable[int] = ()) -> None:
        """`end_ids`: ids beside `eos_id` at which a text ends."""
        self.vocabulary = vocab
        self.vocab_size = len(vocab.pieces)
        ids = {piece: id_ for id_, piece in enumerate(vocab.pieces)}
        self.unk_id, self.bos_id, self.eos_id = ids[UNKNOWN], ids[BEGIN], ids[END]
        self.end_ids = frozenset((self.eos_id, *end_ids))  # a text ends at any of them
        self._model = models.BPE(
            vocab=ids,
            merges=vocab.merges,
            unk_token=UNKNOWN,
            fuse_unk=True,
            byte_fallback=True,
            cache_capacity=0,
        )
        byte_ids = {piece: bytes([byte]) for byte, piece in enumerate(BYTES)}
        special = {BEGIN: b"", END: b"", UNKNOWN: UNKNOWN_SHOWN.encode(), **byte_ids}
        self._controls = frozenset((self.bos_id, self.eos_id))
        self._bytes = [special.get(piece, piece.replace(SPACE, " ").encode()) for piece in vocab.pieces]
        self._prefixed = frozenset(id_ for id_, piece in enumerate(vocab.pieces) if piece.startswith(SPACE))
        self.token_bytes: NDArray[np.int32] = np.array([len(part) for part in self._bytes], np.int32)
        self._dtype = np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)
        self._words = Words((left + right for left, right in vocab.merges), self._encode_word, self._dtype)

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
            return convert(path)
        return cls(vocabulary.read_tokenizer_json(path))

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[Vocabulary, frozenset[int]]]:
        return Tokenizer, (self.vocabulary, self.end_ids)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without begin and end ids. Error: InputError if it holds half a surrogate pair."""
        ids: list[int] = self.encode_array(text).tolist()
        return ids

    def encode_array(self, text: str) -> NDArray[np.uint32]:
        """`encode` as an array (tokens,): the fast way for long text."""
        spaced = self._spaced(text)
        try:
            if len(spaced) < SHORT:
                return np.array(self._encode_word(spaced), np.uint32)
            return self._words.encode(spaced.encode()).astype(np.uint32)
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text holds {error.object[error.start]!r}, half a surrogate pair, which is no character; "
                "expected text that can be written as UTF-8: decode the source with errors='replace'"
            ) from None

    def byte_lengths(self, text: str, ids: Sequence[int] | NDArray[Any]) -> NDArray[np.int64]:
        """UTF-8 bytes of `text` that each of its ids covers (tokens,); the space put before the text covers none.

        Error: InputError if the ids do not cover the text.
        """
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
        width = np.ones(size, np.int64)  # bytes of text behind each byte of the spaced text
        at = int(self.vocabulary.dummy_prefix)
        width[:at] = 0
        for part in text.split(SPACE)[:-1]:
            at += len(part.encode())
            width[at] = len(SPACE.encode())
            at += 1
        covered = np.concatenate(([0], np.cumsum(width)))  # at each byte of the spaced text
        return np.diff(covered[np.cumsum(lengths)], prepend=0)

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
        """sha256 (hex) of the `tokenizer.json` that `save` writes."""
        return hashlib.sha256(manifest.canonical(self.tree)).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json`, and what transformers needs beside it, into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": UNKNOWN,
            "bos_token": BEGIN,
            "eos_token": END,
            "add_bos_token": False,
            "add_eos_token": False,
            "split_special_tokens": True,
            "clean_up_tokenization_spaces": False,
        }
        manifest.write_file(folder / FILE, manifest.canonical(self.tree))
        manifest.write_file(folder / CONFIG_FILE, json.dumps(config, indent=1).encode() + b"\n")

    def _spaced(self, text: str) -> str:
        """The text with its dummy prefix, U+2581 and spaces both as plain spaces."""
        if not text:
            return text
        text = text.replace(SPACE, " ")
        return " " + text if self.vocabulary.dummy_prefix else text

    def _encode_word(self, word: str) -> list[int]:
        return [token.id for token in self._model.tokenize(word.replace(" ", SPACE))]

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


def convert(model_file: str | Path) -> Tokenizer:
    """The tokenizer of a SentencePiece `.model` file: the same ids on every string.

    Errors: DamagedFileError if the file is not whole, InputError if its settings cannot be reproduced exactly.
    """
    path = Path(model_file)
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a SentencePiece .model file")
    return Tokenizer(vocabulary.from_sentencepiece(read_model(path), str(path)))


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-fallback BPE of exactly `vocab_size` pieces learned from texts; the same texts give the same tokenizer.

    Error: InputError if the vocabulary is too small for its fixed pieces or larger than the texts can fill.
    """
    return Tokenizer(learn(texts, vocab_size))
