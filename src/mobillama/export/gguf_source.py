"""Where the weights of a GGUF file come from, one tensor at a time: a model folder, or a preset's random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor

from mobillama import manifest
from mobillama.config import ModelConfig, presets, read_recipe
from mobillama.errors import InputError
from mobillama.model.end_ids import read_end_ids
from mobillama.model.hub import find_folder
from mobillama.model.initialise import draw_weight, outline_model
from mobillama.model.weights import open_weights
from mobillama.tokenizer.tokenizer import MODEL_FILE, Tokenizer
from mobillama.tokenizer.vocabulary import FILE

SEED = 11111  # a training run's default: the random weights are those that a run of the preset starts from


class Source(Protocol):
    """A model whose weights are read one by one, under the names they have in a Transformer."""

    config: ModelConfig
    tokenizer: Tokenizer | None
    lineage: dict[str, str]  # what the file says of its origin: key -> value
    end_ids: tuple[int, ...]  # ids that end a text, beside those that the tokenizer names

    def weight(self, name: str) -> Tensor:
        """A weight, in the type it is stored in; copy what is to be kept."""
        ...


class Folder:
    """A model folder, a run or a hub name. Errors: those of `load_model`."""

    def __init__(self, folder: Path) -> None:
        self.stored = open_weights(folder)
        self.config = self.stored.config
        holds_tokenizer = any((folder / name).is_file() for name in (FILE, MODEL_FILE))
        self.tokenizer: Tokenizer | None = Tokenizer.load(folder) if holds_tokenizer else None
        self.lineage = lineage_of(folder) if (folder / manifest.FILE).is_file() else {}
        self.end_ids = read_end_ids(folder, self.config.vocab_size)

    def weight(self, name: str) -> Tensor:
        return self.stored.tensor(name)


class Preset:
    """The initial weights of a shape, for measuring: as `build_model` draws them, without holding them all."""

    def __init__(self, config: ModelConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.tokenizer: Tokenizer | None = None
        self.shapes = {name: weight.shape for name, weight in outline_model(config).named_parameters()}
        self.lineage = {"mobillama.random_weights": f"seed {seed}"}
        self.end_ids: tuple[int, ...] = ()

    def weight(self, name: str) -> Tensor:
        return draw_weight(name, self.shapes[name], self.config, self.seed)


def lineage_of(folder: Path) -> dict[str, str]:
    """What a GGUF file says of the model folder it was made from, an artefact, and of the shards behind that."""
    model = manifest.read(folder)
    found = {"mobillama.model_digest": model.digest()}
    for entry in model.made_from:
        if entry["kind"] == "shards":
            found |= {"mobillama.shards_name": entry["name"], "mobillama.shards_digest": entry["digest"]}
    return found


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
