"""MB of text encoded per second of one core, ours beside sentencepiece's, with LLaMA's model on the corpora.

    python -m tests.tokenizer.speed [rounds]

Needs MOBILLAMA_CORPORA and MOBILLAMA_TOKENIZER. Every round starts with an empty table and takes the corpora one after
the other, both encoders in turn on each; time is the processor's, so that others on the machine disturb less.
"""

from __future__ import annotations

import gzip
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece

from mobillama.tokenizer.tokenizer import convert


def seconds(encode: Callable[[str], Any], texts: list[str]) -> float:
    """Processor time to encode all texts."""
    begin = time.process_time()
    for text in texts:
        encode(text)
    return time.process_time() - begin


def main(rounds: int) -> None:
    """Print one line a corpus and one for all: medians over the rounds."""
    model = Path(os.environ["MOBILLAMA_TOKENIZER"]) / "tokenizer.model"
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(model))
    corpora = {}
    for path in sorted(Path(os.environ["MOBILLAMA_CORPORA"]).glob("*.jsonl.gz")):
        with gzip.open(path) as lines:
            corpora[path.name.removesuffix(".jsonl.gz")] = [json.loads(line)["text"] for line in lines]
    sizes = {name: sum(len(text.encode()) for text in texts) / 1e6 for name, texts in corpora.items()}
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in [*corpora, "all"]}
    for turn in range(rounds):
        ours = convert(model)
        for name, texts in corpora.items():
            if turn % 2:
                peer = seconds(oracle.encode, texts)
                pairs[name].append((seconds(ours.encode_array, texts), peer))
            else:
                pairs[name].append((seconds(ours.encode_array, texts), seconds(oracle.encode, texts)))
        pairs["all"].append((sum(pairs[n][-1][0] for n in corpora), sum(pairs[n][-1][1] for n in corpora)))
    sizes["all"] = sum(sizes.values())
    for name, times in pairs.items():
        mine, theirs, ratio = (
            statistics.median(value)
            for value in zip(*((sizes[name] / a, sizes[name] / b, b / a) for a, b in times), strict=True)
        )
        print(
            f"{name:14} {sizes[name]:6.2f} MB  ours {mine:6.2f} MB/s  sentencepiece {theirs:5.2f} MB/s  {ratio:.2f} x"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
