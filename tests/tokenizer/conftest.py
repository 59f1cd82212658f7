"""Tokenizers and their oracles: a small sentencepiece model trained here, and LLaMA's where it lies on this machine."""

from __future__ import annotations

import io
import os
import sysconfig
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sentencepiece

from mobillama.tokenizer.tokenizer import Tokenizer, convert


class Pair(NamedTuple):
    """Our tokenizer and sentencepiece's processor of the same model."""

    ours: Tokenizer
    oracle: Any


@pytest.fixture(scope="session")
def library_texts() -> list[str]:
    """Sources of Python's own library, in order of their names."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return [path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("*.py"))]


@pytest.fixture(scope="session")
def small_model(library_texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentencepiece model with LLaMA's settings and 1,500 pieces."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in library_texts[:40] for line in text.split("\n")),
        model_writer=written,
        vocab_size=1500,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("small") / "tokenizer.model"
    path.write_bytes(written.getvalue())
    return path


@pytest.fixture(scope="session", params=["small", "llama"])
def pair(request: pytest.FixtureRequest, small_model: Path) -> Pair:
    """Each model in turn; LLaMA's only where MOBILLAMA_TOKENIZER names its folder."""
    path = small_model
    if request.param == "llama":
        path = request.getfixturevalue("shared_folder")("MOBILLAMA_TOKENIZER") / "tokenizer.model"
    return Pair(convert(path), sentencepiece.SentencePieceProcessor(model_file=str(path)))


@pytest.fixture(scope="session")
def small(small_model: Path) -> Tokenizer:
    """The small model, converted."""
    return convert(small_model)


@pytest.fixture(scope="session")
def seed() -> int:
    """Seed of the random tests of this run: MOBILLAMA_TEST_SEED, else a new one; printed on failure."""
    seed = int(os.environ.get("MOBILLAMA_TEST_SEED", "0")) or int.from_bytes(os.urandom(4), "big")
    print(f"MOBILLAMA_TEST_SEED={seed}")
    return seed
