"""GGUF files hold what the model holds, read by the gguf package; bad requests and interruptions leave nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf_models import SMALL, keys, save_sealed, small_model, tensors, types
from safetensors.torch import load_file, save_file

from mobillama import manifest
from mobillama.config import ModelConfig
from mobillama.errors import InputError, RecipeError
from mobillama.export.gguf_file import quantize_model
from mobillama.model.initialise import build_model

pytestmark = pytest.mark.usefixtures("one_thread")

EACH_LAYER = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm")
FFN = ("ffn_gate", "ffn_up", "ffn_down")
OWN = {"attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj", "attn_output": "o_proj"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_sealed(tmp_path / "model", small_model())


@pytest.mark.parametrize(("blocks", "firsts"), [(1, [0]), (2, [0, 2]), (3, [0, 2, 3]), (4, [0, 1, 2, 3])])
def test_each_ffn_is_stored_once_under_its_first_layer(tmp_path: Path, blocks: int, firsts: list[int]) -> None:
    model = small_model(num_ffn_blocks=blocks)
    quantize_model(save_sealed(tmp_path / "model", model), tmp_path / "out.gguf", "f32")
    found = tensors(tmp_path / "out.gguf")
    layers = {f"blk.{layer}.{name}.weight" for layer in range(4) for name in EACH_LAYER}
    ffns = {f"blk.{layer}.{name}.weight" for layer in firsts for name in FFN}
    assert set(found) == {"token_embd.weight", "output_norm.weight", "output.weight"} | layers | ffns
    for block, layer in enumerate(firsts):
        for name, part in zip(FFN, ("gate_proj", "up_proj", "down_proj"), strict=True):
            expected = model.state_dict()[f"ffns.{block}.{part}.weight"].numpy()
            np.testing.assert_array_equal(found[f"blk.{layer}.{name}.weight"], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_model_stored_in_a_float_type_keeps_its_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    name = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}[dtype]
    model = small_model().to(dtype)
    quantize_model(save_sealed(tmp_path / "model", model), tmp_path / "out.gguf", name)
    found, state = tensors(tmp_path / "out.gguf"), model.float().state_dict()
    pairs = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"}
    for layer in range(4):
        pairs |= {f"blk.{layer}.{theirs}": f"layers.{layer}.self_attn.{ours}" for theirs, ours in OWN.items()}
        pairs[f"blk.{layer}.attn_norm"] = f"layers.{layer}.input_layernorm"
        pairs[f"blk.{layer}.ffn_norm"] = f"layers.{layer}.post_attention_layernorm"
    for theirs, ours in pairs.items():
        np.testing.assert_array_equal(found[f"{theirs}.weight"], state[f"{ours}.weight"].numpy())
    is_norm = {tensor: tensor.split(".")[-2].endswith("norm") for tensor in found}
    assert types(tmp_path / "out.gguf") == {tensor: "f32" if norm else name for tensor, norm in is_norm.items()}


def test_a_tied_model_has_one_embedding_of_the_heads_type(tmp_path: Path) -> None:
    folder = save_sealed(tmp_path / "model", small_model(tie_word_embeddings=True))
    quantize_model(folder, tmp_path / "out.gguf", "f32,head=f16")
    found = types(tmp_path / "out.gguf")
    assert "output.weight" not in found
    assert (found["token_embd.weight"], found["blk.0.attn_q.weight"]) == ("f16", "f32")
    with pytest.raises(InputError, match="embedding is its head too"):
        quantize_model(folder, tmp_path / "two.gguf", "f32,embedding=f16")


def test_the_keys_say_the_shapes_and_where_the_file_comes_from(folder: Path, tmp_path: Path) -> None:
    said = quantize_model(folder, tmp_path / "out.gguf", "f16,ffn=bf16")
    found = keys(tmp_path / "out.gguf")
    assert {name: found[f"general.{name}"] for name in ("architecture", "type", "name", "file_type")} == {
        "architecture": "mobillama",
        "type": "model",
        "name": "small",
        "file_type": 1,
    }
    shapes = {
        "context_length": 48,
        "embedding_length": 64,
        "block_count": 4,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": pytest.approx(1e-4),
        "rope.freq_base": 5000.0,
        "rope.dimension_count": 16,
        "vocab_size": 420,
        "ffn_block_count": 1,
    }
    assert {name: found[f"mobillama.{name}"] for name in shapes} == shapes
    assert found["mobillama.model_digest"] == manifest.read(folder).digest()
    assert found["mobillama.types"] == "attention=f16,ffn=bf16,embedding=f16,head=f16"
    assert len(found["tokenizer.ggml.tokens"]) == 420
    assert (said["bytes"], said["weights"]) == (
        (tmp_path / "out.gguf").stat().st_size,
        sum(w.numel() for w in small_model().parameters()),
    )
    assert said["fallbacks"] == {}


def test_a_preset_gives_the_weights_a_run_of_it_starts_from(tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text("\n".join(f"{key} = {value}" for key, value in SMALL.items() if key != "name"))
    quantize_model(recipe, tmp_path / "out.gguf", "f32", seed=5)
    found = tensors(tmp_path / "out.gguf")
    expected = build_model(ModelConfig(**SMALL), 5).state_dict()
    np.testing.assert_array_equal(found["blk.3.attn_v.weight"], expected["layers.3.self_attn.v_proj.weight"].numpy())
    np.testing.assert_array_equal(found["blk.0.ffn_down.weight"], expected["ffns.0.down_proj.weight"].numpy())
    told = keys(tmp_path / "out.gguf")
    assert (told["tokenizer.ggml.model"], told["mobillama.random_weights"]) == ("none", "seed 5")
    assert "mobillama.model_digest" not in told


def test_progress_rises_to_one(folder: Path, tmp_path: Path) -> None:
    seen: list[float] = []
    quantize_model(folder, tmp_path / "out.gguf", "f16", progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("q3_x", "'q3_x' is no type"),
        ("ffn=q9", "'q9' is no type"),
        ("q4_0,norm=f16", "found 'norm=f16'; expected one type"),
        ("ffn=f16,ffn=f32", "found 'ffn=f32'"),
        ("ffn=f16,q4_0", "found 'q4_0'"),
        ("", "'' is no type"),
    ],
)
def test_a_type_that_is_not_understood_is_named(folder: Path, tmp_path: Path, spec: str, found: str) -> None:
    with pytest.raises(InputError, match=found):
        quantize_model(folder, tmp_path / "out.gguf", spec)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_bad_requests_leave_nothing_behind(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    with pytest.raises(InputError, match=r"no folder nowhere and no preset .* mobillama-0\.5b"):
        quantize_model("nowhere", out)
    with pytest.raises(RecipeError, match="no model recipe"):
        quantize_model("nowhere.toml", out)
    with pytest.raises(InputError, match="architecture 'gpt2' is not known"):
        quantize_model(folder, out, architecture="gpt2")  # type: ignore[arg-type]
    (tmp_path / "there.gguf").write_bytes(b"mine")
    with pytest.raises(InputError, match="exists already"):
        quantize_model(folder, tmp_path / "there.gguf", "f32")
    assert (tmp_path / "there.gguf").read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "there.gguf"]


@pytest.mark.parametrize(("value", "type_"), [(float("nan"), "f32"), (float("-inf"), "bf16"), (1e5, "f16")])
def test_weights_that_a_type_cannot_hold_are_refused(tmp_path: Path, value: float, type_: str) -> None:
    model = small_model()
    with torch.no_grad():
        model.get_parameter("layers.2.self_attn.o_proj.weight")[1, 2] = value
    folder = save_sealed(tmp_path / "model", model)
    with pytest.raises(InputError, match=r"blk\.2\.attn_output\.weight holds a weight of size"):
        quantize_model(folder, tmp_path / "out.gguf", type_)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_tensors_without_a_place_are_refused(folder: Path, tmp_path: Path) -> None:
    path = folder / "model.safetensors"
    save_file({**load_file(path), "model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}, path)
    with pytest.raises(InputError, match=r"q_proj\.bias is unexpected"):
        quantize_model(folder, tmp_path / "out.gguf", "f32")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_an_interrupted_write_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    from mobillama.export import gguf_file

    calls = 0

    def fail(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise error
        return encode(*args)

    encode = gguf_file.encode
    with monkeypatch.context() as patch, pytest.raises(type(error)):
        patch.setattr(gguf_file, "encode", fail)
        quantize_model(folder, tmp_path / "out.gguf", "f32")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (tmp_path / "out.gguf.partial").write_bytes(b"left by a kill" * 100_000)
    quantize_model(folder, tmp_path / "out.gguf", "f32")
    assert len(tensors(tmp_path / "out.gguf")) == 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out.gguf"]
