"""Built for 64-bit Arm and run under emulation, the engine gives the ids of the scalar kernels here."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.export.gguf_models import save_sealed, small_model
from tests.native.programs import PROGRAM

from mobillama.export.gguf_file import quantize_model

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

NATIVE = Path(__file__).parents[2] / "native"
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
PACKAGES = {COMPILER: "g++-aarch64-linux-gnu", EMULATOR: "qemu-user"}  # Debian's and Ubuntu's names
# Processors that the emulator knows, and what the engine must choose on them.
PROCESSORS = {"max": "neon-i8mm", "cortex-a76": "neon-dot", "cortex-a53": "neon"}
TYPES = ("f32", "f16", "bf16", "q4_0", "q5_0", "q8_0", "q3_k", "q6_k")


@pytest.fixture(scope="module")
def arm_program(request: pytest.FixtureRequest) -> Path:
    """mobillama-run for 64-bit Arm, all in one file; built again where sources changed."""
    if missing := [package for program, package in PACKAGES.items() if shutil.which(program) is None]:
        pytest.skip(f"the Arm build cannot be checked here: apt install {' '.join(missing)}")
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert cmake is not None, "there is no cmake; make setup installs it"
    folder = request.config.cache.mkdir("arm")  # type: ignore[union-attr]
    settings = {
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_CXX_COMPILER": COMPILER,
        "CMAKE_EXE_LINKER_FLAGS": "-static",
    }
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (
            [cmake, "-S", NATIVE, "-B", folder, *(f"-D{name}={value}" for name, value in settings.items())],
            [cmake, "--build", folder, "--target", "mobillama-run"],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return folder / "mobillama-run"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small model in every type; rows of 256 weights, so that each type's blocks divide them."""
    folder = tmp_path_factory.mktemp("arm")
    save_sealed(folder / "model", small_model(hidden_size=256, intermediate_size=512, num_hidden_layers=3))
    for type_ in TYPES:
        quantize_model(folder / "model", folder / f"{type_}.gguf", type_)
    return {type_: folder / f"{type_}.gguf" for type_ in TYPES}


def answer(*command: object, isa: str = "") -> dict[str, Any]:
    """What the program says of one run, by itself or in the emulator."""
    environment = {**os.environ, "MOBILLAMA_ISA": isa}
    done = subprocess.run([*map(str, command), "--json"], capture_output=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("type_", TYPES)
def test_ids_on_arm_are_those_of_the_scalar_kernels(
    arm_program: Path, files: dict[str, Path], type_: str, processor: str
) -> None:
    """Drawn at temperature 1, where a small error in any logit soon shows; prefill in blocks, then one by one."""
    prompt = ",".join(str(3 + 7 * place % 390) for place in range(21))
    for kv, threads in (("f16", 1), ("int8", 2), ("f32", 1)):
        options = [files[type_], "--ids", prompt, "-n", 24, "--temperature", 1, "--kv", kv, "--threads", threads]
        expected = answer(PROGRAM, *options, isa="scalar")
        found = answer(EMULATOR, "-cpu", processor, arm_program, *options)
        assert found["isa"] == PROCESSORS[processor]
        assert found["ids"] == expected["ids"], (type_, processor, kv)
        if threads == 1:
            scalar = answer(EMULATOR, "-cpu", processor, arm_program, *options, isa="scalar")
            assert (scalar["ids"], scalar["isa"]) == (expected["ids"], "scalar")


def test_text_on_arm_is_the_same_text(arm_program: Path, files: dict[str, Path]) -> None:
    """Plain `char` has no sign there."""
    options = [files["q4_0"], "-p", "déjà 中文 \u2581 def f(x):\n", "-n", 20, "--seed", 4, "--threads", 1]
    expected = answer(PROGRAM, *options, isa="scalar")
    assert len(expected["ids"]) == 20
    assert answer(EMULATOR, arm_program, *options)["text"] == expected["text"]
