"""Ids to text one at a time, giving out only whole characters."""

from __future__ import annotations

import codecs
from collections.abc import Callable

PER_BYTE = "mobillama.replace_each_byte"


def _replace_byte(error: UnicodeError) -> tuple[str, int]:
    """One U+FFFD for every byte that is part of no character, as sentencepiece does."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd", error.start + 1


codecs.register_error(PER_BYTE, _replace_byte)


def decode_bytes(data: bytes) -> str:
    """UTF-8 bytes to text; each byte that is part of no character becomes U+FFFD."""
    return data.decode("utf-8", PER_BYTE)


class TextStream:
    """Turns ids into text as they come; what `push` and a last `flush` give adds up to `Tokenizer.decode`."""

    def __init__(self, piece_bytes: Callable[[int], bytes | None], strips: Callable[[int], bool]) -> None:
        self._piece_bytes = piece_bytes
        self._strips = strips
        self._decoder = codecs.getincrementaldecoder("utf-8")(PER_BYTE)
        self._begun = False

    def push(self, id_: int) -> str:
        """The characters that this id completes. Error: InputError if the id is outside the vocabulary."""
        data = self._piece_bytes(id_)
        if data is None:  # a control piece ends a character that was begun
            return self.flush()
        if not self._begun:
            self._begun = True
            if self._strips(id_):
                data = data[1:]
        return self._decoder.decode(data)

    def flush(self) -> str:
        """U+FFFD for bytes that wait for the rest of a character; the stream can go on after it."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
