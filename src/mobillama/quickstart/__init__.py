"""The whole chain in one command: text found on this machine, a tokenizer, shards, two models, the engine, one page.

Everything lies in one folder: shards/ and shards-corpus/, a run per model (shared/, dense/), a file of each for the
engine (shared.gguf, dense.gguf), plan.json (device and number of steps, decided once), results.json and index.html
(docs/formats.md, section Quickstart). What is there is reused; what was interrupted goes on. Times are kept by the
artefacts themselves, in their circumstance.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobillama import manifest
from mobillama.config import DataRecipe, TrainRecipe, read_recipe, resolve, with_defaults
from mobillama.errors import InputError, TrainingError
from mobillama.quickstart.answers import AGAIN, PROMPTS, try_engine, write_samples
from mobillama.report.page import write_quickstart_page
from mobillama.report.results import gather
from mobillama.report.run import read_run

__all__ = ["PROMPTS", "Chain", "read_chain", "run"]

STEPS_TO_PROBE = 4  # the first is not counted: it sets memory aside
TITLES = {"shared": "one FFN for all layers", "dense": "one FFN per layer"}


@dataclass(frozen=True)
class Chain:
    """What the quickstart builds and what it must reach."""

    data: DataRecipe
    shared: TrainRecipe
    dense: TrainRecipe
    min_bytes: int = 10_000_000  # of text in the corpus
    min_tokens: int = 500_000  # that each model is trained on
    wanted_margin: float = 1.0  # nats per token below the unigram entropy of the validation split
    training_seconds: float = 140.0  # that both trainings should take at most; beyond, as few steps as min_tokens needs

    @property
    def models(self) -> dict[str, TrainRecipe]:
        """Recipe of each model by the name of its folder."""
        return {"shared": self.shared, "dense": self.dense}


def read_chain() -> Chain:
    """The shipped quickstart: recipes/data/python-installation.toml and recipes/train/quickstart-*.toml."""
    shared, dense = (read_recipe(TrainRecipe, f"quickstart-{name}") for name in ("shared", "dense"))
    return Chain(read_recipe(DataRecipe, shared.data.recipe), shared, dense)


def run(out: Path, chain: Chain | None = None) -> dict[str, Any]:
    """Carry out the chain in `out` and write its page; a summary of plain JSON types, `page` is the page's path.

    Errors: InputError if `out` holds the parts of other recipes; TrainingError, after the page is written, if a goal
    was not reached; KeyboardInterrupt if training was asked to stop (the same call goes on).
    """
    started = time.monotonic()
    chain = chain or read_chain()
    out.mkdir(parents=True, exist_ok=True)
    with manifest.locked(out, f"{out} is in use by another quickstart; wait for it or choose another --out"):
        reused = [name for name in ("shards", *chain.models) if _is_there(out, name)]
        setup = _import_libraries() if len(reused) <= len(chain.models) else 0.0
        say("[1/5] corpus, tokenizer and shards")
        build_data(chain, out)
        plan = decide_plan(chain, out, setup)
        for number, (name, recipe) in enumerate(planned_models(chain, plan).items(), 2):
            say(f"[{number}/5] a model with {TITLES[name]}: {cost_words(recipe)}")
            train_model(recipe, out, name)
        say("[4/5] a rounded file of each model, and its speed in the engine")
        engine = try_engine(out, list(chain.models))
        say("[5/5] samples and page")
        results = gather_results(chain, out, plan, engine, reused)
        path = out / "results.json"
        if not reused:
            results["wall_seconds"] = time.monotonic() - started
        elif path.is_file() and (earlier := manifest.read_object(path, AGAIN)).get("wall_seconds"):
            results["wall_seconds"] = earlier["wall_seconds"]
        manifest.write_file(path, json.dumps(results, indent=1, ensure_ascii=False).encode() + b"\n")
        page = write_quickstart_page(out, out / "index.html").resolve()
    for note in [*results["notes"], *(goal["text"] for goal in results["goals"] if goal["met"])]:
        say(note)
    for name, seen in results["engine"]["models"].items():
        say(f"{TITLES[name]}: {seen['tokens_per_second']:,.0f} tokens/s seen in the engine, {seen['bytes']:,} bytes")
    if missed := [goal["text"] for goal in results["goals"] if not goal["met"]]:
        raise TrainingError(f"the quickstart did not reach its goals: {' '.join(missed)} See {page}")
    say(f"done in {time.monotonic() - started:.0f} s; open the page below in a browser")
    return {"page": str(page), "seconds": time.monotonic() - started, "reused": reused, **results}


def build_data(chain: Chain, out: Path) -> None:
    """Corpus and shards, or those there. Error: InputError if they are of another recipe."""
    shards = out / "shards"
    if shards.exists():
        if with_defaults(DataRecipe, manifest.read(shards, "shards").recipe) != chain.data.tree():
            raise InputError(
                f"{shards} was built from another recipe than {chain.data.name!r}; remove {out} or choose another --out"
            )
        return
    from mobillama.data.build import build_shards

    build_shards(chain.data, shards)


def decide_plan(chain: Chain, out: Path, setup: float) -> dict[str, Any]:
    """How many steps both models take on this machine: decided once, by its compute type and its speed, and kept."""
    path = out / "plan.json"
    if path.is_file():
        return manifest.read_object(path, AGAIN)
    from mobillama.device import dtype_name, place

    started = time.monotonic()
    tokens_per_step = chain.shared.train.rows_per_step * chain.data.pack.seq_len
    most, least = chain.shared.train.steps, math.ceil(chain.min_tokens / tokens_per_step)
    here = place(chain.shared.train)
    seconds = sum(probe_speed(recipe, out / "shards") for recipe in chain.models.values())  # per step of both
    steps, notes = most, []
    if here.dtype.itemsize > 2:
        steps = min(most, least)
        notes.append(f"This machine computes in {dtype_name(here.dtype)} ({here.why_dtype}), so with fewer steps.")
    elif seconds * most > chain.training_seconds:
        steps = min(most, max(least, int(chain.training_seconds / seconds)))
        notes.append(f"A step of both models was seen to take {seconds:.2f} s on this machine, so there are fewer.")
    if notes:
        notes[-1] += f" {steps} instead of {most}."
    plan: dict[str, Any] = {"steps": steps, "step_seconds": seconds, "notes": notes, "setup": setup}
    plan |= {"place": here.words(), "probe": time.monotonic() - started}
    manifest.write_file(path, json.dumps(plan, indent=1).encode() + b"\n")
    return plan


def probe_speed(recipe: TrainRecipe, shards: Path) -> float:
    """Seconds of one training step, uncompiled: the median of a few, whose weights are thrown away."""
    import torch

    from mobillama.data.shards import read_shards
    from mobillama.device import computing, place
    from mobillama.model.initialise import build_model
    from mobillama.train.step import TrainStep

    config = recipe.train.model_copy(update={"compile": False})
    here = place(config)
    rows = torch.from_numpy(read_shards(shards).train_rows(range(config.micro_batch_rows)))
    seconds = []
    with computing(here, deterministic=config.deterministic):
        step = TrainStep(build_model(recipe.model, config.seed), config, here.device, here.dtype)
        for _ in range(STEPS_TO_PROBE):
            started = time.monotonic()
            for _ in range(config.rows_per_step // config.micro_batch_rows):
                step.accumulate(rows, config.micro_batch_rows / config.rows_per_step)
            float(step.update(config.learning_rate).all)
            seconds.append(time.monotonic() - started)
    return statistics.median(seconds[1:])


def planned_models(chain: Chain, plan: Mapping[str, Any]) -> dict[str, TrainRecipe]:
    """The train recipes with this machine's number of steps."""
    planned = {}
    for name, recipe in chain.models.items():
        tree = recipe.tree()
        warmup = min(recipe.train.warmup_steps, plan["steps"] // 10)
        # All held-out rows: the unigram entropy is measured on the same.
        tree["train"] |= {"steps": plan["steps"], "warmup_steps": warmup, "validation_rows": 0}
        planned[name] = resolve(TrainRecipe, tree, recipe.name)
    return planned


def train_model(recipe: TrainRecipe, out: Path, name: str) -> None:
    """Train one model, or go on where it stands."""
    began = manifest.read_object(path) if (path := out / name / "run.json").is_file() else {}
    if _is_there(out, name) and with_defaults(TrainRecipe, began.get("recipe", {})) == recipe.tree():
        return
    from mobillama.train.loop import train

    if not train(recipe, out / "shards", out / name)["finished"]:
        raise KeyboardInterrupt


def cost_words(recipe: TrainRecipe) -> str:
    """Parameters of a model in words."""
    from mobillama.model.cost import cost

    found = cost(recipe.model)
    return f"{found.stored_parameters:,} parameters stored, {found.executed_parameters:,} executed per token"


def measure_unigram(shards: Path) -> dict[str, Any]:
    """Entropy of the token frequencies of the validation split itself, over the positions that are evaluated.

    No model that ignores context can do better on that split, however it was trained.
    """
    import numpy as np

    from mobillama.data.shards import read_shards

    data = read_shards(shards)
    rows = np.arange(data.num_validation_rows)
    counts = np.bincount(data.validation_rows(rows)[:, 1:].ravel(), minlength=data.vocab_size)
    shares = counts[counts > 0] / counts.sum()
    entropy = float(-(shares * np.log(shares)).sum())
    size = int(data.row_bytes(rows, "validation").sum())
    bits = entropy * int(counts.sum()) / math.log(2) / size
    return {"entropy": entropy, "bits_per_byte": bits, "tokens": int(counts.sum()), "bytes": size}


def gather_results(
    chain: Chain, out: Path, plan: Mapping[str, Any], engine: Mapping[str, Any], reused: Sequence[str]
) -> dict[str, Any]:
    """All that the page tells beyond manifests and ledgers."""
    from mobillama.model.cost import cost

    recipes = planned_models(chain, plan)
    samples = write_samples(out, list(recipes))
    unigram = measure_unigram(out / "shards")
    models = []
    for name, recipe in recipes.items():
        found = cost(recipe.model)
        sizes = {key: getattr(found, key) for key in ("stored_parameters", "executed_parameters", "flops_per_token")}
        models.append({"name": name, "title": TITLES[name], "config": recipe.model.tree(), **sizes})
    return gather(
        out,
        models=models,
        unigram=unigram,
        samples=samples,
        engine=engine,
        plan=plan,
        reused=reused,
        wanted={"bytes": chain.min_bytes, "tokens": chain.min_tokens, "margin": chain.wanted_margin},
    )


def say(text: str) -> None:
    """One line of progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def _is_there(out: Path, name: str) -> bool:
    """Whether the shards, or the model of that name with its ledger's end, are complete."""
    if name == "shards":
        return (out / name / manifest.FILE).is_file()
    return (out / name / "model" / manifest.FILE).is_file() and read_run(out / name).ended


def _import_libraries() -> float:
    """Load what the stages need, so that its time is seen apart; seconds."""
    started = time.monotonic()
    say("loading libraries")
    import torch._dynamo  # noqa: F401  (else the first optimizer would load it)

    import mobillama.data.build
    import mobillama.train.loop  # noqa: F401

    return time.monotonic() - started
