"""Small models on disk for the tests of GGUF files, and what a written file holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from numpy.typing import NDArray

from mobillama import manifest
from mobillama.config import ModelConfig
from mobillama.model.initialise import build_model
from mobillama.model.transformer import Transformer
from mobillama.model.weights import save_model
from mobillama.tokenizer.tokenizer import train

SMALL: dict[str, Any] = {
    "name": "small",
    "vocab_size": 420,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 48,
    "rope_theta": 5000.0,
    "rms_norm_eps": 1e-4,
    "initializer_range": 0.2,
}


def small_model(seed: int = 3, **changes: Any) -> Transformer:
    """A model of four layers and two key/value heads whose norms differ from one."""
    model = build_model(ModelConfig(**{**SMALL, **changes}), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def save_sealed(path: Path, model: Transformer) -> Path:
    """The model with a tokenizer of 400 pieces as a sealed model folder."""
    partial = manifest.partial_path(path)
    save_model(partial, model, model.config)
    train([Path(json.__file__).read_text(encoding="utf-8")], 400).save(partial)
    manifest.seal(partial, path, "model")
    return path


def tensors(path: Path) -> dict[str, NDArray[np.float32]]:
    """Every tensor of a GGUF file, as the gguf package reads it, in float32."""
    return {
        t.name: dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]) for t in GGUFReader(path).tensors
    }  # GGUF lists dimensions from the innermost


def types(path: Path) -> dict[str, str]:
    """The type of every tensor of a GGUF file."""
    return {tensor.name: tensor.tensor_type.name.lower() for tensor in GGUFReader(path).tensors}


def keys(path: Path) -> dict[str, Any]:
    """Every key of a GGUF file, as the gguf package reads it."""
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}
