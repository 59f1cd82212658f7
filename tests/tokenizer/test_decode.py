"""Decoding: sentencepiece's text, whole or as it comes; and how many bytes each id covers."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from tests.tokenizer.conftest import Pair
from tests.tokenizer.strings import strings

from mobillama.errors import InputError
from mobillama.tokenizer.tokenizer import Tokenizer


def test_decode_gives_the_text_back(pair: Pair, seed: int) -> None:
    for text in strings(seed, 1000):
        assert pair.ours.decode(pair.ours.encode(text)) == text.replace("\u2581", " "), f"seed {seed}: {text!r}"


def random_ids(tokenizer: Tokenizer, seed: int, count: int) -> list[list[int]]:
    """Lists of ids of all kinds, mostly no encoding of any text."""
    draw = random.Random(seed)
    size = tokenizer.vocab_size
    return [
        [draw.choice((draw.randrange(3), draw.randrange(3, 259), draw.randrange(259, size))) for _ in range(12)]
        for _ in range(count)
    ]


def test_decode_equals_sentencepieces_on_any_ids(pair: Pair, seed: int) -> None:
    for ids in [[], *random_ids(pair.ours, seed, 1000)]:
        assert pair.ours.decode(ids) == pair.oracle.decode(ids), f"seed {seed}: {ids}"


def test_stream_adds_up_to_decode(small: Tokenizer, seed: int) -> None:
    encoded = [small.encode(text) for text in strings(seed, 300)]
    for ids in [*encoded, *random_ids(small, seed, 500)]:
        stream = small.stream()
        parts = [stream.push(id_) for id_ in ids]
        assert "".join(parts) + stream.flush() == small.decode(ids), f"seed {seed}: {ids}"


def test_stream_gives_out_whole_characters_only(small: Tokenizer) -> None:
    stream = small.stream()
    parts = [stream.push(id_) for id_ in small.encode("😀")[-4:]]
    assert parts == ["", "", "", "😀"]
    assert stream.flush() == ""


def test_bytes_of_a_character_cut_short_read_as_replacements(small: Tokenizer) -> None:
    cut = small.encode("😀")[-4:-1]
    assert small.decode(cut) == "\ufffd" * 3
    stream = small.stream()
    assert "".join(map(stream.push, cut)) == ""
    assert stream.flush() == "\ufffd" * 3


def test_byte_lengths_cover_the_text(pair: Pair, seed: int) -> None:
    for text in strings(seed, 1000):
        ids = pair.ours.encode(text)
        lengths = pair.ours.byte_lengths(text, ids)
        assert lengths.shape == (len(ids),)
        assert (lengths >= 0).all()
        assert lengths.sum() == len(text.encode()), f"seed {seed}: {text!r}"


def test_byte_lengths_say_where_each_id_stands(pair: Pair, seed: int) -> None:
    """Cut where the lengths say; each part reads as its ids do, if U+2581 is a space."""
    for text in strings(seed, 500):
        ids = pair.ours.encode(text)
        ends = itertools.accumulate(pair.ours.byte_lengths(text, ids).tolist())
        start, data = 0, text.encode()
        for number, (id_, end) in enumerate(zip(ids, ends, strict=True)):
            part = data[start:end].replace("\u2581".encode(), b" ")
            size = int(pair.ours.token_bytes[id_])
            assert len(part) == size - (number == 0), f"seed {seed}: {text!r} at {number}"
            if 0xFFFD not in map(ord, text):
                shown = pair.ours.decode([*pair.ours.encode("x"), id_]).removeprefix("x")
                assert shown in ("\ufffd", (" " if number == 0 else "") + part.decode(errors="replace"))
            start = end


def test_token_bytes_are_the_bytes_decoded(pair: Pair, seed: int) -> None:
    first = pair.ours.encode("x")
    for text in strings(seed, 300):
        ids = [*first, *pair.ours.encode(text)]
        assert pair.ours.token_bytes[ids].sum() - 1 == len(pair.ours.decode(ids).encode())
    assert pair.ours.token_bytes.dtype == np.int32
    assert pair.ours.token_bytes[[1, 2]].tolist() == [0, 0]


def test_byte_lengths_refuse_ids_of_another_text(small: Tokenizer) -> None:
    with pytest.raises(InputError, match="cover"):
        small.byte_lengths("one text", small.encode("another text"))


@pytest.mark.parametrize("id_", [-1, 1500, 1 << 40])
def test_an_id_outside_the_vocabulary_is_an_error_that_names_it(small: Tokenizer, id_: int) -> None:
    with pytest.raises(InputError, match=f"id {id_} is outside"):
        small.decode([3, id_])
    with pytest.raises(InputError, match=f"id {id_} is outside"):
        small.stream().push(id_)
