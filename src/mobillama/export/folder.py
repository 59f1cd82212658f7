"""A model in the forms that other programs read.

hf: a sealed folder as mobillama saves a model, the FFN stored once; transformers loads it with the code in the folder.
llama: a sealed folder of a plain LlamaForCausalLM with the FFN copied under every layer that uses it. Larger, but any
program that reads LLaMA folders loads it. config.json keeps `num_ffn_blocks`, which others ignore and which tells
`mobillama.load` that the copies are one. Gains of layers are folded into the copies; adapters are refused.
llama.cpp: one GGUF file of architecture llama, the FFN copied as well; see gguf_file.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mobillama import manifest
from mobillama.config import ModelConfig
from mobillama.errors import InputError
from mobillama.export.fold_gains import fold_gains, require_no_adapters
from mobillama.export.gguf_file import quantize_model
from mobillama.model import config_file
from mobillama.model.end_ids import GENERATION_FILE, read_end_ids
from mobillama.model.ffn_copies import PARTS, ffn_name
from mobillama.model.hub import find_folder
from mobillama.model.tensor_files import SAFETENSORS, open_tensors
from mobillama.model.transformer import Transformer
from mobillama.model.weights import disk_name, load_model, save_model
from mobillama.tokenizer.tokenizer import Tokenizer

FORMATS = ("hf", "llama", "llama.cpp")
TYPE_CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # as safetensors names them


def export_model(model: str | Path, out: Path, form: str = "hf", types: str | None = None) -> dict[str, Any]:
    """Write a model (a folder, a run or a hub name) to `out` in one of FORMATS, in the type it is stored in.

    types: for llama.cpp, the types of the file as `quantize_model` takes them. Result: `model` (out) and `format`, for
    llama.cpp with what `quantize_model` says of the file.
    Errors: InputError for an unknown format, types for a folder, a model that is not found, or an `out` that exists,
    a model with adapters beside its FFN for a form that has no place for them.
    """
    if form not in FORMATS:
        raise InputError(f"--format {form!r} is not known; use one of: {', '.join(FORMATS)}")
    if types is not None and form != "llama.cpp":
        raise InputError(f"--type {types!r} was given with --format {form}, which keeps the stored type; leave it out")
    folder = find_folder(model)
    said = {"model": str(out), "format": form}
    if form == "llama.cpp":
        types = types or TYPE_CODES[stored_dtype(folder)].lower()
        return {**said, **quantize_model(folder, out, types, architecture="llama")}
    write_folder(folder, out, form)
    return said


def write_folder(folder: Path, out: Path, form: str) -> None:
    """Write the model in `folder` as the sealed folder `out`, hf or llama."""
    loaded = load_model(folder, dtype=stored_dtype(folder))
    if form == "llama":
        require_no_adapters(loaded.config, "a plain LLaMA")
        loaded = fold_gains(loaded)
    has_tokenizer = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    tokenizer = Tokenizer.load(folder) if has_tokenizer else None
    end_ids = read_end_ids(folder, loaded.config.vocab_size)
    if not end_ids:
        end_ids = tuple(sorted(tokenizer.end_ids)) if tokenizer else (config_file.EOS_ID,)
    with manifest.building(out) as partial:
        clear(partial)
        if form == "hf":
            save_model(partial, loaded, loaded.config, end_ids=end_ids)
        else:
            write_llama(partial, loaded, end_ids)
        if (folder / GENERATION_FILE).is_file():
            shutil.copyfile(folder / GENERATION_FILE, partial / GENERATION_FILE)
        if tokenizer:
            tokenizer.save(partial)
        made_from = [manifest.origin(folder)] if (folder / manifest.FILE).is_file() else []
        manifest.seal(partial, out, "model", made_from=made_from, recipe={"format": form, **loaded.config.tree()})


def stored_dtype(folder: Path) -> torch.dtype:
    """The type of a model folder's weights: that of its first tensor."""
    files = open_tensors(folder)
    return files.tensor(files.names()[0]).dtype


def clear(partial: Path) -> None:
    """Remove what an interrupted export left behind."""
    for path in partial.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_llama(folder: Path, model: Transformer, end_ids: Sequence[int] = (config_file.EOS_ID,)) -> None:
    """Write config.json and model.safetensors of a LlamaForCausalLM that computes what `model` computes.

    end_ids: the ids any of which ends a text.
    """
    tensors = llama_tensors(model)
    write_safetensors(folder / SAFETENSORS, tensors)
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    tree = llama_config(model.config, dtype, end_ids)
    manifest.write_file(folder / config_file.FILE, json.dumps(tree, indent=2).encode() + b"\n")


def llama_config(config: ModelConfig, dtype: str, end_ids: Sequence[int] = (config_file.EOS_ID,)) -> dict[str, Any]:
    """The config.json of the same shapes as a plain LLaMA."""
    tree = config_file.config_tree(config, dtype, end_ids)
    del tree["auto_map"]
    return {**tree, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}


def llama_tensors(model: Transformer) -> dict[str, Tensor]:
    """Every tensor of a LlamaForCausalLM by name; the names of a shared FFN stand for one tensor in memory."""
    config, state = model.config, model.state_dict()
    tensors = {disk_name(name, config): tensor for name, tensor in state.items() if not name.startswith("ffns.")}
    for layer in range(config.num_hidden_layers):
        for part in PARTS:
            tensors[ffn_name(layer, part)] = state[f"ffns.{config.ffn_block_of(layer)}.{part}.weight"]
    return tensors


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors one by one: copies of one tensor take room in the file only, not in memory.

    safetensors' own writer refuses tensors that share memory. Format: 8 bytes of header length, JSON header, data.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": TYPE_CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins on a multiple of 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
