"""A prompt is the same text in the package and in the program, whichever way it is given."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from tests.export.gguf_models import save_sealed, small_model
from tests.native.programs import run

from mobillama import cli
from mobillama.cli.prompts import read_prompts
from mobillama.errors import InputError
from mobillama.export.gguf_file import quantize_model
from mobillama.runtime.engine_model import EngineModel

pytestmark = pytest.mark.usefixtures("one_thread")

WHOLE = {  # bytes of a file or of stdin -> the prompt
    b"def f(x):": "def f(x):",
    b"def f(x):\n": "def f(x):",
    b"def f(x):\r\n": "def f(x):",
    b"def f(x):\n\n": "def f(x):\n",
    b"def f(x):\n    return x\n": "def f(x):\n    return x",
    b"a\r\nb\r\n": "a\r\nb",
    b"\n\na \f b ": "\n\na \f b ",
    b"a\r": "a\r",
    b"\xef\xbb\xbfdef": "def",
    "\u00e4\u2028\U0001f600\n".encode(): "\u00e4\u2028\U0001f600",
}
NOT_UTF8 = [b"\xff", b"caf\xe9 au lait", b"a\xc3", b"\xed\xa0\x80", b"\xc0\xaf"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    save_sealed(folder / "model", small_model())
    quantize_model(folder / "model", folder / "model.gguf", "f32")
    return folder / "model.gguf"


def stand_in(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.mark.parametrize("data", WHOLE, ids=repr)
def test_stdin_and_a_whole_file_are_one_prompt(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prompt").write_bytes(data)
    assert read_prompts([], None, str(tmp_path / "prompt")) == [WHOLE[data]]
    stand_in(monkeypatch, data)
    assert read_prompts([], None, "-") == [WHOLE[data]]
    stand_in(monkeypatch, data)
    assert read_prompts(["first", "-"], None, None) == ["first", WHOLE[data]]


def test_the_program_reads_the_same_prompt(file: Path, tmp_path: Path) -> None:
    with EngineModel.load(file, threads=1) as model:
        for data, prompt in WHOLE.items():
            (tmp_path / "prompt").write_bytes(data)
            expected = model.generate(prompt, max_new_tokens=3, temperature=0.0)
            for how in (["--text-file", tmp_path / "prompt"], ["--text-file", "-"], ["-p", "-"]):
                done = run(file, *how, "-n", 3, "--temperature", 0, "--threads", 1, stdin=data)
                assert done.stdout.decode() == expected + "\n", (data, how, done.stderr)
                assert done.stderr.startswith(f"{len(model.tokenizer.encode(prompt))} prompt tokens".encode())


def test_lines_of_a_prompt_file_are_prompts_and_end_with_newlines_alone(tmp_path: Path) -> None:
    (tmp_path / "prompts").write_bytes("\ufeffone\r\ntwo \f\u2028 of it\n\nfour\n".encode())
    assert read_prompts([], str(tmp_path / "prompts"), None) == ["one", "two \f\u2028 of it", "", "four"]


@pytest.mark.parametrize("data", NOT_UTF8, ids=repr)
def test_bytes_that_are_no_text_are_said_by_both(
    file: Path, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompt").write_bytes(data)
    for ways in ((str(tmp_path / "prompt"), None), (None, str(tmp_path / "prompt"))):
        with pytest.raises(InputError, match=r"prompt is not UTF-8 text \(byte \d+.*iconv"):
            read_prompts([], *ways)
    stand_in(monkeypatch, data)
    with pytest.raises(InputError, match="stdin is not UTF-8"):
        read_prompts(["-"], None, None)
    for how in (["--text-file", tmp_path / "prompt"], ["-p", "-"]):
        done = run(file, *how, stdin=data)
        assert done.returncode == 1
        assert b"is not UTF-8 text (byte " in done.stderr
        assert done.stderr.count(b"\n") == 1


def test_an_empty_prompt_and_a_file_that_cannot_be_read_are_said_by_both(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").write_bytes(b"\n")
    for path, words in (
        (tmp_path / "empty", "is empty"),
        (tmp_path / "none", "No such file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "empty" / "x", "Not a directory"),
        (tmp_path / ("n" * 300), "File name too long"),
    ):
        for option in ("--text-file", "--prompt-file"):
            monkeypatch.setattr(sys, "argv", ["mobillama", "generate", str(file), option, str(path)])
            with pytest.raises(SystemExit) as stopped:
                cli.main()
            assert stopped.value.code == 2
        done = run(file, "--text-file", path)
        assert done.returncode == 1
        for said in (*capsys.readouterr().err.splitlines(keepends=True), done.stderr.decode()):
            assert words in said
            assert path.name[-20:] in said
            assert said.count("\n") == 1


def test_a_prompt_is_given_once(file: Path, tmp_path: Path) -> None:
    for given in ((["a"], "x", None), (["a"], None, "x"), ([], "x", "y")):
        with pytest.raises(InputError, match="more than one way"):
            read_prompts(*given)
    with pytest.raises(InputError, match="expected it once"):
        read_prompts(["-", "-"], None, None)
    with pytest.raises(InputError, match="--text-file"):
        read_prompts([], None, None)
    for wrong in (["-p", "a", "--text-file", "x"], ["--ids", "1", "--text-file", "x"], []):
        done = run(file, *wrong)
        assert (done.returncode, done.stdout) == (2, b"")
        assert b"--text-file FILE" in done.stderr
    assert run(file, "--tokenize", "--text-file", "x").returncode == 2
