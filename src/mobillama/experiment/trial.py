"""One training of an experiment: the file that a process of its own carries out (process.py), and what that leaves.

Its scores are written last: where they are, the trial is done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobillama import manifest
from mobillama.config import TrainRecipe, resolve, with_defaults

CHECKPOINTS = 4  # in a training: what a kill can cost is a quarter of it


@dataclass(frozen=True, eq=False)
class Trial:
    """A recipe with a seed, in a folder of an experiment. Its name ends with what tells its settings from others."""

    folder: Path
    name: str
    recipe: TrainRecipe
    rows_per_source: int

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.folder / "runs" / self.name

    @property
    def description(self) -> Path:
        """The file its process reads."""
        return self.folder / "trials" / f"{self.name}.json"

    @property
    def scores(self) -> Path:
        """The file its process writes at the end."""
        return self.folder / "scores" / f"{self.name}.json"

    @property
    def log(self) -> Path:
        """What its process said."""
        return self.folder / "logs" / f"{self.name}.log"

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        return self.scores.is_file()

    def describe(self, shards: Path) -> None:
        """Write the file its process reads."""
        self.description.parent.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        tree = {
            "name": self.name,
            "recipe": self.recipe.tree(),
            "rows_per_source": self.rows_per_source,
            "shards": str(shards),
        }
        manifest.write_file(self.description, json.dumps(tree, indent=1).encode() + b"\n")

    def result(self) -> dict[str, Any]:
        """What its process found."""
        return dict(json.loads(self.scores.read_text(encoding="utf-8")))


def make_trial(
    folder: Path,
    name: str,
    model: Mapping[str, Any],
    train: Mapping[str, Any],
    rows_per_source: int,
    *,
    source: Trial | None = None,
    ffn: str = "mean",
) -> Trial:
    """A trial; `source` is the trial whose model it starts from, `ffn` how its FFNs become the stored ones."""
    every = max(1, train["steps"] // CHECKPOINTS)
    # Their own validation is a glance: the scores are what is compared.
    how = {**train, "checkpoint_every": every, "validate_every": 0, "validation_rows": 8}
    tree: dict[str, Any] = {"name": name, "model": dict(model), "train": how}
    if source:
        tree["init"] = {"model": str((source.run / "model").resolve()), "ffn": ffn}
    recipe = resolve(TrainRecipe, tree, name)
    settled = _settled(recipe.tree())
    mark = hashlib.sha256(manifest.canonical([settled, rows_per_source])).hexdigest()[:8]
    known = _begun(folder, name, settled, rows_per_source)
    return Trial(folder, known or f"{name}-{mark}", recipe, rows_per_source)


def _settled(tree: dict[str, Any]) -> dict[str, Any]:
    """A recipe's tree that says what the model to start from is, not where it lies: `runs/NAME/model` is NAME."""
    start = tree["init"]["model"]
    return {**tree, "init": {**tree["init"], "model": Path(start).parent.name if start else ""}}


def _begun(folder: Path, name: str, settled: Mapping[str, Any], rows_per_source: int) -> str | None:
    """The name of a trial of these settings that an older version described: its mark knew fewer keys."""
    for path in sorted((folder / "trials").glob(f"{name}-*.json")):
        kept = json.loads(path.read_text(encoding="utf-8"))
        then = with_defaults(TrainRecipe, kept["recipe"])
        if (then["name"], kept["rows_per_source"]) == (name, rows_per_source) and _settled(then) == settled:
            return path.stem
    return None
