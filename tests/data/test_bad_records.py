"""One bad record never ends a build, whatever reads it: it is dropped, counted with a true reason and kept if asked."""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import json
import random
import re
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest
from samples import make_documents, make_recipe, write_jsonl

from mobillama import manifest
from mobillama.config import DataRecipe, SourceConfig
from mobillama.data import corpus as corpus_module
from mobillama.data import ingest
from mobillama.data.build import build_shards
from mobillama.data.compressed import BUFFER, Opened
from mobillama.data.corpus import build_corpus, read_texts
from mobillama.data.documents import DocumentTable
from mobillama.data.executor import Progress
from mobillama.data.ingest import read_task
from mobillama.data.plan import plan_data
from mobillama.data.sources import list_tasks
from mobillama.errors import DamagedFileError, InputError, RecipeError
from mobillama.tokenizer.tokenizer import Tokenizer

GOOD = b'{"text": "good", "id": "g"}\n'
BAD_LINES = {
    b'{"text": null}': "no_text",
    b'{"text": 7, "id": "seven"}': "no_text",
    b'{"body": "a"}': "no_text",
    b'{"text": {"a": 1}}': "no_text",
    b"[1, 2]": "bad_json",
    b'"text"': "bad_json",
    b'{"text": "cut sho': "bad_json",
    b"\0\0\0": "bad_json",
    b"[" * 100_000: "bad_json",
    b'{"text": "caf\xe9"}': "invalid_utf8",
    b'{"text": "\\ud83d"}': "invalid_utf8",
    b'{"text": "t", "id": "x\\ud83d"}': "invalid_utf8",
    b'{"text": "t", "url": "http://a/\\udcb2"}': "invalid_utf8",
    b'{"text": "t", "license": "\\udcb2"}': "invalid_utf8",
    b'{"text": "' + b"x" * 200_000 + b'"}': "record_too_long",
    b"x" * 200_000: "record_too_long",
}
MOST = 150_000


def read(root: Path, **settings: Any) -> list[Any]:
    return [document for task in list_tasks(SourceConfig(root=str(root), **settings)) for document in read_task(task)]


def seen(documents: list[Any]) -> list[tuple[int, str, str]]:
    """Record, text or reason, and whether why is said, of each document."""
    return [
        (d.metadata["record"], d.metadata.get("dropped") or d.text, "why" if "why" in d.metadata else "")
        for d in documents
    ]


@pytest.mark.parametrize("last", [b"\n", b""])
@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: str(line[:24]))
def test_a_bad_line_is_dropped_and_the_next_is_read(tmp_path: Path, line: bytes, last: bytes):
    (tmp_path / "a.jsonl").write_bytes(GOOD + line + b"\n" + GOOD + line + last)
    reason = BAD_LINES[line]
    assert seen(read(tmp_path, max_record_bytes=MOST)) == [
        *[(1, "good", ""), (2, reason, "why"), (3, "good", ""), (4, reason, "why")]
    ]
    with pytest.raises(
        InputError, match=r"a\.jsonl, line 2: .*; correct or remove it, or set source.bad_records=drop$"
    ):
        read(tmp_path, max_record_bytes=MOST, bad_records="stop")


def test_what_is_no_strict_json_but_has_one_meaning_is_read(tmp_path: Path):
    lines = [
        *[b'\xef\xbb\xbf{"text": "mark"}', b'{"text": "a\tb\x01"}', b'{"text": "n", "score": NaN}'],
        b'{"text": "half", "title": "\\ud800"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    assert [d.text for d in read(tmp_path)] == ["mark", "a\tb\x01", "n", "half"]


def test_a_bound_is_the_longest_record_that_is_read(tmp_path: Path):
    line = b'{"text": "' + b"x" * 500 + b'"}'
    for end in (b"\n", b""):
        (tmp_path / "a.jsonl").write_bytes(line + end)
        assert [d.metadata.get("dropped") for d in read(tmp_path, max_record_bytes=len(line))] == [None]
        assert [d.metadata.get("dropped") for d in read(tmp_path, max_record_bytes=len(line) - 1)] == [
            "record_too_long"
        ]


def table(**columns: Any) -> Any:
    return pyarrow.table(columns)


def broken_utf8(dictionary: bool) -> Any:
    values = pyarrow.array([b"good", b"bad \xff\xfe", b"good"], pyarrow.binary())
    text = pyarrow.StringArray.from_buffers(3, values.buffers()[1], values.buffers()[2])
    return text.dictionary_encode() if dictionary else text


@pytest.mark.parametrize("dictionary", [False, True])
def test_bad_rows_of_parquet_are_dropped_and_the_next_is_read(tmp_path: Path, dictionary: bool):
    parquet.write_table(table(text=broken_utf8(dictionary), id=["1", "2", "3"]), tmp_path / "a.parquet")
    expected = [(1, "good", ""), (2, "invalid_utf8", "why"), (3, "good", "")]
    assert seen(read(tmp_path, kind="parquet")) == expected
    parquet.write_table(table(text=["good"] * 3, id=broken_utf8(dictionary)), tmp_path / "a.parquet")
    assert seen(read(tmp_path, kind="parquet")) == expected
    parquet.write_table(table(text=["good", None, "good", "x" * 200_000]), tmp_path / "a.parquet")
    found = seen(read(tmp_path, kind="parquet", max_record_bytes=MOST))
    assert found == [(1, "good", ""), (2, "no_text", "why"), (3, "good", ""), (4, "record_too_long", "why")]
    parquet.write_table(table(body=["a", "b"]), tmp_path / "a.parquet")
    assert seen(read(tmp_path, kind="parquet")) == [(1, "no_text", "why"), (2, "no_text", "why")]
    with pytest.raises(InputError, match=r"a\.parquet, record 1: found fields body; expected a field 'text'"):
        read(tmp_path, kind="parquet", bad_records="stop")


def test_binary_columns_and_fields_inside_others_are_read(tmp_path: Path):
    rows = {
        "doc": [{"text": "a", "about": {"id": 7, "url": "u", "license": "MIT"}}, {"text": None, "about": None}, None],
    }
    parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"doc": row}) + "\n" for row in rows["doc"]))
    (tmp_path / "b.jsonl").write_text(json.dumps({"doc.text": "a", "doc": {"text": "other"}}))
    fields = {f"{name}_field": f"doc.about.{name}" for name in ("id", "url", "license")}
    for kind in ("parquet", "jsonl"):
        found = read(tmp_path, kind=kind, files=(f"a.{kind}",), text_field="doc.text", **fields)
        assert [d.metadata.get("dropped") for d in found] == [None, "no_text", "no_text"]
        first = found[0]
        assert (first.text, first.id, first.metadata["url"], first.metadata["license"]) == ("a", "7", "u", "MIT")
    assert [d.text for d in read(tmp_path, files=("b.jsonl",), text_field="doc.text")] == ["a"]
    binary = table(text=pyarrow.array(["é".encode("latin-1"), "é".encode()]), id=pyarrow.array([b"\xff\0", b"two"]))
    parquet.write_table(binary, tmp_path / "a.parquet")
    assert [(d.text, d.id) for d in read(tmp_path, kind="parquet", encoding="latin-1")] == [
        ("é", "ff00"),
        ("Ã©", "two"),
    ]
    assert [d.metadata.get("dropped") for d in read(tmp_path, kind="parquet")] == ["invalid_utf8", None]


def test_an_encoding_is_that_of_lines_and_files(tmp_path: Path):
    text = "他看见了海"
    (tmp_path / "a.jsonl").write_bytes(
        json.dumps({"text": text}, ensure_ascii=False).encode("gb18030") + b'\n{"text": "\xff\xff"}\n'
    )
    found = read(tmp_path, encoding="GB18030")
    assert [(d.text, d.metadata.get("dropped")) for d in found] == [(text, None), ("", "undecodable")]
    (tmp_path / "txt").mkdir()
    (tmp_path / "txt" / "a.txt").write_bytes(text.encode("utf-16"))
    assert [d.text for d in read(tmp_path / "txt", kind="folder", encoding="utf-16")] == [text]
    for encoding, words in {
        "utf-16": "line end of more than one byte",
        "klingon": "not known",
        "rot13": "not known",
    }.items():
        with pytest.raises((RecipeError, ValueError), match=words):
            SourceConfig(encoding=encoding)


def test_long_files_papers_rows_and_pages_are_bad_and_the_next_is_read(tmp_path: Path):
    for number, size in enumerate((10, 2000, 10)):
        (tmp_path / "txt").mkdir(exist_ok=True)
        (tmp_path / "txt" / f"{number}.txt").write_text("x" * size)
    found = seen(read(tmp_path / "txt", kind="folder", max_record_bytes=1000))
    assert found == [(1, "x" * 10, ""), (1, "record_too_long", "why"), (1, "x" * 10, "")]
    rows = [
        '<row Id="{0}" PostTypeId="1" Score="1" Title="t{1}" Body="b"/>\n',
        '<row Id="1{0}" PostTypeId="2" ParentId="{0}"/>\n',
    ]
    (tmp_path / "Posts.xml").write_text(
        "<posts>\n"
        + "".join(row.format(n, "x" * 5000 * (n == 2)) for n in (1, 2, 3) for row in rows)
        + '<row Id="many" PostTypeId="1"/>\n<row Id="9" PostTypeId="1" Score="99999999999999999999"/>\n</posts>'
    )
    found = read(tmp_path, kind="stackexchange", max_record_bytes=1000)
    assert [(d.id[-1], d.metadata.get("dropped")) for d in found if d.metadata.get("dropped") in (None,)] == [
        ("1", None),
        ("3", None),
    ]
    reasons = [d.metadata["dropped"] for d in found if "why" in d.metadata]
    assert sorted(reasons) == ["bad_xml", "bad_xml", "record_too_long"]
    tex = rb"\documentclass{a}" + b"x" * 100
    (tmp_path / "a.tex").write_bytes(tex)
    (tmp_path / "b.gz").write_bytes(gzip.compress(tex + b"y" * 2000))
    (tmp_path / "c.gz").write_bytes(gzip.compress(tex) + b"garbage")
    found = seen(read(tmp_path, kind="latex", max_record_bytes=1000))
    assert found == [(1, tex.decode(), ""), (1, "record_too_long", "why"), (1, tex.decode(), "")]


def test_long_pages_of_an_archive_are_bad_and_the_next_is_read(tmp_path: Path):
    pytest.importorskip("warcio")
    record = "WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Record-ID: <urn:{}>\r\nContent-Length: {}\r\n\r\n{}\r\n\r\n"
    data = "".join(record.format(number, size, "x" * size) for number, size in enumerate((10, 300_000, 20)))
    (tmp_path / "a.wet").write_text(data)
    found = seen(read(tmp_path, kind="warc", max_record_bytes=1000))
    assert found == [(1, "x" * 10, ""), (2, "record_too_long", "why"), (3, "x" * 20, "")]
    (tmp_path / "a.wet").write_text(data[:200_000])
    with pytest.raises(DamagedFileError, match="after record 1 it cannot be read"):
        read(tmp_path, kind="warc", max_record_bytes=1000)


def damaged_inputs(root: Path) -> dict[str, Path]:
    """One damaged file of each kind, in a folder of its own, with something good before the damage."""
    packed = gzip.compress(GOOD * 3 + b"".join(b'{"text": "%d"}\n' % (n * n * n) for n in range(20_000)))
    rows = io.BytesIO()
    parquet.write_table(table(text=[f"row {n}" for n in range(40)]), rows, row_group_size=20, compression="snappy")
    data = bytearray(rows.getvalue())
    at = parquet.ParquetFile(io.BytesIO(data)).metadata.row_group(1).column(0).data_page_offset
    data[at + 30 : at + 60] = b"\xff" * 30
    posts = (
        b'<posts>\n<row Id="1" PostTypeId="1" Score="1" Title="t" />\n<row Id="2" PostTypeId="2" ParentId="1"/>\n<ro'
    )
    made = {"jsonl": ("a.jsonl.gz", packed[: len(packed) // 2]), "parquet": ("a.parquet", bytes(data))}
    made |= {"stackexchange": ("Posts.xml", posts)}
    for kind, (name, content) in made.items():
        (root / kind).mkdir()
        (root / kind / name).write_bytes(content)
    return {kind: root / kind for kind in made}


def test_a_damaged_file_ends_the_build_by_name_or_is_read_as_far_as_it_goes(tmp_path: Path):
    for kind, folder in damaged_inputs(tmp_path).items():
        with pytest.raises(
            DamagedFileError,
            match=r"(a\.jsonl\.gz|a\.parquet|Posts\.xml).*source\.damaged_files=drop to keep what can be read$",
        ):
            read(folder, kind=kind)
        found = read(folder, kind=kind, damaged_files="drop")
        assert any("dropped" not in d.metadata for d in found)
        assert sum(d.metadata.get("dropped") == "damaged_file" for d in found) == 1
    groups = [d.text for d in read(tmp_path / "parquet", kind="parquet", damaged_files="drop") if d.text]
    assert groups[:20] == [f"row {n}" for n in range(20)]


def test_a_file_of_another_form_and_doubled_columns_are_named_as_what_they_are(tmp_path: Path):
    (tmp_path / "a.parquet").write_text("no Parquet")
    with pytest.raises(
        DamagedFileError, match=r"a\.parquet cannot be read as Parquet .*it is no Parquet file: leave it out"
    ):
        read(tmp_path, kind="parquet")
    doubled = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    parquet.write_table(doubled, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet has 2 columns 'text'; expected one"):
        read(tmp_path, kind="parquet")
    assert [d.metadata["dropped"] for d in read(tmp_path, kind="parquet", damaged_files="drop")] == ["damaged_file"]


def test_bytes_behind_a_sound_file_are_counted(tmp_path: Path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(GOOD) + bytes(512))
    assert seen(read(tmp_path)) == [(1, "good", "")]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(GOOD) + b"signature")
    found = read(tmp_path)
    assert seen(found) == [(1, "good", ""), (2, "trailing_bytes", "why")] and found[1].metadata["raw_bytes"] == 9


def test_an_error_of_the_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_jsonl(tmp_path / "a.jsonl", make_documents("a", 2))

    def fail(*arguments: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setitem(ingest.READERS, "jsonl", fail)
    with pytest.raises(InputError, match=r"a\.jsonl cannot be read \(Input/output error\); see to the disk"):
        read(tmp_path)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Two subsets, with a bad line of every kind in the second."""
    root = tmp_path / "raw"
    write_jsonl(root / "book.jsonl", make_documents("book", 30))
    write_jsonl(root / "web.jsonl", make_documents("web", 30))
    with (root / "web.jsonl").open("ab") as file:
        file.write(b"\n".join(BAD_LINES) + b"\n" + json.dumps(make_documents("last", 1)[0]).encode())
    return root


@pytest.mark.slow
def test_bad_records_are_counted_in_the_funnel_kept_and_shown_and_no_byte_depends_on_the_workers(
    raw: Path, build: Callable[..., Path], tokenizer: Tokenizer, tmp_path: Path
):
    settings = {"max_record_bytes": MOST, "keep_rejected": True}
    corpora = [
        build(raw, name, workers, **settings).with_name(f"{name}-corpus") for name, workers in (("a", 1), ("b", 3))
    ]
    one, other = (manifest.read(corpus) for corpus in corpora)
    assert one.digest() == other.digest()
    counted = {reason: sum(found == reason for found in BAD_LINES.values()) for reason in set(BAD_LINES.values())}
    dropped = one.counts["funnel"]["web"]["dropped"]
    assert {reason: dropped[reason]["documents"] for reason in counted} == counted
    assert one.counts["funnel"]["web"]["documents_in"] == 31 + len(BAD_LINES)
    assert {reason: told["records"] for reason, told in one.counts["bad_records"].items()} == counted
    assert one.counts["bad_records"]["no_text"]["first"].startswith(
        "web.jsonl, record 31: found 'text' of type NoneType"
    )
    kept = parquet.read_table(corpora[0] / "rejected").to_pylist()
    assert {(line["reason"], line["text"]) for line in kept} >= {
        ("no_text", '{"text": null}\n'),
        ("bad_json", "[1, 2]\n"),
    }
    assert sum(line["reason"] in counted for line in kept) == len(BAD_LINES)
    plan = plan_data(
        make_recipe(raw, max_record_bytes=MOST).model_copy(
            update={"tokenizer": DataRecipe().tokenizer.model_copy(update={"train_vocab_size": 300})}
        ),
        workers=1,
    )
    assert {reason: plan["subsets"]["web"]["dropped"][reason] for reason in counted} == counted
    assert plan["memory"] == {"window": 0, "record": 5 * MOST, "all": 5 * MOST}


def test_a_share_of_bad_records_ends_the_build_which_goes_on_with_a_larger_one(
    raw: Path, tokenizer: Tokenizer, tmp_path: Path
):
    out, first = tmp_path / "shards", {}

    def tell(told: Progress) -> None:
        first.setdefault(told.stage, told)

    def run(**settings: Any) -> manifest.Manifest:
        first.clear()
        recipe = make_recipe(raw, max_record_bytes=MOST, **settings)
        return build_shards(recipe, out, workers=2, tokenizer=tokenizer, on_progress=tell)

    words = r"16 of 77 records are bad, more than source\.max_bad_share=0\.2: bad_json 5 \(first: web\.jsonl, record 35"
    with pytest.raises(InputError, match=words):
        run(max_bad_share=0.2)
    with pytest.raises(InputError, match="source stops at bad records, and 16 were found"):
        run(bad_records="stop")
    run(max_bad_share=0.21)
    assert first["clean"].tasks_done == first["clean"].tasks == 2


def test_documents_with_one_id_that_are_all_held_out_are_named_as_that(tmp_path: Path, build: Callable[..., Path]):
    write_jsonl(tmp_path / "raw" / "a.jsonl", [{**record, "id": 9} for record in make_documents("a", 20)])
    with pytest.raises(
        InputError, match=r"no row of 33 ids is left to train on: pack\.validation_share=0\.999 holds out \d+"
    ):
        build(tmp_path / "raw", chunks=1, validation_share=0.999)


def test_a_flat_folder_is_one_subset_if_it_is_given_a_name(tmp_path: Path):
    for number in range(300):
        (tmp_path / f"{number}.jsonl").write_bytes(GOOD)
    with pytest.raises(InputError, match=r"300 subsets.*source\.subset=NAME"):
        list_tasks(SourceConfig(root=str(tmp_path)))
    tasks = list_tasks(SourceConfig(root=str(tmp_path), subset="all"))
    assert len(tasks) == 300 and {task.subset for task in tasks} == {"all"}
    with pytest.raises(ValueError, match="leave one out"):
        SourceConfig(subset="all", subsets=("a",))


def test_empty_lines_without_end_are_passed_over_in_pieces(tmp_path: Path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"\n" * (8 << 20) + GOOD + b"\n\n" + GOOD))
    assert seen(read(tmp_path)) == [((8 << 20) + 1, "good", ""), ((8 << 20) + 4, "good", "")]


class Reads(io.BytesIO):
    """A file that keeps the largest read that was asked of it and how many there were."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.sizes: list[int] = []

    def read(self, count: int | None = -1) -> bytes:
        assert count is not None and count >= 0, "all of the file was asked for at once"
        self.sizes.append(count)
        return super().read(count)

    def readinto(self, buffer: Any) -> int:
        self.sizes.append(len(buffer))
        return super().readinto(buffer)


def over_long(kind: str, size: int) -> tuple[str, bytes]:
    """A file of a kind whose only record has `size` bytes of text."""
    if kind == "jsonl":
        return "a.jsonl", b'{"text": "' + b"x" * size + b'"}'
    if kind == "stackexchange":
        return "Posts.xml", b'<posts>\n<row Id="1" PostTypeId="1" Title="' + b"x" * size + b'"/>\n</posts>'
    if kind == "warc":
        head = "WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Record-ID: <urn:1>\r\nContent-Length: {}\r\n\r\n"
        return "a.wet", head.format(size).encode() + b"x" * size + b"\r\n\r\n"
    if kind == "latex":
        return "a.tex", b"\\documentclass{a}" + b"x" * size
    return "a.txt", b"x" * size


@pytest.mark.parametrize("kind", ["jsonl", "folder", "stackexchange", "latex", "warc"])
def test_what_is_held_of_an_over_long_record_does_not_grow_with_it(kind: str, tmp_path: Path):
    """Counted: the bytes of Python that the reader holds at most, and the reads, over growing records."""
    if kind == "warc":
        pytest.importorskip("warcio")
    most, held, reads = 1 << 16, [], []
    for size in (1 << 20, 1 << 22, 1 << 24):
        name, data = over_long(kind, size)
        (tmp_path / name).write_bytes(data)
        (task,) = list_tasks(SourceConfig(kind=kind, root=str(tmp_path), max_record_bytes=most))
        file = Reads(data)
        source = Opened(name, io.BufferedReader(file, 1 << 13))
        tracemalloc.start()
        (document,) = ingest.READERS[task.how](task, source, name)
        held.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert document.metadata["dropped"] == "record_too_long"
        reads.append(len(file.sizes))
        assert max(file.sizes) <= BUFFER
    assert max(held) <= 6 * BUFFER, held
    assert reads[2] <= 5 * reads[1] + 5 and reads[1] <= 5 * reads[0] + 5, reads


@pytest.mark.slow
def test_the_cases_of_strangers_end_as_they_should(shared_folder: Callable[[str], Path], tmp_path: Path, built: Path):
    cases = shared_folder("MOBILLAMA_CASES") / "data"
    expected: dict[str, Any] = {
        "surrogate_id": (200, {"invalid_utf8": 1}),
        "surrogate_url": (200, {"invalid_utf8": 1}),
        "text_null": (201, {"no_text": 1}),
        "tab_in_string": (201, {}),
        "zst_long": (200, {}),
        "json_gz_c4": (300, {}),
        "mixed_suffix": (350, {"duplicate": 50}),
        "pq_badutf8_dict": (1, {"invalid_utf8": 1}),
        "allheld": (200, {}),
        "pq_damaged": DamagedFileError,
        "pq_dupcol": InputError,
    }
    assert {path.name for path in cases.iterdir()} == set(expected)
    for name, result in expected.items():
        kind = "parquet" if name.startswith("pq_") else "jsonl"
        recipe = make_recipe(cases / name, kind=kind)
        if not isinstance(result, tuple):
            with pytest.raises(result, match=rf"{name}/a\.parquet"):
                build_corpus(recipe, tmp_path / name, workers=1)
            continue
        funnel = build_corpus(recipe, tmp_path / name, workers=1).counts["funnel"].values()
        dropped = {reason: told["documents"] for subset in funnel for reason, told in subset["dropped"].items()}
        assert (sum(subset["documents_out"] for subset in funnel), dropped) == result, name


def test_a_damaged_part_of_a_corpus_is_named(built: Path, tmp_path: Path):
    corpus = tmp_path / "corpus"
    shutil.copytree(built.with_name("shards-corpus"), corpus)
    part = corpus / "documents" / "part_00000.parquet"
    data = bytearray(part.read_bytes())
    for at in (
        m.start() for m in re.finditer(re.escape(b"\x28\xb5\x2f\xfd"), bytes(data))
    ):  # every page is a zstd frame
        data[at + 4 : at + 12] = b"\xff" * 8
    part.write_bytes(data)
    with pytest.raises(DamagedFileError, match=r"part_00000\.parquet cannot be read .*restore it or build it again"):
        list(read_texts(corpus))
    table = DocumentTable(corpus / "documents", ("text",))
    with pytest.raises(DamagedFileError, match=r"part_00000\.parquet cannot be read"):
        table.lines([0])
    with pytest.raises(DamagedFileError, match=r"part_00000\.parquet cannot be read"):
        [list(read()) for _, read in table.texts()]


def test_a_text_file_for_a_tokenizer_is_read_in_pieces_and_named_if_it_is_no_utf_8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(corpus_module, "LINE_CHARACTERS", 10)
    (tmp_path / "a.txt").write_text("short\n" + "x" * 25 + "\nend")
    assert list(read_texts(tmp_path / "a.txt")) == ["short", "x" * 10, "x" * 10, "x" * 5, "end"]
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 au lait\n")
    with pytest.raises(InputError, match=r"a\.txt is not UTF-8"):
        list(read_texts(tmp_path / "a.txt"))


DAMAGE_OF_ANOTHER_LIBRARY = {
    "stackexchange": ("Posts.xml", b'<?xml version="1.0" encoding="utf-J"?>\n<posts/>'),
    "no target": (
        "a.warc",
        b"WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http\r\nContent-Length: 1\r\n\r\n ",
    ),
    "no length": ("a.wet", b"WARC/1.0\r\nWARC-Type: conversion\r\n\r\nwords and no length"),
}


@pytest.mark.parametrize("case", DAMAGE_OF_ANOTHER_LIBRARY)
def test_what_a_library_stumbles_over_is_damage_to_the_file(case: str, tmp_path: Path):
    """Found by mutating files of each kind at random; each was a traceback."""
    name, data = DAMAGE_OF_ANOTHER_LIBRARY[case]
    (tmp_path / name).write_bytes(data)
    kind = "stackexchange" if name == "Posts.xml" else "warc"
    if kind == "warc":
        pytest.importorskip("warcio")
    with pytest.raises(DamagedFileError, match=name):
        read(tmp_path, kind=kind)


def test_files_changed_anywhere_are_read_or_named(tmp_path: Path):
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    choose = random.Random(seed)
    rows = io.BytesIO()
    parquet.write_table(table(text=[f"row {n} \u00e9" for n in range(60)], id=["1"] * 60), rows, row_group_size=20)
    lines = b"".join(b'{"text": "line %d \\u00e9", "id": "%d"}\n' % (n, n) for n in range(20))
    posts = b"".join(
        b'<row Id="%d" PostTypeId="%d" ParentId="1" Title="t &amp; u" Body="b"/>\n' % (n, 1 + n % 2) for n in range(8)
    )
    whole = {
        "parquet": ("a.parquet", rows.getvalue()),
        "jsonl": ("a.jsonl", lines),
        "stackexchange": ("Posts.xml", b"<posts>\n" + posts + b"</posts>"),
        "latex": ("a.gz", gzip.compress(b"\\documentclass{a} words" * 20)),
    }
    for kind, (name, data) in whole.items():
        for _ in range(60):
            changed = bytearray(data)
            for _ in range(choose.choice((1, 3))):
                at = choose.randrange(len(changed))
                changed[at : at + choose.randrange(3)] = choose.randbytes(choose.randrange(3))
            (tmp_path / name).write_bytes(changed)
            with contextlib.suppress(InputError, DamagedFileError):
                read(tmp_path, kind=kind, files=(name,), damaged_files=choose.choice(("stop", "drop")))


def test_a_long_text_that_every_row_of_parquet_repeats_is_held_once(tmp_path: Path):
    """Counted: the bytes that Arrow holds at most, over growing numbers of rows of one text."""
    text, held = "x" * (5 << 20), []
    for rows in (2, 20, 40):
        repeated = pyarrow.DictionaryArray.from_arrays(
            pyarrow.array([0] * rows, pyarrow.int32()), pyarrow.array([text])
        )
        parquet.write_table(table(text=repeated), tmp_path / "a.parquet", store_schema=False, compression="zstd")
        assert (tmp_path / "a.parquet").stat().st_size < 20_000
        before = pyarrow.default_memory_pool()
        pool = pyarrow.proxy_memory_pool(before)
        pyarrow.set_memory_pool(pool)
        try:
            (task,) = list_tasks(SourceConfig(kind="parquet", root=str(tmp_path)))
            assert sum(document.text == text for document in read_task(task)) == rows
        finally:
            pyarrow.set_memory_pool(before)
        held.append(pool.max_memory())
    assert max(held) < 40 << 20, held
