"""The data bench builds the recipe it names and says what it measured."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

from samples import make_documents

from mobillama.bench.data import measure


def test_data_bench_reports_speed_and_memory_of_a_whole_build(built: Path, tmp_path: Path):
    texts = 0
    for subset in ("arxiv", "book", "c4", "refinedweb", "starcoder", "stackexchange", "wikipedia"):
        records = make_documents(subset, 40)
        texts += sum(len(record["text"].encode()) for record in records)
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / f"{subset}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    result = measure(tmp_path, built / "tokenizer", workers=1)
    rows = {row["name"]: row for row in result["rows"]}
    assert all(set(row) == {"name", "ours", "peer", "peer_name", "ratio", "unit", "pairs"} for row in result["rows"])
    assert result["text_bytes"] == texts
    assert rows["data-build"]["ours"] > 0
    assert {"clean", "dedup", "corpus", "encode", "pack", "all"} == set(result["seconds"])
    if sys.platform == "linux":
        assert 20 < rows["data-memory"]["ours"] < 2000
