"""What an experiment found: every training's score, paired differences with their intervals, and sentences about them.

The sentences are made from the numbers alone: a difference is one only where the interval over seeds leaves out zero.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from mobillama.errors import TrainingError
from mobillama.experiment.design import TUNING_SEED, Arm, Comparison, Experiment, training_flops
from mobillama.experiment.statistics import Interval, bootstrap, t_interval
from mobillama.experiment.trial import Trial
from mobillama.experiment.tuning import Chosen, bits_per_byte, settings
from mobillama.model.cost import cost

FORMAT, FORMAT_VERSION = "mobillama.experiment", 1
PAPER_TOKENS_PER_PARAMETER = 1_258_520_000_000 / 534_865_920  # 360 chunks of 1,706,976 rows of 2,048; the 0.5B
Trials = Mapping[str, Mapping[int, Trial]]  # by arm and seed


def gather(
    experiment: Experiment, trials: Trials, chosen: Chosen, shards: Mapping[str, Any], plan: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of results.json: plain JSON types (docs/formats.md, section Experiment).

    Error: TrainingError naming a training that did not end.
    """
    scored = {name: {seed: trial.result() for seed, trial in seeds.items()} for name, seeds in trials.items()}
    for trial in (trial for seeds in trials.values() for trial in seeds.values()):
        if failed := trial.result().get("failed"):
            raise TrainingError(
                f"{trial.name} has no score: {failed} To try again remove {trial.scores} and {trial.run}"
            )
    arms = [describe_arm(arm, trials[arm.name], scored[arm.name], chosen) for arm in experiment.arms]
    comparisons = [compare(experiment, pair, scored) for pair in experiment.comparisons]
    seeds = sorted(next(iter(trials.values())))
    first = scored[experiment.arms[0].name][seeds[0]]
    results = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "experiment": experiment.name,
        "title": experiment.title,
        "question": experiment.question,
        "seeds": seeds,
        "tuning_seed": TUNING_SEED,
        "metric": "held-out bits per byte",
        "held_out": describe_documents(first["documents"], first["rows"]),
        "shards": dict(shards),
        "place": first["environment"]["words"],
        "plan": dict(plan),
        "tunings": chosen,
        "arms": arms,
        "comparisons": comparisons,
        "notes": [*experiment.notes, *notes(arms, chosen)],
    }
    return {**results, "found": sentences(results)}


def describe_arm(arm: Arm, trials: Mapping[int, Trial], scored: Mapping[int, Any], chosen: Chosen) -> dict[str, Any]:
    """One arm: its model, its settings, and each of its trainings."""
    found, runs = cost(arm.model), []
    for seed, score in scored.items():
        sources = sorted({document["source"] for document in score["documents"]})
        trial = trials[seed]
        runs.append(
            {
                "seed": seed,
                "run": score["run"],
                "recipe_digest": score["recipe_digest"],
                "weights": score["weights"],
                "bits_per_byte": bits_per_byte(score["documents"]),
                "sources": {name: bits_per_byte(score["documents"], name) for name in sources},
                "training_loss": score["loss"],
                "tokens_per_second": score["tokens_per_second"],
                "processor_seconds": score["processor_seconds"],
                "train_seed": trial.recipe.train.seed,
            }
        )
    values = [run["bits_per_byte"] for run in runs]
    tokens = next(iter(scored.values()))["tokens"]
    return {
        "name": arm.name,
        "title": arm.title,
        "model": arm.model.tree(),
        "train": {**arm.train, **settings(arm.takes, chosen)},
        "start": arm.start,
        "ffn": arm.ffn if arm.start else "",
        "stored_parameters": found.stored_parameters,
        "executed_parameters": found.executed_parameters,
        "embedding_share": found.stored_shares.embedding,
        "tokens": tokens,
        "tokens_per_parameter": tokens / found.stored_parameters,
        "training_flops": tokens * training_flops(arm.model),
        "bits_per_byte": statistics.fmean(values),
        "spread": statistics.stdev(values) if len(values) > 1 else None,
        "runs": runs,
    }


def describe_documents(documents: Sequence[Mapping[str, Any]], rows: int) -> dict[str, Any]:
    """Which held-out text is scored."""
    sources: dict[str, dict[str, int]] = {}
    for document in documents:
        entry = sources.setdefault(document["source"], {"documents": 0, "tokens": 0, "bytes": 0})
        entry["documents"] += 1
        entry["tokens"] += document["tokens"]
        entry["bytes"] += document["bytes"]
    total = {key: sum(entry[key] for entry in sources.values()) for key in ("documents", "tokens", "bytes")}
    return {"rows": rows, **total, "sources": dict(sorted(sources.items()))}


def compare(experiment: Experiment, pair: Comparison, scored: Mapping[str, Mapping[int, Any]]) -> dict[str, Any]:
    """Bits per byte of one arm minus another's: by seed, by source, with both intervals."""
    a, b = scored[pair.a], scored[pair.b]
    sources = sorted({document["source"] for document in next(iter(a.values()))["documents"]})
    return {
        "group": pair.group,
        "a": pair.a,
        "b": pair.b,
        "titles": [experiment.arm(name).title for name in (pair.a, pair.b)],
        **difference(a, b, None),
        "sources": {name: difference(a, b, name) for name in sources},
    }


def difference(a: Mapping[int, Any], b: Mapping[int, Any], source: str | None) -> dict[str, Any]:
    """Mean over seeds of the paired differences; `seeds` the t interval over them, `documents` the bootstrap's."""
    pairs = [
        bits_per_byte(a[seed]["documents"], source) - bits_per_byte(b[seed]["documents"], source) for seed in sorted(a)
    ]
    bits, sizes = [], []
    for seed in sorted(a):
        ours, theirs = (
            {score["document"]: score for score in found[seed]["documents"] if source in (None, score["source"])}
            for found in (a, b)
        )
        names = sorted(ours)
        bits.append([(ours[name]["nats"] - theirs[name]["nats"]) / math.log(2) for name in names])
        sizes = [ours[name]["bytes"] for name in names]
    seeds = t_interval(pairs)
    documents = bootstrap(np.asarray(bits).mean(0), np.asarray(sizes, np.float64))
    return {
        "difference": statistics.fmean(pairs),
        "by_seed": pairs,
        "spread": statistics.stdev(pairs) if len(pairs) > 1 else None,
        "seeds": _edges(seeds),
        "documents": _edges(documents),
        "verdict": verdict(statistics.fmean(pairs), seeds, documents),
    }


def verdict(mean: float, seeds: Interval | None, documents: Interval | None) -> str:
    """One of better, worse, none (zero is in the interval over seeds), unsure (only in that over documents), unknown.

    >>> verdict(-0.1, Interval(-0.2, -0.05), Interval(-0.15, -0.05)), verdict(-0.1, Interval(-0.3, 0.1), None)
    ('better', 'none')
    """
    if seeds is None:
        return "unknown"
    if seeds.holds_zero:
        return "none"
    if documents is None or documents.holds_zero:
        return "unsure"
    return "better" if mean < 0 else "worse"


def sentences(results: Mapping[str, Any]) -> list[str]:
    """What was found, in words; negative results too."""
    arms = {arm["name"]: arm for arm in results["arms"]}
    count, said = len(results["seeds"]), []
    for pair in results["comparisons"]:
        a, b = arms[pair["a"]], arms[pair["b"]]
        figures = f"{a['bits_per_byte']:.4f} against {b['bits_per_byte']:.4f} bits per byte"
        words = f"{a['title']} against {b['title']} ({pair['group']}): {figures}, difference {pair['difference']:+.4f}"
        if pair["seeds"]:
            words += f" (95% interval over {count} seeds {_range(pair['seeds'])}"
            words += f", over held-out documents {_range(pair['documents'])})" if pair["documents"] else ")"
        said.append(f"{words}: {_judge(pair, a['title'], count)}")
    return said


def _judge(pair: Mapping[str, Any], title: str, count: int) -> str:
    relative = {
        "better": f"{title} is better, beyond the spread of seeds and documents.",
        "worse": f"{title} is worse, beyond the spread of seeds and documents.",
        "none": "no difference beyond the seed spread.",
        "unsure": "a difference beyond the seed spread, but other held-out documents could turn it.",
        "unknown": f"{count} seed gives no spread, so nothing is concluded.",
    }
    said = relative[pair["verdict"]]
    if pair["verdict"] in ("better", "worse"):
        other = {"better": "worse", "worse": "better"}[pair["verdict"]]
        turned = [name for name, part in pair["sources"].items() if part["verdict"] == other]
        open_ = [name for name, part in pair["sources"].items() if part["verdict"] not in (pair["verdict"], other)]
        if turned:
            said += f" The other way round on {', '.join(turned)}."
        if open_:
            said += f" Not beyond the spread on {', '.join(open_)}."
    return said


def notes(arms: Sequence[Mapping[str, Any]], chosen: Chosen) -> list[str]:
    """What a reader must know before believing the sentences."""
    least, most = (pick(arm["tokens_per_parameter"] for arm in arms) for pick in (min, max))
    said = [
        f"Training tokens per stored parameter: {least:.2f} to {most:.2f}. The paper's 0.5B read about "
        f"{PAPER_TOKENS_PER_PARAMETER:,.0f}: what holds here need not hold there.",
        "Arms of one seed read the same rows in the same order, but an arm of fewer steps sees the first ones alone.",
    ]
    for name, found in chosen.items():
        tried = ", ".join(
            f"{entry['value']:g} " + ("diverged" if (bits := entry["bits_per_byte"]) is None else f"gave {bits:.4f}")
            for entry in found["tried"]
        )
        edge = " (at the edge of what was tried)" if found["edge"] else ""
        said.append(
            f"{found['field']} for {name}: {found['value']:g}{edge}, chosen in trainings of {found['steps']} steps on "
            f"seed {found['seed']}: {tried}."
        )
    return said


def _edges(interval: Interval | None) -> list[float] | None:
    return list(asdict(interval).values()) if interval else None


def _range(edges: Sequence[float]) -> str:
    return f"{edges[0]:+.4f} to {edges[1]:+.4f}"
