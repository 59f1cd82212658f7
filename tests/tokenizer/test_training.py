"""A vocabulary of any size is learned from text, the same one from the same text."""

from __future__ import annotations

import random
import string

import pytest
from tests.tokenizer.strings import strings

from mobillama.errors import InputError
from mobillama.tokenizer import training
from mobillama.tokenizer.tokenizer import Tokenizer, train
from mobillama.tokenizer.training import LONGEST_WORD, WORD_PART, count_words
from mobillama.tokenizer.words import BLANK, CLASSES, DIGIT, LETTER, SIGN, find_cuts


@pytest.fixture(scope="module", params=[512, 32000])
def size(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def trained(size: int, library_texts: list[str]) -> Tokenizer:
    return train(library_texts[: size // 8], size)


def test_the_vocabulary_has_the_size_asked_for(trained: Tokenizer, size: int) -> None:
    assert trained.vocab_size == len(set(trained.vocabulary.pieces)) == size
    assert (trained.unk_id, trained.bos_id, trained.eos_id) == (0, 1, 2)
    assert trained.vocabulary.pieces[3:259] == [f"<0x{byte:02X}>" for byte in range(256)]


def test_any_text_comes_back(trained: Tokenizer, seed: int) -> None:
    for text in strings(seed, 1000):
        ids = trained.encode(text)
        assert trained.unk_id not in ids
        assert trained.decode(ids) == text.replace("\u2581", " "), f"seed {seed}: {text!r}"
        assert trained.byte_lengths(text, ids).sum() == len(text.encode())


def test_the_fast_way_applies_and_changes_no_id(trained: Tokenizer, seed: int) -> None:
    cuts = find_cuts(trained.vocabulary.pieces[259:]).reshape(CLASSES, CLASSES)
    assert cuts[LETTER, BLANK] and cuts[SIGN, BLANK] and cuts[DIGIT, BLANK]
    assert cuts[LETTER, SIGN] and cuts[SIGN, LETTER] and cuts[LETTER, DIGIT] and cuts[DIGIT, DIGIT]
    for number in range(30):
        text = "".join(strings(seed + number, 60))
        assert trained.encode(text) == trained._encode_word(trained._spaced(text)), f"seed {seed + number}"


def test_the_same_texts_give_the_same_tokenizer(library_texts: list[str]) -> None:
    first = train(iter(library_texts[:60]), 1024)
    assert first.digest == train(library_texts[:60], 1024).digest
    assert first.digest != train(library_texts[60:120], 1024).digest


def test_more_pieces_make_fewer_ids(library_texts: list[str]) -> None:
    """512 pieces beat bytes and 2,048 beat 512 on text that was not trained on."""
    held_out = "".join(library_texts[-20:])
    small, large = (len(train(library_texts[:60], size).encode(held_out)) for size in (512, 2048))
    assert len(held_out.encode()) > 1.3 * small > 1.3 * 1.3 * large


def test_a_vocabulary_without_room_is_an_error_that_says_how_small_it_may_be() -> None:
    with pytest.raises(InputError, match=r"vocab_size=200: 274 pieces are fixed .* at least 512"):
        train(["some text"], 200)


def test_texts_too_few_for_the_vocabulary_are_an_error_that_says_how_many_pieces_they_give() -> None:
    with pytest.raises(InputError, match=r"give \d+ pieces; expected vocab_size=4096"):
        train(["a handful of words, said twice; a handful of words"], 4096)


def test_a_word_is_cut_only_where_there_is_no_space_for_thousands_of_characters() -> None:
    long = "".join(random.Random(1).choices(string.ascii_lowercase, k=LONGEST_WORD))
    assert count_words(["a " + long[1:]]) == {" a": 1, " " + long[1:]: 1}
    cut = count_words(["a " + long + " b"])
    assert set(map(len, cut)) == {2, WORD_PART, 1}
    assert sum(len(word) * count for word, count in cut.items()) == len(" a " + long + " b")


def test_a_word_without_end_is_learned_from_in_parts() -> None:
    """What the trainer is given has no long word, so that each merge costs time for its own neighbours alone."""
    letters = "".join(random.Random(2).choices(string.ascii_lowercase, k=80_000))
    assert max(map(len, count_words([letters]))) == WORD_PART
    assert train([letters], 2048).vocab_size == 2048
    assert max(map(len, count_words(["=" * 80_000]))) == WORD_PART


def test_characters_of_words_that_are_held_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "CHARACTERS_COUNTED", 10_000)
    texts = ["often " + "".join(random.Random(n).choices(string.ascii_lowercase, k=2000)) for n in range(200)]
    words = count_words(texts)
    assert words[" often"] == 200
    assert sum(map(len, words)) < 60_000
