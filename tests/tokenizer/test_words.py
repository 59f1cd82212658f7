"""The fast way of encoding cuts only where no merge reaches across, and gives the ids of the slow way."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from tests.tokenizer.conftest import Pair
from tests.tokenizer.strings import strings

from mobillama.tokenizer import words
from mobillama.tokenizer.tokenizer import Tokenizer
from mobillama.tokenizer.vocabulary import BYTES, SPACE, Vocabulary
from mobillama.tokenizer.words import CLASSES, LEAD, REST, find_cuts


def slow(tokenizer: Tokenizer, text: str) -> list[int]:
    """The whole text in one go, as the `tokenizers` library encodes it."""
    return tokenizer._encode_word(tokenizer._spaced(text))


def test_no_piece_reaches_across_a_cut(pair: Pair) -> None:
    vocabulary = pair.ours.vocabulary
    cuts = find_cuts(left + right for left, right in vocabulary.merges).reshape(CLASSES, CLASSES)
    assert cuts.any()
    for left, right in vocabulary.merges:
        data = (left + right).replace(SPACE, " ").encode()
        for one, next_one in itertools.pairwise(words.CLASS_OF[np.frombuffer(data, np.uint8)]):
            assert not cuts[one, next_one], (left, right)


def test_no_cut_falls_inside_a_character() -> None:
    cuts = find_cuts([]).reshape(CLASSES, CLASSES)
    assert not cuts[LEAD].any()
    assert not cuts[:, REST].any()


def test_long_text_gives_the_ids_of_the_slow_way(pair: Pair, seed: int) -> None:
    for number in range(30):
        text = "".join(strings(seed + number, 100))
        assert pair.ours.encode(text) == slow(pair.ours, text), f"seed {seed + number}"


@pytest.mark.parametrize("many", [1500, 70_000])
def test_a_table_that_forgets_all_the_time_changes_no_id(
    many: int, small: Tokenizer, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 slots, 10 parts in the dictionary, blocks of 64 bytes; 16-bit and 32-bit ids."""
    monkeypatch.setattr(words, "SLOTS_LOG2", 3)
    monkeypatch.setattr(words, "PARTS_KEPT", 10)
    monkeypatch.setattr(words, "BLOCK", 64)
    filler = [f"filler{number}" for number in range(many - small.vocab_size)]
    forgetful = Tokenizer(Vocabulary([*small.vocabulary.pieces, *filler], small.vocabulary.merges))
    for number in range(20):
        text = "".join(strings(seed + number, 60)) + "end" * 100
        assert forgetful.encode(text) == slow(small, text), f"seed {seed + number}"
    assert len(forgetful._words._known) <= 10


def test_a_vocabulary_that_joins_everything_is_encoded_all_the_same(seed: int) -> None:
    """Pieces with an inner space, with a newline, of letters and signs: hardly a cut is left."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *BYTES,
        SPACE,
        *"abc.\n1é",
        f"a{SPACE}",
        f"a{SPACE}b",
        "\na",
        "a.",
        "1a",
        "éa",
        "é.",
    ]
    merges = [("a", SPACE), (f"a{SPACE}", "b"), ("\n", "a"), ("a", "."), ("1", "a"), ("é", "a"), ("é", ".")]
    tokenizer = Tokenizer(Vocabulary(pieces, merges))
    draw = np.random.default_rng(seed)
    for _ in range(100):
        text = "".join(draw.choice(list("ab c.\n1é"), 600))
        ids = tokenizer.encode(text)
        assert ids == slow(tokenizer, text), f"seed {seed}"
        assert tokenizer.decode(ids) == text


def test_words_seen_many_times_are_bounded_in_memory(small: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "PARTS_KEPT", 100)
    fresh = Tokenizer(small.vocabulary)
    fresh.encode(" ".join(f"word{chr(97 + n % 26)}{chr(97 + n // 26 % 26)}{chr(97 + n // 676)}" for n in range(5000)))
    assert 0 < len(fresh._words._known) <= 100


def test_threads_share_a_tokenizer(small: Tokenizer, library_texts: list[str]) -> None:
    texts = library_texts[:24]
    expected = [small.encode(text) for text in texts]
    fresh = Tokenizer(small.vocabulary)
    found: dict[int, list[int]] = {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: fresh.encode(texts[n])})) for n in range(len(texts))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n] for n in range(len(texts))] == expected
