"""Run folders for tests of look-ups: what they read of a run, without a training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from mobillama.data.shards import read_shards
from mobillama.data.span import Span
from mobillama.data.stream import row_ids


def make_run(folder: Path, shards: Path, *, seed: int, rows_per_step: int, steps: int, taken: int) -> Path:
    """A run of `steps` steps of which `taken` are in its ledger, one of them twice (as after a kill)."""
    folder.mkdir(parents=True)
    told = {
        "format": "mobillama.run",
        "format_version": 1,
        "recipe": {"train": {"seed": seed, "rows_per_step": rows_per_step}},
        "steps": steps,
        "shards": {"path": str(shards), "digest": read_shards(shards).digest},
    }
    (folder / "run.json").write_text(json.dumps(told))
    lines = [("start", 0), *(("step", step) for step in [*range(1, taken + 1), max(1, taken - 1)] if taken)]
    text = "".join(
        json.dumps({"kind": kind, "result": {"step": step}, "circumstance": {}}) + "\n" for kind, step in lines
    )
    (folder / "ledger.jsonl").write_text(text + '{"kind":"step","resu')
    return folder


def scan(shards: Path, seed: int, rows_per_step: int, steps: int) -> Iterator[tuple[int, int, int, Span]]:
    """The plain way: every step, row in it, number of the row, and span of the row, in order."""
    opened = read_shards(shards)
    spans = [opened.spans(row) for row in range(opened.num_rows)]
    for step in range(1, steps + 1):
        for place, row in enumerate(row_ids(seed, step, rows_per_step, opened.chunk_rows).tolist()):
            for span in spans[row]:
                yield step, place, row, span
