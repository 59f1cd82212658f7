"""The two sides of `mobillama bench data --against datatrove`: one turn each, in a process of its own.

From the same cleaned documents (a corpus artefact), the same tokenizer and the same number of workers: ours encodes and
packs them into shards that keep every document's byte ranges, plans, hashes and seals them included; datatrove's
DocumentTokenizer and DocumentTokenizerMerger (datatrove 0.10, the package that is installed) write flat files of token
ids that know where documents end. datatrove is set up as is fastest for it: one task a file as ours, workers that are
forked, no threads inside a worker, no second shuffle, no metadata read. Libraries are imported before the clock starts.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mobillama import manifest
from mobillama.errors import InputError, MeasurementError, missing_extra

PEERS = ("datatrove",)


def compare(
    turn: dict[str, Any], megabytes: float, rounds: int, peer: str = "datatrove"
) -> tuple[dict[str, Any], dict[str, float]]:
    """The row `data-tokenise`: megabytes (10^6 bytes) of cleaned text per second of ours and of the peer; and the
    median CPU seconds of a turn of each, start and imports included.

    `turn` is what both sides are told: `recipe` (its tree), `out` (shards; the corpus lies beside, at `<out>-corpus`),
    `peer_out`, `workers`. The sides take turns, the order turning round by round. Errors: InputError for a peer that is
    not known, MeasurementError if a side fails.
    """
    check_peer(peer)
    seconds: dict[str, list[float]] = {"ours": [], peer: []}
    computed: dict[str, list[float]] = {"ours": [], peer: []}
    sides = list(seconds)
    for number in range(rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds[side].append(_take(side, turn))
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            computed[side].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        shown = ", ".join(f"{side} {megabytes / taken[-1]:.2f} MB/s" for side, taken in seconds.items())
        print(f"data-tokenise: round {number + 1} of {rounds}; {shown}", file=sys.stderr)
    pairs = [[megabytes / mine, megabytes / theirs] for mine, theirs in zip(*seconds.values(), strict=True)]
    row = {
        "name": "data-tokenise",
        "ours": statistics.median(mine for mine, _ in pairs),
        "peer": statistics.median(theirs for _, theirs in pairs),
        "peer_name": peer,
        "ratio": statistics.median(mine / theirs for mine, theirs in pairs),
        "unit": "MB/s",
        "pairs": pairs,
    }
    return row, {side: round(statistics.median(taken), 2) for side, taken in computed.items()}


def check_peer(peer: str) -> None:
    """Raise InputError for a peer of the data bench that is not known."""
    if peer not in PEERS:
        raise InputError(f"no peer {peer!r} for data; the peers are: {', '.join(PEERS)}")


def _take(side: str, turn: dict[str, Any]) -> float:
    """Seconds of one turn of one side."""
    command = [sys.executable, "-m", "mobillama.bench.data_peer", side]
    # More threads inside a worker than cores only get in each other's way.
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, input=json.dumps(turn), stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise MeasurementError(f"{side} ended with status {done.returncode}; its own message is above")
    return float(done.stdout.splitlines()[-1])


def _ours(turn: dict[str, Any]) -> Callable[[], object]:
    from mobillama.config import DataRecipe
    from mobillama.data.build import build_shards

    recipe, out = DataRecipe.model_validate(turn["recipe"]), Path(turn["out"])
    manifest.remove(out)
    return lambda: build_shards(recipe, out, workers=turn["workers"], on_progress=lambda _: None)


def _datatrove(turn: dict[str, Any]) -> Callable[[], object]:
    try:
        from datatrove.executor.local import LocalPipelineExecutor
        from datatrove.pipeline.readers import ParquetReader
        from datatrove.pipeline.tokens import DocumentTokenizer, DocumentTokenizerMerger
        from loguru import logger
    except ImportError as error:
        raise missing_extra("data", error) from None
    from mobillama.tokenizer.tokenizer import Tokenizer
    from mobillama.tokenizer.vocabulary import FILE

    logger.disable("datatrove")
    out = Path(turn["peer_out"])
    manifest.remove(out)
    out.mkdir()
    recipe_root = turn["recipe"]["tokenizer"]["root"]
    Tokenizer.load(recipe_root).save(out / "tokenizer")
    documents = Path(f"{turn['out']}-corpus") / "documents"
    reader = ParquetReader(str(documents), read_metadata=False)
    write = DocumentTokenizer(
        str(out / "tokenised"), str(out / "tokenizer" / FILE), eos_token="</s>", shuffle_documents=False, seed=1
    )
    merge = DocumentTokenizerMerger(str(out / "tokenised"), str(out / "merged"), "all", seed=1, progress=False)

    def run() -> None:
        stages = (([reader, write], len(list(documents.glob("*.parquet")))), ([merge], 1))
        for number, (steps, tasks) in enumerate(stages):
            LocalPipelineExecutor(
                steps,
                tasks=tasks,
                workers=turn["workers"],
                logging_dir=str(out / f"log-{number}"),
                start_method="fork",
            ).run()

    return run


def main() -> None:
    """One turn: the side's name in argv, what it is told as JSON on standard input; prints the seconds."""
    turn = json.load(sys.stdin)
    run = {"ours": _ours, "datatrove": _datatrove}[sys.argv[1]](turn)
    report = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # datatrove prints what it did
    start = time.perf_counter()
    run()
    os.write(report, f"{time.perf_counter() - start}\n".encode())


if __name__ == "__main__":
    main()
