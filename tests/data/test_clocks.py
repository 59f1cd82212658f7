"""Clocks: each step is charged with its own time, documents pass as they are."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datatrove.pipeline.base import PipelineStep

from mobillama.data.clocks import read_seconds, with_clocks
from mobillama.data.executor import run_stage


class Slow(PipelineStep):
    """Waits before each document; the first of a stage makes them up."""

    type = "test"

    def __init__(self, name: str, seconds: float, out: Path | None = None) -> None:
        super().__init__()
        self.name, self.seconds, self.out = name, seconds, out

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        seen = []
        for document in data if data is not None else range(5):
            time.sleep(self.seconds)
            seen.append(document)
            if self.out is None:
                yield document
        if self.out is not None:
            (self.out / str(rank)).write_text(repr(seen))


def test_each_step_is_charged_with_its_own_seconds(tmp_path: Path) -> None:
    steps = [Slow("read", 0.004), Slow("filter", 0.016), Slow("write", 0.002, tmp_path)]
    run_stage("clean", steps, 2, tmp_path / "work", 1, None)
    assert [(tmp_path / rank).read_text() for rank in "01"] == [repr([0, 1, 2, 3, 4])] * 2
    found = read_seconds(tmp_path / "work")["clean"]
    assert list(found) == ["read", "filter", "write"]
    # Sleeping takes at least as long as asked for; another step's time would be far more.
    assert found["read"] >= 10 * 0.004 and found["filter"] >= 10 * 0.016 and found["write"] >= 10 * 0.002
    assert found["filter"] == pytest.approx(sum(found.values()) * 16 / 22, rel=0.4)


def test_a_single_step_needs_no_clock(tmp_path: Path) -> None:
    step = Slow("only", 0.0)
    assert with_clocks([step], tmp_path) == [step]
    assert read_seconds(tmp_path) == {}
