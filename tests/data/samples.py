"""Small documents and a small recipe for the tests of the data room."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mobillama.config import CleanConfig, DataRecipe, PackConfig, SourceConfig

WORDS = (
    *("the", "sea", "was", "calm", "and", "two", "ships", "sailed", "past", "während", "große", "Wellen", "kamen"),
    *("他看见了海", "naïve", "x=1;", "return", "42", "🙂", "▁", "end"),
)
SYLLABLES = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in ("", "n", "r", "st")]


def make_text(random_words: random.Random, words: int) -> str:
    """Prose-like text with code, accents, Chinese, emoji, doubled spaces and a literal U+2581."""
    parts = []
    for _ in range(words):
        made = "".join(random_words.choice(SYLLABLES) for _ in range(random_words.randrange(1, 4)))
        parts += (random_words.choice((*WORDS, made, made)), random_words.choice((" ", " ", "  ", "\n", ". ")))
    return " " * random_words.randrange(2) + "".join(parts)


def make_documents(source: str, count: int, seed: int = 0) -> list[dict[str, str]]:
    """Records as the corpora have them, of 40 to 400 words."""
    words = random.Random(f"{source}-{seed}")
    return [
        {
            "text": make_text(words, words.randrange(40, 400)),
            "source": source,
            "id": f"{source}/{number}",
            "url": f"https://example.org/{source}/{number}",
            "license": "CC0-1.0",
        }
        for number in range(count)
    ]


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> Path:
    """Write records as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def make_recipe(root: Path, **changes: Any) -> DataRecipe:
    """A recipe for tiny rows over the JSON lines in `root`; `pack`, `source` and `clean` values by name."""
    pack: dict[str, Any] = {"seq_len": 32, "chunks": 3, "validation_share": 0.2}
    source: dict[str, Any] = {"root": str(root)}
    clean: dict[str, Any] = {"min_characters": 1}
    for name, value in changes.items():
        part = next(
            d for d, m in ((pack, PackConfig), (source, SourceConfig), (clean, CleanConfig)) if name in m.model_fields
        )
        part[name] = value
    return DataRecipe(source=SourceConfig(**source), clean=CleanConfig(**clean), pack=PackConfig(**pack))
