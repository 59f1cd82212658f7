"""Learning rates, chosen by held-out bits per byte on a seed that no arm has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobillama.errors import TrainingError
from mobillama.experiment.design import TUNING_SEED, Experiment, Tuning, schedule
from mobillama.experiment.queue import Progress, carry_out
from mobillama.experiment.trial import Trial, make_trial

FACTOR = 2.0  # between neighbours of the grid
Chosen = dict[str, dict[str, Any]]  # by tuning: field, value, edge, tried


def choose(experiment: Experiment, folder: Path, shards: Path, rows_per_source: int, progress: Progress) -> Chosen:
    """Try until every tuning is settled; plain JSON types. Errors: those of `queue.carry_out`."""
    chosen: Chosen = {}
    tried: dict[str, dict[float, Trial]] = {tuning.name: {} for tuning in experiment.tunings}
    while len(chosen) < len(experiment.tunings):
        batch = []
        for tuning in experiment.tunings:
            if tuning.name in chosen or not all(name in chosen for name in tuning.takes):
                continue
            trials = tried[tuning.name]
            if not (wanted := next_values(tuning, scores(trials))):
                chosen[tuning.name] = settle(tuning, trials)
                continue
            for value in wanted:
                trials[value] = tuning_trial(tuning, value, chosen, folder, rows_per_source)
            batch += [trials[value] for value in wanted]
        carry_out(batch, shards, progress)
    return chosen


def next_values(tuning: Tuning, found: Mapping[float, float]) -> list[float]:
    """What to try next, given bits per byte by value; nothing once the best has a worse neighbour on both sides.

    >>> from mobillama.config import ModelConfig
    >>> tuning = Tuning("x", ModelConfig(), 10, centre=4.0)
    >>> next_values(tuning, {}), next_values(tuning, {2.0: 1.3, 4.0: 1.2, 8.0: 1.1})
    ([2.0, 4.0, 8.0], [16.0])
    """
    if not found:
        return [tuning.centre / FACTOR, tuning.centre, tuning.centre * FACTOR]
    best, low, high = min(found, key=lambda value: found[value]), min(found), max(found)
    if len(found) - 3 >= tuning.wider or low < best < high:
        return []
    return [best / FACTOR if best == low else best * FACTOR]


def scores(trials: Mapping[float, Trial]) -> dict[float, float]:
    """Bits per byte by value."""
    return {value: bits_per_byte(trial.result()["documents"]) for value, trial in trials.items()}


def settle(tuning: Tuning, trials: Mapping[float, Trial]) -> dict[str, Any]:
    """The choice of a tuning as plain JSON types."""
    found = scores(trials)
    best = min(found, key=lambda value: found[value])
    if math.isinf(found[best]):
        raise TrainingError(
            f"no {tuning.setting} of {sorted(found)} trains {tuning.model.name}: {trials[best].result()['failed']}"
        )
    return {
        "field": tuning.setting,
        "value": best,
        "edge": best in (min(found), max(found)),
        "seed": TUNING_SEED,
        "steps": tuning.steps,
        "tried": [
            {
                "value": value,
                "bits_per_byte": found[value] if math.isfinite(found[value]) else None,  # null: it diverged
                "run": trials[value].name,
            }
            for value in sorted(found)
        ],
    }


def settings(takes: tuple[str, ...], chosen: Chosen) -> dict[str, float]:
    """The fields of the `train` table that some tunings settled."""
    return {str(chosen[name]["field"]): float(chosen[name]["value"]) for name in takes}


def tuning_trial(tuning: Tuning, value: float, chosen: Chosen, folder: Path, rows_per_source: int) -> Trial:
    """The short training that tries one value."""
    train = schedule(tuning.steps, **tuning.train, **settings(tuning.takes, chosen))
    train |= {"seed": TUNING_SEED, tuning.setting: value}
    return make_trial(folder, f"tune-{tuning.name}-{value:g}", tuning.model.tree(), train, rows_per_source)


def bits_per_byte(documents: list[dict[str, Any]], source: str | None = None) -> float:
    """Of all documents together, or of one source's; infinite where they cover no text."""
    kept = [score for score in documents if source in (None, score["source"])]
    size = sum(score["bytes"] for score in kept)
    return math.fsum(score["nats"] for score in kept) / math.log(2) / size if size else math.inf
