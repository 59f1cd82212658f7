"""What a training run left on disk, read for a page: its recipe, its ledger, its manifests.

Reads `run.json`, `ledger.jsonl` and the manifests beside them (docs/formats.md). Imports nothing of training, so that a
page can be made where torch is not installed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobillama import manifest
from mobillama.errors import DamagedFileError, InputError

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """One run: `steps` and `validations` hold the last result recorded for every step number, in order."""

    name: str
    folder: Path
    record: Mapping[str, Any]  # run.json
    steps: list[Result] = field(default_factory=list)
    validations: list[Result] = field(default_factory=list)
    checkpoints: list[Result] = field(default_factory=list)
    restarts: int = 0
    ended: bool = False
    environment: Mapping[str, Any] = field(default_factory=dict)  # of the process that trained last
    # Seconds of every line of a kind, repeated steps included; "first" are the first steps of each process.
    seconds: Mapping[str, list[float]] = field(default_factory=dict)

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The resolved train recipe."""
        return dict(self.record.get("recipe", {}))

    @property
    def tokens(self) -> int:
        """Tokens trained on."""
        return int(self.steps[-1]["tokens"]) if self.steps else 0

    def curve(self, what: str = "loss") -> list[tuple[float, float]]:
        """(tokens seen, value) of every step."""
        return [(float(step["tokens"]), float(step[what])) for step in self.steps if what in step]

    def validation_curve(self, what: str = "loss") -> list[tuple[float, float]]:
        """(tokens seen, value) of every validation; one before the first step stands at 0 tokens."""
        seen = {int(step["step"]): float(step["tokens"]) for step in self.steps}
        return [(seen.get(int(found["step"]), 0.0), float(found[what])) for found in self.validations if what in found]


def read_run(folder: Path) -> Run:
    """Read a run folder. A last line that was cut off by a kill is left out.

    Errors: InputError if there is no ledger, DamagedFileError if a whole line of it is not JSON.
    """
    path = folder / "ledger.jsonl"
    if not path.is_file():
        raise InputError(f"{folder} has no ledger.jsonl, so it is not a run; give the --out folder of a training")
    described = folder / "run.json"
    record = manifest.read_object(described, "restore it from a copy") if described.is_file() else {}
    asynchronous = bool(record.get("recipe", {}).get("train", {}).get("asynchronous"))
    kept: dict[str, dict[int, Result]] = {"step": {}, "validation": {}, "checkpoint": {}}
    restarts, ended, environment = 0, False, {}
    seconds: dict[str, list[float]] = {"step": [], "validation": [], "checkpoint": [], "first": []}
    opening = False  # whether a process has begun that has taken no step yet
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            entry = json.loads(line)
            kind, result, circumstance = entry["kind"], entry["result"], entry["circumstance"]
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedFileError(
                f"{path} line {number} is not a ledger line ({error}); restore the file from a copy"
            ) from None
        restarts += kind == "resumed"
        ended = kind == "end"
        if kind in ("start", "resumed"):
            opening, environment = True, circumstance.get("environment", {})
        if kind in kept:
            kept[kind][int(result["step"])] = result
            took = _held_up(circumstance.get("seconds", 0), asynchronous)
            seconds["first" if kind == "step" and opening else kind].append(took)
            opening = opening and kind != "step"
    return Run(
        name=folder.name,
        folder=folder,
        record=record,
        steps=[kept["step"][step] for step in sorted(kept["step"])],
        validations=[kept["validation"][step] for step in sorted(kept["validation"])],
        checkpoints=[kept["checkpoint"][step] for step in sorted(kept["checkpoint"])],
        restarts=restarts,
        ended=ended,
        environment=environment,
        seconds=seconds,
    )


def _held_up(seconds: Any, asynchronous: bool) -> float:
    """How long training waited: a checkpoint's seconds are told by its parts, of which only the copy may hold it up."""
    if not isinstance(seconds, dict):
        return float(seconds)
    return float(seconds["copy"] if asynchronous and "copy" in seconds else sum(seconds.values()))
