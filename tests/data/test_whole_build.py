"""The whole recipe mini-amber, every step of it: the same bytes on any number of workers and after any kills."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mobillama import manifest

KILLS = 10


@pytest.fixture(scope="module")
def command(shared_folder: Callable[[str], Path]) -> Callable[[Path, int], list[str]]:
    """The command that builds at a place on some workers; without the benchmarks their overlap is left out."""
    for variable in ("MOBILLAMA_CORPORA", "MOBILLAMA_TOKENIZER"):
        shared_folder(variable)
    settings = [] if os.environ.get("MOBILLAMA_BENCHMARKS") else ["--set", "clean.overlap=off"]

    def made(out: Path, workers: int) -> list[str]:
        build = [sys.executable, "-m", "mobillama.cli", "data", "build", "mini-amber", *settings]
        return [*build, "--out", str(out), "--workers", str(workers)]

    return made


def files_of(out: Path) -> dict[str, dict[str, dict[str, object]]]:
    """sha256 of every file of shards and corpus, after they were hashed again."""
    found = {}
    for folder in (out, out.with_name(out.name + "-corpus")):
        manifest.check(folder)
        found[folder.name.removeprefix(out.name)] = manifest.read(folder).files
    return found


@pytest.mark.slow
def test_mini_amber_is_the_same_on_one_two_and_five_workers_and_killed_ten_times(
    command: Callable[[Path, int], list[str]], tmp_path: Path
):
    moments = random.Random(seed := int(os.environ.get("MOBILLAMA_TEST_SEED", time.time_ns() % 10**6)))
    print("seed", seed)
    taken = {}
    for workers in (2, 1, 5):
        start = time.monotonic()
        subprocess.run(command(tmp_path / str(workers), workers), check=True, capture_output=True)
        taken[workers] = time.monotonic() - start
    expected = files_of(tmp_path / "2")
    assert files_of(tmp_path / "1") == expected
    assert files_of(tmp_path / "5") == expected

    out, kills, stages = tmp_path / "killed", 0, set()
    while kills < KILLS:
        running = subprocess.Popen(command(out, 2), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            assert running.wait(moments.uniform(0.05, 0.95) * taken[2]) == 0
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGKILL)
            running.wait()
            kills += 1
            stages |= {path.parent.name for path in tmp_path.glob("killed*.work/*/completions")}
            continue
        for folder in (out, tmp_path / "killed-corpus"):  # done before all kills were spent: once more from nothing
            manifest.remove(folder)
    subprocess.run(command(out, 2), check=True, capture_output=True)
    assert files_of(out) == expected
    assert len(stages) >= 2, f"kills met only {stages}"
    assert not [path for path in tmp_path.iterdir() if path.name.endswith((".work", ".partial"))]
