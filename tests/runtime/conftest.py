"""A tiny trained-like model as a folder and as .gguf files, and what the engine makes of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mobillama.config import ModelConfig
from mobillama.export.gguf_file import quantize_model
from mobillama.language_model import LanguageModel
from mobillama.model.initialise import build_model
from mobillama.model.weights import save_model
from mobillama.runtime.engine_model import EngineModel
from mobillama.tokenizer.tokenizer import train

V, CONTEXT = 512, 128


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers, one FFN, weights far enough apart that a wrong position changes the text."""
    path = tmp_path_factory.mktemp("runtime") / "tiny"
    config = ModelConfig(
        vocab_size=V,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.2,
    )
    save_model(path, build_model(config, seed=4), config)
    texts = [Path(json.__file__).read_text(encoding="utf-8"), Path(shutil.__file__).read_text(encoding="utf-8")]
    train(texts, V).save(path)
    return path


@pytest.fixture(scope="session")
def file(folder: Path) -> Path:
    """The model as a file of float32."""
    out = folder.with_name("tiny.gguf")
    quantize_model(folder, out, "f32")
    return out


@pytest.fixture(scope="session")
def model(file: Path) -> Iterator[EngineModel]:
    """The file in the engine, with float32 keys and values: the arithmetic of the torch model."""
    with EngineModel.load(file, kv="f32", threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def torch_model(folder: Path) -> LanguageModel:
    """The folder in torch: the oracle."""
    return LanguageModel.load(folder, device="cpu", dtype="float32")
