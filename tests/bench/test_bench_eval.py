"""The evaluation bench: both sides are asked the same and agree; what it cannot measure it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.eval.rooms import SHAPE, cut_data

from mobillama.bench import eval as bench
from mobillama.config import ModelConfig
from mobillama.errors import InputError
from mobillama.model.cost import cost


def test_the_model_is_of_the_size_that_the_bench_says() -> None:
    assert 45e6 < cost(bench.MODEL).stored_parameters < 55e6
    assert (bench.MODEL.vocab_size, bench.MODEL.max_position_embeddings) == (32000, 2048)
    assert bench.MODEL.num_ffn_blocks == bench.MODEL.num_hidden_layers


def test_another_peer_or_row_is_refused() -> None:
    with pytest.raises(InputError, match="no peer 'vllm'"):
        bench.measure("vllm", Path(), Path())
    with pytest.raises(InputError, match="no row 'piqa'"):
        bench.measure("lm_eval", Path(), Path(), rows=["piqa"])


def test_agreement_counts_choices_and_the_largest_difference() -> None:
    said = {"largest_difference": 0.0, "same_choice": 0.0, "items": 0.0}
    bench._agree(said, {bench.OURS: [[-1.0, -2.0], [-3.0, -1.0]], bench.PEER: [[-1.25, -2.0], [-1.0, -1.5]]})
    assert said == {"largest_difference": 2.0, "same_choice": 1, "items": 2}


@pytest.mark.slow
def test_a_tiny_bench_measures_both_sides_on_equal_items(tmp_path: Path, shared_folder: Callable[[str], Path]) -> None:
    data = cut_data(shared_folder("MOBILLAMA_BENCHMARKS"), tmp_path / "data", 20, ["hellaswag", "mmlu"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mobillama.bench.rounds.OTHERS", 1.0)  # what else runs is no matter here
        patch.setitem(bench.ROWS, "mmlu", ("mmlu", ("mmlu_anatomy",), 2))
        result = bench.measure(
            "lm_eval",
            data,
            shared_folder("MOBILLAMA_TOKENIZER"),
            rows=["hellaswag", "mmlu"],
            rounds=2,
            dtype="float32",
            items=2,
            model=ModelConfig(name="tiny", **{**SHAPE, "num_ffn_blocks": 2}, max_position_embeddings=2048),
        )
    assert [row["name"] for row in result["rows"]] == ["hellaswag", "mmlu"]
    for row in result["rows"]:
        assert row["ours"] > 0
        assert row["ratio"] > 0
        assert row["peer_name"] == "lm_eval"
        assert len(row["pairs"]) == 2
        agreed = result["agreement"][row["name"]]
        assert agreed["items"] == 4
        assert agreed["largest_difference"] < 1e-3
        assert agreed["same_choice"] == 1
        assert set(result["batch_tried"][row["name"]]["seconds"]) == set(bench.BATCHES)
    assert any("at batch" in line for line in bench.words(result))
