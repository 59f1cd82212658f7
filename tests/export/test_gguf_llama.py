"""Law: a file of architecture llama computes what the model computes, by LLaMA's equations over neighbouring pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_models import keys, save_sealed, small_model, tensors, types
from numpy.typing import NDArray

from mobillama.errors import InputError
from mobillama.export.folder import export_model
from mobillama.export.gguf_file import quantize_model

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = [1, 5, 9, 200, 3, 77, 4, 4, 8, 415]
Array = NDArray[np.float64]


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def rotate_neighbours(x: Array, base: float) -> Array:
    """x (tokens, heads, Dh): the pair (2j, 2j + 1) as a complex number times e^(i · position · base^(-2j / Dh))."""
    tokens, _, size = x.shape
    angles = np.arange(tokens)[:, None] * base ** (-np.arange(0, size, 2) / size)
    pairs = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)[:, None]
    return np.stack([pairs.real, pairs.imag], -1).reshape(x.shape)


def llama_logits(weights: dict[str, Array], told: dict[str, Any], ids: list[int]) -> Array:
    """Logits (tokens, vocabulary) from a llama file's tensors and keys alone."""
    heads, groups = told["llama.attention.head_count"], told["llama.attention.head_count_kv"]
    eps, base = told["llama.attention.layer_norm_rms_epsilon"], told["llama.rope.freq_base"]
    x = weights["token_embd.weight"][ids]
    hidden = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
    for layer in range(told["llama.block_count"]):
        w = {name: weights[f"blk.{layer}.{name}.weight"] for name in (
            "attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"
        )}  # fmt: skip
        y = rms_norm(x, w["attn_norm"], eps)
        q = rotate_neighbours((y @ w["attn_q"].T).reshape(len(ids), heads, -1), base)
        k = rotate_neighbours((y @ w["attn_k"].T).reshape(len(ids), groups, -1), base)
        v = (y @ w["attn_v"].T).reshape(len(ids), groups, -1)
        k, v = (np.repeat(part, heads // groups, axis=1) for part in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1]) + hidden
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        attended = np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), v)
        x = x + attended.reshape(len(ids), -1) @ w["attn_output"].T
        y = rms_norm(x, w["ffn_norm"], eps)
        gate = y @ w["ffn_gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ w["ffn_up"].T)) @ w["ffn_down"].T
    return (
        rms_norm(x, weights["output_norm.weight"], eps) @ weights.get("output.weight", weights["token_embd.weight"]).T
    )


@pytest.mark.parametrize(
    ("blocks", "groups", "tied", "gain"),
    [(1, 2, False, False), (2, 4, True, False), (4, 1, False, False), (2, 2, False, True)],
    ids=["shared", "grouped", "dense", "gains"],
)
def test_a_llama_file_computes_what_the_model_computes(
    tmp_path: Path, blocks: int, groups: int, tied: bool, gain: bool
) -> None:
    model = small_model(num_ffn_blocks=blocks, num_key_value_heads=groups, tie_word_embeddings=tied, ffn_gain=gain)
    folder = save_sealed(tmp_path / "model", model)
    quantize_model(folder, tmp_path / "out.gguf", "f32", architecture="llama")
    weights = {name: tensor.astype(np.float64) for name, tensor in tensors(tmp_path / "out.gguf").items()}
    with torch.no_grad():
        expected = model.double()(torch.tensor([IDS]))[0].numpy()
    found = llama_logits(weights, keys(tmp_path / "out.gguf"), IDS)
    # Both in double precision; the file's base and epsilon are rounded to float32.
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_llama_file_holds_the_ffn_under_every_layer_and_our_rows_interleaved(tmp_path: Path) -> None:
    model = small_model(num_ffn_blocks=2)
    folder = save_sealed(tmp_path / "model", model)
    said = quantize_model(folder, tmp_path / "out.gguf", "f32", architecture="llama")
    found, state = tensors(tmp_path / "out.gguf"), model.state_dict()
    for layer in range(4):
        expected = state[f"ffns.{layer // 2}.up_proj.weight"].numpy()
        np.testing.assert_array_equal(found[f"blk.{layer}.ffn_up.weight"], expected)
    assert said["weights"] == sum(tensor.size for tensor in found.values())
    ours = state["layers.1.self_attn.k_proj.weight"].numpy()  # two heads of 16 rows
    theirs = found["blk.1.attn_k.weight"]
    for head in (0, 16):
        np.testing.assert_array_equal(theirs[head : head + 16 : 2], ours[head : head + 8])
        np.testing.assert_array_equal(theirs[head + 1 : head + 16 : 2], ours[head + 8 : head + 16])
    np.testing.assert_array_equal(found["blk.1.attn_v.weight"], state["layers.1.self_attn.v_proj.weight"].numpy())
    told = keys(tmp_path / "out.gguf")
    assert (told["general.architecture"], told["llama.attention.head_count_kv"]) == ("llama", 2)


@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "f32"), (torch.bfloat16, "bf16")], ids=str)
def test_an_export_for_llama_cpp_is_this_file_in_the_stored_type(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    folder = save_sealed(tmp_path / "model", small_model().to(dtype))
    said = export_model(folder, tmp_path / "out.gguf", "llama.cpp")
    quantize_model(folder, tmp_path / "same.gguf", name, architecture="llama")
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "same.gguf").read_bytes()
    assert (said["format"], said["architecture"]) == ("llama.cpp", "llama")
    export_model(folder, tmp_path / "f16.gguf", "llama.cpp", types="f16")
    assert set(types(tmp_path / "f16.gguf").values()) == {"f32", "f16"}


@pytest.mark.parametrize("changes", [{"ffn_gain": True}, {"ffn_adapter_rank": 2}], ids=str)
def test_a_file_for_the_engine_refuses_what_layers_have_of_their_own(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    folder = save_sealed(tmp_path / "model", small_model(**changes))
    with pytest.raises(InputError, match=rf"the model has {next(iter(changes))}=.*--format hf"):
        quantize_model(folder, tmp_path / "out.gguf", "f32")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_importance_of_shared_ffns_is_refused_where_gains_part_them(tmp_path: Path) -> None:
    folder = save_sealed(tmp_path / "model", small_model(ffn_gain=True))
    with pytest.raises(InputError, match="importance was given for a model with ffn_gain=true"):
        quantize_model(
            folder,
            tmp_path / "out.gguf",
            architecture="llama",
            importance={"blk.0.ffn_up.weight": np.ones(64, np.float32)},
        )


def test_types_are_for_files_only(tmp_path: Path) -> None:
    folder = save_sealed(tmp_path / "model", small_model())
    with pytest.raises(InputError, match="--type 'q4_0' was given with --format hf"):
        export_model(folder, tmp_path / "out", "hf", types="q4_0")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
