"""Results on disk: what an evaluation leaves, read, checked and sealed. Format: docs/formats.md, Results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobillama import manifest
from mobillama.config import with_defaults
from mobillama.errors import DamagedFileError
from mobillama.eval.averages import average
from mobillama.eval.metrics import PER_CENT, metric_of
from mobillama.eval.suite import Suite

ITEMS, SETTINGS, SCORES = "items.jsonl", "evaluation.json", "scores.json"
KIND = "results"
DECIDED_BY = "decided_by"  # the setting with the hashes of all that decides prompts and scores; older results lack it

Items = dict[tuple[str, int], dict[str, Any]]  # (task, item) -> its line


@dataclass(frozen=True)
class Results:
    """One sealed artefact of results."""

    folder: Path
    manifest: manifest.Manifest
    scores: dict[str, Any]

    @property
    def suite(self) -> Suite:
        """The suite as it was when it was run."""
        return Suite.model_validate(self.manifest.recipe["suite"])

    @property
    def share(self) -> tuple[int, int]:
        """(rank from 0, size) of the items that are here."""
        rank, size = self.manifest.recipe["share"]
        return int(rank), int(size)

    def items(self) -> Items:
        """All its lines."""
        return read_items(self.folder / ITEMS)


def read_results(folder: Path) -> Results:
    """Results, every byte checked. Errors: InputError for what is none, DamagedFileError for what is not as sealed."""
    found = manifest.read(folder, KIND)
    manifest.check(folder)
    try:
        scores = json.loads((folder / SCORES).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedFileError(f"{folder / SCORES} is not the scores of results ({error}); evaluate again") from None
    result = Results(folder, found, scores)
    try:
        suite, _ = result.suite, result.share
    except (KeyError, TypeError, ValueError) as error:
        words = str(error).splitlines()[0]
        raise DamagedFileError(
            f"{folder} says of no suite that it was evaluated on it ({words}); evaluate again"
        ) from None
    return Results(folder, found, _in_units(suite, scores))


def _in_units(suite: Suite, scores: dict[str, Any]) -> dict[str, Any]:
    """The scores of a version that knew no units, and multiplied every metric by 100, as today's."""
    if all("unit" in row for row in scores["benchmarks"]):
        return scores
    biased = {one.name for one in suite.benchmarks if one.unbiased_at is not None}
    rows = []
    for row in scores["benchmarks"]:
        metric = metric_of(row["metric"])
        better = None if row["benchmark"] in biased else metric.higher_is_better
        today = {**row, "unit": metric.unit, "higher_is_better": better}
        if metric.unit != PER_CENT:
            today |= {key: row[key] and row[key] / 100 for key in ("value", "stderr")}
        rows.append(today)
    return {**scores, "benchmarks": rows, **average(suite, rows)}


def read_items(path: Path, *, mend: bool = False) -> Items:
    """The lines of items.jsonl by task and item. mend: drop a last line that a kill left without its end."""
    if not path.is_file():
        return {}
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if mend and len(whole) < len(text):
        manifest.write_file(path, whole)
    found: Items = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            read = json.loads(line)
            found[read["task"], read["item"]] = read
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedFileError(f"{path} line {number} is no item ({error!r}); evaluate again") from None
    return found


def write_tree(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a tree of plain JSON types, whole or not at all."""
    text = json.dumps(tree, indent=1, ensure_ascii=False, sort_keys=True)
    manifest.write_file(path, text.encode() + b"\n")


def todays_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an evaluation that an older version began, its suite with the defaults of today's keys."""
    return {**settings, "suite": with_defaults(Suite, settings.get("suite", {}))}


def seal_results(
    partial: Path,
    out: Path,
    scores: Mapping[str, Any],
    settings: Mapping[str, Any],
    made_from: Sequence[Mapping[str, str]],
    circumstance: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the scores and seal the folder; gives the scores with where they are and their digest."""
    write_tree(partial / SCORES, scores)
    rows = scores["benchmarks"]
    sealed = manifest.seal(
        partial,
        out,
        KIND,
        made_from=made_from,
        recipe=settings,
        counts={"items": sum(row["items"] for row in rows), "cut": sum(row["cut"] for row in rows)},
        circumstance=circumstance,
    )
    return {**scores, "out": str(out), "digest": sealed.digest()}
