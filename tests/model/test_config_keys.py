"""A config.json whose keys ask for another arithmetic is refused, and one whose sizes lie takes no memory."""

from __future__ import annotations

import json
import math
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.export.gguf_models import small_model

from mobillama.config import ModelConfig
from mobillama.errors import InputError, RecipeError
from mobillama.model import transformer
from mobillama.model.config_file import config_of
from mobillama.model.config_keys import CHANGES, HARMLESS, USED, ConfigWarning
from mobillama.model.weights import load_model, read_config, save_model

TREE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 420,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 48,
}
# What an error says is expected -> values that change nothing, and values that do.
VALUES: dict[str, tuple[list[Any], list[Any]]] = {
    "'silu'": (["silu", "swish"], ["gelu", 1]),
    "none": ([{"rope_type": "default"}, {"type": "linear", "factor": 1.0}], [{"type": "linear", "factor": 2}, "yarn"]),
    "null, or use_sliding_window=false, or no less than max_position_embeddings": ([0, 48, 4096], [47, "all"]),
    "'full_attention' everywhere": ([["full_attention"] * 4], [["sliding_attention"] * 4, "full_attention"]),
    "1 everywhere (a rotation in each layer)": ([[1, 1, 1, 1]], [[1, 1, 1, 0]]),
    "1": ([1, 1.0], [2, 0.5, True, "1"]),
    "the head size": ([16], [8, 15.9]),
    "'rope'": (["rope", "rotary", "absolute"], ["alibi"]),
    "hidden_size": ([64], [32]),
    "'rms'": (["rms"], ["layer"]),
    "1 / sqrt(head size)": ([0.25], [1, 1 / 16]),
    "sqrt(num_hidden_layers)": ([2.0], [1.4]),
    "true": ([True], [False]),
    "false": ([False], [True, 2]),
    "0": ([0], [1, 30.0, 10**400]),
    "nothing": ([{}], [{"bits": 4}]),
}


def config(**changes: Any) -> ModelConfig:
    return config_of({**TREE, **changes}, Path("folder/config.json"))


def test_the_three_lists_do_not_overlap_and_hold_all_that_transformers_writes() -> None:
    configuration = pytest.importorskip("transformers.models.llama.configuration_llama")
    assert not (USED & HARMLESS) | (USED & CHANGES.keys() - {"rope_scaling"}) | (HARMLESS & CHANGES.keys())
    written = configuration.LlamaConfig().to_dict()
    assert not set(written) - {*USED, *HARMLESS, *CHANGES, *ModelConfig.model_fields}


@pytest.mark.parametrize("key", sorted(CHANGES))
def test_a_key_that_changes_the_arithmetic_is_read_with_its_neutral_value_alone(key: str) -> None:
    _, words = CHANGES[key]
    if key == "use_sliding_window":
        assert config(use_sliding_window=True, sliding_window=48) == config()
        with pytest.raises(InputError, match="sliding_window"):
            config(use_sliding_window=True, sliding_window=8)
        assert config(use_sliding_window=False, sliding_window=8) == config()
        return
    neutral, others = VALUES[words]
    for value in [None, *neutral]:
        assert config(**{key: value}) == config(), value
    for value in others:
        with pytest.raises(InputError, match=rf"config.json: {key}=.*a MobiLlama has {re.escape(words)}: these"):
            config(**{key: value})


def test_a_harmless_key_says_nothing_and_unknown_ones_are_named() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for key in sorted(HARMLESS - ModelConfig.model_fields.keys()):
            assert config(**{key: 7}) == config()
    with pytest.warns(ConfigWarning, match=r"'a_\\x1b\[2J_key', 'new_scale' unknown here"):
        assert config(**{"new_scale": 2.0, "a_\x1b[2J_key": 1}) == config()


def test_scaled_or_partial_rotations_are_refused_in_rope_parameters_too() -> None:
    assert (
        config(rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0})
        == config()
    )
    for odd in (
        {"rope_type": "llama3"},
        {"partial_rotary_factor": 0.5},
        {"full_attention": {"rope_theta": 1e4}},
        "none",
    ):
        with pytest.raises(InputError, match="rope_parameters"):
            config(rope_parameters=odd)
    for odd in ([1e4], "1e4", True):
        with pytest.raises(InputError, match=r"rope_theta=.*expected a number"):
            config(rope_theta=odd)


def test_a_missing_rms_norm_eps_is_that_of_transformers() -> None:
    assert config().rms_norm_eps == 1e-6
    assert config(rms_norm_eps=None).rms_norm_eps == 1e-6
    assert config(rms_norm_eps=1e-5).rms_norm_eps == 1e-5


def test_sizes_that_are_not_the_tensors_are_refused_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model()
    save_model(tmp_path / "sound", model, model.config)
    sound = json.loads((tmp_path / "sound" / "config.json").read_text())
    assert math.isclose(load_model(tmp_path / "sound").config.rms_norm_eps, 1e-4)

    def too_large(*_: Any) -> None:
        raise AssertionError("a model was built")

    monkeypatch.setattr(transformer.Transformer, "__init__", too_large)
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"):
        for value in (10**5, 2**31, 10**18, 10**400):
            folder = tmp_path / "lying"
            shutil.copytree(tmp_path / "sound", folder)
            (folder / "config.json").write_text(json.dumps({**sound, "head_dim": None, key: value}))
            for read in (load_model, read_config):
                with pytest.raises((InputError, RecipeError)) as found:
                    read(folder)
                assert key in str(found.value) or "has shape" in str(found.value)
            shutil.rmtree(folder)


def test_a_pickled_tensor_that_repeats_its_numbers_is_refused(tmp_path: Path) -> None:
    model = small_model()
    save_model(tmp_path / "model", model, model.config)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(stored, tmp_path / "model" / "pytorch_model.bin")
    assert load_model(tmp_path / "model").config == model.config
    huge = torch.zeros(1).expand(2**40, 64)
    torch.save({**stored, "model.embed_tokens.weight": huge}, tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(InputError, match=rf"model\.embed_tokens\.weight has shape .{2**40}, 64.*holds 4 of it"):
        load_model(tmp_path / "model")
