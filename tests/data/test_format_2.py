"""Golden: shards of chunk version 2 and a corpus with edits, as they were first written, are read by today's code."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as parquet

from mobillama import manifest
from mobillama.data import lookup
from mobillama.data.corpus import read_texts
from mobillama.data.edits import apply_edits
from mobillama.data.find import find_text
from mobillama.data.shards import read_shards

RECORDED = Path(__file__).parents[1] / "fixtures" / "format_2"
SOURCE = RECORDED.with_name("format_1") / "source"
DIGESTS = {
    "shards-corpus": "1613139a22d76f99dc8db616a0aeddaf9d4afb45fac989f8e59e7d08a9a7c7bd",
    "shards": "6d64db5012624acf4ff53a002ace977525d899c42d51d351f0ca317e6327da3c",
}


def test_the_artefacts_are_as_promised_and_keep_their_digests():
    for name, digest in DIGESTS.items():
        assert manifest.read(RECORDED / name).digest() == digest
        assert manifest.differences(RECORDED / name) == manifest.extra_files(RECORDED / name) == []


def test_rows_and_padding_read_as_they_were_written():
    shards = read_shards(RECORDED / "shards")
    assert (shards.num_rows, shards.num_validation_rows, shards.seq_len, shards.vocab_size) == (17, 4, 16, 300)
    assert shards.chunk_rows == (8, 9)
    assert sum(span.token_count for row in range(17) for span in shards.spans(row)) == 17 * 17 - 19  # padding


def test_edits_turn_the_raw_texts_into_the_cleaned_ones():
    edited = 0
    for part in sorted((RECORDED / "shards-corpus" / "documents").glob("*.parquet")):
        for line in parquet.read_table(part).to_pylist():
            records = (SOURCE / line["file"]).read_bytes().splitlines()
            raw = json.loads(records[line["record"] - 1])["text"].encode()
            assert apply_edits(raw, line["edits"]) == line["text"].encode()
            edited += bool(line["edits"])
    assert edited


def test_text_and_row_lead_to_each_other():
    texts = [text for text in read_texts(RECORDED / "shards-corpus") if len(text) >= 20]
    for text in texts:
        assert find_text(RECORDED / "shards", text[:20])["occurrences"] >= 1
    shown = lookup.show(RECORDED / "shards", 1, 0)[0]["documents"][0]["text"]
    assert find_text(RECORDED / "shards", shown.strip("\ufffd"))["occurrences"] >= 1
