"""The science of sharing: experiments that train many small models, compare them, and say what was found.

Everything lies in one folder: trials/ (what each training is), runs/ (ordinary run folders), scores/ (nats and bytes
per held-out document), logs/, plan.json, results.json, picture.svg and index.html (docs/formats.md, section
Experiment). A finished training is not repeated; killed at any moment, the same command goes on.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mobillama import manifest
from mobillama.config import DataRecipe, TrainRecipe, read_recipe, resolve
from mobillama.errors import InputError
from mobillama.experiment.design import Experiment, Sizes, training_flops
from mobillama.experiment.init import init
from mobillama.experiment.queue import Progress, carry_out
from mobillama.experiment.results import gather
from mobillama.experiment.sharing import sharing
from mobillama.experiment.table5 import table5
from mobillama.experiment.trial import Trial, make_trial
from mobillama.experiment.tuning import choose, settings
from mobillama.model.cost import cost

DESIGNS: Mapping[str, Callable[[Sizes], Experiment]] = {"table5": table5, "sharing": sharing, "init": init}
DATA = "mini-amber-2k"
ROWS, TUNING_ROWS = 96, 32  # held-out rows of each source that a model is scored on
GRID = 3.5  # trainings of a tuning to plan for: three, and now and then one or two beyond an edge


def run(
    name: str,
    shards: Path,
    out: Path,
    *,
    scale: float = 1.0,
    seeds: int = 3,
    jobs: int = 0,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Carry out an experiment in `out`, or what is left of it; the content of its results.json and `page`, its path.

    scale: widths times this, steps times its square. jobs: trainings at once, 0 = one per core. dry_run: the plan
    alone, nothing is written.
    Errors: InputError for an unknown name or shards without spans; TrainingError if a training fails;
    KeyboardInterrupt if asked to stop.
    """
    from mobillama.data.shards import read_shards

    require_name(name)
    data = read_shards(shards)
    sizes = Sizes(vocab_size=data.vocab_size, seq_len=data.seq_len)
    experiment = DESIGNS[name](sizes.scaled(scale) if scale != 1 else sizes)
    return perform(experiment, shards, out, seeds=seeds, jobs=jobs, dry_run=dry_run)


def perform(
    experiment: Experiment, shards: Path, out: Path, *, seeds: int = 3, jobs: int = 0, dry_run: bool = False
) -> dict[str, Any]:
    """`run` for a design of your own."""
    from mobillama.data.shards import read_shards
    from mobillama.device import cores
    from mobillama.report.experiment import write_experiment_page, write_experiment_picture

    if seeds < 1:
        raise InputError(f"seeds={seeds}; expected 1 or more, at least 3 for an interval worth having")
    data = read_shards(shards)
    data.require_spans()
    if not data.num_validation_rows:
        raise InputError(f"{shards} holds no held-out rows to compare on; build it with pack.validation_share above 0")
    jobs = jobs or cores()
    if dry_run:
        plan = make_plan(experiment, seeds, jobs)
        say(plan_words(experiment, plan))
        return {"experiment": experiment.name, "plan": plan}
    out.mkdir(parents=True, exist_ok=True)
    with manifest.locked(out, f"{out} is in use by another experiment; wait for it or choose another --out"):
        plan = keep_plan(experiment, seeds, jobs, out)
        say(plan_words(experiment, plan))
        progress = Progress(plan["thread_seconds"], jobs, say, plan["step_seconds"])
        chosen = choose(experiment, out, shards, TUNING_ROWS, progress)
        for tuning, found in chosen.items():
            say(f"{found['field']} of {tuning}: {found['value']:g}")
        trials = arm_trials(experiment, range(1, seeds + 1), chosen, out)
        for sourced in (False, True):  # what starts from another arm's model waits for it
            batch = [t for arm in experiment.arms if bool(arm.start) == sourced for t in trials[arm.name].values()]
            carry_out(batch, shards, progress)
        origin = {"path": str(shards), "digest": data.digest}
        results = gather(experiment, trials, chosen, origin, plan)
        manifest.write_file(out / "results.json", json.dumps(results, indent=1, ensure_ascii=False).encode() + b"\n")
        write_experiment_picture(out, out / "picture.svg")
        page = write_experiment_page(out, out / "index.html")
    for sentence in results["found"]:
        say(sentence)
    return {**results, "page": str(page.resolve())}


def require_name(name: str) -> None:
    """Raise InputError if there is no experiment of that name."""
    if name not in DESIGNS:
        raise InputError(f"no experiment {name!r}; give one of {', '.join(DESIGNS)}")


def build_data(folder: Path) -> Path:
    """The shards of the experiments in `folder`, built if they are not there."""
    shards = folder / DATA
    if not shards.exists():
        from mobillama.data.build import build_shards

        build_shards(read_recipe(DataRecipe, DATA), shards)
    return shards


def arm_trials(
    experiment: Experiment, seeds: range, chosen: Mapping[str, Any], out: Path
) -> dict[str, dict[int, Trial]]:
    """The training of every arm and seed."""
    trials: dict[str, dict[int, Trial]] = {}
    for arm in sorted(experiment.arms, key=lambda arm: bool(arm.start)):
        trials[arm.name] = {}
        for seed in seeds:
            train = {**arm.train, **settings(arm.takes, dict(chosen)), "seed": seed + arm.seed_offset}
            source = trials[arm.start][seed] if arm.start else None
            name = f"{arm.name}-seed{seed}"
            trials[arm.name][seed] = make_trial(out, name, arm.model.tree(), train, ROWS, source=source, ffn=arm.ffn)
    return trials


def make_plan(experiment: Experiment, seeds: int, jobs: int) -> dict[str, Any]:
    """What will be trained and how long it takes here; measures a step of every shape. Plain JSON types."""
    from mobillama.experiment.speed import measure_steps

    shapes = {model.digest(): model for model in experiment.models}
    recipes = [
        resolve(TrainRecipe, {"name": model.name, "model": model.tree(), "train": dict(experiment.arms[0].train)}, name)
        for name, model in shapes.items()
    ]
    say(f"measuring a step of {len(recipes)} models")
    started = time.monotonic()
    seconds = dict(zip(shapes, measure_steps(recipes, jobs), strict=True))
    arms = [
        {
            "name": arm.name,
            "title": arm.title,
            "stored_parameters": cost(arm.model).stored_parameters,
            "executed_parameters": cost(arm.model).executed_parameters,
            "training_flops_per_token": training_flops(arm.model),
            "steps": arm.steps,
            "step_seconds": seconds[arm.model.digest()],
        }
        for arm in experiment.arms
    ]
    thread_seconds = seeds * math.fsum(arm.steps * seconds[arm.model.digest()] for arm in experiment.arms)
    thread_seconds += GRID * math.fsum(part.steps * seconds[part.model.digest()] for part in experiment.tunings)
    return {
        "seeds": seeds,
        "jobs": jobs,
        "trainings": seeds * len(arms) + round(GRID * len(experiment.tunings)),
        "arms": arms,
        "step_seconds": seconds,
        "thread_seconds": thread_seconds,
        "hours": thread_seconds / jobs / 3600,
        "probe_seconds": time.monotonic() - started,
    }


def keep_plan(experiment: Experiment, seeds: int, jobs: int, out: Path) -> dict[str, Any]:
    """The plan kept in `out`, if it is of this design; else a new one, kept."""
    path = out / "plan.json"
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        models = {model.digest() for model in experiment.models}
        steps = [arm.steps for arm in experiment.arms]
        same = [entry["steps"] for entry in kept["arms"]] == steps and models == set(kept["step_seconds"])
        if same and (kept["seeds"], kept["jobs"]) == (seeds, jobs):
            return dict(kept)
    plan = make_plan(experiment, seeds, jobs)
    manifest.write_file(path, json.dumps(plan, indent=1).encode() + b"\n")
    return plan


def plan_words(experiment: Experiment, plan: Mapping[str, Any]) -> str:
    """The plan for a person to read."""
    lines = [f"{experiment.name}: {experiment.question}"]
    lines += [
        f"  {arm['title']:45} {arm['stored_parameters']:>11,} stored  {arm['executed_parameters']:>11,} executed"
        f"  {arm['steps']:>6} steps of {arm['step_seconds']:.2f} s"
        for arm in plan["arms"]
    ]
    lines.append(
        f"about {plan['trainings']} trainings ({plan['seeds']} seeds, and {len(experiment.tunings)} learning rates to"
        f" choose), {plan['jobs']} at once: about {plan['hours']:.1f} hours on an idle machine, scoring apart"
    )
    return "\n".join(lines)


def say(text: str) -> None:
    """One line of progress on stderr."""
    print(text, file=sys.stderr, flush=True)
