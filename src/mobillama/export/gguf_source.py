"""Where the weights of a GGUF file come from, one tensor at a time: a model folder, or a preset's random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from mobillama import manifest
from mobillama.config import ModelConfig, presets, read_recipe
from mobillama.errors import InputError
from mobillama.model import config_file, weights
from mobillama.model.ffn_copies import check_copies
from mobillama.model.hub import find_folder
from mobillama.model.initialise import _generator, outline_model
from mobillama.model.tensor_files import TensorFiles, open_tensors
from mobillama.tokenizer.tokenizer import FILE, MODEL_FILE, Tokenizer

SEED = 11111  # a training run's default: the random weights are those that a run of the preset starts from


class Source(Protocol):
    """A model whose weights are read one by one, under the names they have in a Transformer."""

    config: ModelConfig
    tokenizer: Tokenizer | None
    lineage: dict[str, str]  # what the file says of its origin: key -> value

    def weight(self, name: str) -> Tensor:
        """A weight, in the type it is stored in; copy what is to be kept."""
        ...


class Folder:
    """A model folder, a run or a hub name. Errors: those of `load_model`."""

    def __init__(self, folder: Path) -> None:
        self.config, self.files, self.sources = _open(folder)
        holds_tokenizer = any((folder / name).is_file() for name in (FILE, MODEL_FILE))
        self.tokenizer: Tokenizer | None = Tokenizer.load(folder) if holds_tokenizer else None
        sealed = (folder / manifest.FILE).is_file()
        self.lineage = {"mobillama.model_digest": manifest.read(folder).digest()} if sealed else {}

    def weight(self, name: str) -> Tensor:
        return self.files.tensor(self.sources[name])


class Preset:
    """The initial weights of a shape, for measuring: as `build_model` draws them, without holding them all."""

    def __init__(self, config: ModelConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.tokenizer: Tokenizer | None = None
        self.shapes = {name: weight.shape for name, weight in outline_model(config).named_parameters()}
        self.lineage = {"mobillama.random_weights": f"seed {seed}"}

    def weight(self, name: str) -> Tensor:
        if len(self.shapes[name]) == 1:
            return torch.ones(self.shapes[name])
        drawn = torch.empty(self.shapes[name], dtype=torch.float32)
        return drawn.normal_(0.0, self.config.initializer_range, generator=_generator(self.seed, name))


def find_source(model: str | Path, seed: int = SEED) -> Source:
    """The weights of a folder, a run or a hub name; of a preset, or a model recipe's file, random ones of its shape.

    A folder goes before a preset of the same name. Errors: InputError, RecipeError and those of `load_model`.
    """
    path, known = Path(model).expanduser(), presets("model")
    if not path.is_dir() and (str(model) in known or path.suffix == ".toml"):
        return Preset(read_recipe(ModelConfig, model), seed)
    if not path.exists() and "/" not in str(model):
        raise InputError(
            f"there is no folder {path} and no preset of that name; expected a model folder, a run, a hub name such as "
            f"'owner/name', or one of the presets {', '.join(known)}"
        )
    return Folder(find_folder(model))


def _open(folder: Path) -> tuple[ModelConfig, TensorFiles, dict[str, str]]:
    """The shapes of a model folder, its files, and the name on disk of every weight, checked as `load_model` does."""
    files, config = open_tensors(folder), weights.read_config(folder)
    if config_file.read_tree(folder).get("num_ffn_blocks") is not None:
        check_copies(files, config, folder)
    expected = weights._shapes(config)
    sources = {name: weights._source(name, config, files) for name in expected}
    weights._check_tensors(
        {name: files.shape(source) for name, source in sources.items() if source in files}
        | {name: files.shape(name) for name in weights._without_a_place(files, sources, config, folder)},
        expected,
        str(folder),
        lambda name: sources.get(name, name),
    )
    return config, files, sources
