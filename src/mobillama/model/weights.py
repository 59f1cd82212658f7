"""A model folder <-> a Transformer: `config.json`, `model.safetensors` and the code transformers needs to load it.

Names on disk are Hugging Face's for LLaMA; each FFN block is stored once, under the first layer that uses it
(`model.layers.{first}.mlp.*`, the form of the released Chat file). Reading also accepts what was released before: see
ffn_copies.py and tensor_files.py. Format: docs/formats.md.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mobillama import manifest
from mobillama.config import ModelConfig
from mobillama.errors import InputError
from mobillama.model import config_file
from mobillama.model.ffn_copies import PARTS, check_copies, count_blocks, equal_bits, ffn_name, stored_name
from mobillama.model.initialise import outline_model
from mobillama.model.tensor_files import SAFETENSORS, TensorFiles, open_tensors
from mobillama.model.transformer import Transformer

K_PROJ = "model.layers.0.self_attn.k_proj.weight"
HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
GATE_PROJ = ".mlp.gate_proj.weight"
ROTARY_BUFFER = ".rotary_emb.inv_freq"  # stored by older code; computed here


def disk_name(name: str, config: ModelConfig) -> str:
    """The name on disk of a Transformer's tensor: the one renaming between the two.

    >>> disk_name("ffns.1.up_proj.weight", ModelConfig(num_ffn_blocks=2))
    'model.layers.11.mlp.up_proj.weight'
    """
    if name == HEAD:
        return name
    if name.startswith("ffns."):
        _, block, part, _ = name.split(".")
        return ffn_name(config.first_layer_of(int(block)), part)
    return f"model.{name}"


def save_model(
    folder: Path | str,
    model: Transformer | Mapping[str, Tensor],
    config: ModelConfig,
    extra_files: Mapping[str, Path] | None = None,
    *,
    end_ids: Sequence[int] = (config_file.EOS_ID,),
) -> None:
    """Write a model folder; a folder that is not there yet appears whole or not at all.

    model: a Transformer, or its state dict; kept in its own type. extra_files: name in the folder -> file to copy.
    end_ids: the ids any of which ends a text, as config.json lists them.
    In a folder that exists (one being built) each file is whole or absent, and config.json comes last.
    Errors: InputError if the tensors are not those of `config`.
    """
    folder = Path(folder)
    state = dict(model.state_dict() if isinstance(model, Transformer) else model)
    _check_tensors(
        {name: tuple(tensor.shape) for name, tensor in state.items()}, _shapes(config), f"weights of {folder}"
    )
    if folder.exists():
        _write_files(folder, state, config, extra_files or {}, end_ids)
        return
    beside = manifest.partial_path(folder)
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        _write_files(beside, state, config, extra_files or {}, end_ids)
        beside.rename(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    manifest.sync(folder.parent)


class StoredWeights:
    """The weights of a model folder, checked as a whole and read one by one, by their names in a Transformer."""

    def __init__(self, config: ModelConfig, files: TensorFiles, sources: Mapping[str, str]) -> None:
        self.config, self._files, self._sources = config, files, sources

    def tensor(self, name: str) -> Tensor:
        """A weight in the type it is stored in, backed by the file: copy what is to be kept."""
        return self._files.tensor(self._sources[name])


def open_weights(folder: Path | str, *, num_ffn_blocks: int | None = None) -> StoredWeights:
    """A model folder's weights, none read yet but those compared.

    num_ffn_blocks: how many FFNs the copies in the files are, where config.json does not say or says it wrong.
    Errors: InputError for missing, unexpected or misshapen tensors and for FFN copies that disagree (naming the first);
    DamagedFileError for files that are cut short.
    """
    folder = Path(folder)
    tree = config_file.read_tree(folder)
    files = open_tensors(folder)
    config = _true_config(folder, tree, files, num_ffn_blocks)
    if num_ffn_blocks is not None or tree.get("num_ffn_blocks") is not None:
        check_copies(files, config, folder)
    expected = _shapes(config)
    sources = {name: _source(name, config, files) for name in expected}
    _check_tensors(
        {name: files.shape(source) for name, source in sources.items() if source in files}
        | {name: files.shape(name) for name in _without_a_place(files, sources, config, folder)},
        expected,
        str(folder),
        lambda name: sources.get(name, name),
    )
    return StoredWeights(config, files, sources)


def load_model(
    folder: Path | str, *, dtype: torch.dtype = torch.float32, num_ffn_blocks: int | None = None
) -> Transformer:
    """Read a model folder into a Transformer on the CPU, in evaluation mode, holding the weights in memory once.

    num_ffn_blocks, errors: as `open_weights`.
    """
    stored = open_weights(folder, num_ffn_blocks=num_ffn_blocks)
    model = outline_model(stored.config).to(dtype).to_empty(device="cpu").eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(stored.tensor(name))
    return model


def read_config(folder: Path | str, *, num_ffn_blocks: int | None = None) -> ModelConfig:
    """The true shapes of a model folder: config.json corrected by what its tensors say. Errors: as `load_model`."""
    folder = Path(folder)
    return _true_config(folder, config_file.read_tree(folder), open_tensors(folder), num_ffn_blocks)


def _true_config(folder: Path, tree: dict[str, Any], files: TensorFiles, num_ffn_blocks: int | None) -> ModelConfig:
    """ModelConfig with key/value heads from k_proj's shape (released configs say 4 over 32) and FFN blocks counted."""
    origin = folder / config_file.FILE
    claimed = config_file.config_of({**tree, "num_key_value_heads": 0, "num_ffn_blocks": 1}, origin)
    _check_sizes(files, claimed, folder)
    if K_PROJ not in files:
        raise InputError(
            f"{folder} has no {K_PROJ}; expected a LLaMA's tensors, found {', '.join(files.names()[:3])}..."
        )
    rows = files.shape(K_PROJ)[0]
    if rows % claimed.head_dim:
        raise InputError(
            f"{folder}: {K_PROJ} has {rows} rows; expected a multiple of the head size {claimed.head_dim} "
            f"(hidden_size={claimed.hidden_size} / num_attention_heads={claimed.num_attention_heads})"
        )
    blocks = tree.get("num_ffn_blocks") if num_ffn_blocks is None else num_ffn_blocks
    if blocks is None:
        blocks = count_blocks(files, claimed.num_hidden_layers, folder)
    known = {"num_key_value_heads": rows // claimed.head_dim, "num_ffn_blocks": blocks}
    return config_file.config_of({**tree, **known}, origin)


def _check_sizes(files: TensorFiles, claimed: ModelConfig, folder: Path) -> None:
    """Raise InputError where sizes in config.json are not the tensors': what is built is no larger than the files."""
    names, layers = files.names(), claimed.num_hidden_layers
    if len(names) < layers:
        raise InputError(
            f"{folder}: config.json has num_hidden_layers={layers}, the files only {len(names)} tensors; correct the"
            " config, or get the weights that belong to it"
        )
    if EMBEDDING not in files:
        raise InputError(f"{folder}: {EMBEDDING} is missing; expected a whole checkpoint")
    expected = {EMBEDDING: (claimed.vocab_size, claimed.hidden_size)}
    for gate in (name for name in names if name.endswith(GATE_PROJ)):
        expected[gate] = (claimed.intermediate_size, claimed.hidden_size)
    for name, shape in expected.items():
        _check_shape(str(folder), name, files.shape(name), shape)


def _check_shape(what: str, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise InputError(
            f"{what}: {name} has shape {found}; expected {expected} from config.json: "
            "correct the config, or get the weights that belong to it"
        )


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in outline_model(config).named_parameters()}


def _source(name: str, config: ModelConfig, files: TensorFiles) -> str:
    """Where a Transformer's tensor is read from: for an FFN, whichever of its users' names is stored."""
    if name.startswith("ffns."):
        _, block, part, _ = name.split(".")
        return stored_name(files, config, int(block), part)
    return disk_name(name, config)


def _without_a_place(files: TensorFiles, sources: Mapping[str, str], config: ModelConfig, folder: Path) -> list[str]:
    """Names in the files that no weight is read from, less the copies and buffers that are known to be redundant."""
    redundant = {ffn_name(layer, part) for layer in range(config.num_hidden_layers) for part in PARTS}
    if config.tie_word_embeddings and HEAD in files:
        if not equal_bits(files, HEAD, sources["embed_tokens.weight"]):
            raise InputError(
                f"{folder}: {HEAD} differs from the embedding, but tie_word_embeddings is true; correct config.json"
            )
        redundant.add(HEAD)
    used = {*sources.values(), *redundant}
    return [name for name in files.names() if name not in used and not name.endswith(ROTARY_BUFFER)]


def _check_tensors(
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    what: str,
    shown: Callable[[str], str] = str,
) -> None:
    """InputError naming the first tensors that are missing, have no place, or have another shape than `expected`."""
    if missing := [shown(name) for name in expected if name not in found]:
        raise InputError(f"{what}: {_first(missing)} missing; expected a whole checkpoint of {len(expected)} tensors")
    if surplus := [name for name in found if name not in expected]:
        raise InputError(f"{what}: {_first(surplus)} unexpected; a MobiLlama of this config.json has no such tensor")
    for name, shape in expected.items():
        _check_shape(what, shown(name), found[name], shape)


def _first(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} {'is' if len(names) == 1 else 'are'}"


def _write_files(
    folder: Path,
    state: Mapping[str, Tensor],
    config: ModelConfig,
    extra_files: Mapping[str, Path],
    end_ids: Sequence[int],
) -> None:
    (folder / config_file.FILE).unlink(missing_ok=True)
    tensors = {disk_name(name, config): tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with _whole(folder / SAFETENSORS) as path:
        save_file(tensors, path, metadata={"format": "pt"})
    code = Path(__file__).with_name(f"{config_file.REMOTE_CODE}.py")
    for name, source in {code.name: code, **extra_files}.items():
        with _whole(folder / name) as path:
            shutil.copyfile(source, path)
    dtype = str(next(iter(state.values())).dtype).removeprefix("torch.")
    text = json.dumps(config_file.config_tree(config, dtype, end_ids), indent=2, ensure_ascii=False) + "\n"
    manifest.write_file(folder / config_file.FILE, text.encode())


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A path to write to that becomes `path`, synced, when the block ends, and is gone if the block fails."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        manifest.sync(beside)
        beside.rename(path)
    finally:
        beside.unlink(missing_ok=True)
    manifest.sync(path.parent)
