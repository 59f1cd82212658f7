"""Which feed-forward networks a checkpoint really holds, whatever number of copies and names it stores them under.

The released MobiLlama files hold a copy of one FFN for every layer (base, `.bin`), or one copy under the name of any
layer (chat, safetensors), and none says how many networks there are. Names here are those on disk.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mobillama.config import ModelConfig
from mobillama.errors import InputError
from mobillama.model.tensor_files import TensorFiles

PARTS = ("gate_proj", "up_proj", "down_proj")


def ffn_name(layer: int, part: str) -> str:
    """The name on disk of one FFN matrix of a layer."""
    return f"model.layers.{layer}.mlp.{part}.weight"


def count_blocks(files: TensorFiles, num_layers: int, folder: Path) -> int:
    """How many FFN blocks a checkpoint holds that does not say so itself.

    - all stored copies are equal: one block, whichever layers' names it is stored under;
    - all layers are stored and no two are equal: one block a layer (a dense model);
    - some layers are stored, and they are the first users of as many blocks: that many blocks;
    - anything else is an InputError that names the first tensor that differs from an earlier copy.
    """
    originals = {part: _originals(files, part, num_layers) for part in PARTS}
    different = [
        (layer, PARTS.index(part), next(iter(found)))
        for part, found in originals.items()
        for layer, original in found.items()
        if original != next(iter(found))
    ]
    if not different:
        return 1
    stored = [list(found) for found in originals.values()]
    if all(layers == list(range(num_layers)) for layers in stored):
        networks = {tuple(found[layer] for found in originals.values()) for layer in range(num_layers)}
        if len(networks) == num_layers:
            return num_layers
    elif all(layers == _first_users(len(layers), num_layers) for layers in stored) and len(set(map(len, stored))) == 1:
        return len(stored[0])
    layer, part, first = min(different)
    raise InputError(
        f"{folder}: {ffn_name(layer, PARTS[part])} differs from {ffn_name(first, PARTS[part])}, while other copies are "
        f"equal or missing: this is neither one shared FFN nor one for each of {num_layers} layers; "
        "if it is meant so, say how many with num_ffn_blocks"
    )


def check_copies(files: TensorFiles, config: ModelConfig, folder: Path) -> None:
    """Raise InputError naming the first tensor that is not, bit for bit, the other copies of its block."""
    for block in range(config.num_ffn_blocks):
        sources = {part: stored_name(files, config, block, part) for part in PARTS}
        for layer in config.layers_of(block):
            for part, source in sources.items():
                name = ffn_name(layer, part)
                if name in files and name != source and not equal_bits(files, source, name):
                    raise InputError(
                        f"{folder}: {name} differs from {source}, but num_ffn_blocks={config.num_ffn_blocks} says that "
                        f"they are one; num_ffn_blocks={config.num_hidden_layers} loads each as its own (a dense model)"
                    )


def stored_name(files: TensorFiles, config: ModelConfig, block: int, part: str) -> str:
    """The first name on disk under which a block's matrix is stored. Error: InputError if there is none."""
    users = config.layers_of(block)
    for layer in users:
        if (name := ffn_name(layer, part)) in files:
            return name
    raise InputError(
        f"{ffn_name(users[0], part)} is missing; with num_ffn_blocks={config.num_ffn_blocks} it is expected under one "
        f"of the layers {users[0]} to {users[-1]}: get the whole checkpoint, or give its true num_ffn_blocks"
    )


def _originals(files: TensorFiles, part: str, num_layers: int) -> dict[int, int]:
    """For each layer that stores a matrix, the first layer that stores an equal one."""
    originals: dict[int, int] = {}
    alike: dict[
        bytes, list[int]
    ] = {}  # originals by their first rows, so that a dense model is compared row by row once
    for layer in range(num_layers):
        name = ffn_name(layer, part)
        if name in files:
            earlier = alike.setdefault(_bits(files.tensor(name)[:1]).numpy().tobytes(), [])
            originals[layer] = next((o for o in earlier if equal_bits(files, ffn_name(o, part), name)), layer)
            if originals[layer] == layer:
                earlier.append(layer)
    if not originals:
        raise InputError(
            f"{ffn_name(0, part)} is missing; expected one for each of {num_layers} layers, or one that they share"
        )
    return originals


def _first_users(blocks: int, num_layers: int) -> list[int]:
    return [-(-block * num_layers // blocks) for block in range(blocks)]


def equal_bits(files: TensorFiles, one: str, two: str) -> bool:
    """Whether two stored tensors have the same shape, type and bytes."""
    if files.shape(one) != files.shape(two):
        return False
    first, second = files.tensor(one), files.tensor(two)
    # A row first: different networks are told apart without reading them whole.
    return first.dtype == second.dtype and all(
        torch.equal(_bits(first[rows]), _bits(second[rows])) for rows in (slice(1), slice(1, None))
    )


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)
