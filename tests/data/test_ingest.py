"""Every source gives documents; what cannot be read is dropped with a reason or named with file and line."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest
import zstandard
from samples import make_documents, write_jsonl

from mobillama import manifest
from mobillama.config import SourceConfig
from mobillama.data.corpus import read_texts
from mobillama.data.ingest import read_task
from mobillama.data.sources import list_tasks
from mobillama.errors import DamagedFileError, InputError

RECORDS = make_documents("book", 5)


def documents(**source: object) -> list[tuple[str, str, str, str, str]]:
    tasks = list_tasks(SourceConfig.model_validate(source))
    return [
        (d.text, d.metadata["source"], d.id, d.metadata["url"], d.metadata["license"])
        for task in tasks
        for d in read_task(task)
    ]


def expected() -> list[tuple[str, ...]]:
    return [tuple(record[name] for name in ("text", "source", "id", "url", "license")) for record in RECORDS]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_json_lines_are_read_plain_and_compressed(tmp_path: Path, suffix: str):
    data = write_jsonl(tmp_path / "plain", RECORDS).read_bytes()
    (tmp_path / "plain").unlink()
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[suffix]
    half = len(data) // 2
    (tmp_path / f"book.jsonl{suffix}").write_bytes(pack(data[:half]) + pack(data[half:]))
    assert documents(root=str(tmp_path)) == expected()


def test_parquet_is_read(tmp_path: Path):
    parquet.write_table(pyarrow.Table.from_pylist(RECORDS), tmp_path / "book.parquet", row_group_size=2)
    assert documents(kind="parquet", root=str(tmp_path)) == expected()


def test_parquet_text_that_is_not_utf8_is_dropped(tmp_path: Path):
    text = pyarrow.array([b"good", b"\xff\xfe bad", b"fine"], pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": text}), tmp_path / "book.parquet")
    read = [d for task in list_tasks(SourceConfig(kind="parquet", root=str(tmp_path))) for d in read_task(task)]
    assert [(d.text, d.metadata.get("dropped")) for d in read] == [("good", None), ("", "invalid_utf8"), ("fine", None)]


def test_a_folder_gives_a_document_a_file_and_a_subset_a_sub_folder(tmp_path: Path):
    files = {"code/a.py": b"x = 1", "prose/b.txt": b"words", "code/.git/c": b"no", "prose/d": b"\xff\xfe"}
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    found = documents(kind="folder", root=str(tmp_path))
    assert [(text, source, key) for text, source, key, _, _ in found] == [
        ("x = 1", "code", "code/code/a.py"),
        ("words", "prose", "prose/prose/b.txt"),
        ("", "prose", "prose/prose/d"),
    ]


def test_subsets_come_in_the_order_of_the_recipe(tmp_path: Path):
    for name in ("a", "b", "c"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": name}])
    assert [text for text, *_ in documents(root=str(tmp_path), subsets=("c", "a"))] == ["c", "a"]
    assert [key for _, _, key, _, _ in documents(root=str(tmp_path))] == ["a/a.jsonl#1", "b/b.jsonl#1", "c/c.jsonl#1"]
    with pytest.raises(InputError, match=r"names 'd', but .* for a, b, c"):
        documents(root=str(tmp_path), subsets=("d",))


def test_a_subset_may_be_a_folder_of_files(tmp_path: Path):
    for number in (2, 1):
        write_jsonl(tmp_path / "book" / f"{number}.jsonl", [{"text": f"part {number}"}])
    assert [(text, source) for text, source, *_ in documents(root=str(tmp_path))] == [
        ("part 1", "book"),
        ("part 2", "book"),
    ]


def test_max_bytes_stops_every_subset_at_the_same_document_always(tmp_path: Path):
    write_jsonl(tmp_path / "a" / "1.jsonl", [{"text": "x" * 10}] * 3)
    write_jsonl(tmp_path / "a" / "2.jsonl", [{"text": "y" * 10}] * 3)
    write_jsonl(tmp_path / "b.jsonl", [{"text": "z" * 10}] * 9)
    texts = [text for text, *_ in documents(root=str(tmp_path), max_bytes=35)]
    assert texts == ["x" * 10] * 3 + ["y" * 10] + ["z" * 10] * 4


def test_this_python_installation_is_text():
    tasks = list_tasks(SourceConfig(kind="python-installation", max_bytes=200_000))
    found = {task.subset: list(read_task(task)) for task in tasks}
    assert set(found) == {"stdlib", "reference", "packages", "libraries"}
    by_id = {d.id: d for d in found["reference"]}
    assert "assert" in by_id["reference/assert"].text
    package = found["packages"][0]
    name, _, version = package.id.split("/")[1].rpartition("-")
    assert package.metadata["url"].startswith(f"pkg:pypi/{name}@{version}")
    assert all(d.metadata["license"] == "PSF-2.0" for d in found["stdlib"])
    assert any("def " in d.text for d in found["stdlib"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut sho', "line 2: not a JSON object"),
        (b'["text"]', "line 2: found JSON of type list; expected an object"),
        (b'{"txt": "hello"}', "line 2: found fields txt; expected a field 'text'"),
        (b'{"text": null}', "line 2: found 'text' of type NoneType"),
        (b'{"text": 7}', "line 2: found 'text' of type int"),
        (b"\0\0\0\0", "line 2: not a JSON object"),
        (b"[" * 100_000, "line 2: not a JSON object"),
    ],
)
def test_a_bad_line_is_named_with_its_file(tmp_path: Path, build: Callable[..., Path], line: bytes, message: str):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "book.jsonl").write_bytes(b'{"text": "good"}\n' + line + b"\n")
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "raw" / "book.jsonl")) + ", " + re.escape(message)):
        build(tmp_path / "raw", bad_records="stop")
    assert not (tmp_path / "shards").exists()
    assert not (tmp_path / "shards-corpus").exists()


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_truncated_archive_is_named(tmp_path: Path, suffix: str):
    data = write_jsonl(tmp_path / "plain", make_documents("book", 200)).read_bytes()
    (tmp_path / "plain").unlink()
    pack = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[suffix]
    path = tmp_path / f"book.jsonl{suffix}"
    path.write_bytes(pack(data)[:-1000])
    with pytest.raises((DamagedFileError, InputError), match=re.escape(str(path))):
        documents(root=str(tmp_path))


def test_invalid_utf8_empty_and_binary_documents_are_dropped_and_counted(tmp_path: Path, build: Callable[..., Path]):
    good = [json.dumps({"text": f"good text {number} " * 20}).encode() for number in range(30)]
    lines = [
        *good,
        b'{"text": "\xff\xfe not utf-8"}',
        b'{"text": "half a pair \\ud83d"}',
        b'{"text": ""}',
        b'{"text": "\\u0000\\u0001\\u0002 binary"}',
        b"",
        good[3],
        b'{"text": "short"}',
    ]
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "web.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    out = build(tmp_path / "raw", min_characters=10)
    funnel = manifest.read(tmp_path / "shards-corpus", "corpus").counts["funnel"]["web"]
    assert {reason: pair["documents"] for reason, pair in funnel["dropped"].items()} == {
        "invalid_utf8": 2,
        "empty": 1,
        "binary": 1,
        "duplicate": 1,
        "too_short": 1,
    }
    assert (funnel["documents_in"], funnel["documents_out"]) == (36, 30)
    assert funnel["bytes_in"] == funnel["bytes_out"] + sum(pair["bytes"] for pair in funnel["dropped"].values())
    assert len(list(read_texts(tmp_path / "shards-corpus"))) == 30
    assert out.is_dir()


def test_an_empty_corpus_is_an_error_that_says_what_was_dropped(tmp_path: Path, build: Callable[..., Path]):
    write_jsonl(tmp_path / "raw" / "web.jsonl", [{"text": ""}, {"text": " "}])
    with pytest.raises(InputError, match=r'no document is left.*"empty": \{"documents": 2'):
        build(tmp_path / "raw")
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="has no files to read"):
        build(tmp_path / "none")


def test_a_source_that_is_not_given_says_how_to_give_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("MOBILLAMA_CORPORA", raising=False)
    with pytest.raises(InputError, match=r"--set source\.root=DIR or with the environment variable MOBILLAMA_CORPORA"):
        list_tasks(SourceConfig())
    with pytest.raises(InputError, match="does not exist"):
        list_tasks(SourceConfig(root=str(tmp_path / "gone")))


def test_a_list_names_the_files_to_read_in_its_order(tmp_path: Path):
    for name in ("a", "b"):
        write_jsonl(tmp_path / "files" / f"{name}.json", [{"text": name}])
    (tmp_path / "list.txt").write_text(f"# a list\nfiles/b.json\n\n{tmp_path}/files/a.json\n")
    listed = str(tmp_path / "list.txt")
    assert [(text, source) for text, source, *_ in documents(url_list=listed)] == [
        ("b", "files"),
        ("a", tmp_path.parts[1]),
    ]
    assert [text for text, *_ in documents(url_list=listed, root=str(tmp_path))] == ["b", "a"]
    with pytest.raises(InputError, match=r"gone\.json .* is no file; correct the list"):
        (tmp_path / "list.txt").write_text("gone.json\n")
        documents(url_list=listed)
    with pytest.raises(InputError, match="exclude each other"):
        documents(url_list=listed, files=("*.jsonl",))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("data/*.jsonl", ["data/a.jsonl"]),
        ("**/*.jsonl", ["data/a.jsonl", "data/deep/down/b.jsonl"]),
        ("data/**/b.jsonl", ["data/deep/down/b.jsonl"]),
        ("data/**", ["data/a.jsonl", "data/c.json", "data/deep/down/b.jsonl"]),
        ("*/c.json", ["data/c.json"]),
    ],
)
def test_patterns_choose_files_below_the_root(tmp_path: Path, pattern: str, names: list[str]):
    for name in ("data/a.jsonl", "data/c.json", "data/deep/down/b.jsonl"):
        write_jsonl(tmp_path / name, [{"text": name}])
    assert [text for text, *_ in documents(root=str(tmp_path), files=(pattern,))] == names
    with pytest.raises(InputError, match=r"no file below .* matches nothing/\*"):
        documents(root=str(tmp_path), files=("nothing/*",))
