"""Small shards with documents, for experiments."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from mobillama.config import DataRecipe, resolve
from mobillama.data.build import build_shards

WORDS = ("the", "a", "river", "stone", "green", "old", "letter", "and", "was", "light", "under", "house", "we", "carry")


@pytest.fixture(scope="session")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of two subsets, 120 short documents, rows of 32, a tokenizer of 300 pieces; tests must not change them."""
    root = tmp_path_factory.mktemp("experiment")
    numbers = random.Random(5)
    for subset in ("book", "web"):
        with (root / f"{subset}.jsonl").open("w", encoding="utf-8") as file:
            for number in range(60):
                text = " ".join(numbers.choice(WORDS) for _ in range(numbers.randrange(20, 60)))
                file.write(
                    json.dumps({"id": f"{subset}-{number}", "text": f"{subset} {number}: {text}. Ümlaut"}) + "\n"
                )
    tree = {
        "name": "documented",
        "source": {"root": str(root), "subsets": ["book", "web"]},
        "clean": {"min_characters": 1, "deduplicate": False},
        "tokenizer": {"train_vocab_size": 300},
        "pack": {"seq_len": 32, "chunks": 2, "validation_share": 0.3},
    }
    out = root / "shards"
    build_shards(resolve(DataRecipe, tree, "test"), out, workers=1, on_progress=lambda progress: None)
    return out
