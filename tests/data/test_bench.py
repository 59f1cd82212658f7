"""The data bench builds the recipe it names, says what it measured, and makes corpora larger."""

from __future__ import annotations

import gzip
import io
import json
import sys
from pathlib import Path

import orjson
import pytest
import zstandard
from samples import make_documents

from mobillama.bench.data import measure
from mobillama.bench.data_copies import shuffle_words, write_copies
from mobillama.errors import InputError

SUBSETS = ("arxiv", "book", "c4", "refinedweb", "starcoder", "stackexchange", "wikipedia")


def write_corpora(folder: Path) -> int:
    """The seven files of the corpora with small documents; bytes of text."""
    texts = 0
    for subset in SUBSETS:
        records = make_documents(subset, 40)
        texts += sum(len(record["text"].encode()) for record in records)
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{subset}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return texts


def test_data_bench_reports_speed_memory_and_a_peer_of_the_same_documents(built: Path, tmp_path: Path):
    texts = write_corpora(tmp_path)
    result = measure(
        tmp_path, built / "tokenizer", workers=1, against="datatrove", rounds=1, settings=["clean.overlap=off"]
    )
    rows = {row["name"]: row for row in result["rows"]}
    assert all(set(row) == {"name", "ours", "peer", "peer_name", "ratio", "unit", "pairs"} for row in result["rows"])
    assert result["text_bytes"] == texts
    assert rows["data-build"]["ours"] > 0 and rows["data-read"]["ours"] > 0
    assert set(result["tokenise_cpu_seconds"]) == {"ours", "datatrove"}
    assert "clean: write parts" in result["step_seconds"]
    assert {"clean", "dedup", "corpus", "encode", "pack", "all"} <= set(result["seconds"])
    assert rows["data-tokenise"]["ratio"] == pytest.approx(
        rows["data-tokenise"]["ours"] / rows["data-tokenise"]["peer"]
    )
    if sys.platform == "linux":
        assert 20 < rows["data-memory"]["ours"] < 2000
        assert 10 < rows["data-worker-memory"]["ours"] <= rows["data-memory"]["ours"]


def test_an_unknown_peer_is_refused_before_anything_runs(tmp_path: Path):
    with pytest.raises(InputError, match="datatrove"):
        measure(tmp_path, tmp_path, against="spark")


def test_copies_keep_line_ends_and_share_no_five_words_in_a_row():
    text = "\n".join(record["text"] for record in make_documents("copies", 8))
    copies = [text, *(shuffle_words(text, f"{copy} id") for copy in (1, 2))]
    shingles = []
    for copy in copies:
        assert sorted(copy) == sorted(text)
        assert [line.split()[-1:] for line in copy.split("\n")] == [line.split()[-1:] for line in text.split("\n")]
        words = copy.split()
        shingles.append({tuple(words[at : at + 5]) for at in range(len(words) - 4)})
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert len(shingles[one] & shingles[other]) < 0.2 * len(shingles[one] | shingles[other])
    assert shuffle_words(text, "1 id") == copies[1], "the same key gives the same copy"


def test_copied_corpora_hold_every_document_so_many_times(tmp_path: Path):
    write_corpora(tmp_path)
    write_copies(tmp_path, tmp_path / "copies", 3)
    ids: list[str] = []
    for path in sorted((tmp_path / "copies" / "book").iterdir()):
        with path.open("rb") as file:
            data = io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(file)).read()
        ids += [orjson.loads(line)["id"] for line in data.splitlines()]
    assert len(ids) == len(set(ids)) == 120
