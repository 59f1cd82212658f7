"""Peers that a bench measures beside: each in an environment of its own, built once from a pinned file.

`.peers/NAME` is a virtual environment; `built.json` in it, written last, records how it was built. A build is tried on
a small model before it counts: where it ends in a crash, the next one in BUILDS takes its place, and the record says
which were tried and how they ended.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mobillama.bench import engines
from mobillama.bench.process import Process, ProcessEndedError
from mobillama.cores import cores
from mobillama.errors import InputError, MeasurementError

FOLDER = Path(".peers")
PINNED = Path(__file__).with_name("pinned")
FROM_SOURCE = {"llama.cpp": "llama-cpp-python"}  # a wheel made elsewhere would lack this machine's instructions


@dataclass(frozen=True)
class Build:
    """One way to compile a peer, and the options its sides are opened with."""

    name: str
    flags: Mapping[str, str]  # environment variables of the compilation
    options: Mapping[str, Any] = field(default_factory=dict)


# What GCC and Clang take off -march=native; every other extension of the processor stays on.
NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
NATIVE = {"CMAKE_ARGS": "-DGGML_NATIVE=ON"}
# Fastest first. llama.cpp with AMX ends in a crash on some processors that have it; weights stay packed for the other
# kernels ("repacking") unless those crash too.
BUILDS: dict[str, tuple[Build, ...]] = {
    "llama.cpp": (
        Build("native", NATIVE),
        Build("native without AMX", {**NATIVE, "CFLAGS": NO_AMX, "CXXFLAGS": NO_AMX}),
        Build(
            "native without AMX, weights not repacked",
            {**NATIVE, "CFLAGS": NO_AMX, "CXXFLAGS": NO_AMX},
            {"repack": False},
        ),
    ),
}
TRIED_IDS = 64  # of the prompt that a build must survive: enough for the kernels that take many rows at once
# A model to try a build on: every size a multiple of what its kernels ask for.
TRIED = """
name = "peer-trial"
vocab_size = 512
hidden_size = 512
intermediate_size = 1024
num_hidden_layers = 2
num_attention_heads = 8
num_ffn_blocks = 1
max_position_embeddings = 256
"""


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
    """What `built.json` of a built peer records: recipe, the build that counts, those tried before it, versions."""
    python_of(name, folder)
    found: dict[str, Any] = json.loads((folder / name / "built.json").read_text(encoding="utf-8"))
    return found


def called(built: Mapping[str, Any]) -> str:
    """How a figure names a built peer: its name alone where the first build of BUILDS survived.

    >>> called({"peer": "llama.cpp", "build": {"name": "native"}, "tried": []})
    'llama.cpp'
    """
    return f"{built['peer']} ({built['build']['name']})" if built["tried"] else str(built["peer"])


def build(name: str, folder: Path = FOLDER, jobs: int = 0) -> dict[str, Any]:
    """Build the environment of a peer, unless it is there; compiles for a long time. Gives its record.

    jobs: compilers at once, 0 = one per core. Errors: InputError for an unknown peer; MeasurementError if no build of
    it survives its trial; CalledProcessError if pip fails.
    """
    recipe = _recipe(name)
    home = folder / name
    if (home / "built.json").exists():
        return built_with(name, folder)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
    python = str(home / "bin" / "python")
    # Without the cache: pip would give the wheel of the build before, whose name does not tell its flags.
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--no-cache-dir"]
    command = [*pip, "--no-binary", FROM_SOURCE[name], "-r", str(PINNED / f"{name}.txt")]
    compiled: Mapping[str, str] | None = None
    tried: list[dict[str, str]] = []
    for each in BUILDS[name]:
        if each.flags != compiled:
            again = ["--force-reinstall", "--no-deps"] if compiled is not None else []
            flags = {**each.flags, "CMAKE_BUILD_PARALLEL_LEVEL": str(jobs or cores())}
            print(f"building {name}, {each.name}, in {home} with {flags}: this takes long", file=sys.stderr)
            subprocess.run([*command, *again], check=True, env={**os.environ, **flags})
            compiled = each.flags
        end = try_build(name, python, each.options)
        if not end:
            break
        print(f"{name}, {each.name}: {end}", file=sys.stderr)
        tried.append({"build": each.name, "end": end})
    else:
        ends = "; ".join(f"{each['build']}: {each['end']}" for each in tried)
        raise MeasurementError(f"no build of {name} survives a prompt of {TRIED_IDS} ids on this machine: {ends}")
    record = {
        "recipe": recipe,
        "peer": name,
        "build": asdict(each),
        "tried": tried,
        "command": command[1:],
        "compiler": _first_line(["c++", "--version"]),
        "packages": subprocess.check_output([python, "-m", "pip", "freeze"], text=True).split(),
    }
    (home / "built.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def try_build(name: str, python: str, options: Mapping[str, Any]) -> str:
    """Read a prompt and go on with a small model of random weights in 4 bits; "" or how the process ended."""
    from mobillama.export.gguf_file import quantize_model

    with tempfile.TemporaryDirectory(prefix="mobillama-peer-") as folder:
        preset, file = Path(folder) / "trial.toml", Path(folder) / "trial.gguf"
        preset.write_text(TRIED, encoding="utf-8")
        quantize_model(str(preset), file, "q4_0", architecture="llama")
        try:
            with Process(name, engines.command(name, python)) as process:
                process.ask("open", file=str(file), **options)
                process.ask("context", max_tokens=2 * TRIED_IDS, threads=cores())
                process.ask("prefill", ids=list(range(3, 3 + TRIED_IDS)))
                process.ask("decode", ids=[3, 4], after=TRIED_IDS)
        except ProcessEndedError as error:
            return f"{error.status} when asked to {error.asked}"
    return ""


def _recipe(name: str) -> dict[str, Any]:
    if name not in BUILDS:
        raise InputError(f"no peer {name!r} that needs building; there are: {', '.join(BUILDS)}")
    pinned = hashlib.sha256((PINNED / f"{name}.txt").read_bytes()).hexdigest()
    builds = [asdict(each) for each in BUILDS[name]]
    return {"from_source": FROM_SOURCE[name], "builds": builds, "pinned": pinned}


def _first_line(command: list[str]) -> str:
    try:
        return subprocess.check_output(command, text=True).splitlines()[0]
    except (OSError, subprocess.CalledProcessError):
        return "not found"
