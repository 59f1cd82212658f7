"""Mutated GGUF files, thousands in one process: a status and words for each, within memory that the file's size bounds.

`make fuzz` gives each driver a million (MOBILLAMA_FUZZ_RUNS sets another number, MOBILLAMA_FUZZ_SEED other inputs) and
leaves what it finds in native/tests/cases, whose files are tests from then on.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

CASES = Path(__file__).parents[2] / "native" / "tests" / "cases"
DRIVER = ["tests/fuzz.cpp", "tests/mutate.cpp", "tests/seeds.cpp", "src/quantize.cpp"]
READER = ["src/gguf.cpp", "src/gguf_values.cpp", "src/file.cpp", "src/tensor_type.cpp"]
SUMMARY = re.compile(r"seed \d+, inputs (\d+) in [\d.]+ s: (\d+) accepted, (\d+) damaged, (\d+) unsupported")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the driver keeps its file in memory with memfd_create")


HOW = {"flags": ["-O1"], "sanitize": "address,undefined"}  # -O2 takes minutes to compile the kernels


@pytest.fixture(scope="session")
def built(compiled: Callable[..., Path], engine: tuple[list[str], dict[str, list[str]]]) -> Callable[[str], Path]:
    """A function from an entry's name to the mutation driver for it, under sanitizers."""

    def build(entry: str) -> Path:
        sources = [*DRIVER, *READER, f"tests/fuzz_{entry}.cpp"]
        if entry == "tokenizer":
            sources.append("program/tokenizer.cpp")
        if entry != "door":
            return compiled(sources, **HOW)
        whole = list(dict.fromkeys([*sources, *engine[0]]))
        return compiled(whole, own_flags=engine[1], link=["-Wl,--wrap=mmap"], **HOW)

    return build


@pytest.fixture(scope="session", params=["reader", "tokenizer", "door"])
def driver(request: pytest.FixtureRequest, built: Callable[[str], Path]) -> Path:
    """For the header's reader, for the vocabulary and for the C door with the fastest kernels of this machine."""
    return built(request.param)


def run(driver: Path, *arguments: str, seconds: float = 600, **environment: str) -> str:
    """What the driver prints; its failure fails the test with its words and the input that did it."""
    done = subprocess.run([driver, *arguments], capture_output=True, env={**os.environ, **environment}, timeout=seconds)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-6000:]
    return done.stdout.decode()


def test_twenty_thousand_mutated_files_get_a_status(driver: Path, tmp_path: Path) -> None:
    printed = run(driver, "--runs", "20000", "--seed", "1", "--cases", str(tmp_path))
    print(printed)
    match = SUMMARY.match(printed)
    assert match is not None
    inputs, accepted, damaged, unsupported = map(int, match.groups())
    assert inputs == accepted + damaged + unsupported == 20000
    # Mutations that are always refused, or never, would test one side only.
    assert accepted > 2000
    assert damaged > 2000
    assert unsupported > 1000


@pytest.mark.long
def test_a_million_mutated_files_get_a_status(driver: Path) -> None:
    runs, seed = (
        os.environ.get(f"MOBILLAMA_FUZZ_{name}", default) for name, default in [("RUNS", "1000000"), ("SEED", "2")]
    )
    printed = run(driver, "--runs", runs, "--seed", seed, "--cases", str(CASES), seconds=6 * 3600)
    print(printed)
    match = SUMMARY.match(printed)
    assert match is not None
    assert int(match[1]) == int(runs)


@pytest.mark.parametrize("isa", ["scalar", "avx2"])
def test_slower_kernels_bear_mutated_files_too(built: Callable[[str], Path], tmp_path: Path, isa: str) -> None:
    if isa != "scalar" and isa not in Path("/proc/cpuinfo").read_text():
        pytest.skip(f"this processor has no {isa}")
    run(built("door"), "--runs", "4000", "--seed", "2", "--cases", str(tmp_path), MOBILLAMA_ISA=isa)


def test_input_i_of_a_seed_is_always_the_same(driver: Path) -> None:
    summaries = [run(driver, "--runs", "50", "--seed", "3", "--first", "100") for _ in range(2)]
    assert len({re.sub(r" in [\d.]+ s", "", summary) for summary in summaries}) == 1


@pytest.mark.parametrize("case", sorted(CASES.glob("*.bin")), ids=lambda case: case.stem)
def test_found_cases_get_a_status(driver: Path, case: Path) -> None:
    assert re.search(r": status [034]$", run(driver, "--replay", str(case)), re.MULTILINE)


def test_the_gguf_package_reads_the_seeds_alike(driver: Path, tmp_path: Path) -> None:
    run(driver, "--write-seeds", str(tmp_path))
    seeds = sorted(tmp_path.iterdir())
    assert len(seeds) == 4
    kinds = set()
    for seed in seeds:
        assert seed.stat().st_size <= 8192
        reader = gguf.GGUFReader(seed)
        kinds |= {tensor.tensor_type.name for tensor in reader.tensors}
        assert run(driver, "--replay", str(seed)) == f"{seed}: status 0\n"
    assert kinds == {"F32", "F16", "BF16", "Q4_0", "Q5_0", "Q8_0", "Q3_K", "Q6_K"}


@pytest.mark.slow
def test_libfuzzer_finds_nothing_at_the_c_door(
    built: Callable[[str], Path],
    compiled_by: Callable[[str], Callable[..., Path]],
    engine: tuple[list[str], dict[str, list[str]]],
    tmp_path: Path,
) -> None:
    """Guided by the code that inputs reach: files of which bytes depend on each other, such as counts and sizes."""
    if shutil.which("clang++") is None:
        pytest.skip("there is no clang++; the Debian packages clang and libclang-rt-14-dev have it and libFuzzer")
    sources = [name for name in (*DRIVER, *READER) if name != "tests/fuzz.cpp"]
    sources = list(dict.fromkeys(["tests/fuzz_guided.cpp", *sources, "tests/fuzz_door.cpp", *engine[0]]))
    how = {**HOW, "sanitize": f"fuzzer-no-link,{HOW['sanitize']}"}
    link = ["-fsanitize=fuzzer", "-Wl,--wrap=mmap"]
    guided = compiled_by("clang++")(sources, own_flags=engine[1], link=link, **how)
    seeds, kept = tmp_path / "seeds", tmp_path / "kept"
    seeds.mkdir()
    kept.mkdir()
    run(built("door"), "--write-seeds", str(seeds))
    # libFuzzer would bound ru_maxrss, which begins with the most that this process ever had.
    limits = ["-max_total_time=30", "-max_len=8192", "-timeout=10", "-malloc_limit_mb=2", "-rss_limit_mb=0"]
    done = subprocess.run(
        [guided, *limits, f"-artifact_prefix={tmp_path}/", kept, seeds],
        env={**os.environ, "ASAN_OPTIONS": "hard_rss_limit_mb=2048"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    print(done.stderr[-2000:])
    assert done.returncode == 0, done.stderr[-6000:]
    match = re.search(r"Done (\d+) runs", done.stderr)
    assert match is not None
    assert int(match[1]) > 1000
    assert len(list(kept.iterdir())) > 20  # inputs that reached code which none had reached before
