"""Which shards a run reads in which order, told by its folder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mobillama import manifest
from mobillama.data.run_folder import read_run_file
from mobillama.errors import InputError

if TYPE_CHECKING:
    from mobillama.data.shards import Shards


@dataclass(frozen=True)
class Reading:
    """Which shards are read in which order. `steps` 0 = no end; `run` is None for plain shards."""

    folder: Path  # of the shards
    seed: int
    rows_per_step: int
    steps: int
    run: Path | None

    @cached_property
    def shards(self) -> Shards:
        """The shards, opened. Errors: those of read_shards."""
        from mobillama.data.shards import read_shards

        return read_shards(self.folder)


def open_reading(folder: Path) -> Reading:
    """The shards and order of a run, or of plain shards: those with the defaults of TrainConfig.

    Errors: InputError for a newer format, for shards that are not there, or for others than those of the run. They are
    looked for where they were when the run began, then beside the run.
    """
    if not (folder / "run.json").is_file():
        from mobillama.config import TrainConfig  # costs more than the look-up, and a run does not need it

        defaults = TrainConfig()
        return Reading(folder, defaults.seed, defaults.rows_per_step, 0, None)
    run = read_run_file(folder)
    path = Path(run["shards"]["path"])
    if not path.is_dir():
        beside = folder.resolve().parent / path.name
        if not beside.is_dir():
            raise InputError(
                f"{folder} was trained on {path}, which is not there any more (nor is {beside}); put the shards back"
            )
        path = beside
    digest = manifest.read(path, "shards").digest()
    if digest != run["shards"]["digest"]:
        raise InputError(
            f"{path} has root digest {digest}; {folder} was trained on {run['shards']['digest']}: put those shards back"
        )
    train = run["recipe"]["train"]
    return Reading(path, train["seed"], train["rows_per_step"], run["steps"], folder)
