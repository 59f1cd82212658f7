"""`mobillama bench data`: text per second from compressed corpora to packed shards, and the memory it takes.

The build runs in a process of its own; its memory is sampled from /proc while it runs. With a peer, encoding and
packing alone take turns with the peer's (data_peer.py); with copies, the corpora are made that many times larger
(data_copies.py).
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobillama import manifest
from mobillama.bench.data_copies import write_copies
from mobillama.bench.data_memory import Peak
from mobillama.bench.data_peer import check_peer, compare
from mobillama.config import DataRecipe, SourceConfig, TokenizerConfig, read_recipe
from mobillama.data.shards import read_shards
from mobillama.data.stream import row_ids

READ_STEPS, READ_ROWS, READ_ROUNDS = 40, 128, 5
# What a row must reach, and the goal.
TARGETS = {
    "data-build": (1.0, 3.0),
    "data-tokenise": (6.0, 6.0),
    "data-tokenise ratio": (1.5, 1.5),
    "data-read": (20e6, 20e6),
}
LIMITS = {"data-worker-memory": (1000.0, 1000.0), "data-driver-memory": (1000.0, 1000.0)}
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


def measure(
    corpora: Path,
    tokenizer: Path,
    workers: int = 2,
    *,
    against: str = "",
    rounds: int = 3,
    copies: int = 1,
    settings: Sequence[str] = (),
) -> dict[str, Any]:
    """Build the mini-amber recipe from `corpora` once: megabytes (10^6 bytes) of raw text per second, peak megabytes.

    Also how fast training would read the shards on one core; with `against`, encoding and packing beside that peer in
    `rounds` rounds; with `copies`, of corpora so many times as large. `settings` change the recipe (`a.b=c`).

    Gives `rows` as every bench does, `seconds` per stage, `step_seconds` (of all workers) inside the stages,
    `cpu_seconds`, those of all processes together (and `tokenise_cpu_seconds`, of a turn of each side, which other
    programs disturb less than speeds), `targets` and `limits`: what rows must reach or stay below, and the goal.
    Errors: InputError for a peer that is not known.
    """
    if against:
        check_peer(against)
    recipe = read_recipe(DataRecipe, "mini-amber", settings)
    with tempfile.TemporaryDirectory(prefix="mobillama-bench-") as folder:
        if copies > 1:
            write_copies(corpora, Path(folder) / "copies", copies)
            corpora = Path(folder) / "copies"
        source = SourceConfig.model_validate({**recipe.source.tree(), "root": str(corpora)})
        recipe = recipe.model_copy(update={"source": source, "tokenizer": TokenizerConfig(root=str(tokenizer))})
        out = Path(folder) / "shards"
        before = _cpu_seconds()
        seconds, peak = _build(recipe, out, workers)
        computed = _cpu_seconds() - before
        corpus, shards = (manifest.read(path) for path in (out.with_name("shards-corpus"), out))
        read = _read_speed(out)
        turn = {
            "recipe": recipe.tree(),
            "out": str(out),
            "peer_out": str(Path(folder) / "peer"),
            "workers": workers,
        }
        compared = compare(turn, corpus.counts["bytes"] / 1e6, rounds, against) if against else None
    text = sum(subset["bytes_in"] for subset in corpus.counts["funnel"].values())
    tokens = sum(shards.counts[split]["tokens"] for split in ("train", "validation"))
    figures = [("data-build", text / seconds / 1e6, "MB/s"), ("data-tokens", tokens / seconds, "tokens/s")]
    figures.append(("data-read", read, "tokens/s"))
    if peak.all:
        figures.append(("data-memory", peak.all / 1e6, "MB peak, PSS of all processes"))
        figures.append(("data-worker-memory", peak.worker / 1e6, "MB peak, PSS of the largest worker"))
        figures.append(("data-driver-memory", peak.driver / 1e6, "MB peak, PSS of the process that starts them"))
    stages, steps = _stage_seconds(corpus, shards)
    return {
        "rows": [
            *(
                {"name": name, "ours": ours, "peer": None, "peer_name": "", "ratio": None, "unit": unit, "pairs": []}
                for name, ours, unit in figures
            ),
            *([compared[0]] if compared else []),
        ],
        "text_bytes": text,
        "tokens": tokens,
        "workers": workers,
        "copies": copies,
        "cpu_seconds": round(computed, 2),
        "tokenise_cpu_seconds": compared[1] if compared else {},
        "seconds": {**stages, "all": round(seconds, 2)},
        "step_seconds": steps,
        "targets": {name: list(pair) for name, pair in TARGETS.items()},
        "limits": {name: list(pair) for name, pair in LIMITS.items()},
    }


def _stage_seconds(*made: manifest.Manifest) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of every stage of some artefacts, and of every step inside one (all workers together)."""
    stages: dict[str, float] = {}
    steps: dict[str, float] = {}
    for each in made:
        stages |= {name: round(value, 2) for name, value in each.circumstance["seconds"].items()}
        for stage, found in each.circumstance.get("step_seconds", {}).items():
            steps |= {f"{stage}: {name}": round(value, 2) for name, value in found.items()}
    return stages, steps


def _build(recipe: DataRecipe, out: Path, workers: int) -> tuple[float, Peak]:
    """Seconds and peak memory of one build in a process of its own."""
    command = [sys.executable, "-c", BUILD, json.dumps(recipe.tree()), str(out), str(workers)]
    peak = Peak()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as build:
        peak.watch(build)
        if build.returncode:
            raise subprocess.CalledProcessError(build.returncode, "the build of the data bench")
        assert build.stdout is not None
        return float(build.stdout.read()), peak


def _cpu_seconds() -> float:
    """User and system seconds of all child processes that have ended (a busy machine stretches only the others)."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _read_speed(out: Path) -> float:
    """Tokens per second of reading batches in training order on one core: the median of READ_ROUNDS."""
    shards = read_shards(out)
    seconds = []
    for number in range(READ_ROUNDS):
        start = time.perf_counter()
        for step in range(number * READ_STEPS + 1, (number + 1) * READ_STEPS + 1):
            shards.train_rows(row_ids(1, step, READ_ROWS, shards.chunk_rows))
        seconds.append(time.perf_counter() - start)
    return READ_STEPS * READ_ROWS * shards.seq_len / statistics.median(seconds)
