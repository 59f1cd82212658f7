"""The header is plain C; one wheel holds all, and runs where there is no compiler and no torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from tests.export.gguf_models import save_sealed, small_model

from mobillama.export.gguf_file import quantize_model
from mobillama.runtime.library import FILE, FUNCTIONS, find

ROOT = Path(__file__).parents[2]
INCLUDE = ROOT / "native" / "include"

USES_ALL_OF_IT = r"""
#include "mobillama.h"
static void progress(double share, void *user) { *(double *)user = share; }
int main(void) {
  double share = 0;
  mobillama_open_options options = {0, 1, 0, progress, &share};
  mobillama_context_options context = {0, 0, 1, MOBILLAMA_KV_INT8, 0};
  mobillama_sampling sampling = {0.8, 0, 0.95, 1.0, 0, 0};
  mobillama_model *model = 0;
  mobillama_status status = mobillama_open("none.gguf", &options, &model);
  return status == MOBILLAMA_IO && context.max_sequences == 1 && sampling.top_k == 0 &&
         mobillama_version() == MOBILLAMA_VERSION ? 0 : 1;
}
"""


def build(*arguments: object, **settings: object) -> subprocess.CompletedProcess[str]:
    """Run a command that must succeed; its output is the message if it does not."""
    done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, **settings)
    assert done.returncode == 0, f"{' '.join(map(str, arguments))}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def c_compiler() -> str:
    """A C compiler."""
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        if name and shutil.which(name):
            return name
    pytest.skip("there is no C compiler; install gcc or set CC")


def test_the_header_is_plain_c_and_links_with_the_library(c_compiler: str, tmp_path: Path) -> None:
    source, program = tmp_path / "main.c", tmp_path / "main"
    source.write_text(USES_ALL_OF_IT, encoding="utf-8")
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{INCLUDE}"]
    build(c_compiler, *flags, source, find(), f"-Wl,-rpath,{find().parent}", "-o", program)
    build(program, cwd=tmp_path)


def test_the_library_shows_its_c_door_and_nothing_else() -> None:
    """What others link against cannot grow by accident, nor clash with another C++ library in the process."""
    if shutil.which("nm") is None:
        pytest.skip("there is no nm; install binutils")
    lines = build("nm", "--dynamic", "--defined-only", find()).stdout.splitlines()
    assert {line.split()[-1] for line in lines} == {f"mobillama_{name}" for name in FUNCTIONS}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one wheel that pip builds from this checkout, with what make setup left in the environment."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    build(*pip, "--no-build-isolation", "--wheel-dir", folder, f"--config-settings=build-dir={folder / 'build'}", ROOT)
    (found,) = folder.glob("*.whl")
    return found


@pytest.mark.slow
def test_one_wheel_for_the_platform_holds_package_recipes_library_and_program(wheel: Path) -> None:
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    recipes = {f"mobillama/{path.relative_to(ROOT)}" for path in (ROOT / "recipes").rglob("*.toml")}
    sources = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    assert recipes and recipes | sources <= names
    assert [name for name in names if "libmobillama" in name] == [f"mobillama/runtime/{FILE}"]
    assert [name for name in names if name.endswith("/scripts/mobillama-run")]
    allowed = ("mobillama/", f"{wheel.name.rsplit('-', 3)[0]}.")  # the package, its metadata and its scripts
    assert [name for name in names if not name.startswith(allowed)] == []


@pytest.mark.slow
def test_the_wheel_runs_where_there_is_no_compiler_and_no_torch(wheel: Path, tmp_path: Path) -> None:
    save_sealed(tmp_path / "model", small_model())
    quantize_model(tmp_path / "model", tmp_path / "model.gguf", "q4_0")
    home = tmp_path / "environment"
    venv.create(home, with_pip=True)
    bare = {"PATH": str(home / "bin"), "HOME": str(tmp_path), "LANG": "C.UTF-8"}
    assert all(shutil.which(name, path=bare["PATH"]) is None for name in ("g++", "c++", "cc", "clang", "cmake"))
    pip = [home / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    build(*pip, "-c", ROOT / "constraints.txt", wheel, env=bare)
    done = subprocess.run([home / "bin" / "python", "-c", "import torch"], capture_output=True, env=bare)
    assert done.returncode == 1
    choices = ["--max-new-tokens", 6, "--temperature", 0]
    text = build(home / "bin" / "mobillama", "generate", "model.gguf", "import ", *choices, env=bare, cwd=tmp_path)
    program = build(home / "bin" / "mobillama-run", "model.gguf", "-p", "import ", *choices, env=bare, cwd=tmp_path)
    assert program.stdout.rstrip("\n")
    assert program.stdout.rstrip("\n") in text.stdout
    build(home / "bin" / "mobillama", "model", "info", "mobillama-0.5b", env=bare, cwd=tmp_path)  # reads a recipe


@pytest.mark.slow
def test_without_a_compiler_the_build_says_which_to_install(tmp_path: Path) -> None:
    bare = {**os.environ, "PATH": str(Path(sys.executable).parent), "CXX": str(tmp_path / "none")}
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    settings = f"--config-settings=build-dir={tmp_path / 'build'}"
    done = subprocess.run([*pip, "-w", tmp_path, settings, ROOT], capture_output=True, text=True, env=bare)
    assert done.returncode != 0
    assert "It needs a C++20 compiler" in done.stdout + done.stderr
    assert list(tmp_path.glob("*.whl")) == []
