"""Read a SentencePiece `.model` file without the sentencepiece library.

The file is a protocol buffer (https://protobuf.dev/programming-guides/encoding/); the field numbers used here are those
of sentencepiece_model.proto (ModelProto, TrainerSpec, NormalizerSpec) in github:google/sentencepiece.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from mobillama.errors import DamagedFileError, InputError


class Kind(IntEnum):
    """What a piece is for (ModelProto.SentencePiece.Type)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Piece:
    """One row of the vocabulary; a higher score merges earlier."""

    text: str
    score: float
    kind: Kind


Names = dict[int, tuple[str, int | bytes]]

MODEL_TYPES = {1: "unigram", 2: "BPE", 3: "word", 4: "char"}
MESSAGES = {1: "pieces", 2: "trainer settings", 3: "normalizer settings"}
# Message and field number -> (name, default), for the settings that decide how a model encodes.
TRAINER_FIELDS: Names = {3: ("model_type", 1), 24: ("treat_whitespace_as_suffix", 0), 35: ("byte_fallback", 0)}
NORMALIZER_FIELDS: Names = {
    2: ("precompiled_charsmap", b""),
    3: ("add_dummy_prefix", 1),
    4: ("remove_extra_whitespaces", 1),
    5: ("escape_whitespaces", 1),
}


@dataclass(frozen=True)
class SentencePieceModel:
    """The vocabulary in id order and whether a space is put before every text."""

    pieces: list[Piece]
    dummy_prefix: bool


def read_model(path: Path) -> SentencePieceModel:
    """Read a BPE model with byte fallback and no text normalisation, as LLaMA's is.

    Errors: DamagedFileError if the bytes are no such file or end early; InputError if it is a model of another kind,
    whose ids our tokenizer could not reproduce.
    """
    data = path.read_bytes()
    pieces: list[Piece] = []
    trainer = dict(TRAINER_FIELDS.values())
    normalizer = dict(NORMALIZER_FIELDS.values())
    seen = set()
    try:
        for number, value in _fields(data):
            seen.add(number)
            if number == 1:
                pieces.append(_piece(_bytes(value)))
            elif number == 2:
                trainer.update(_settings(_bytes(value), TRAINER_FIELDS))
            elif number == 3:
                normalizer.update(_settings(_bytes(value), NORMALIZER_FIELDS))
    except ValueError as error:
        raise DamagedFileError(
            f"{path} ({len(data)} bytes) is not a whole SentencePiece model: {error}; restore the file"
        ) from None
    if missing := [name for number, name in MESSAGES.items() if number not in seen]:
        raise DamagedFileError(
            f"{path} ({len(data)} bytes) holds no {' and no '.join(missing)}; expected a whole SentencePiece model: "
            "restore the file"
        )
    _check(path, pieces, {**trainer, **normalizer})
    return SentencePieceModel(pieces, bool(normalizer["add_dummy_prefix"]))


def _check(path: Path, pieces: list[Piece], settings: dict[str, int | bytes]) -> None:
    """Refuse settings under which the ids would differ from sentencepiece's."""
    expected: dict[str, int | bytes] = {
        "model_type": 2,
        "byte_fallback": 1,
        "treat_whitespace_as_suffix": 0,
        "remove_extra_whitespaces": 0,
        "escape_whitespaces": 1,
        "precompiled_charsmap": b"",
    }
    for name, want in expected.items():
        if settings[name] != want:
            raise InputError(
                f"{path}: found {_shown(name, settings[name])}; expected {_shown(name, want)}: only byte-fallback BPE "
                "models without text normalisation, such as LLaMA's, can be converted exactly"
            )
    for id_, piece in enumerate(pieces):
        if piece.kind is Kind.UNUSED:
            raise InputError(
                f"{path}: piece {id_} {piece.text!r} is of kind {piece.kind.name}; expected none of that kind: "
                "such models cannot be converted exactly"
            )


def _shown(name: str, value: int | bytes) -> str:
    if name == "model_type" and isinstance(value, int):
        return f"model_type={MODEL_TYPES.get(value, value)}"
    return f"a {name} of {len(value)} bytes" if isinstance(value, bytes) else f"{name}={bool(value)}"


def _piece(data: bytes) -> Piece:
    text, score, kind = "", 0.0, Kind.NORMAL
    for number, value in _fields(data):
        if number == 1:
            text = _bytes(value).decode()
        elif number == 2:
            (score,) = struct.unpack("<f", _bytes(value))
        elif number == 3:
            kind = Kind(int(value) if isinstance(value, int) else 0)
    if not text:
        raise ValueError("a piece without text")
    return Piece(text, score, kind)


def _settings(data: bytes, names: Names) -> Iterator[tuple[str, int | bytes]]:
    for number, value in _fields(data):
        if number in names:
            yield names[number][0], value


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where text was expected")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field number and value of one message: an int for a varint, else the bytes. Error: ValueError."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + size > len(data):
            raise ValueError(f"a field of {size} bytes at byte {at} goes past the end at {len(data)}")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError(f"a number at byte {at} does not end")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
