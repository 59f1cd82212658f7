"""The models to beat: against a dictionary-based oracle, and as probabilities that sum to one."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from mobillama.data.baseline import Bigram, Rows, Unigram, measure
from mobillama.data.shards import write_shards

VOCAB = 23


@pytest.fixture
def rows():
    generator = np.random.default_rng(5)
    ids = np.zeros((40, 33), np.int64)
    for row in ids:  # each id tends to be followed by its double
        for place in range(1, len(row)):
            row[place] = (2 * row[place - 1] + 1) % VOCAB if generator.random() < 0.7 else generator.integers(0, VOCAB)
    return ids


def kneser_ney(rows, before, after):
    """The textbook formula, one pair at a time."""
    pairs = Counter((int(a), int(b)) for row in rows for a, b in itertools.pairwise(row))
    kinds = Counter(pairs.values())
    discount = kinds[1] / (kinds[1] + 2 * kinds[2])
    contexts = {b for _, b in pairs}
    lower = max(sum(1 for _, b in pairs if b == after) - discount, 0) / len(pairs)
    lower += discount * len(contexts) / len(pairs) / VOCAB
    total = sum(count for (a, _), count in pairs.items() if a == before)
    if not total:
        return lower
    followers = sum(1 for a, _ in pairs if a == before)
    return max(pairs[before, after] - discount, 0) / total + discount * followers / total * lower


def test_bigram_equals_the_textbook_formula(rows):
    model = Bigram(Rows(rows), VOCAB)
    for before in range(VOCAB):
        keys = before * VOCAB + np.arange(VOCAB)
        expected = [kneser_ney(rows, before, after) for after in range(VOCAB)]
        np.testing.assert_allclose(model.probability(keys), expected, rtol=1e-12)


def test_both_are_probabilities_for_every_context_even_one_never_seen(rows):
    seen = rows % (VOCAB - 2)  # two ids never occur
    model = Bigram(Rows(seen), VOCAB)
    for before in range(VOCAB):
        assert model.probability(before * VOCAB + np.arange(VOCAB)).sum() == pytest.approx(1)
    assert np.exp(Unigram(Rows(seen), VOCAB).log_probability).sum() == pytest.approx(1)


def test_measure_scores_the_held_out_rows_in_nats_and_bits_per_byte(rows, tmp_path):
    write_shards(tmp_path / "shards", rows[:30], rows[30:], vocab_size=VOCAB, bytes_per_token=3)
    result = measure(tmp_path / "shards")
    unigram, bigram = result["models"]["unigram"], result["models"]["bigram"]
    expected = -sum(
        math.log(kneser_ney(rows[:30], int(a), int(b))) for row in rows[30:] for a, b in itertools.pairwise(row)
    )
    assert bigram["nats_per_token"] == pytest.approx(expected / (10 * 32))
    assert bigram["bits_per_byte"] == pytest.approx(expected / (10 * 32) / math.log(2) / 3)
    assert bigram["nats_per_token"] < unigram["nats_per_token"] - 0.5


def test_rows_limit_what_is_counted(rows, tmp_path):
    write_shards(tmp_path / "shards", rows[:30], rows[30:], vocab_size=VOCAB)
    assert measure(tmp_path / "shards", max_rows=7)["training_rows"] == 7
