"""Peers that a bench measures beside: each in an environment of its own, built once from a pinned file.

`.peers/NAME` is a virtual environment; `built.json` in it, written last, records how it was built.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from mobillama.errors import InputError

FOLDER = Path(".peers")
PINNED = Path(__file__).with_name("pinned")
# Compiled on this machine for this machine: a wheel made elsewhere would lack its instructions.
BUILDS: dict[str, dict[str, Any]] = {
    "llama.cpp": {"flags": {"CMAKE_ARGS": "-DGGML_NATIVE=ON"}, "from_source": "llama-cpp-python"},
}


def python_of(name: str, folder: Path = FOLDER) -> Path:
    """The interpreter of a peer's environment. Errors: InputError if unknown, or not built from today's pinned file."""
    recipe = _recipe(name)
    home = folder / name
    try:
        built = json.loads((home / "built.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"the peer {name!r} is not built ({home}); build it once with: mobillama bench peers {name}"
        ) from None
    if built["recipe"] != recipe:
        raise InputError(
            f"the peer {name!r} in {home} was built from {built['recipe']}, expected {recipe}; "
            f"delete {home} and build it again with: mobillama bench peers {name}"
        )
    return home / "bin" / "python"


def built_with(name: str, folder: Path = FOLDER) -> dict[str, Any]:
    """What `built.json` of a built peer records: recipe, versions, compiler."""
    python_of(name, folder)
    found: dict[str, Any] = json.loads((folder / name / "built.json").read_text(encoding="utf-8"))
    return found


def build(name: str, folder: Path = FOLDER, jobs: int = 0) -> dict[str, Any]:
    """Build the environment of a peer, unless it is there; compiles for a long time. Gives its record.

    jobs: compilers at once, 0 = one per core. Errors: InputError for an unknown peer; CalledProcessError if pip fails.
    """
    recipe = _recipe(name)
    home = folder / name
    if (home / "built.json").exists():
        return built_with(name, folder)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
    python = str(home / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    flags = {**recipe["flags"], "CMAKE_BUILD_PARALLEL_LEVEL": str(jobs or os.cpu_count() or 1)}
    command = [*pip, "--no-binary", recipe["from_source"], "-r", str(PINNED / f"{name}.txt")]
    print(f"building {name} in {home} with {flags}: this takes long", file=sys.stderr)
    subprocess.run(command, check=True, env={**os.environ, **flags})
    record = {
        "recipe": recipe,
        "command": command[1:],
        "compiler": _first_line(["c++", "--version"]),
        "packages": subprocess.check_output([python, "-m", "pip", "freeze"], text=True).split(),
    }
    (home / "built.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def _recipe(name: str) -> dict[str, Any]:
    if name not in BUILDS:
        raise InputError(f"no peer {name!r} that needs building; there are: {', '.join(BUILDS)}")
    pinned = hashlib.sha256((PINNED / f"{name}.txt").read_bytes()).hexdigest()
    return {**BUILDS[name], "pinned": pinned}


def _first_line(command: list[str]) -> str:
    try:
        return subprocess.check_output(command, text=True).splitlines()[0]
    except (OSError, subprocess.CalledProcessError):
        return "not found"
