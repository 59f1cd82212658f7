"""What the system cannot do ends a command with one line: the file, the reason, what to do; never a traceback."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.export.gguf_models import save_sealed, small_model

from mobillama import cli
from mobillama.cli import commands, system_errors
from mobillama.errors import naming

COMMAND = [sys.executable, "-m", "mobillama.cli"]


def said(error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that ends with this error says."""

    def failing() -> None:
        raise error

    monkeypatch.setattr(commands, "app", failing)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    words = capsys.readouterr().err
    assert words.startswith("error: ")
    assert words.count("\n") == 1
    return words


@pytest.mark.parametrize(
    "number",
    sorted({*system_errors.REMEDIES, *system_errors.NO_ROOM, errno.EINVAL, errno.ENOTCONN} - {errno.EPIPE}),
    ids=errno.errorcode.get,
)
def test_every_error_of_the_system_is_one_line_with_the_files_name(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = said(OSError(number, os.strerror(number), "place/name"), monkeypatch, capsys)
    assert "place/name" in words
    assert os.strerror(number) in words
    assert os.strerror(number) in said(OSError(number, os.strerror(number)), monkeypatch, capsys)


def test_errors_of_libraries_are_words_and_faults_of_the_program_are_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow
    from safetensors import SafetensorError

    full = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert "free some space" in said(full, monkeypatch, capsys)
    assert "permissions" in said(Exception("Permission denied (os error 13)"), monkeypatch, capsys)
    assert "pyarrow: bad page" in said(pyarrow.ArrowInvalid("bad page\nsecond line"), monkeypatch, capsys)
    for fault in (KeyError("x"), IndexError(3), ValueError("y"), RuntimeError("z")):
        monkeypatch.setattr(commands, "app", lambda fault=fault: (_ for _ in ()).throw(fault))
        with pytest.raises(type(fault)):
            cli.main()


def test_an_error_of_an_open_file_gets_its_name() -> None:
    for given, expected in ((None, "here"), ("there", "there")):
        with pytest.raises(OSError, match=expected), naming("here"):
            raise OSError(errno.EIO, "Input/output error", given)


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: what a full disk does to a writer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "words",
    [
        ["quantize", "model", "out", "--type", "f32"],
        ["export", "model", "out", "--format", "llama.cpp"],
        ["export", "model", "out", "--format", "llama"],
        ["export", "model", "out", "--format", "hf"],
    ],
    ids=" ".join,
)
def test_a_full_disk_leaves_no_file_and_says_which(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_sealed(tmp_path / "model", small_model())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mobillama", *words])
    with files_of_at_most(40_000), pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: no room to write out")
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0
    assert (tmp_path / "out").exists()


NAMED = "\u00fcber-\u4f60\u597d"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A model recipe whose name no ASCII terminal can print."""
    path = tmp_path / f"{NAMED}.toml"
    path.write_text("hidden_size = 64\nintermediate_size = 96\nnum_hidden_layers = 2\nnum_attention_heads = 4\n")
    return path


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize(
    "words", [["model", "info", "RECIPE"], ["model", "info", "RECIPE", "--json"], ["--help"], ["model", "info", NAMED]]
)
def test_what_a_terminal_cannot_print_is_replaced(recipe: Path, encoding: str, words: list[str]) -> None:
    done = subprocess.run(
        [*COMMAND, *(str(recipe) if word == "RECIPE" else word for word in words)],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert b"Traceback" not in done.stderr
    assert done.returncode == (2 if words[-1] == NAMED else 0)
    (done.stdout + done.stderr).decode(encoding)
    if words[-1] == "--json":
        json.loads(done.stdout.decode(encoding))


@pytest.mark.parametrize("words", [["model", "info"], ["--help"], ["model", "info", "--json"]], ids=" ".join)
def test_output_that_nobody_takes_ends_a_command_quietly_and_a_full_one_in_words(words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*COMMAND, *words], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")
    if Path("/dev/full").exists():
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run([*COMMAND, *words], stdout=full, stderr=subprocess.PIPE)
        assert done.returncode == 2
        assert b"no room to write stdout" in done.stderr or words == ["--help"]
        assert done.stderr.count(b"\n") == 1
