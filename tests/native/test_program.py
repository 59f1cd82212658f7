"""The stand-alone program answers as the package does, and says plainly what it cannot do."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.export.gguf_models import save_sealed, small_model
from tests.native.programs import PROGRAM, output, run

from mobillama.export.gguf_file import quantize_model
from mobillama.runtime.engine_model import EngineModel

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = "def decode(self, s"
OPTIONS = {  # name of a choice in Python -> option of the program
    "max_new_tokens": "-n",
    "temperature": "--temperature",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "repetition_penalty": "--repetition-penalty",
    "seed": "--seed",
    "stop": "--stop",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of one small model, by type."""
    folder = tmp_path_factory.mktemp("program")
    model = small_model(hidden_size=64, intermediate_size=128, max_position_embeddings=65536)
    save_sealed(folder / "model", model)
    found = {}
    for type_ in ("f32", "q4_0"):
        found[type_] = folder / f"{type_}.gguf"
        quantize_model(folder / "model", found[type_], type_)
    return found


def answer(*arguments: object) -> dict[str, Any]:
    """What the program says of one run."""
    found: dict[str, Any] = json.loads(output(*arguments, "--threads", 1, "--json"))
    return found


@pytest.mark.parametrize("type_", ["f32", "q4_0"])
@pytest.mark.parametrize(
    "choices",
    [
        {"temperature": 0.0},
        {"temperature": 0.8, "seed": 5},
        {"temperature": 1.2, "top_k": 7, "top_p": 0.6, "seed": 2**64 - 1},
        {"temperature": 0.0, "repetition_penalty": 1.4},
        {"temperature": 1.5, "seed": 1, "stop": "e"},
    ],
    ids=str,
)
def test_text_ids_and_ending_are_those_of_the_package(
    files: dict[str, Path], type_: str, choices: dict[str, Any]
) -> None:
    choices = {"max_new_tokens": 40, **choices}
    options = [part for name, value in choices.items() for part in (OPTIONS[name], value)]
    found = answer(files[type_], "-p", PROMPT, *options)
    (expected,) = EngineModel.load(files[type_], threads=1).complete([PROMPT], **choices)
    assert found["text"] == expected.text
    assert found["ids"] == list(expected.ids)
    assert found["ending"] == expected.ending
    assert output(files[type_], "-p", PROMPT, "--threads", 1, *options).decode() == expected.text + "\n"


def test_ids_are_continued_by_exactly_as_many_ids_for_any_threads_and_cache(files: dict[str, Path]) -> None:
    line = output(files["f32"], "--ids", "5,6, 7", "-n", 20, "--temperature", 0)
    assert len(line.split()) == 20
    for threads in (1, 2, 3):
        assert output(files["f32"], "--ids=5,6,7", "-n", 20, "--temperature=0", "--threads", threads) == line
    for kv in ("f16", "int8", "f32"):
        assert len(answer(files["f32"], "--ids", "5", "-n", 8, "--kv", kv)["ids"]) == 8


def test_an_end_id_ends_text_and_not_ids(files: dict[str, Path]) -> None:
    """So hot, all ids are about equally likely, the end id among them."""
    seeds = [answer(files["f32"], "-p", PROMPT, "-n", 1000, "--temperature", 50, "--seed", seed) for seed in range(4)]
    ended = [found for found in seeds if found["ending"] == "eos"]
    assert ended
    assert all(2 not in found["ids"] for found in seeds)
    ids = answer(files["f32"], "--ids", "9,8", "-n", 3000, "--temperature", 50)["ids"]
    assert len(ids) == 3000
    assert 2 in ids


def test_the_answer_ends_where_the_context_is_full(files: dict[str, Path]) -> None:
    found = answer(files["q4_0"], "--ids", "5,6,7", "-n", 100, "--context", 16)
    assert (len(found["ids"]), found["ending"]) == (13, "context")
    done = run(files["q4_0"], "--ids", ",".join(["5"] * 17), "--context", 16)
    assert done.returncode == 1
    assert b"16" in done.stderr


def test_times_and_memory_are_told(files: dict[str, Path]) -> None:
    found = answer(files["q4_0"], "--ids", "5,6,7", "-n", 12)
    assert 0 < found["open_s"] < found["first_token_s"]
    assert 0 < found["prefill_s"] < found["first_token_s"]
    assert found["prefill_tokens_per_s"] == pytest.approx(3 / found["prefill_s"])
    assert len(found["token_s"]) == 11
    assert found["decode_tokens_per_s"] == pytest.approx(11 / sum(found["token_s"]))
    assert found["file_bytes"] == files["q4_0"].stat().st_size
    if Path("/proc/self/status").exists():
        assert found["peak_memory_bytes"] > found["weight_bytes"] > 0
    words = run(files["q4_0"], "-p", "a", "-n", 3, "--threads", 1).stderr.decode()
    assert re.fullmatch(
        r"\d+ prompt tokens, 3 new \(length\); open [\d.]+ s, first token [\d.]+ s, prefill [\d.]+ tokens/s, "
        r"decode [\d.]+ tokens/s(, peak memory [\d.]+ MB)?; [a-z0-9-]+\n",
        words,
    )


def test_one_token_has_no_speed_of_decoding(files: dict[str, Path]) -> None:
    found = answer(files["q4_0"], "--ids", "5", "-n", 1)
    assert found["decode_tokens_per_s"] is None
    assert found["token_s"] == []


@pytest.mark.parametrize("stop_signal", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_the_answer_with_what_there_is(files: dict[str, Path], stop_signal: int) -> None:
    command = [PROGRAM, files["f32"], "--threads", "1", "-p", PROMPT, "-n", "60000", "--temperature", "0"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout is not None
    first = running.stdout.read(1)
    running.send_signal(stop_signal)
    rest, words = running.communicate(timeout=60)
    (first + rest).decode()  # whole characters
    assert running.returncode == 130
    assert b"(cancelled)" in words


def test_output_that_nobody_can_take_is_an_error(files: dict[str, Path]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with Path("/dev/full").open("wb") as full:
        command = [PROGRAM, files["q4_0"], "--ids", "5", "-n", "1", "--threads", "1"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert b"stdout cannot be written to" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no model"),
        (["m.gguf"], "expected a prompt"),
        (["m.gguf", "-p", "a", "--ids", "1"], "expected a prompt"),
        (["m.gguf", "-p"], "-p needs a value"),
        (["m.gguf", "--ids", "1,x"], "--ids x: expected a number"),
        (["m.gguf", "--ids", " "], "--ids is empty"),
        (["m.gguf", "--ids", "-1"], "--ids -1: expected a number from 0"),
        (["m.gguf", "-p", "a", "-n", "0"], "-n 0: expected a number from 1"),
        (["m.gguf", "-p", "a", "-n", "9" * 30], "expected a number from 1"),
        (["m.gguf", "-p", "a", "--temperature", "nan"], "--temperature nan: expected"),
        (["m.gguf", "-p", "a", "--temperature", "-1"], "--temperature -1: expected"),
        (["m.gguf", "-p", "a", "--top-p", "1.5"], "--top-p 1.5: expected"),
        (["m.gguf", "-p", "a", "--kv", "int4"], "--kv int4: expected f16, int8 or f32"),
        (["m.gguf", "-p", "a", "--stop", ""], "--stop is empty"),
        (["m.gguf", "--ids", "1", "--stop", "a"], "--stop needs text"),
        (["m.gguf", "-p", "a", "--split", "10"], "--split belongs to"),
        (["m.gguf", "--tokenize", "-p", "a"], "leave -p, --text-file and --ids out"),
        (["m.gguf", "-p", "a", "--json=yes"], "--json takes no value"),
        (["m.gguf", "n.gguf", "-p", "a"], "a second file, n.gguf"),
        (["m.gguf", "-p", "a", "--thread", "2"], "unknown option --thread"),
    ],
)
def test_a_command_line_that_cannot_be_read_says_why(arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert words in done.stderr.decode()
    assert done.stdout == b""


def test_what_cannot_be_opened_or_used_says_why(files: dict[str, Path], tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(files["q4_0"].read_bytes()[:-100])
    for file, options, words in (
        (tmp_path / "none.gguf", ["-p", "a"], "none.gguf"),
        (cut, ["-p", "a"], "cut.gguf"),
        (files["q4_0"], ["--ids", "5,420"], "420"),
        (files["q4_0"], ["-p", ""], "the prompt is empty"),
    ):
        done = run(file, *options)
        assert done.returncode == 1
        assert done.stderr.startswith(b"mobillama-run: ")
        assert words in done.stderr.decode()


def test_help_and_version() -> None:
    text = output("--help").decode()
    for option in (*OPTIONS.values(), "--ids", "--kv", "--context", "--threads", "--json", "--tokenize"):
        assert option in text
    assert output("--version") == b"mobillama-run, engine version 1\n"
