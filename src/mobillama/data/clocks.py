"""Seconds of each step inside a stage: clocks stand between the steps and see how long each is worked in.

A step is a generator that pulls documents through the one before it; its own time is what passes until it yields, less
what passes in the steps before. One file a task, `<task>.json` (step -> seconds); stages of one step need none.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

FOLDER = "seconds"


def with_clocks(steps: Sequence[PipelineStep], stage: Path) -> list[PipelineStep]:
    """The steps of the stage whose folder is `stage`, a clock after each; as they are if there is only one."""
    if len(steps) == 1:
        return list(steps)
    inclusive = [0.0] * len(steps)
    names = [step.name for step in steps]
    clocks = [_Clock(place, inclusive) for place in range(len(steps) - 1)]
    clocks.append(_LastClock(len(steps) - 1, inclusive, names, stage / FOLDER))
    return [each for pair in zip(steps, clocks, strict=True) for each in pair]


def read_seconds(work: Path) -> dict[str, dict[str, float]]:
    """Seconds of each step, all tasks (so all workers) together, by stage, of the stages with folders in `work`."""
    found: dict[str, dict[str, float]] = {}
    for path in sorted(work.glob(f"*/{FOLDER}/*.json")):
        stage = found.setdefault(path.parent.parent.name, {})
        for name, seconds in json.loads(path.read_text(encoding="utf-8")).items():
            stage[name] = stage.get(name, 0.0) + seconds
    return {stage: {name: round(value, 3) for name, value in steps.items()} for stage, steps in found.items()}


class _Clock(PipelineStep):  # type: ignore[misc]
    """Hands documents on and adds up the seconds until each comes: those of all steps before it."""

    name, type = "clock", "clock"

    def __init__(self, place: int, inclusive: list[float]) -> None:
        super().__init__()
        self.place, self.inclusive = place, inclusive  # the list is one for all clocks of the stage

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """The same documents."""
        self.inclusive[self.place] = 0.0
        source = iter(data)
        while True:
            start = time.perf_counter()
            try:
                document = next(source)
            except StopIteration:
                return
            finally:
                self.inclusive[self.place] += time.perf_counter() - start
            yield document


class _LastClock(_Clock):
    """The clock after the last step: writes what all of them saw."""

    def __init__(self, place: int, inclusive: list[float], names: list[str], folder: Path) -> None:
        super().__init__(place, inclusive)
        self.names, self.folder = names, folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """The same documents; then the file of task `rank`."""
        yield from super().run(data, rank, world_size)
        own = [now - before for now, before in zip(self.inclusive, [0.0, *self.inclusive], strict=False)]
        self.folder.mkdir(parents=True, exist_ok=True)
        told = json.dumps(dict(zip(self.names, own, strict=True)))
        (self.folder / f"{rank:05d}.json").write_text(told, encoding="utf-8")
