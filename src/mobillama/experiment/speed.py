"""How long one training step of a recipe takes on one thread of this machine, measured before anything is trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mobillama.config import TrainRecipe
from mobillama.errors import TrainingError

PROCESS = ("-m", "mobillama.experiment.process")


def measure_steps(recipes: Sequence[TrainRecipe], jobs: int) -> list[float]:
    """Seconds of a step of each recipe, `jobs` measured at once, each in a process of its own."""
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(_in_a_process, recipes))


def child_environment() -> dict[str, str]:
    """Environment of a process that trains on one thread beside others."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}


def _in_a_process(recipe: TrainRecipe) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.json"
        path.write_text(json.dumps(recipe.tree()), encoding="utf-8")
        command = [sys.executable, *PROCESS, "measure", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, env=child_environment(), check=False)
    if done.returncode:
        raise TrainingError(f"a step of {recipe.name} could not be measured: {done.stderr.strip()[-2000:]}")
    return float(done.stdout.split()[-1])
