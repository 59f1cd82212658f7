"""A run small enough to train in a test: recipe, shards, and a process of its own that can be killed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from mobillama.config import TrainRecipe, resolve
from mobillama.data.shards import write_shards

VOCABULARY, SEQ_LEN, ROWS, HELD_OUT = 64, 16, 48, 6


def recipe(*, model: dict | None = None, name: str = "tiny", **train) -> TrainRecipe:
    """Two layers, 12 steps, eager; any field of the `train` and `model` tables can be given."""
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": SEQ_LEN,
    }
    how = {
        "steps": 12,
        "rows_per_step": 4,
        "micro_batch_rows": 2,
        "learning_rate": 0.01,
        "warmup_steps": 2,
        "compile": False,
        "threads": 1,
        "validate_every": 4,
        "checkpoint_every": 5,
    }
    return resolve(TrainRecipe, {"name": name, "model": shape | (model or {}), "train": how | train}, "test")


def make_shards(folder: Path, *, seed: int = 0, **changes) -> Path:
    """Two chunks of repeating ids (a model can learn them) and held-out rows of two sources."""
    generator = np.random.default_rng(seed)
    starts = generator.integers(0, VOCABULARY, (ROWS + HELD_OUT, 1))
    ids = (starts + np.arange(SEQ_LEN + 1)) % VOCABULARY
    fields = {
        "vocab_size": VOCABULARY,
        "chunks": 2,
        "sources": ("prose", "code"),
        "validation_source": np.arange(HELD_OUT) % 2,
        "bytes_per_token": 3,
    }
    write_shards(folder, ids[:ROWS], ids[ROWS:], **fields | changes)
    return folder


def weights(run: Path) -> bytes:
    """The final weights, byte for byte."""
    return (run / "model" / "model.safetensors").read_bytes()


def start_process(shards: Path, run: Path, log: Path, **train) -> subprocess.Popen:
    """`train` in a process of its own; what it says goes to `log`."""
    settings = [f"{key}={value}" for key, value in train.items()]
    with log.open("ab") as sink:
        return subprocess.Popen(
            [sys.executable, __file__, str(shards), str(run), *settings],
            stdout=sink,
            stderr=sink,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )


def main() -> None:
    """Train with `key=value` fields of the `train` table."""
    from mobillama.train.loop import train

    shards, run, *settings = sys.argv[1:]
    values = dict(setting.split("=") for setting in settings)
    numbers = {key: value == "True" if value in ("True", "False") else int(value) for key, value in values.items()}
    print(train(recipe(**numbers), Path(shards), Path(run)))


if __name__ == "__main__":
    main()
