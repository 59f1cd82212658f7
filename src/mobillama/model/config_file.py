"""`config.json` of a model folder <-> ModelConfig.

Writes what transformers needs to load the folder, with the rotary base both as `rope_theta` (older readers) and inside
`rope_parameters` (transformers 5); reads either. Anything a MobiLlama cannot compute is an error, never ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobillama.config import ModelConfig, resolve
from mobillama.errors import InputError
from mobillama.manifest import read_object
from mobillama.model.config_keys import check_keys

FILE = "config.json"
REMOTE_CODE = "modeling_mobillama"

# Without these the defaults of ModelConfig would silently stand in for the model's own shapes.
SHAPES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
LLAMAS_EPS = 1e-6  # transformers' default of rms_norm_eps, which a config.json may leave out
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
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": BOS_ID,
        "eos_token_id": (end_ids[0] if len(end_ids) == 1 else list(end_ids)) if end_ids else None,
        "dtype": dtype,
        "torch_dtype": dtype,
        "use_cache": True,
    }


def read_tree(folder: Path) -> dict[str, Any]:
    """The JSON object in a folder's config.json. Errors: InputError without one, DamagedFileError if unreadable."""
    path = folder / FILE
    if not path.is_file():
        raise InputError(f"{folder} has no {FILE}; a model folder holds {FILE} and model.safetensors (or a .bin)")
    return read_object(path)


def config_of(tree: dict[str, Any], origin: Path) -> ModelConfig:
    """The ModelConfig of a config.json's tree; `origin` is the file's path.

    Errors: InputError naming the first key that asks for another architecture; RecipeError for impossible shapes.
    Warning: ConfigWarning naming keys that are not known (config_keys.py).
    """
    if (kind := tree.get("model_type", "mobillama")) not in ("mobillama", "llama"):
        raise InputError(f"{origin}: model_type={kind!r}; expected 'mobillama' or 'llama'")
    if missing := [key for key in SHAPES if tree.get(key) is None]:
        raise InputError(f"{origin}: {', '.join(missing)} not given; a model's config.json says all of its shapes")
    fields = set(ModelConfig.model_fields)
    values = {key: value for key, value in tree.items() if key in fields and value is not None}
    given = {"name": origin.parent.name, "rms_norm_eps": LLAMAS_EPS, **values, "rope_theta": _rope_theta(tree, origin)}
    config = resolve(ModelConfig, given, str(origin))
    check_keys(tree, config, origin)
    if (found := tree.get("head_dim")) not in (None, config.head_dim):
        raise InputError(
            f"{origin}: head_dim={found!r}; expected hidden_size / num_attention_heads = {config.head_dim}: "
            "heads of another size cannot run here"
        )
    return config


def _rope_theta(tree: dict[str, Any], origin: Path) -> float:
    """The rotary base from `rope_parameters` (transformers 5) or `rope_theta`; LLaMA's where neither is given."""
    inner = tree.get("rope_parameters") or {}
    if not isinstance(inner, dict):
        raise InputError(f"{origin}: rope_parameters={inner!r}; expected rope_type and rope_theta in an object")
    plain = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1}
    for key, found in inner.items():
        if (found is not None and found != plain.get(key, found)) or isinstance(found, dict):
            raise InputError(
                f"{origin}: rope_parameters.{key}={found!r}; a MobiLlama has the plain rotation ('default')"
            )
    given = [value for value in (inner.get("rope_theta"), tree.get("rope_theta")) if value is not None]
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in given):
        raise InputError(f"{origin}: rope_theta={given[0]!r}; expected a number")
    if len(set(given)) > 1:
        raise InputError(f"{origin}: rope_parameters.rope_theta={given[0]} but rope_theta={given[1]}; make them equal")
    default: float = ModelConfig.model_fields["rope_theta"].default
    return given[0] if given else default
