import math

import numpy as np
import pytest
import tiny
import torch

from mobillama.data.shards import read_shards
from mobillama.train.validate import choose_rows, validate


class Uniform:
    """Gives every token the same probability."""

    def evaluate(self, rows):
        return torch.tensor((rows.shape[1] - 1) * rows.shape[0] * math.log(tiny.VOCABULARY), dtype=torch.float64)


class FirstId:
    """As many nats for a row as its first id says: every row counts differently."""

    def evaluate(self, rows):
        return rows[:, 0].double().sum()


def test_a_uniform_model_needs_the_logarithm_of_the_vocabulary(shards):
    found = validate(Uniform(), read_shards(shards), rows=0, batch_rows=4)
    assert found["loss"] == pytest.approx(math.log(64))
    assert found["bits_per_byte"] == pytest.approx(6 / 3)  # 6 bits a token, 3 bytes a token
    assert (found["tokens"], found["bytes"]) == (tiny.HELD_OUT * 16, tiny.HELD_OUT * 16 * 3)
    assert set(found["sources"]) == {"prose", "code"}


@pytest.mark.parametrize("batch_rows", [1, 2, 100])
def test_each_source_is_summed_over_its_own_rows(shards, batch_rows):
    data = read_shards(shards)
    found = validate(FirstId(), data, rows=0, batch_rows=batch_rows)
    first = data.validation_rows(np.arange(tiny.HELD_OUT))[:, 0]
    for source, name in enumerate(("prose", "code")):
        nats = first[source::2].sum()
        assert found["sources"][name]["loss"] == pytest.approx(nats / (3 * 16))
        assert found["sources"][name]["bits_per_byte"] == pytest.approx(nats / math.log(2) / (3 * 16 * 3))
    assert found["loss"] == pytest.approx(first.sum() / (tiny.HELD_OUT * 16))


def test_a_part_of_the_rows_is_spread_over_all(shards):
    assert choose_rows(100, 5).tolist() == [0, 20, 40, 60, 80]
    assert choose_rows(3, 5).tolist() == choose_rows(3, 0).tolist() == [0, 1, 2]
    assert validate(Uniform(), read_shards(shards), rows=2, batch_rows=4)["tokens"] == 2 * 16


def test_rows_without_text_have_no_bits_per_byte(tmp_path):
    data = read_shards(tiny.make_shards(tmp_path / "shards", bytes_per_token=0))
    assert validate(Uniform(), data, rows=0, batch_rows=4)["bits_per_byte"] is None
