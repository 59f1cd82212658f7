"""A small trained tokenizer, small corpora and shards built from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from samples import make_documents, make_recipe, write_jsonl

from mobillama.config import DataRecipe, read_recipe
from mobillama.data.build import build_shards
from mobillama.tokenizer.tokenizer import Tokenizer, train


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A byte-fallback BPE of 512 pieces."""
    return train((record["text"] for record in make_documents("tokenizer", 60)), 512)


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subsets; document 3 of `web` repeats document 1 of `book`."""
    root = tmp_path_factory.mktemp("corpora")
    book, web = make_documents("book", 40), make_documents("web", 30)
    web[3]["text"] = book[1]["text"]
    write_jsonl(root / "book.jsonl", book)
    write_jsonl(root / "web.jsonl", web)
    return root


@pytest.fixture(scope="session")
def built(corpora: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of `corpora`; the corpus is beside them."""
    out = tmp_path_factory.mktemp("built") / "shards"
    build_shards(make_recipe(corpora), out, workers=2, tokenizer=tokenizer, on_progress=lambda progress: None)
    return out


@pytest.fixture(scope="session")
def mini_amber(tmp_path_factory: pytest.TempPathFactory, shared_folder: Callable[[str], Path]) -> Path:
    """Shards of the whole recipe mini-amber but the benchmarks' overlap; for slow tests, which must not change them."""
    for variable in ("MOBILLAMA_CORPORA", "MOBILLAMA_TOKENIZER"):
        shared_folder(variable)
    out = tmp_path_factory.mktemp("mini-amber") / "shards"
    recipe = read_recipe(DataRecipe, "mini-amber", ["clean.overlap=off"])
    build_shards(recipe, out, on_progress=lambda progress: None)
    return out


@pytest.fixture
def build(tmp_path: Path, tokenizer: Tokenizer) -> Callable[..., Path]:
    """A function that builds shards of a folder into a folder of its own, on one worker unless told otherwise."""

    def run(root: Path, name: str = "shards", workers: int = 1, **changes: Any) -> Path:
        out = tmp_path / name
        build_shards(
            make_recipe(root, **changes), out, workers=workers, tokenizer=tokenizer, on_progress=lambda progress: None
        )
        return out

    return run
