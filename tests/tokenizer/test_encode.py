"""Encoding gives sentencepiece's ids, on every string and on every document."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tokenizer.conftest import Pair
from tests.tokenizer.strings import strings

from mobillama.errors import InputError
from mobillama.tokenizer.tokenizer import Tokenizer, convert

SUBSETS = ("arxiv", "book", "c4", "refinedweb", "starcoder", "stackexchange", "wikipedia")


def test_ids_equal_sentencepieces_on_2000_generated_strings(pair: Pair, seed: int) -> None:
    for text in strings(seed, 2000):
        assert pair.ours.encode(text) == pair.oracle.encode(text), f"seed {seed}: {text!r}"


def test_ids_equal_sentencepieces_on_runs_of_one_character(pair: Pair) -> None:
    for character in " \u2581=-.ao0\n\t(é中":
        for size in (*range(70), 127, 128, 129, 1000, 5000):
            for text in (character * size, "x" + character * size + "y", character * size + "the"):
                assert pair.ours.encode(text) == pair.oracle.encode(text), (character, size)


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=80))
def test_ids_equal_sentencepieces_on_any_text(pair: Pair, text: str) -> None:
    assert pair.ours.encode(text) == pair.oracle.encode(text)


@pytest.mark.parametrize(
    "text", ["", "<s>", "</s> a", "a<unk>b", "<0x41>", " lead", "  lead", "\u2581lead", "\0", "a\0b"]
)
def test_ids_equal_sentencepieces_where_tokenizers_stumble(pair: Pair, text: str) -> None:
    ids = pair.ours.encode(text)
    assert ids == pair.oracle.encode(text)
    assert not {pair.ours.unk_id, pair.ours.bos_id, pair.ours.eos_id} & set(ids)


def test_long_text_gives_the_ids_of_sentencepiece_across_block_ends(pair: Pair, library_texts: list[str]) -> None:
    text = "\n".join(library_texts[40:])[:1_300_000] + " " * 1000 + "z" * 5000
    assert pair.ours.encode_array(text).tolist() == pair.oracle.encode(text)


def test_encode_array_holds_uint32(small: Tokenizer) -> None:
    assert small.encode_array("a b").dtype == np.uint32
    assert small.encode_array("").shape == (0,)


def test_half_a_surrogate_pair_is_an_error_that_names_it(small: Tokenizer) -> None:
    with pytest.raises(InputError, match="ud800"):
        small.encode("fine until \ud800 here")


@pytest.mark.slow
@pytest.mark.parametrize("subset", SUBSETS)
def test_ids_equal_sentencepieces_on_every_document(subset: str, shared_folder: Callable[[str], Path]) -> None:
    model = shared_folder("MOBILLAMA_TOKENIZER") / "tokenizer.model"
    ours, oracle = convert(model), sentencepiece.SentencePieceProcessor(model_file=str(model))
    documents = 0
    with gzip.open(shared_folder("MOBILLAMA_CORPORA") / f"{subset}.jsonl.gz") as lines:
        for line in lines:
            document = json.loads(line)
            ids = ours.encode_array(document["text"])
            assert np.array_equal(ids, oracle.encode(document["text"])), document["id"]
            lengths = ours.byte_lengths(document["text"], ids)
            assert lengths.sum() == len(document["text"].encode()), document["id"]
            documents += 1
    assert documents > 0
