"""The training bench: its sides start alike, its figures are pairs, an unknown peer is an error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mobillama.bench import train_collectives, train_overhead
from mobillama.bench.train import PEERS, Side, bench_shape, measure, row_of, utilisation
from mobillama.bench.train_sides import batch, multiply, our_step, transformers_step
from mobillama.cli.commands import app
from mobillama.config import ModelConfig, TrainConfig
from mobillama.device import place
from mobillama.errors import InputError, RecipeError, TrainingError
from mobillama.train.flops import model_flops_per_token

SMALL = ModelConfig(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    max_position_embeddings=32,
)
HERE = place("cpu", "bfloat16", threads=1)


def test_an_unknown_peer_is_named_with_those_that_exist() -> None:
    with pytest.raises(InputError, match=r"'nanogpt'.*transformers, nondeterministic, none"):
        measure(against="nanogpt")


def test_a_row_is_the_median_of_the_pairs_and_of_their_ratios() -> None:
    row = row_of("train-eager", [10.0, 30.0, 20.0], [10.0, 10.0, 40.0], "transformers")
    assert (row["ours"], row["peer"], row["ratio"]) == (20.0, 10.0, 1.0)
    assert row["pairs"] == [[10.0, 10.0], [30.0, 10.0], [20.0, 40.0]]
    assert row_of("train", [1.0, 3.0, 2.0])["ratio"] is None


def test_utilisation_is_the_models_operations_over_those_of_a_product_and_of_the_stated_peak() -> None:
    measured, stated = utilisation([40.0, 50.0], [100.0, 100.0], 200.0)
    assert (measured["name"], measured["ratio"]) == ("utilisation-measured", 0.45)
    assert (stated["name"], stated["ratio"], stated["peer_name"]) == ("utilisation-stated", 0.225, "stated peak")
    assert len(utilisation([1.0], [2.0], None)) == 1


def test_operations_of_a_token_are_six_per_executed_weight_and_twelve_per_position_and_width() -> None:
    layers, hidden = 4, 32
    weights = layers * (4 * hidden * hidden + 3 * hidden * 48) + 97 * hidden  # the embedding is looked up
    assert model_flops_per_token(SMALL, 20) == 6 * weights + 12 * layers * hidden * 20


def test_a_matrix_product_takes_the_time_of_its_operations(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules["mobillama.bench.train_sides"].PRODUCT_SIZES, "cpu", 128)
    assert 1e6 < multiply(HERE, seconds=0.02) < 1e14


def test_what_is_measured_comes_from_a_recipe_a_preset_or_the_benchs_own_model() -> None:
    found = bench_shape(recipe="mini-amber", settings=["train.compile=false"])
    assert (found.train.rows_per_step, found.train.micro_batch_rows, found.seq_len) == (1, 1, 2048)
    assert not found.train.compile
    found = bench_shape(preset="mobillama-0.5b", rows=16, micro_rows=4, seq_len=1024, settings=["train.float8=true"])
    assert (found.train.rows_per_step, found.train.micro_batch_rows, found.seq_len) == (16, 4, 1024)
    assert found.model.hidden_size == 2048 and found.train.float8
    assert type(found).parse(found.text()) == found
    with pytest.raises(InputError, match=r"'mini-amber'.*'mobillama-0\.5b' both name a model"):
        bench_shape(recipe="mini-amber", preset="mobillama-0.5b")
    with pytest.raises(InputError, match=r"--set 'model\.x=1' without a recipe"):
        bench_shape(settings=["model.x=1"])
    with pytest.raises(RecipeError, match=r"unknown key 'train\.clipp'"):
        bench_shape(settings=["train.clipp=1"])


def test_batches_depend_on_the_step_alone() -> None:
    first = batch(SMALL, 3, 2, 16)
    assert torch.equal(first, batch(SMALL, 3, 2, 16))
    assert not torch.equal(first, batch(SMALL, 4, 2, 16))
    assert first.shape == (2, 17)
    assert 0 <= int(first.min()) <= int(first.max()) < SMALL.vocab_size


def test_both_sides_train_the_same_model(one_thread: None) -> None:
    train = TrainConfig(rows_per_step=4, micro_batch_rows=2, compile=False)
    ours, theirs = our_step(SMALL, train, HERE), transformers_step(SMALL, train, HERE, compiled=False)
    batches = [batch(SMALL, step, 4, 32) for step in range(20)]
    losses = [[take(rows) for rows in batches] for take in (ours, theirs)]
    print(losses)
    assert losses[0][0] == pytest.approx(losses[1][0], abs=0.005)
    assert losses[0][-1] == pytest.approx(losses[1][-1], abs=0.02)
    assert losses[0][-1] < losses[0][0] - 0.1


def test_a_side_that_dies_ends_the_bench_with_its_status(tmp_path: Path) -> None:
    side = Side("ours", "no shape", tmp_path)
    with pytest.raises(TrainingError, match="'ours' ended with status 1"):
        side.take(1)
    side.close()


# Runs our side with all libraries hidden that a machine with PyTorch alone would lack.
LEAN = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(f"hidden: {{name}}", name=name)
sys.meta_path.insert(0, Absent())
import mobillama.bench.train  # the side that drives
from mobillama.bench.train_sides import Shape, main
main("ours", Shape.parse(sys.argv[1]))
"""


def test_our_side_needs_nothing_but_torch_numpy_pydantic_and_safetensors() -> None:
    absent = {"typer", "click", "rich", "tokenizers", "gguf", "tensorboard", "transformers", "datatrove", "pyarrow"}
    absent |= {"sentencepiece", "orjson", "zstandard", "xxhash", "regex", "huggingface_hub", "jinja2"}
    shape = bench_shape(model=SMALL, rows=2, settings=["train.compile=false", "train.threads=1"])
    done = subprocess.run(
        [sys.executable, "-c", LEAN.format(absent=absent), shape.text()],
        input="1\n2\n",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [len(each["losses"]) for each in told] == [1, 2]
    assert told[-1]["peak_memory"]["resident_bytes"] > 10**7


class Event:
    def __init__(self, name: str, shapes: list[list[int]], dtypes: list[str]) -> None:
        self.name, self.input_shapes, self.input_dtypes = name, shapes, dtypes


def test_collectives_are_counted_with_the_bytes_that_each_rank_sends() -> None:
    found = train_collectives.count_collectives(
        [
            Event("c10d::_allgather_base_", [[80], [20], []], ["c10::BFloat16", "c10::BFloat16", ""]),
            Event("c10d::_allgather_base_", [[80], [20], []], ["c10::BFloat16", "c10::BFloat16", ""]),
            Event("c10d::_reduce_scatter_base_", [[20], [80]], ["float", "float"]),
            Event("gloo:all_reduce", [[80]], ["float"]),  # how gloo carries out the one above
            Event("c10d::allreduce_", [[]], ["TensorList"]),
            Event("gloo:all_reduce", [[3]], ["double"]),
            Event("aten::mm", [[80]], ["float"]),
        ],
        reducing=4,
    )
    assert found == {
        "all_gather": {"count": 2, "bytes": 2 * 60 * 2},
        "reduce_scatter": {"count": 1, "bytes": 60 * 4},
        "all_reduce": {"count": 1, "bytes": 36},
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "settings", "odd"),
    [(2, (), 0), (2, ("train.rows_per_step=8", "train.activation_checkpointing=true"), 1), (4, ("shard_ranks=2",), 0)],
    ids=["2-ranks", "accumulation-4-and-odd-sizes", "two-copies"],
)
def test_the_plan_says_what_the_profiler_counts(
    ranks: int, settings: tuple[str, ...], odd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every all-gather and reduce-scatter of a step, to the byte; the odd all-reduce is that of the norms."""
    shape = train_collectives.MODEL.model_copy(update={"intermediate_size": 176 + odd, "num_hidden_layers": 3})
    monkeypatch.setattr(train_collectives, "MODEL", shape)
    given = [setting if setting.startswith("train.") else f"train.{setting}" for setting in settings]
    found = train_collectives.measure(ranks, settings=["train.dtype=float32", *given])
    print(found)
    counted = {kind: told["bytes"] for kind, told in found["collectives"].items()}
    norms = counted["all_reduce"] - found["planned_bytes"].get("all_reduce", 0)
    assert {kind: size for kind, size in counted.items() if kind != "all_reduce"} == {
        kind: size for kind, size in found["planned_bytes"].items() if kind != "all_reduce"
    }
    assert 0 <= norms < 1000
    passes = 4 if odd else 1
    assert found["collectives"]["all_gather"]["count"] == passes * (2 * 3 + 1)
    assert found["collectives"]["reduce_scatter"]["count"] == 3 + 1


@pytest.mark.slow
def test_measure_gives_the_headline_first_then_utilisation_and_memory() -> None:
    found = measure(rounds=2, steps_per_round=1, model=SMALL, rows=4, seq_len=32)
    names = [row["name"] for row in found["rows"]]
    assert names[:2] == ["train-compiled", "train-eager"]
    assert "utilisation-measured" in names and names[-2:] == ["peak-memory-compiled", "peak-memory-eager"]
    assert all(len(row["pairs"]) == 2 and row["unit"] == "tokens/s" for row in found["rows"][:2])
    assert set(found["compile_seconds"]) == {"ours", "transformers-compiled"}
    assert set(found["losses"]) == {"ours", *PEERS["transformers"].values()}
    assert found["loss_difference"] < 0.02


@pytest.mark.slow
def test_the_overhead_of_recording_is_measured_beside_bare_steps() -> None:
    shape = ["model.vocab_size=256", "model.hidden_size=32", "model.intermediate_size=64", "train.compile=false"]
    shape += ["model.num_attention_heads=2", "model.max_position_embeddings=32", "train.threads=1"]
    found = train_overhead.measure(rounds=2, every=6, settings=shape)
    print(found)
    assert [row["name"] for row in found["rows"]] == [
        "overhead-asynchronous",
        "overhead-blocking",
        "peak-memory-asynchronous",
        "peak-memory-blocking",
    ]
    assert all(len(row["pairs"]) == 2 for row in found["rows"][:2])
    assert set(found["overhead"]) == {"asynchronous", "blocking"}


def test_the_command_hands_its_options_to_the_measurement_they_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, tuple[object, ...], dict[str, object]]] = []

    def record(name: str, more: dict[str, object]) -> object:
        def measured(*given: object, **named: object) -> dict[str, object]:
            asked.append((name, given, named))
            return {"rows": [row_of("train", [1.0])], **more}

        return measured

    monkeypatch.setattr("mobillama.bench.train.measure", record("speed", {}))
    monkeypatch.setattr(train_collectives, "measure", record("ranks", {}))
    shares = {"overhead": {"asynchronous": 0.02, "blocking": 0.05}, "most": 0.03}
    monkeypatch.setattr(train_overhead, "measure", record("overhead", shares))
    run = CliRunner().invoke
    words = ["--preset", "mobillama-0.5b", "--rows", "16", "--micro-rows", "4", "--set", "train.float8=true"]
    assert run(app, ["bench", "train", *words, "--against", "none"]).exit_code == 0
    assert run(app, ["bench", "train", "--ranks", "4"]).exit_code == 0
    done = run(app, ["bench", "train", "--overhead", "--rounds", "2"])
    assert done.exit_code == 0 and "asynchronous: 2.00% of a step's time" in done.stderr
    assert "at most 3% in the background: goal reached" in done.stderr
    speed, ranks, overhead = asked
    assert speed[0] == "speed" and speed[2] == {
        "against": "none", "rounds": 9, "steps_per_round": 2, "recipe": "", "settings": ["train.float8=true"],
        "preset": "mobillama-0.5b", "rows": 16, "micro_rows": 4, "seq_len": 0,
    }  # fmt: skip
    assert ranks[:2] == ("ranks", (4,))
    assert overhead[:2] == ("overhead", ("mini-amber", 2, 100, ()))
    refused = run(app, ["bench", "train", "--overhead", "--rows", "2"])
    assert isinstance(refused.exception, InputError) and "measures a recipe as it is" in str(refused.exception)
