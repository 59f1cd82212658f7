"""Fixtures for the engine: C++ programs and libraries, compiled once for given sources and flags."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "native"
BASE_FLAGS = ["-std=c++20", "-O2", "-g1", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden"]
BASE_FLAGS += [
    "-Wall",
    "-Wextra",
    "-Wpedantic",
    f"-I{NATIVE / 'include'}",
    f"-I{NATIVE / 'src'}",
    f"-I{NATIVE / 'tests'}",
]
SANITIZED = ["-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


@pytest.fixture(scope="session")
def compiled(compiled_by: Callable[[str], Callable[..., Path]]) -> Callable[..., Path]:
    """What `compiled_by` says, by the compiler that CXX names, or g++."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no C++ compiler {compiler}; install g++ or set CXX")
    return compiled_by(compiler)


@pytest.fixture(scope="session")
def compiled_by(request: pytest.FixtureRequest) -> Callable[[str], Callable[..., Path]]:
    """A function of a compiler, whose answer compiles C++: the path of the program, or of a library with "-shared".

    compiled(["tests/dump.cpp", "src/gguf.cpp"], flags=["-O1"], sanitize="address,undefined")

    Sources are paths below native/; own_flags: further flags of single sources; link: of the linker. What was compiled
    is kept in pytest's cache under a hash of sources, headers and flags, so that a second run and a second worker
    compile nothing. A compiler's error fails the test with its text.
    """
    folder = request.config.cache.mkdir("native")  # type: ignore[union-attr]

    def by(compiler: str) -> Callable[..., Path]:
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout

        def make(kind: str, arguments: Sequence[str], files: Sequence[Path]) -> Path:
            digest = hashlib.sha256(repr((compiler, version, arguments)).encode())
            for file in files:
                digest.update(file.read_bytes())
            out = folder / f"{files[0].stem}-{digest.hexdigest()[:20]}{kind}"
            with (folder / f"{out.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not out.exists():
                    part = out.with_name(f"{out.name}.part")
                    done = subprocess.run([compiler, *arguments, "-o", str(part)], capture_output=True, text=True)
                    if done.returncode != 0:
                        pytest.fail(f"{compiler} {' '.join(arguments)}\n{done.stderr}", pytrace=False)
                    part.replace(out)
            return out

        def compiled(
            sources: Sequence[str],
            flags: Sequence[str] = (),
            own_flags: dict[str, Sequence[str]] | None = None,
            sanitize: str = "",
            link: Sequence[str] = (),
        ) -> Path:
            headers = sorted(NATIVE.rglob("*.h"))
            common = [*BASE_FLAGS, *flags]
            if sanitize:
                common += [f"-fsanitize={sanitize}", *SANITIZED]
            objects = [
                make(
                    ".o",
                    [
                        "-c",
                        str(NATIVE / name),
                        *(flag for flag in common if flag != "-shared"),
                        *(own_flags or {}).get(name, ()),
                    ],
                    [NATIVE / name, *headers],
                )
                for name in sources
            ]
            return make(".so" if "-shared" in flags else "", [*map(str, objects), *common, *link, "-pthread"], objects)

        return compiled

    return by


@pytest.fixture(scope="session")
def engine() -> tuple[list[str], dict[str, list[str]]]:
    """The engine's sources for this machine and the flags of its kernels: sources and own_flags for `compiled`.

    The flags are read from native/CMakeLists.txt.
    """
    text = (NATIVE / "CMakeLists.txt").read_text()
    flags = {name: value.split() for name, value in re.findall(r"set\(flags_(\w+) ([^)]*)\)", text)}
    arm = ["neon", "neon_dot", "neon_i8mm"]
    kinds = {"x86_64": ["avx2", "avx512"], "aarch64": arm, "arm64": arm}
    kernels = ["scalar", *kinds.get(platform.machine(), ())]
    sources = [
        f"src/{file.name}" for file in sorted((NATIVE / "src").glob("*.cpp")) if not file.stem.startswith("kernels_")
    ]
    sources += [f"src/kernels_{kernel}.cpp" for kernel in kernels]
    return sources, {f"src/kernels_{kernel}.cpp": flags.get(kernel, []) for kernel in kernels}
