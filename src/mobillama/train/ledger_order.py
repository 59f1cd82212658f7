"""What the order of a ledger's lines says: that every step follows the one before, and what the run's folder holds now.

Rules: docs/formats.md, section Checking. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mobillama.train.ledger import Line

KEEP_LAST = "train.keep_last"  # as a `resumed` line names it among what changed


@dataclass
class Standing:
    """What lies in the folder after some lines, by what they say."""

    step: int = 0  # reached; a `resumed` line goes back
    saved: set[int] = field(default_factory=set)  # steps whose checkpoints are kept
    published: dict[int, Line] = field(default_factory=dict)  # number -> the line that counts
    end: Line | None = None  # the last line of that kind, if no process has gone on since


def standing_after(lines: Sequence[Line], recipe: Mapping[str, Any]) -> tuple[Standing, list[str]]:
    """What lies in the folder of a run after all its lines, and what is wrong with their order, in words.

    recipe: that of run.json, which says how many checkpoints are kept, unless the lines say that it has changed.
    """
    found, first = Standing(), 0  # the step that a branch begins with: that checkpoint is kept
    keep = 1 if any(_keep(line.result.get("changed")) for line in lines) else _keep_of(recipe) or 1
    for number, line in enumerate(lines, 1):
        if problem := _problem(line, found.step, number):
            return found, [f"line {number}: {problem}"]
        if line.kind == "start" and isinstance(parent := line.result.get("parent"), dict):
            found.step = first = _positive(parent.get("step"))
        elif line.kind == "step":
            found.step = line.step
        elif line.kind == "resumed":
            keep = _keep(line.result["changed"]) or keep
            found.step, found.end = line.step, None
            found.saved = {step for step in found.saved if step <= line.step}
            found.published = {n: said for n, said in found.published.items() if said.step <= line.step}
        elif line.kind == "checkpoint":
            lasting = {said.step for said in found.published.values()}
            found.saved = {*sorted({*found.saved, line.step})[-keep:], *(found.saved & {*lasting, first})}
        elif line.kind == "published":
            found.published[line.circumstance["number"]] = line
        elif line.kind == "end":
            found.end = line
    return found, []


def _problem(line: Line, reached: int, number: int) -> str:
    """What is wrong with a line after step `reached`; empty if nothing is."""
    if (number == 1) != (line.kind == "start"):
        return f"found kind {line.kind!r}; a ledger begins with its one 'start' line"
    if line.kind == "step" and line.step != reached + 1:
        how = "steps are missing" if line.step > reached else "without a 'resumed' line that goes back before it"
        return f"found step {line.step} after step {reached}: {how}"
    if line.kind in ("validation", "end") and line.step != reached:
        return f"found {line.kind!r} of step {line.step} after step {reached}"
    if line.step > reached and line.kind != "step":
        return f"found {line.kind!r} of step {line.step}; the steps before it end at {reached}"
    return ""


def _keep(changed: Any) -> int:
    """`train.keep_last` among keys that changed; 0 if it is not among them."""
    return _positive(changed.get(KEEP_LAST)) if isinstance(changed, dict) else 0


def _keep_of(recipe: Mapping[str, Any]) -> int:
    train = recipe.get("train")
    return _positive(train.get("keep_last")) if isinstance(train, dict) else 0


def _positive(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0
