"""What runs in a process of its own: one trial of an experiment, or the measurement of a step.

`python -m mobillama.experiment.process train TRIAL.json` trains (or goes on, where the run stands) and scores the
held-out documents into `scores/NAME.json`. `... measure RECIPE.json` prints the processor seconds of a training step:
what other programs on the machine take does not count.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from mobillama import manifest
from mobillama.config import TrainRecipe, resolve
from mobillama.data.shards import read_shards
from mobillama.device import computing, place
from mobillama.errors import TrainingError
from mobillama.experiment.score import rows_of_each_source, score_model
from mobillama.model.initialise import build_model
from mobillama.train.loop import train
from mobillama.train.step import TrainStep

STEPS_TO_MEASURE = 6  # the first is not counted: it compiles


def carry_out(path: Path) -> None:
    """Train and score the trial that the file describes. Error: KeyboardInterrupt if asked to stop on the way."""
    tree = json.loads(path.read_text(encoding="utf-8"))
    recipe = resolve(TrainRecipe, tree["recipe"], str(path))
    folder, shards = path.parent.parent, Path(tree["shards"])
    run = folder / "runs" / tree["name"]
    began, last = time.process_time(), [0.0]

    def say(shown: dict[str, Any]) -> None:
        if time.monotonic() - last[0] > 10 or shown["step"] == shown["steps"]:
            last[0] = time.monotonic()
            print(f"step {shown['step']}/{shown['steps']} loss {shown['loss']:.4f}", flush=True)

    out = folder / "scores" / f"{tree['name']}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    about = {"name": tree["name"], "run": f"runs/{tree['name']}", "recipe_digest": recipe.digest()}
    try:
        result = train(recipe, shards, run, on_progress=say)
    except TrainingError as error:  # a result too: a learning rate that is too high
        manifest.write_file(out, json.dumps({**about, "failed": str(error), "documents": []}).encode() + b"\n")
        return
    if not result["finished"]:
        raise KeyboardInterrupt
    trained = time.process_time()
    data, here = read_shards(shards), place(recipe.train)
    rows = rows_of_each_source(data, tree["rows_per_source"])
    with computing(here, deterministic=recipe.train.deterministic):
        documents = score_model(Path(result["model"]), data, rows, here)
    found = {
        **about,
        "weights": manifest.read(run / "model", "model").files["model.safetensors"]["sha256"],
        "rows": len(rows),
        "loss": result["loss"],
        "tokens": result["tokens"],
        # Of this process: a trial that was interrupted says what its last part took.
        "tokens_per_second": result.get("tokens_per_second"),
        "processor_seconds": {"training": trained - began, "scoring": time.process_time() - trained},
        "environment": {"words": here.words()},
        "documents": documents,
    }
    manifest.write_file(out, json.dumps(found).encode() + b"\n")


def end_with_parent() -> None:
    """End this process when the one that started it is gone: a run that is killed goes on from its checkpoint."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def measure_step(recipe: TrainRecipe) -> float:
    """Median processor seconds of a training step on ids of no meaning, compiled as the recipe says."""
    config, model = recipe.train, recipe.model
    here = place(config)
    ids = torch.randint(0, model.vocab_size, (config.micro_batch_rows, model.max_position_embeddings + 1))
    seconds = []
    with computing(here, deterministic=config.deterministic):
        step = TrainStep(build_model(model, config.seed), config, here.device, here.dtype)
        for _ in range(STEPS_TO_MEASURE):
            started = time.process_time()
            for _ in range(config.rows_per_step // config.micro_batch_rows):
                step.accumulate(ids, config.micro_batch_rows / config.rows_per_step)
            step.update(config.learning_rate)
            seconds.append(time.process_time() - started)
    return statistics.median(seconds[1:])


def main(task: str, path: Path) -> None:
    """Do what the command line says."""
    if task == "train":
        end_with_parent()
        carry_out(path)
    elif task == "measure":
        print(measure_step(resolve(TrainRecipe, json.loads(path.read_text(encoding="utf-8")), str(path))))
    else:
        raise ValueError(f"task {task!r}; expected train or measure")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
