"""Peers: built once from a pinned file, with their flags on record; without a build the command is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mobillama.bench import peers
from mobillama.errors import InputError


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


def test_a_build_compiles_from_source_with_its_flags_and_records_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[list[str], dict[str, str]]] = []

    def run(command: list[str], *, check: bool, env: dict[str, str] | None = None) -> None:
        ran.append((command, env or {}))
        (tmp_path / "llama.cpp/bin").mkdir(parents=True, exist_ok=True)

    def output(command: list[str], text: bool) -> str:
        return "llama_cpp_python==0.3.36\n" if "freeze" in command else "compiler 1\n"

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(subprocess, "check_output", output)
    record = peers.build("llama.cpp", tmp_path, jobs=3)
    (venv, _), (install, environment) = ran
    assert venv[:3] == [sys.executable, "-m", "venv"]
    assert install[install.index("--no-binary") + 1] == "llama-cpp-python"
    assert environment["CMAKE_ARGS"] == "-DGGML_NATIVE=ON" and environment["CMAKE_BUILD_PARALLEL_LEVEL"] == "3"
    assert record["recipe"]["flags"] == {"CMAKE_ARGS": "-DGGML_NATIVE=ON"}
    assert record == peers.built_with("llama.cpp", tmp_path)
    assert peers.build("llama.cpp", tmp_path) == record and len(ran) == 2  # once


def test_a_build_from_another_pinned_file_is_not_used(tmp_path: Path) -> None:
    old: dict[str, Any] = {"recipe": {"flags": {}, "pinned": "0" * 64}}
    (tmp_path / "llama.cpp").mkdir()
    (tmp_path / "llama.cpp/built.json").write_text(json.dumps(old))
    with pytest.raises(InputError, match=r"delete .*llama\.cpp and build it again"):
        peers.python_of("llama.cpp", tmp_path)
