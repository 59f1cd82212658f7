"""Every instruction set's kernels give the scalar kernels' bits."""

from __future__ import annotations

import platform
import random
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "native"
X86 = platform.machine() in ("x86_64", "AMD64")
ARM = platform.machine() in ("aarch64", "arm64")

COMMON = ["tests/kernels.cpp", "src/cpu.cpp", "src/cgroup.cpp", "src/kernels_scalar.cpp", "src/tensor_type.cpp"]
X86_FLAGS = {
    "src/kernels_avx2.cpp": ["-mavx2", "-mfma", "-mf16c", "-mbmi2"],
    # The compiler's own header makes "undefined" registers from themselves, and warns of it.
    "src/kernels_avx512.cpp": [
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"),
        *("-mavx2", "-mfma", "-mf16c", "-Wno-maybe-uninitialized"),
    ],
}
ARM_FLAGS = {
    "src/kernels_neon.cpp": [],
    "src/kernels_neon_dot.cpp": ["-march=armv8.2-a+dotprod"],
    "src/kernels_neon_i8mm.cpp": ["-march=armv8.2-a+dotprod+i8mm"],
}
TABLES = ["scalar", *(["avx2", "avx512"] if X86 else []), *(["neon", "neon-dot", "neon-i8mm"] if ARM else [])]
LACKS = 77  # the driver's exit status where the machine cannot run the table


def compare(command: Sequence[str], table: str) -> None:
    seed = random.randrange(2**32)
    done = subprocess.run([*command, "--isa", table, "--seed", str(seed)], capture_output=True, text=True)
    print(done.stdout)
    if done.returncode == LACKS:
        pytest.skip(f"this machine cannot run the kernels for {table}")
    assert done.returncode == 0, f"{table}, seed {seed}, exit status {done.returncode}: {done.stdout}{done.stderr}"
    assert int(done.stdout.split()[-2]) > 1000, done.stdout


@pytest.mark.parametrize("table", TABLES)
def test_kernels_give_the_scalar_bits(table: str, compiled: Callable[..., Path]) -> None:
    own_flags = X86_FLAGS if X86 else ARM_FLAGS if ARM else {}
    compare([str(compiled([*COMMON, *own_flags], own_flags=own_flags))], table)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver for AArch64, to be run by an emulator."""
    compiler = "aarch64-linux-gnu-g++"
    for tool, package in ((compiler, "g++-aarch64-linux-gnu"), ("qemu-aarch64", "qemu-user")):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool}; the Debian package {package} has it")
    folder = tmp_path_factory.mktemp("aarch64")
    flags = ["-std=c++20", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Wpedantic"]
    flags += [f"-I{NATIVE / name}" for name in ("include", "src")]
    objects: list[str] = []
    for source in [*COMMON, *ARM_FLAGS]:
        objects.append(str(folder / f"{len(objects)}.o"))
        own = ARM_FLAGS.get(source, [])
        subprocess.run([compiler, *flags, *own, "-c", str(NATIVE / source), "-o", objects[-1]], check=True)
    subprocess.run([compiler, "-static", *objects, "-o", str(folder / "kernels")], check=True)
    return folder / "kernels"


@pytest.mark.slow
@pytest.mark.skipif(ARM, reason="this machine runs these kernels itself")
@pytest.mark.parametrize(
    ("table", "processor"),
    [("neon", "cortex-a53"), ("neon", "max"), ("neon-dot", "cortex-a76"), ("neon-dot", "max"), ("neon-i8mm", "max")],
)
def test_neon_kernels_give_the_scalar_bits(table: str, processor: str, foreign: Path) -> None:
    compare(["qemu-aarch64", "-cpu", processor, str(foreign)], table)


@pytest.mark.slow
@pytest.mark.skipif(ARM, reason="this machine runs these kernels itself")
@pytest.mark.parametrize(("table", "processor"), [("neon-dot", "cortex-a53"), ("neon-i8mm", "cortex-a76")])
def test_an_older_processor_is_not_given_what_it_lacks(table: str, processor: str, foreign: Path) -> None:
    command = ["qemu-aarch64", "-cpu", processor, str(foreign), "--isa", table]
    assert subprocess.run(command, capture_output=True).returncode == LACKS
