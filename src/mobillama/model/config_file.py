"""`config.json` of a model folder <-> ModelConfig.

Writes what transformers needs to load the folder, with the rotary base both as `rope_theta` (older readers) and inside
`rope_parameters` (transformers 5); reads either. Anything a MobiLlama cannot compute is an error, never ignored.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobillama.config import ModelConfig, resolve
from mobillama.errors import DamagedFileError, InputError

FILE = "config.json"
REMOTE_CODE = "modeling_mobillama"

# What must hold of a config.json, because this architecture has no such part; absent or null means the value here.
FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "rope_scaling": None}
# Without these the defaults of ModelConfig would silently stand in for the model's own shapes.
SHAPES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
# LLaMA's ids, which every tokenizer of ours shares.
BOS_ID, EOS_ID = 1, 2


def config_tree(config: ModelConfig, dtype: str, end_ids: Sequence[int] = (EOS_ID,)) -> dict[str, Any]:
    """The content of config.json for weights of type `dtype` ("float32"); end_ids: any of them ends a text."""
    tree = config.tree()
    rope = {"rope_type": "default", "rope_theta": tree["rope_theta"]}
    return {
        "architectures": ["MobiLlamaForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{REMOTE_CODE}.MobiLlamaConfig",
            "AutoModelForCausalLM": f"{REMOTE_CODE}.MobiLlamaForCausalLM",
        },
        "model_type": "mobillama",
        **tree,
        "head_dim": config.head_dim,
        "rope_parameters": rope,
        "hidden_act": FIXED["hidden_act"],
        "attention_bias": FIXED["attention_bias"],
        "mlp_bias": FIXED["mlp_bias"],
        "attention_dropout": 0.0,
        "bos_token_id": BOS_ID,
        "eos_token_id": end_ids[0] if len(end_ids) == 1 else list(end_ids),
        "dtype": dtype,
        "torch_dtype": dtype,
        "use_cache": True,
    }


def read_tree(folder: Path) -> dict[str, Any]:
    """The JSON object in a folder's config.json. Errors: InputError without one, DamagedFileError if unreadable."""
    path = folder / FILE
    if not path.is_file():
        raise InputError(f"{folder} has no {FILE}; a model folder holds {FILE} and model.safetensors (or a .bin)")
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedFileError(f"{path} is not valid JSON ({error}); restore it") from None
    if not isinstance(tree, dict):
        raise DamagedFileError(f"{path} holds a {type(tree).__name__}; expected one JSON object")
    return tree


def config_of(tree: dict[str, Any], origin: Path) -> ModelConfig:
    """The ModelConfig of a config.json's tree; `origin` is the file's path.

    Errors: InputError naming the first key that asks for another architecture; RecipeError for impossible shapes.
    """
    if (kind := tree.get("model_type", "mobillama")) not in ("mobillama", "llama"):
        raise InputError(f"{origin}: model_type={kind!r}; expected 'mobillama' or 'llama'")
    for key, expected in FIXED.items():
        if (found := tree.get(key)) is not None and found != expected and not _is_plain_rope(key, found):
            raise InputError(f"{origin}: {key}={found!r}; a MobiLlama has {expected!r}: these weights cannot run here")
    if missing := [key for key in SHAPES if tree.get(key) is None]:
        raise InputError(f"{origin}: {', '.join(missing)} not given; a model's config.json says all of its shapes")
    fields = set(ModelConfig.model_fields)
    values = {key: value for key, value in tree.items() if key in fields and value is not None}
    values = {"name": origin.parent.name, **values, "rope_theta": _rope_theta(tree, origin)}
    config = resolve(ModelConfig, values, str(origin))
    if (found := tree.get("head_dim")) not in (None, config.head_dim):
        raise InputError(
            f"{origin}: head_dim={found!r}; expected hidden_size / num_attention_heads = {config.head_dim}: "
            "heads of another size cannot run here"
        )
    return config


def _is_plain_rope(key: str, value: Any) -> bool:
    """Whether a `rope_scaling` entry asks for nothing but the plain rotation."""
    plain = ("default", None)
    return key == "rope_scaling" and isinstance(value, dict) and value.get("rope_type", value.get("type")) in plain


def _rope_theta(tree: dict[str, Any], origin: Path) -> float:
    """The rotary base from `rope_parameters` (transformers 5) or `rope_theta`; LLaMA's where neither is given."""
    inner = tree.get("rope_parameters") or {}
    if (kind := inner.get("rope_type", "default")) != "default":
        raise InputError(
            f"{origin}: rope_parameters.rope_type={kind!r}; a MobiLlama has the plain rotation ('default')"
        )
    given = [value for value in (inner.get("rope_theta"), tree.get("rope_theta")) if value is not None]
    if len(set(given)) > 1:
        raise InputError(f"{origin}: rope_parameters.rope_theta={given[0]} but rope_theta={given[1]}; make them equal")
    default: float = ModelConfig.model_fields["rope_theta"].default
    return given[0] if given else default
