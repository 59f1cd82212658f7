"""Which files are read: every usual name and packing, in capitals or not; what is not read is counted and shown."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from samples import make_documents, make_recipe, write_jsonl

from mobillama import manifest
from mobillama.cli.data import list_files
from mobillama.cli.plan import data_words
from mobillama.config import SourceConfig
from mobillama.data.ingest import read_task
from mobillama.data.plan import plan_data
from mobillama.data.sources import Unread, describe_unread, list_tasks, recipe_tasks
from mobillama.errors import InputError

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
LINES = b'{"text": "one", "id": "1"}\n{"text": "two", "id": "2"}\n'


def texts(root: Path, **settings: Any) -> dict[str, list[str]]:
    tasks = list_tasks(SourceConfig(root=str(root), **settings))
    return {task.subset: [document.text for document in read_task(task)] for task in tasks}


def test_json_lines_are_read_whatever_they_are_called_and_packed(tmp_path: Path):
    suffixes = [f".{name}{packed}" for name in ("jsonl", "ndjson", "json") for packed in PACK]
    for number, suffix in enumerate([*suffixes, ".JSONL", ".Json.GZ", ".NDJSON.Zst"]):
        packed = Path(suffix.lower()).suffix
        (tmp_path / f"f{number}{suffix}").write_bytes(PACK[packed if packed in PACK else ""](LINES))
    assert texts(tmp_path) == {f"f{number}": ["one", "two"] for number in range(len(suffixes) + 3)}


def test_what_a_folder_holds_beside_is_counted_in_every_place_that_shows_it(
    tmp_path: Path, build: Callable[..., Path], built: Path
):
    root = tmp_path / "in"
    write_jsonl(root / "a.jsonl", make_documents("a", 30))
    for name, data in {"README.md": b"12345", "x/table.csv.gz": b"123", "LICENSE": b"", "b.Csv": b"1"}.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(data)
    (root / "dataset_info.json").write_text(json.dumps({"default": {"features": 1}}, indent=1))
    (root / "all.json").write_text(json.dumps([{"text": "in one array"}]))
    (root / "link").symlink_to(root / "nowhere")
    (root / "x" / "deep").symlink_to(root)
    os.mkfifo(root / "pipe.jsonl")
    expected = {
        ".csv": {"files": 1, "bytes": 1},
        ".csv.gz": {"files": 1, "bytes": 3},
        ".json": {"files": 2, "bytes": sum((root / name).stat().st_size for name in ("dataset_info.json", "all.json"))},
        ".md": {"files": 1, "bytes": 5},
        "(no file)": {"files": 3, "bytes": 0},
        "(no suffix)": {"files": 1, "bytes": 0},
    }
    unread: Unread = {}
    assert [task.subset for task in recipe_tasks(make_recipe(root), unread)] == ["a"]
    assert unread == expected
    assert describe_unread(unread).startswith("not read, being of another kind: 9 files")
    assert ".csv.gz 1" in describe_unread(unread) and describe_unread({}) == ""
    assert list_files(make_recipe(root))["unread"] == expected
    counts = manifest.read(build(root).with_name("shards-corpus")).counts
    assert counts["unread"] == expected
    assert manifest.read(built.with_name("shards-corpus")).counts["unread"] == {}


@pytest.mark.slow
def test_a_plan_says_what_is_not_read_and_what_a_window_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: Path
):
    long = zstandard.ZstdCompressionParameters.from_level(1, window_log=27)
    packer = zstandard.ZstdCompressor(compression_params=long).compressobj()
    lines = "".join(json.dumps(record) + "\n" for record in make_documents("a", 30)).encode()
    (tmp_path / "a.jsonl.zst").write_bytes(packer.compress(lines) + packer.flush())
    (tmp_path / "b.csv").write_bytes(b"1")
    monkeypatch.setenv("MOBILLAMA_TOKENIZER", str(built / "tokenizer"))
    plan = plan_data(make_recipe(tmp_path), workers=1)
    assert plan["unread"] == {".csv": {"files": 1, "bytes": 1}}
    assert plan["memory"]["window"] == 1 << 27
    words = data_words(plan)
    assert "not read, being of another kind: 1 files, 1 bytes (.csv 1)" in words
    assert "memory of a worker, reading: at most" in words


def test_hidden_files_of_a_folder_are_not_read_and_counted(tmp_path: Path):
    for name in ("a.txt", ".git/config", "__pycache__/a.pyc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    unread: Unread = {}
    recipe_tasks(make_recipe(tmp_path, kind="folder"), unread)
    assert unread == {"(no suffix)": {"files": 1, "bytes": 4}, ".pyc": {"files": 1, "bytes": 4}}


def test_a_file_name_that_is_no_utf_8_is_read_and_written_with_its_bytes(tmp_path: Path, build: Callable[..., Path]):
    root = tmp_path / "in"
    write_jsonl(root / "a.jsonl", make_documents("a", 30))
    (root / "a.jsonl").rename(os.fsdecode(os.fsencode(root) + b"/\xff.jsonl"))
    corpus = manifest.read(build(root).with_name("shards-corpus"))
    assert list(corpus.counts["funnel"]) == ["\\xff"]
    assert [entry["name"] for entry in corpus.made_from] == ["\\xff.jsonl"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_or_file_without_permission_is_named(tmp_path: Path):
    write_jsonl(tmp_path / "in" / "a.jsonl", make_documents("a", 3)).chmod(0)
    with pytest.raises(InputError, match=r"a\.jsonl cannot be opened \(Permission denied\)"):
        texts(tmp_path / "in")
    (tmp_path / "in").chmod(0)
    with pytest.raises(InputError, match=r"in cannot be listed \(Permission denied\)"):
        texts(tmp_path / "in")
