"""Golden: artefacts that format version 1 wrote are read by today's code, and newer versions are refused clearly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mobillama import manifest
from mobillama.data import lookup
from mobillama.data.corpus import read_texts
from mobillama.data.find import find_document, find_text
from mobillama.data.shards import read_shards
from mobillama.errors import InputError
from mobillama.train.check import check_run
from mobillama.train.ledger import read_ledger
from mobillama.train.run import read_run

RECORDED = Path(__file__).parents[1] / "fixtures" / "format_1"
DIGESTS = {  # as the code that wrote them gave them
    "shards-corpus": "ccbc799ab9ca787b758ad3dda4df82ea87392447be37539f07d6c0c3e364ac6f",
    "shards": "2da913151cf907e8130c224620dadbbeb33b78aed809d611b760c857fac238d5",
    "run/checkpoints/step_000003": "81f904cddf6fc6d16c34ce9bf222b058f7a232ee3feb0bb0ada0e07e543bc0a4",
    "run/model": "0850eaad573e90bd496bf34a34d75121b0c2b11f26e226e0827474f2756552f4",
}
SEA = "the sea was calm and two ships sailed past the red sun."


def test_every_artefact_is_as_promised_and_keeps_its_digest():
    for name, digest in DIGESTS.items():
        assert manifest.read(RECORDED / name).digest() == digest
        assert manifest.differences(RECORDED / name) == manifest.extra_files(RECORDED / name) == []
    assert check_run(RECORDED / "run").differences == []


def test_the_corpus_reads_as_it_was_written():
    texts = list(read_texts(RECORDED / "shards-corpus"))
    assert len(texts) == 13
    assert texts[0] == SEA
    assert "a calm sea\nand a calm sun\nare past" in texts
    assert "ab the sea" in texts  # it was read with a NUL inside


def test_the_shards_read_as_they_were_written():
    shards = read_shards(RECORDED / "shards")
    assert (shards.num_rows, shards.num_validation_rows, shards.seq_len, shards.vocab_size) == (15, 2, 16, 300)
    assert shards.chunk_rows == (7, 8)
    assert shards.sources == ("book", "web")
    assert sum(span.token_count for row in range(15) for span in shards.spans(row)) == 15 * 17


def test_what_the_run_read_can_still_be_followed_both_ways():
    texts = dict(zip(_ids(), read_texts(RECORDED / "shards-corpus"), strict=True))
    rows = {step: lookup.show(RECORDED / "run", step) for step in (1, 2, 3)}
    seen = [(step, document) for step, shown in rows.items() for row in shown for document in row["documents"]]
    for _, document in seen:
        whole = texts[document["document_id"]].encode()
        part = whole[document["byte_start"] : document["byte_end"]].decode("utf-8", "replace").replace("\u2581", " ")
        assert document["text"] == part or "\ufffd" in document["text"]
    found = find_document(RECORDED / "run", "book/0")["found"][0]
    assert {entry["step"] for entry in found["reads"]} == {step for step, d in seen if d["document_id"] == "book/0"}
    assert find_text(RECORDED / "run", SEA[3:40])["occurrences"] == 1


def test_the_run_reads_as_it_was_written():
    told = read_run(RECORDED / "run")
    assert told is not None
    assert told["steps"] == 3
    lines = read_ledger(RECORDED / "run")
    assert [line.kind for line in lines] == [
        *("start", "step", "step", "validation", "checkpoint", "step", "validation", "checkpoint", "end"),
    ]


@pytest.mark.parametrize("what", ["shards", "shards-corpus", "chunk", "run"])
def test_a_newer_version_is_refused_clearly(tmp_path: Path, what: str):
    shutil.copytree(RECORDED, tmp_path / "a")
    folder = tmp_path / "a" / ("shards" if what == "chunk" else what)
    if what == "chunk":
        path = folder / "chunk_000.safetensors"
        path.write_bytes(path.read_bytes().replace(b'"format_version":"1"', b'"format_version":"9"'))
    else:
        path = folder / ("run.json" if what == "run" else manifest.FILE)
        path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    reads = [lambda: lookup.show(folder, 1), lambda: read_run(folder)] if what == "run" else [lambda: _open(folder)]
    for read in reads:
        with pytest.raises(InputError, match=r"format version 99?; this mobillama reads"):
            read()


def _open(folder: Path) -> object:
    return list(read_texts(folder)) if folder.name.endswith("corpus") else read_shards(folder)


def _ids() -> list[str]:
    from mobillama.data.documents import DocumentTable

    table = DocumentTable(RECORDED / "shards" / "documents", ("id",))
    return [line["id"] for line in table.lines(range(len(table)))]
