"""The sides of a pair: one protocol for every engine, the same ids in, asleep between questions."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mobillama.bench import engines, peers
from mobillama.bench.process import Process
from mobillama.config import ModelConfig
from mobillama.errors import InputError, MeasurementError
from mobillama.export.gguf_file import quantize_model
from mobillama.model.initialise import build_model
from mobillama.model.weights import save_model
from mobillama.runtime.engine import Engine

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,  # far enough apart that the likeliest id changes
}
SHAPES = {"shared": {}, "dense": {"num_ffn_blocks": 4}, "grouped queries": {"num_key_value_heads": 2}}
IDS = [5, 30, 17, 42, 9, 9, 12, 33]


def write_model(folder: Path, **other: Any) -> Path:
    config = ModelConfig.model_validate({**SMALL, **other})
    save_model(folder, build_model(config, seed=4), config)
    return folder


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    quantize_model(write_model(folder / "model"), folder / "model.gguf", "f32")
    return folder / "model.gguf"


@pytest.fixture(scope="module")
def ours(file: Path) -> Iterator[Process]:
    with Process("ours", engines.command("ours")) as process:
        process.about = process.ask("open", file=str(file))
        process.ask("context", max_tokens=64, threads=1, kv="f32", max_sequences=2)
        yield process


def test_a_side_says_what_it_opened_and_how_long_that_took(ours: Process, file: Path) -> None:
    assert ours.about["vocab_size"] == 97 and ours.about["file_bytes"] == file.stat().st_size
    assert ours.about["seconds"] > 0


def test_a_side_is_fed_given_ids_and_tells_what_it_would_have_chosen(ours: Process, file: Path) -> None:
    expected = []
    with Engine.open(file) as engine, engine.context(max_tokens=64, threads=1, kv="f32") as context:
        context.prefill(IDS[:4])
        expected.append(int(context.logits().argmax()))
        for each in IDS[4:]:
            context.decode([each])
            expected.append(int(context.logits().argmax()))
    for sequence in (0, 1):
        first = ours.ask("prefill", ids=IDS[:4], sequence=sequence)
        for _ in range(2):  # it begins behind the prompt every time
            found = ours.ask("decode", ids=IDS[4:], after=4, sequence=sequence)
            assert first["chosen"] + found["chosen"] == expected
            assert len(found["seconds"]) == 4 and min(found["seconds"]) > 0
    assert len(first["seconds"]) == 1


def test_greedy_ids_are_those_chosen_one_by_one_and_gaps_are_to_the_second(ours: Process) -> None:
    found = ours.ask("greedy", prompt=IDS, count=6)
    prefilled = ours.ask("prefill", ids=IDS)
    assert [*prefilled["chosen"], *ours.ask("decode", ids=found["ids"][:-1], after=8)["chosen"]] == found["ids"]
    assert len(found["gaps"]) == 6 and min(found["gaps"]) >= 0


def test_a_side_sleeps_between_questions(ours: Process) -> None:
    ours.ask("prefill", ids=IDS)
    before = ours.cpu_seconds()
    time.sleep(1.0)
    assert ours.cpu_seconds() - before < 0.05


def test_a_side_tells_its_memory_and_the_bandwidth(ours: Process) -> None:
    memory = ours.ask("memory")
    assert 0 < memory["before"] <= memory["peak"]
    assert ours.ask("bandwidth", bytes=1 << 24, threads=1, seconds=0.05)["bytes_per_second"] > 1e7


def test_a_side_that_ends_is_an_error_with_its_status(capfd: pytest.CaptureFixture[str]) -> None:
    with (
        Process("ours", engines.command("ours")) as process,
        pytest.raises(MeasurementError, match=r"'ours': it ended with status 1 when asked to 'open'"),
    ):
        process.ask("open", file="no-such-file.gguf")
    assert "no-such-file.gguf" in capfd.readouterr().err
    with (
        Process("gone", [sys.executable, "-c", ""]) as process,
        pytest.raises(MeasurementError, match="'gone': it ended with status 0"),
    ):
        process._process.wait()
        process.ask("open")


@pytest.mark.slow
def test_transformers_is_a_side_with_its_ffn_shared() -> None:
    with Process("transformers", engines.command("transformers")) as process:
        shape = ModelConfig.model_validate({**SMALL, "num_ffn_blocks": 2})
        found = process.ask("open", file="tiny", **shape.tree())
        ffn, attention = 3 * 64 * 96, 4 * 64 * 64
        assert found["parameters"] == 2 * ffn + 4 * attention + 2 * 97 * 64 + 9 * 64
        process.ask("context", max_tokens=64, threads=1)
        prefilled = process.ask("prefill", ids=IDS)["chosen"]
        once = process.ask("decode", ids=[1, 2, 3], after=8)
        assert once["chosen"] == process.ask("decode", ids=[1, 2, 3], after=8)["chosen"]
        assert process.ask("prefill", ids=IDS)["chosen"] == prefilled


@pytest.fixture(scope="module")
def llama_cpp() -> Path:
    """The interpreter that has llama.cpp; without it the test is skipped, naming the command that builds it."""
    try:
        return peers.python_of("llama.cpp", ROOT / peers.FOLDER)
    except InputError as error:
        pytest.skip(str(error))


def agreements(
    model: Path, types: str, prompts: list[list[int]], count: int, python: Path, out: Path, gap: float = 1e-4
) -> list[bool]:
    """For every prompt: the same greedy ids from both engines, or a first difference between logits within `gap`.

    Both with float32 keys and values, the peer without flash attention. On a float32 file the order of additions is
    what is left; on a float16 file the peer also rounds activations to float16.
    """
    sides: dict[str, tuple[list[str], str, dict[str, Any]]] = {
        "ours": (engines.command("ours"), "mobillama", {}),
        "llama.cpp": (engines.command("llama.cpp", python), "llama", {"flash": False}),
    }
    answers: dict[str, list[dict[str, Any]]] = {}
    for name, (command, architecture, options) in sides.items():
        file = out / f"{architecture}-{types}.gguf"
        quantize_model(model, file, types, architecture=architecture)  # type: ignore[arg-type]
        with Process(name, command) as process:
            process.ask("open", file=str(file))
            process.ask("context", max_tokens=len(prompts[0]) + count, threads=1, kv="f32", **options)
            answers[name] = [process.ask("greedy", prompt=prompt, count=count) for prompt in prompts]
    alike = []
    for number, (mine, theirs) in enumerate(zip(*answers.values(), strict=True)):
        at = next((i for i, (a, b) in enumerate(zip(mine["ids"], theirs["ids"], strict=True)) if a != b), None)
        found = None if at is None else min(mine["gaps"][at], theirs["gaps"][at])
        alike.append(found is None or found < gap)
        print(f"{types}, prompt {number}: " + ("the same" if found is None else f"from id {at}, gap {found:.2e}"))
    return alike


def some_prompts(vocab_size: int, count: int, length: int) -> list[list[int]]:
    return [[(7 * n + 11 * i + i * i * n) % vocab_size for i in range(length)] for n in range(1, count + 1)]


@pytest.mark.slow
@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("types", ["f32", "f16"])
def test_greedy_ids_equal_those_of_llama_cpp(tmp_path: Path, llama_cpp: Path, shape: str, types: str) -> None:
    model = write_model(tmp_path / "model", **SHAPES[shape])
    # Random weights are nowhere sure: rounding to float16 (5e-4 of a value) often decides between two ids.
    gap = 1e-4 if types == "f32" else 5e-3
    assert all(agreements(model, types, some_prompts(97, 10, 12), 64, llama_cpp, tmp_path, gap))


@pytest.mark.slow
@pytest.mark.parametrize("types", ["f32", "f16"])
def test_a_trained_model_gives_the_greedy_ids_of_llama_cpp(tmp_path: Path, llama_cpp: Path, types: str) -> None:
    from mobillama.tokenizer.tokenizer import Tokenizer

    model = ROOT / "artefacts/runs/mini-amber/model"
    if not model.is_dir():
        pytest.skip(f"{model} does not exist; train it with: mobillama train recipes/train/mini-amber.toml")
    texts = Path(__file__).read_text(encoding="utf-8").split("\n\n")
    encode: Callable[[str], list[int]] = Tokenizer.load(model).encode
    prompts = [ids[:16] for ids in map(encode, texts) if len(ids) >= 16][:10]
    assert len(prompts) == 10
    alike = agreements(model, types, prompts, 64, llama_cpp, tmp_path)
    assert sum(alike) >= (10 if types == "f32" else 9)
