"""The training bench: its sides start alike, its figures are pairs, an unknown peer is an error."""

from __future__ import annotations

import pytest
import torch

from mobillama.bench.train import _row, measure
from mobillama.bench.train_sides import SIDES, batch, our_step, transformers_step
from mobillama.config import ModelConfig, TrainConfig
from mobillama.errors import InputError, TrainingError

SMALL = ModelConfig(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    max_position_embeddings=32,
)


def test_an_unknown_peer_is_named_with_those_that_exist() -> None:
    with pytest.raises(InputError, match=r"'nanogpt'.*transformers"):
        measure(against="nanogpt")


def test_a_row_is_the_median_of_the_pairs_and_of_their_ratios() -> None:
    row = _row("train-eager", [10.0, 30.0, 20.0], [10.0, 10.0, 40.0], "transformers")
    assert (row["ours"], row["peer"], row["ratio"]) == (20.0, 10.0, 1.0)
    assert row["pairs"] == [[10.0, 10.0], [30.0, 10.0], [20.0, 40.0]]


def test_batches_depend_on_the_step_alone() -> None:
    first = batch(SMALL, 3, 2, 16)
    assert torch.equal(first, batch(SMALL, 3, 2, 16))
    assert not torch.equal(first, batch(SMALL, 4, 2, 16))
    assert first.shape == (2, 17)
    assert 0 <= int(first.min()) <= int(first.max()) < SMALL.vocab_size


def test_both_sides_train_the_same_model() -> None:
    train = TrainConfig(rows_per_step=4, micro_batch_rows=4, compile=False)
    ours, theirs = our_step(SMALL, train), transformers_step(SMALL, train, compiled=False)
    batches = [batch(SMALL, step, 4, 32) for step in range(20)]
    losses = [[take(rows) for rows in batches] for take in (ours, theirs)]
    print(losses)
    assert losses[0][0] == pytest.approx(losses[1][0], abs=0.005)
    assert losses[0][-1] == pytest.approx(losses[1][-1], abs=0.02)
    assert losses[0][-1] < losses[0][0] - 0.1


def test_a_side_that_dies_ends_the_bench_with_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mobillama.bench.train.SIDES", ("nobody",))
    with pytest.raises(TrainingError, match="'nobody' ended with status 1"):
        measure(model=SMALL, rows=0, rounds=1)


@pytest.mark.slow
def test_measure_gives_both_rows_the_headline_first() -> None:
    found = measure(rounds=2, steps_per_round=1, model=SMALL, rows=4, seq_len=32)
    assert [row["name"] for row in found["rows"]] == ["train-compiled", "train-eager"]
    assert all(len(row["pairs"]) == 2 and row["unit"] == "tokens/s" for row in found["rows"])
    assert set(found["compile_seconds"]) == {"ours", "transformers-compiled"}
    assert set(found["losses"]) == set(SIDES)
    assert found["loss_difference"] < 0.02
