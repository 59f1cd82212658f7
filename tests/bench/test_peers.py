"""Peers: built once from a pinned file, with their flags on record; without a build the command is named."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mobillama.bench import engines, peers
from mobillama.bench.notes import notes
from mobillama.bench.setting import Setting
from mobillama.errors import InputError, MeasurementError


def test_a_peer_that_is_not_built_names_the_command_that_builds_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not built.*mobillama bench peers llama\.cpp"):
        peers.python_of("llama.cpp", tmp_path)


def test_an_unknown_peer_is_named_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'ollama'.*llama\.cpp"):
        peers.build("ollama", tmp_path)


def test_every_pinned_line_is_an_exact_version() -> None:
    for name in peers.BUILDS:
        lines = (peers.PINNED / f"{name}.txt").read_text().splitlines()
        packages = [line for line in lines if not line.startswith("#")]
        assert packages and all(line.count("==") == 1 for line in packages), packages


class Pip:
    """In place of subprocess: what was compiled with which flags, and how each build ends when it is tried."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, ends: list[str]) -> None:
        self.ran: list[tuple[list[str], dict[str, str]]] = []
        self.tried: list[dict[str, Any]] = []
        self.ends, self.home = ends, folder / "llama.cpp"
        monkeypatch.setattr(subprocess, "run", self.run)
        monkeypatch.setattr(subprocess, "check_output", self.output)
        monkeypatch.setattr(peers, "try_build", self.try_build)

    def run(self, command: list[str], *, check: bool, env: dict[str, str] | None = None) -> None:
        self.ran.append((command, env or {}))
        (self.home / "bin").mkdir(parents=True, exist_ok=True)

    def output(self, command: list[str], text: bool) -> str:
        return "llama_cpp_python==0.3.36\n" if "freeze" in command else "compiler 1\n"

    def try_build(self, name: str, python: str, options: dict[str, Any]) -> str:
        self.tried.append(dict(options))
        return self.ends.pop(0)


def test_a_build_compiles_from_source_with_its_flags_and_records_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = Pip(monkeypatch, tmp_path, [""])
    record = peers.build("llama.cpp", tmp_path, jobs=3)
    (venv, _), (install, environment) = pip.ran
    assert venv[:3] == [sys.executable, "-m", "venv"]
    assert install[install.index("--no-binary") + 1] == "llama-cpp-python" and "--no-cache-dir" in install
    assert environment["CMAKE_ARGS"] == "-DGGML_NATIVE=ON" and environment["CMAKE_BUILD_PARALLEL_LEVEL"] == "3"
    assert record["build"] == {"name": "native", "flags": {"CMAKE_ARGS": "-DGGML_NATIVE=ON"}, "options": {}}
    assert record["tried"] == [] and peers.called(record) == "llama.cpp"
    assert record == peers.built_with("llama.cpp", tmp_path)
    assert peers.build("llama.cpp", tmp_path) == record and len(pip.ran) == 2  # once


def test_a_build_that_crashes_gives_way_to_the_next_and_every_figure_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash = "it ended by SIGSEGV when asked to prefill"
    pip = Pip(monkeypatch, tmp_path, [crash, crash, ""])
    record = peers.build("llama.cpp", tmp_path)
    _, (_, native), (install, without) = pip.ran  # the third build is the second, opened otherwise
    assert "CXXFLAGS" not in native and "-mno-amx-int8" in without["CXXFLAGS"] == without["CFLAGS"]
    assert "GGML_NATIVE=ON" in without["CMAKE_ARGS"] and "--force-reinstall" in install
    assert pip.tried == [{}, {}, {"repack": False}]
    assert [each["build"] for each in record["tried"]] == ["native", "native without AMX"]
    monkeypatch.setattr(peers, "FOLDER", tmp_path)
    setting = Setting("llama.cpp", folder=tmp_path, peers_folder=tmp_path)
    assert setting.peer_name == "llama.cpp (native without AMX, weights not repacked)"
    said = "\n".join(
        notes({"about": {}, "peer": {"name": "llama.cpp", "chosen": {}, "built": record}, "models": {}, "fed": ""})
    )
    assert f"llama.cpp, native: not used, {crash}" in said and f"native without AMX: not used, {crash}" in said


def test_a_peer_whose_every_build_crashes_is_an_error_with_their_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Pip(monkeypatch, tmp_path, ["it ended by SIGILL"] * 3)
    with pytest.raises(MeasurementError, match=r"no build of llama\.cpp survives.*native: it ended by SIGILL"):
        peers.build("llama.cpp", tmp_path)
    assert not (tmp_path / "llama.cpp/built.json").exists()


def test_a_trial_reads_a_prompt_and_goes_on_and_tells_how_a_process_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer's place is taken by our own engine, which has the same verbs, and by one that ends by a signal."""
    command = engines.command("ours")
    monkeypatch.setattr(engines, "command", lambda *_: command)
    assert peers.try_build("llama.cpp", sys.executable, {}) == ""
    crash = "import os, signal; input(); os.kill(os.getpid(), signal.SIGSEGV)"
    monkeypatch.setattr(engines, "command", lambda *_: [sys.executable, "-c", crash])
    assert peers.try_build("llama.cpp", sys.executable, {}) == "it ended by SIGSEGV when asked to open"


@pytest.mark.parametrize("flags", ["", peers.NO_AMX])
def test_amx_alone_is_taken_off_what_the_compiler_uses(flags: str) -> None:
    compiler = shutil.which("g++")
    if compiler is None or platform.machine() != "x86_64":
        pytest.skip("needs g++ on x86-64")
    command = [compiler, *flags.split(), "-march=sapphirerapids", "-dM", "-E", "-x", "c++", "/dev/null"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert ("__AMX_INT8__" in found) == (not flags) and "__AVX512VNNI__" in found and "__AVX512BF16__" in found


def test_a_build_from_another_pinned_file_is_not_used(tmp_path: Path) -> None:
    old: dict[str, Any] = {"recipe": {"flags": {}, "pinned": "0" * 64}}
    (tmp_path / "llama.cpp").mkdir()
    (tmp_path / "llama.cpp/built.json").write_text(json.dumps(old))
    with pytest.raises(InputError, match=r"delete .*llama\.cpp and build it again"):
        peers.python_of("llama.cpp", tmp_path)
