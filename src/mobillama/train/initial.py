"""The weights that a run starts from: new ones of the seed, or a trained model's, FFNs shared as the recipe says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mobillama import manifest
from mobillama.config import TrainRecipe
from mobillama.errors import DamagedFileError
from mobillama.model.hub import find_folder
from mobillama.model.initialise import build_model
from mobillama.model.sharing import check_shapes, share_ffns
from mobillama.model.tensor_files import open_tensors
from mobillama.model.transformer import Transformer
from mobillama.model.weights import load_model, read_config

ReadRows = Callable[[int], NDArray[np.int64]]


def initial_model(recipe: TrainRecipe, read_rows: ReadRows) -> Transformer:
    """The model before the first step, float32 on the CPU.

    read_rows: gives that many training rows (n, seq_len + 1); called only if the recipe fits FFNs on rows.
    Errors: RecipeError naming the key of the recipe that the model to start from does not fit; InputError and
    DamagedFileError if it cannot be read.
    """
    init, config = recipe.init, recipe.train
    if not init.model:
        return build_model(recipe.model, config.seed, ffn_init_scale=config.ffn_init_scale)
    check_start(recipe)
    rows = None
    if init.ffn == "least_squares":
        rows = torch.from_numpy(np.ascontiguousarray(read_rows(init.rows)[:, :-1]))
    start = load_model(find_folder(init.model))
    return share_ffns(start, recipe.model, init.ffn, layer=init.layer, rows=rows, seed=config.seed)


def check_start(recipe: TrainRecipe) -> None:
    """Whether the model to start from, if the recipe names one, fits its shapes; reads no weights. Errors: as above."""
    if recipe.init.model:
        check_shapes(read_config(find_folder(recipe.init.model)), recipe.model, recipe.init.layer)


def start_digest(recipe: TrainRecipe) -> str | None:
    """What the `start` line of the ledger says of the model that a run started from; None for new weights.

    The root digest of a sealed model folder. Of another: sha256 over the canonical JSON {file: sha256} of config.json
    and the files with the weights.
    """
    if not recipe.init.model:
        return None
    folder = find_folder(recipe.init.model)
    if (folder / manifest.FILE).is_file():
        if wrong := manifest.differences(folder):
            raise DamagedFileError(f"{folder} (init.model) is damaged: {'; '.join(wrong)}; restore it")
        return manifest.read(folder).digest()
    files = {path.name: manifest.sha256_file(path) for path in _files(folder)}
    return hashlib.sha256(json.dumps(files, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _files(folder: Path) -> list[Path]:
    open_tensors(folder)  # says in its own words if the folder holds no weights
    found = [folder / "config.json", *folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
    return sorted(path for path in found if path.is_file())
