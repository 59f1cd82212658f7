"""Which shards a run reads in which order, told by its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobillama import manifest
from mobillama.data.order import Steps, steps_of
from mobillama.data.run_folder import read_run_file
from mobillama.errors import InputError

if TYPE_CHECKING:
    from mobillama.data.shards import Shards


@dataclass(frozen=True)
class Reading:
    """Which shards are read in which order. `steps` 0 = no end; `run` is None for plain shards."""

    folder: Path  # of the shards
    seed: int
    order: Steps
    steps: int
    run: Path | None
    parent: str | None = None  # the run that this one was branched off

    @property
    def rows_per_step(self) -> int:
        """Rows that a step reads."""
        return self.order.rows_per_step

    @cached_property
    def shards(self) -> Shards:
        """The shards, opened. Errors: those of read_shards."""
        from mobillama.data.shards import read_shards

        return read_shards(self.folder)


def open_reading(folder: Path, data: Path | None = None, option: str = "--data") -> Reading:
    """The shards and order of a run, or of plain shards: those with the defaults of TrainConfig.

    data: where a run's shards are; None = where they were when it was last trained, else beside it. option: the
    command's name for it, in errors.
    Errors: InputError for a newer format, for shards that are not there, or for others than those of the run.
    """
    if not (folder / "run.json").is_file():
        if data is not None:
            raise InputError(
                f"{folder} is no run (it holds no run.json), so {data} cannot be the shards it was trained on: give a "
                "run, or the shards alone"
            )
        from mobillama.config import TrainConfig  # costs more than the look-up, and a run does not need it

        defaults = TrainConfig()
        return Reading(folder, defaults.seed, Steps(defaults.rows_per_step), 0, None)
    run = read_run_file(folder)
    path = find_shards(folder, run, data, option)
    digest = manifest.read(path, "shards").digest()
    if digest != run["shards"]["digest"]:
        raise InputError(
            f"{path} has root digest {digest}; {folder} was trained on {run['shards']['digest']}: put those shards "
            f"back, or say where they are with {option} SHARDS"
        )
    parent = run["parent"]["run"] if "parent" in run else None
    return Reading(path, run["recipe"]["train"]["seed"], steps_of(run), run["steps"], folder, parent)


def find_shards(run: Path, told: Mapping[str, Any], data: Path | None = None, option: str = "--data") -> Path:
    """The shards of a run with this run.json: `data`, else where they were, else beside the run.

    Error: InputError if they are at none of these.
    """
    path = Path(told["shards"]["path"])
    places = [data] if data else [path, run.resolve().parent / path.name]
    for place in places:
        if (place / manifest.FILE).is_file():
            return place
    raise InputError(
        f"the shards of {run} (digest {told['shards']['digest']}) are not at {' nor at '.join(map(str, places))}; "
        f"say where they are with {option} SHARDS"
    )
