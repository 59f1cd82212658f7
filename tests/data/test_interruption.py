"""A full disk, an interrupted write or a kill leaves nothing that looks whole, and the next build ends the same."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from samples import make_documents, make_recipe, write_jsonl

from mobillama import manifest
from mobillama.config import TokenizerConfig
from mobillama.data import parts, tensors
from mobillama.data.shards import read_shards, write_shards
from mobillama.errors import InputError

SCRIPT = """
import resource, sys
from pathlib import Path
from mobillama.config import DataRecipe
from mobillama.data.build import build_shards
out, recipe, largest = Path(sys.argv[1]), DataRecipe.model_validate_json(sys.argv[2]), int(sys.argv[3])
if largest:
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
try:
    build_shards(recipe, out, workers=2, on_progress=lambda progress: None)
except OSError as error:
    sys.exit(str(error.errno))
"""


def arguments(out: Path, root: Path, tokenizer: Path, largest: int = 0, **changes: object) -> list[str]:
    recipe = make_recipe(root, **changes).model_copy(update={"tokenizer": TokenizerConfig(root=str(tokenizer))})
    return [sys.executable, "-c", SCRIPT, str(out), recipe.model_dump_json(), str(largest)]


def files_of(shards: Path) -> list[dict[str, object]]:
    return [manifest.read(shards).files, manifest.read(shards.with_name(shards.name + "-corpus")).files]


def test_a_full_disk_leaves_nothing_that_looks_whole_and_the_next_build_ends_the_same(
    built: Path, corpora: Path, tmp_path: Path
):
    """The limit stops ever larger files, so that one stage after the other meets it."""
    limits = (900, 12_000, 30_000, 60_000)
    stopped = 0
    for largest in limits:
        out = tmp_path / "shards"
        done = subprocess.run(arguments(out, corpora, built / "tokenizer", largest), capture_output=True, text=True)
        if done.returncode:
            assert done.stderr.strip().splitlines()[-1] == str(errno.EFBIG), done.stderr
            assert not out.exists()
            stopped += 1
        for folder in (out, tmp_path / "shards-corpus"):
            if folder.exists():
                manifest.check(folder)
    assert stopped >= 3
    if not out.exists():
        subprocess.run(arguments(out, corpora, built / "tokenizer"), check=True)
    assert files_of(out) == files_of(built)


def test_an_interrupted_write_leaves_the_old_file_or_none(tmp_path: Path):
    path = tmp_path / "file"
    for before in (None, b"old"):
        if before:
            path.write_bytes(before)
        with pytest.raises(KeyboardInterrupt), parts.replacing(path) as beside:
            beside.write_bytes(b"half")
            raise KeyboardInterrupt
        assert [p.read_bytes() for p in tmp_path.iterdir()] == ([before] if before else [])


def test_a_chunk_that_the_disk_cannot_hold_is_an_error_before_anything_is_mapped(tmp_path: Path):
    def fill(arrays: dict[str, np.ndarray]) -> None:
        raise AssertionError("must not be reached")

    layout = tensors.lay_out({"ids": (np.uint16, (1000, 100))}, {})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            tensors.write_arrays(tmp_path / "chunk", layout, fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_interrupted_write_of_shards_is_not_taken_for_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = np.zeros((6, 5), int)
    monkeypatch.setattr(manifest, "sync", lambda path: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        write_shards(tmp_path / "s", rows, rows, vocab_size=3, chunks=2)
    with pytest.raises(InputError, match="unfinished build"):
        read_shards(tmp_path / "s")
    monkeypatch.undo()
    write_shards(tmp_path / "s", rows, rows, vocab_size=3, chunks=2)
    write_shards(tmp_path / "fresh", rows, rows, vocab_size=3, chunks=2)
    assert manifest.read(tmp_path / "s").digest() == manifest.read(tmp_path / "fresh").digest()


def test_strays_of_a_killed_writer_are_not_sealed_in(
    built: Path, corpora: Path, build: Callable[..., Path], tmp_path: Path
):
    for name in ("shards", "shards-corpus"):
        partial = manifest.partial_path(tmp_path / name)
        (partial / "documents").mkdir(parents=True)
        (partial / "documents" / ".part_00000.parquet.1.tmp").write_bytes(b"half")
        (partial / ".manifest.json.1.tmp").write_bytes(b"half")
    assert files_of(build(corpora)) == files_of(built)


def _alive(group: int) -> bool:
    """Whether a process of this group still runs (a zombie does not)."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            return True
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_when_their_build_is_killed_or_interrupted(built: Path, tmp_path: Path, number: int):
    write_jsonl(tmp_path / "raw" / "long.jsonl", make_documents("long", 8000))
    command = arguments(tmp_path / "shards", tmp_path / "raw", built / "tokenizer")
    running = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("*.work/clean")):
        time.sleep(0.01)
    time.sleep(0.1)
    running.send_signal(number)
    assert running.wait(20) != 0
    deadline = time.monotonic() + 5
    while _alive(running.pid):
        assert time.monotonic() < deadline, "a worker outlived its build"
        time.sleep(0.05)


@pytest.mark.slow
def test_killed_at_random_moments_a_build_ends_with_the_same_bytes(built: Path, tmp_path: Path):
    """SIGKILL at 10 random moments, then to the end: every file as in a build that was left alone."""
    random_moments = random.Random(seed := int(os.environ.get("MOBILLAMA_TEST_SEED", time.time_ns() % 10**6)))
    print("seed", seed)
    root = tmp_path / "raw"
    for source in ("book", "web"):
        write_jsonl(root / f"{source}.jsonl", make_documents(source, 900))
    changes = {"chunks": 40}
    start = time.monotonic()
    alone = arguments(tmp_path / "alone", root, built / "tokenizer", **changes)
    subprocess.run(alone, check=True)
    usual = time.monotonic() - start
    command = arguments(tmp_path / "killed", root, built / "tokenizer", **changes)
    kills = 0
    for _ in range(200):
        running = subprocess.Popen(command)
        try:
            running.wait(random_moments.uniform(0.3, 0.9) * usual if kills < 10 else None)
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGKILL)
            running.wait()
            kills += 1
            for folder in (tmp_path / "killed", tmp_path / "killed-corpus"):
                if folder.exists():
                    manifest.check(folder)
            continue
        assert running.returncode == 0
        if kills >= 10:
            break
        for folder in (tmp_path / "killed", tmp_path / "killed-corpus"):
            manifest.remove(folder)
    assert kills == 10
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "alone")
    assert not [path for path in tmp_path.iterdir() if path.name.endswith((".work", ".partial"))]
