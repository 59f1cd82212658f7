"""Ids back to bytes without an encoder: the pieces of a vocabulary, read in a few milliseconds.

Look-ups decode a row or two and then end; building all that encoding needs would take them most of their time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mobillama import manifest
from mobillama.tokenizer.sentencepiece_model import Kind
from mobillama.tokenizer.text_stream import decode_bytes
from mobillama.tokenizer.vocabulary import BEGIN, BYTES, END, FILE, SPACE, UNKNOWN, UNKNOWN_SHOWN

if TYPE_CHECKING:
    from mobillama.tokenizer.tokenizer import Tokenizer

VOCAB, PREPEND = '"vocab":{', '"type":"Prepend"'
PLAIN = '"added_tokens":[]'  # no control pieces but LLaMA's, and none that is matched in text
SPECIAL = {
    BEGIN: b"",
    END: b"",
    UNKNOWN: UNKNOWN_SHOWN.encode(),
    **{piece: bytes([byte]) for byte, piece in enumerate(BYTES)},
}


class Pieces:
    """The bytes of every id. Control pieces have none."""

    def __init__(self, pieces: Sequence[str], dummy_prefix: bool, special: Mapping[str, bytes], eos_id: int) -> None:
        """special: piece -> its bytes, where these are not its letters."""
        self.pieces, self.dummy_prefix, self.special, self.eos_id = pieces, dummy_prefix, special, eos_id

    @classmethod
    def load(cls, folder: Path, digest: str) -> Pieces | None:
        """The pieces of the tokenizer in `folder`; None if its file is not byte for byte the one with this digest."""
        path = folder / FILE
        if not path.is_file() or manifest.sha256_file(path) != digest:
            return None
        # The digest says that the file is what Tokenizer.save writes: canonical JSON, and no string in it holds an
        # unescaped quote. So the vocabulary is cut out of it, and the merges, most of the file, are never parsed.
        text = path.read_bytes().decode()
        at = text.find(VOCAB)
        if at < 0 or PLAIN not in text:
            return None
        vocab, _ = json.JSONDecoder().raw_decode(text, at + len(VOCAB) - 1)
        pieces = [""] * len(vocab)
        for piece, id_ in vocab.items():
            pieces[id_] = piece
        return cls(pieces, PREPEND in text, SPECIAL, pieces.index(END))

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Pieces:
        """The pieces of a tokenizer that is loaded already."""
        vocab = tokenizer.vocabulary
        controls = {vocab.pieces[id_]: b"" for id_, kind in enumerate(vocab.kinds) if kind is Kind.CONTROL}
        return cls(vocab.pieces, vocab.dummy_prefix, SPECIAL | controls, tokenizer.document_end)

    def parts(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes that each id stands for; the space before a document is still there."""
        pieces = (self.pieces[id_] for id_ in ids)
        special = self.special
        return [special[piece] if piece in special else piece.replace(SPACE, " ").encode() for piece in pieces]

    def text(self, ids: Sequence[int], *, begins: bool) -> str:
        """The text of some ids of a document; `begins` = they are its first, so that the space before it goes.

        A byte that is part of no character reads U+FFFD.
        """
        data = b"".join(self.parts(ids))
        return decode_bytes(data.removeprefix(b" ") if begins and self.dummy_prefix else data)
