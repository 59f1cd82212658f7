"""`mobillama bench data`: text per second from compressed corpora to packed shards, and the memory it takes.

The build runs in a process of its own; its memory is the sum over it and its workers of PSS (every shared page counted
once in all), sampled from /proc while it runs.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mobillama import manifest
from mobillama.config import DataRecipe, SourceConfig, TokenizerConfig, read_recipe
from mobillama.data.shards import read_shards
from mobillama.data.stream import row_ids

SAMPLE_SECONDS = 0.05
READ_STEPS, READ_ROWS = 40, 128
BUILD = """
import sys, time
from pathlib import Path
from mobillama.config import DataRecipe
from mobillama.data.build import build_shards
start = time.perf_counter()
build_shards(
    DataRecipe.model_validate_json(sys.argv[1]), Path(sys.argv[2]), workers=int(sys.argv[3]), on_progress=lambda _: None
)
print(time.perf_counter() - start)
"""


def measure(corpora: Path, tokenizer: Path, workers: int = 2) -> dict[str, Any]:
    """Build the mini-amber recipe from `corpora` once: megabytes (10^6 bytes) of text per second, and peak megabytes.

    Also how fast training would read the shards on one core. Gives `rows` as every bench does, `seconds` per stage,
    and `cpu_seconds`, those of all processes together.
    """
    recipe = read_recipe(DataRecipe, "mini-amber")
    source = SourceConfig.model_validate({**recipe.source.tree(), "root": str(corpora)})
    recipe = recipe.model_copy(update={"source": source, "tokenizer": TokenizerConfig(root=str(tokenizer))})
    with tempfile.TemporaryDirectory(prefix="mobillama-bench-") as folder:
        out = Path(folder) / "shards"
        before = _cpu_seconds()
        seconds, peak = _build(recipe, out, workers)
        computed = _cpu_seconds() - before
        made = [manifest.read(path) for path in (out.with_name("shards-corpus"), out)]
        read = _read_speed(out)
    text = sum(subset["bytes_in"] for subset in made[0].counts["funnel"].values())
    tokens = sum(made[1].counts[split]["tokens"] for split in ("train", "validation"))
    figures = [("data-build", text / seconds / 1e6, "MB/s"), ("data-tokens", tokens / seconds, "tokens/s")]
    figures.append(("data-read", read, "tokens/s"))
    if peak:
        figures.append(("data-memory", peak / 1e6, "MB peak, PSS of all processes"))
    stages = {name: round(value, 2) for each in made for name, value in each.circumstance["seconds"].items()}
    return {
        "rows": [
            {"name": name, "ours": ours, "peer": None, "peer_name": "", "ratio": None, "unit": unit, "pairs": []}
            for name, ours, unit in figures
        ],
        "text_bytes": text,
        "tokens": tokens,
        "workers": workers,
        "cpu_seconds": round(computed, 2),
        "seconds": {**stages, "all": round(seconds, 2)},
    }


def _build(recipe: DataRecipe, out: Path, workers: int) -> tuple[float, int]:
    """Seconds and peak bytes (0 where /proc does not tell) of one build in a process of its own."""
    command = [sys.executable, "-c", BUILD, json.dumps(recipe.tree()), str(out), str(workers)]
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as build:
        while build.poll() is None:
            peak = max(peak, sum(_proportional_bytes(process) for process in _tree(build.pid)))
            time.sleep(SAMPLE_SECONDS)
        if build.returncode:
            raise subprocess.CalledProcessError(build.returncode, "the build of the data bench")
        assert build.stdout is not None
        return float(build.stdout.read()), peak


def _cpu_seconds() -> float:
    """User and system seconds of all child processes that have ended (a busy machine stretches only the others)."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _tree(process: int) -> list[int]:
    """A process and all its descendants."""
    found = [process]
    for parent in found:
        for listed in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(child) for child in listed.read_text().split()]
            except OSError:
                continue
    return found


def _proportional_bytes(process: int) -> int:
    """PSS of one process; 0 if it has just ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:")), 0)


def _read_speed(out: Path) -> float:
    """Tokens per second of reading batches in training order on one core."""
    shards = read_shards(out)
    start = time.perf_counter()
    for step in range(1, READ_STEPS + 1):
        shards.train_rows(row_ids(1, step, READ_ROWS, shards.chunk_rows))
    return READ_STEPS * READ_ROWS * shards.seq_len / (time.perf_counter() - start)
