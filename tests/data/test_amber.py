"""Amber's own files in and out: the same ids and labels, every wrong line named; and shards as Arrow tables."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from typer.testing import CliRunner

from mobillama import manifest
from mobillama.cli.commands import app
from mobillama.data import amber_export, amber_import
from mobillama.data.amber import list_files, train_name
from mobillama.data.amber_export import export_amber
from mobillama.data.amber_import import import_amber
from mobillama.data.baseline import measure
from mobillama.data.header import SPAN_ARRAYS
from mobillama.data.shards import read_shards, write_shards
from mobillama.errors import DamagedFileError, InputError


def quiet(progress: object) -> None:
    """Progress that nobody watches."""


def write_amber(folder: Path, chunks: list[list[tuple[list[int], str]]], names: list[str] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(chunks):
        lines = [json.dumps({"token_ids": ids, "source": source}) + "\n" for ids, source in rows]
        path = folder / (names[number] if names else train_name(number))
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "wt") as file:
            file.writelines(lines)
    return folder


def draw_chunks(chunks: int = 3, seed: int = 1) -> list[list[tuple[list[int], str]]]:
    random = np.random.default_rng(seed)
    labels = ["arxiv", "c4", "starcoderdata", 'größe "x"']
    return [
        [(random.integers(0, 500, 9).tolist(), labels[random.integers(len(labels))]) for _ in range(4 + number)]
        for number in range(chunks)
    ]


def bring_in(files, out: Path, **changes) -> manifest.Manifest:
    files = files if isinstance(files, list) else [files]
    given = {"vocab_size": 500, "seq_len": 8, "workers": 1, "on_progress": quiet, **changes}
    return import_amber(files, out, **given)


@pytest.mark.parametrize("compress", ["", "gz", "zst"])
def test_import_and_export_give_the_same_json_values(tmp_path: Path, compress: str):
    chunks = draw_chunks()
    held_out = draw_chunks(1, seed=2)
    amber = write_amber(tmp_path / "amber", chunks)
    valid = write_amber(tmp_path / "held", held_out, ["valid.jsonl.gz"]) / "valid.jsonl.gz"
    bring_in(amber, tmp_path / "shards", validation=[valid])
    shards = read_shards(tmp_path / "shards")
    assert shards.chunk_rows == (4, 5, 6)
    assert shards.train_rows(range(15)).tolist() == [ids for chunk in chunks for ids, _ in chunk]
    assert shards.validation_rows(range(4)).tolist() == [ids for ids, _ in held_out[0]]
    labels = [shards.sources[number] for number in shards.row_sources(range(15))]
    assert labels == [source for chunk in chunks for _, source in chunk]
    assert shards.row_bytes(range(15)).tolist() == [0] * 15

    made = export_amber(tmp_path / "shards", tmp_path / "again", compress=compress, workers=2, on_progress=quiet)
    ending = f".{compress}" if compress else ""
    assert sorted(made.files) == [f"train_{number:03d}.jsonl{ending}" for number in range(3)] + [f"valid.jsonl{ending}"]
    if not compress:
        for name, rows in (
            *((train_name(number), rows) for number, rows in enumerate(chunks)),
            ("valid.jsonl", held_out[0]),
        ):
            found = [json.loads(line) for line in (tmp_path / "again" / name).read_text().splitlines()]
            assert found == [{"token_ids": ids, "source": source} for ids, source in rows]
    again = [tmp_path / "again"]
    valid = tmp_path / "again" / f"valid.jsonl{ending}"
    bring_in(again, tmp_path / "third", validation=[valid])
    for name in ("chunk_000", "chunk_001", "chunk_002", "validation"):
        first, third = (tmp_path / each / f"{name}.safetensors" for each in ("shards", "third"))
        assert first.read_bytes() == third.read_bytes()


def test_built_shards_come_back_with_their_ids_labels_and_bytes(built: Path, tmp_path: Path):
    """Bytes as decoding gives them: a U+2581 in the text reads as a space, which is two bytes less."""
    export_amber(built, tmp_path / "amber", workers=1, on_progress=quiet)
    shards = read_shards(built)
    import_amber(
        [tmp_path / "amber"],
        tmp_path / "shards",
        vocab_size=512,
        seq_len=32,
        validation=[tmp_path / "amber" / "valid.jsonl"],
        tokenizer=built / "tokenizer",
        workers=2,
        on_progress=quiet,
    )
    again = read_shards(tmp_path / "shards")
    assert (again.chunk_rows, again.tokenizer_digest) == (shards.chunk_rows, shards.tokenizer_digest)
    for split, rows in (("train", shards.num_rows), ("validation", shards.num_validation_rows)):
        pairs = [
            (each.train_rows(range(rows)) if split == "train" else each.validation_rows(range(rows))).tolist()
            for each in (shards, again)
        ]
        assert pairs[0] == pairs[1]
        labels = [[e.sources[n] for n in e.row_sources(range(rows), split)] for e in (shards, again)]
        assert labels[0] == labels[1]
        sizes = [each.row_bytes(range(rows), split) for each in (shards, again)]
        assert ((sizes[0] - sizes[1]) % 2 == 0).all()
        assert (sizes[0] >= sizes[1]).all()
        assert (sizes[0] == sizes[1]).sum() > rows / 3
    assert [origin["kind"] for origin in manifest.read(tmp_path / "shards").made_from][-1] == "tokenizer"


def test_files_come_in_the_order_of_their_numbers(tmp_path: Path):
    chunks = draw_chunks(4)
    names = ["train_10.jsonl", "train_9.jsonl.gz", "train_002.jsonl", "train_0.jsonl"]
    folder = write_amber(tmp_path / "amber", chunks, names)
    (folder / "README.md").write_text("not a chunk")
    assert [path.name for path in list_files([folder])] == names[::-1]
    bring_in(folder, tmp_path / "shards")
    rows = [ids for chunk in chunks[::-1] for ids, _ in chunk]
    assert read_shards(tmp_path / "shards").train_rows(range(len(rows))).tolist() == rows
    told = manifest.read(tmp_path / "shards")
    assert [origin["name"] for origin in told.made_from] == names[::-1]
    assert told.made_from[0]["digest"] == manifest.sha256_file(folder / "train_0.jsonl")
    assert told.counts["validation_rows"] == 0
    (folder / "train_2.jsonl").write_text("")
    with pytest.raises(InputError, match="are both chunk 2"):
        list_files([folder])
    with pytest.raises(InputError, match=r"README\.md.*train_000\.jsonl"):
        list_files([folder / "README.md"])
    with pytest.raises(InputError, match="holds no file named"):
        list_files([tmp_path / "shards"])


GOOD = json.dumps({"token_ids": [1] * 9, "source": "c4"})
WRONG = {
    json.dumps({"token_ids": [1] * 8, "source": "c4"}): r"holds 8 ids; expected 9",
    json.dumps({"token_ids": [1, 2, 500, *[1] * 6], "source": "c4"}): r"token_ids\[2\] is 500; expected 0 to 499",
    json.dumps({"token_ids": [1] * 8 + [-1], "source": "c4"}): r"token_ids\[8\] is -1",
    json.dumps({"token_ids": [1] * 8 + [2.0], "source": "c4"}): r"token_ids\[8\] is 2.0; expected a whole number",
    json.dumps({"token_ids": [True] + [1] * 8, "source": "c4"}): r"token_ids\[0\] is True",
    json.dumps({"token_ids": [1, [2]] + [1] * 7, "source": "c4"}): r"token_ids\[1\] is \[2\]",
    json.dumps({"token_ids": ["1"] * 9, "source": "c4"}): r"token_ids\[0\] is '1'",
    json.dumps({"token_ids": [2**63] + [1] * 8, "source": "c4"}): r"token_ids\[0\] is 9223372036854775808",
    json.dumps({"token_ids": [None] * 9, "source": "c4"}): r"token_ids\[0\] is None",
    json.dumps({"source": "c4"}): r"no token_ids",
    json.dumps({"token_ids": [1] * 9}): r"no source",
    json.dumps({"token_ids": [1] * 9, "source": 3}): r"no source",
    "[1, 2]": r"found list; expected an object",
    GOOD[:-9]: r"not JSON",
    "": r"not JSON",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_line_is_named_and_the_next_run_goes_on(tmp_path: Path, line: str):
    folder = write_amber(tmp_path / "amber", draw_chunks(1))
    path = folder / "train_001.jsonl"
    path.write_text(f"{GOOD}\n{GOOD}\n{line}\n{GOOD}\n")
    with pytest.raises(InputError, match=rf"train_001\.jsonl line 3: .*{WRONG[line]}"):
        bring_in(folder, tmp_path / "shards")
    assert not (tmp_path / "shards").exists()
    path.write_text(f"{GOOD}\n{GOOD}\n")
    bring_in(folder, tmp_path / "shards")
    assert read_shards(tmp_path / "shards").chunk_rows == (4, 2)


def test_a_truncated_file_is_named(tmp_path: Path):
    folder = write_amber(tmp_path / "amber", draw_chunks(1), ["train_0.jsonl.gz"])
    whole = (folder / "train_0.jsonl.gz").read_bytes()
    (folder / "train_0.jsonl.gz").write_bytes(whole[:-20])
    with pytest.raises(DamagedFileError, match=r"train_0\.jsonl\.gz: after line \d+ it cannot be decompressed"):
        bring_in(folder, tmp_path / "shards")


def test_an_interrupted_import_keeps_the_chunks_that_are_whole(tmp_path: Path, monkeypatch):
    folder = write_amber(tmp_path / "amber", draw_chunks())
    bring_in(folder, tmp_path / "expected")
    real = amber_import.read_row

    def stop(line: bytes, row_len: int, vocab_size: int, where: str):
        if "train_002" in where:
            raise OSError(28, "No space left on device")
        return real(line, row_len, vocab_size, where)

    monkeypatch.setattr(amber_import, "read_row", stop)
    with pytest.raises(OSError, match="No space left"):
        bring_in(folder, tmp_path / "shards")
    first = (tmp_path / "shards.partial" / "chunk_000.safetensors").stat()
    monkeypatch.undo()
    bring_in(folder, tmp_path / "shards")
    again = (tmp_path / "shards" / "chunk_000.safetensors").stat()
    assert (first.st_ino, first.st_mtime_ns) == (again.st_ino, again.st_mtime_ns)
    assert manifest.read(tmp_path / "shards").digest() == manifest.read(tmp_path / "expected").digest()
    bring_in(folder, tmp_path / "shards")  # finished: given back
    with pytest.raises(InputError, match="made of other files"):
        bring_in(folder / "train_000.jsonl", tmp_path / "shards")


def test_an_interrupted_export_goes_on_and_gives_the_same_bytes(tmp_path: Path, monkeypatch):
    rows = np.random.default_rng(0).integers(0, 500, (40, 9))
    write_shards(tmp_path / "s", rows, rows[:3], vocab_size=500, chunks=4)
    expected = export_amber(tmp_path / "s", tmp_path / "expected", compress="gz", workers=3, on_progress=quiet)
    calls, real = [], amber_export.write_row

    def stop(ids, source: str) -> bytes:
        calls.append(1)
        if len(calls) > 25:
            raise OSError(28, "No space left on device")
        return real(ids, source)

    monkeypatch.setattr(amber_export, "write_row", stop)
    with pytest.raises(OSError, match="No space left"):
        export_amber(tmp_path / "s", tmp_path / "out", compress="gz", workers=1, on_progress=quiet)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    found = export_amber(tmp_path / "s", tmp_path / "out", compress="gz", workers=1, on_progress=quiet)
    assert found.files == expected.files
    with pytest.raises(InputError, match="made of other shards"):
        export_amber(tmp_path / "s", tmp_path / "out", workers=1, on_progress=quiet)


def test_a_tokenizer_of_another_size_is_refused(built: Path, tmp_path: Path):
    folder = write_amber(tmp_path / "amber", draw_chunks())
    with pytest.raises(InputError, match="has 512 ids, --vocab-size says 500"):
        bring_in(folder, tmp_path / "shards", tokenizer=built / "tokenizer")


def test_shards_without_bytes_of_text_have_no_bits_per_byte(tmp_path: Path):
    folder = write_amber(tmp_path / "amber", draw_chunks())
    bring_in(folder, tmp_path / "shards", validation=[folder / "train_000.jsonl"])
    models = measure(tmp_path / "shards")["models"]
    assert models["unigram"]["bits_per_byte"] is None
    assert models["unigram"]["nats_per_token"] > 0


def test_the_commands_tell_rows_and_speed(tmp_path: Path):
    run = CliRunner().invoke
    folder = write_amber(tmp_path / "amber", draw_chunks())
    sizes = ["--vocab-size", "500", "--seq-len", "8"]
    said = run(app, ["data", "import", str(folder), "--out", str(tmp_path / "s"), *sizes]).output
    assert "15 rows in 3 chunks, no held-out rows (give them with --validation)" in said
    assert "tokens/s" in said
    told = run(app, ["data", "export", str(tmp_path / "s"), str(tmp_path / "out"), "--json"]).stdout
    assert json.loads(told)["counts"]["train_rows"] == 15


@pytest.fixture(params=["concatenate", "best_fit"])
def packed(request, corpora: Path, build) -> Path:
    return build(corpora, method=request.param)


def test_a_chunk_is_an_arrow_table_over_the_memory_map(packed: Path):
    shards = read_shards(packed)
    for chunk, split in ((1, "train"), ("validation", "validation")):
        table = shards.table(chunk)
        first = shards.chunk_rows[0] if chunk == 1 else 0
        numbers = np.arange(first, first + len(table))
        rows = shards.train_rows(numbers) if chunk == 1 else shards.validation_rows(numbers)
        assert table["ids"].to_pylist() == rows.tolist()
        assert table["source"].to_pylist() == [shards.sources[n] for n in shards.row_sources(numbers, split)]
        assert table["row_bytes"].to_pylist() == shards.row_bytes(numbers, split).tolist()
        for number, spans in zip(numbers, table["spans"].to_pylist(), strict=True):
            keys = ("document", "token", "tokens", "byte_start", "byte_end")
            assert [tuple(span[key] for key in keys) for span in spans] == [
                (s.document, s.token_start, s.token_count, s.byte_start, s.byte_end)
                for s in shards.spans(number, split)
            ]
            assert set(spans[0]) == {name.removeprefix("span_") for name in SPAN_ARRAYS}
    arrays = shards._chunks[1]
    column = shards.table(1)["ids"].chunk(0)
    assert column.flatten().buffers()[1].address == arrays["ids"].ctypes.data
    assert column.type == pyarrow.list_(pyarrow.uint16(), 33)
    for wrong in (3, -1):
        with pytest.raises(InputError, match="it has 0 to 2 and 'validation'"):
            shards.table(wrong)


def test_datasets_reads_a_chunk(packed: Path):
    from datasets import Dataset

    shards = read_shards(packed)
    dataset = Dataset(shards.table(0))
    assert len(dataset) == shards.chunk_rows[0]
    assert dataset[3]["ids"] == shards.train_rows([3])[0].tolist()
    kept = dataset.filter(lambda row: row["source"] == "web")
    assert len(kept) == (shards.row_sources(range(len(dataset))) == shards.sources.index("web")).sum()
    assert dataset.with_format("numpy")[:2]["ids"].shape == (2, 33)


def test_duckdb_reads_chunks_and_documents(packed: Path):
    import duckdb

    shards = read_shards(packed)
    chunk = shards.table(0)  # found by its name in the query
    counted = duckdb.sql(
        "select source, count(*), sum(row_bytes) from chunk group by source order by source"
    ).fetchall()
    sources, sizes = shards.row_sources(range(len(chunk))), shards.row_bytes(range(len(chunk)))
    assert counted == [
        (name, (sources == number).sum(), sizes[sources == number].sum()) for number, name in enumerate(shards.sources)
    ]
    documents = f"read_parquet('{packed}/documents/*.parquet')"
    found = duckdb.sql(
        f"with numbered as (select row_number() over () - 1 as number, * from {documents}), "
        "spans as (select unnest(spans, recursive := true) from chunk) "
        "select id, sum(spans.tokens), any_value(numbered.tokens) from spans join numbered on number = document "
        "group by id order by id"
    ).fetchall()
    assert len(found) > 5
    assert all(read <= tokens for _, read, tokens in found)
    told = manifest.read(packed).counts
    assert duckdb.sql(f"select sum(tokens) from {documents} where split = 'train'").fetchall() == [
        (told["train"]["tokens"],)
    ]
