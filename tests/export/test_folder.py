"""Exported folders compute what the model computes, in programs that know nothing of ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import mobillama
from mobillama import manifest
from mobillama.config import ModelConfig
from mobillama.errors import InputError
from mobillama.export.folder import export_model
from mobillama.model.initialise import build_model
from mobillama.model.weights import load_model, save_model
from mobillama.tokenizer.tokenizer import train

IDS = [[1, 5, 9, 200, 3, 77], [4, 4, 8, 15, 16, 23]]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=[(1, False, torch.float32), (2, True, torch.float32), (4, False, torch.bfloat16)], ids=str)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model of four layers: one FFN, two with a tied head, four in bfloat16."""
    blocks, tied, dtype = request.param
    config = ModelConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_ffn_blocks=blocks,
        tie_word_embeddings=tied,
        max_position_embeddings=64,
        rope_theta=5000.0,
        initializer_range=0.2,
    )
    path = tmp_path / "model"
    save_model(path, build_model(config, seed=2).to(dtype), config)
    train([Path(json.__file__).read_text(encoding="utf-8")], 400).save(path)
    return path


def test_a_llama_folder_gives_the_same_logits_in_transformers_own_llama(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    export_model(folder, tmp_path / "llama", "llama")
    ours = mobillama.load(folder, device="cpu", dtype="float32")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "llama", dtype=torch.float32)
    assert type(theirs) is LlamaForCausalLM
    with torch.no_grad():
        logits = theirs(torch.tensor(IDS)).logits
    torch.testing.assert_close(logits, ours(IDS), atol=1e-4, rtol=0)
    assert torch.equal(logits.argmax(-1), ours(IDS).argmax(-1))
    words = AutoTokenizer.from_pretrained(tmp_path / "llama")
    assert words.encode("for name in names:") == ours.tokenizer.encode("for name in names:")


def test_a_llama_folder_holds_the_ffn_under_every_layer(folder: Path, tmp_path: Path) -> None:
    export_model(folder, tmp_path / "llama", "llama")
    config = json.loads((tmp_path / "llama" / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["LlamaForCausalLM"], "llama")
    assert "auto_map" not in config
    assert not list((tmp_path / "llama").glob("*.py"))
    with safe_open(tmp_path / "llama" / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
        assert {f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(4)} <= names
        dtypes = {file.get_tensor(name).dtype for name in names}
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert dtypes == {file.get_tensor("model.norm.weight").dtype}


@pytest.mark.parametrize("form", ["hf", "llama"])
def test_an_exported_folder_is_sealed_and_loads_here_again(folder: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / "out"
    export_model(folder, out, form)
    assert manifest.differences(out) == []
    assert manifest.read(out).kind == "model"
    before, after = (mobillama.load(path, device="cpu", dtype="float32") for path in (folder, out))
    assert torch.equal(after(IDS), before(IDS))
    assert after.tokenizer.digest == before.tokenizer.digest
    assert after.config.num_ffn_blocks == before.config.num_ffn_blocks


def test_an_hf_folder_stores_the_ffn_once_and_carries_its_code(folder: Path, tmp_path: Path) -> None:
    export_model(folder, tmp_path / "hf", "hf")
    assert (tmp_path / "hf" / "modeling_mobillama.py").is_file()
    sizes = [(path / "model.safetensors").stat().st_size for path in (tmp_path / "hf", folder)]
    assert sizes[0] == sizes[1]


def own_parts(folder: Path, **changes: object) -> Path:
    """The folder's model with gains far from one, or adapters."""
    config = load_model(folder).config.model_copy(update=changes)
    model = build_model(config, seed=2)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(4))
    out = folder.with_name("own")
    save_model(out, model, config)
    shutil.copyfile(folder / "tokenizer.json", out / "tokenizer.json")
    return out


def test_gains_are_folded_into_the_copies_of_a_llama_folder_and_kept_in_an_hf_one(folder: Path, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    own = own_parts(folder, ffn_gain=True)
    for form in ("llama", "hf"):
        export_model(own, tmp_path / form, form)
    before = mobillama.load(own, device="cpu", dtype="float32")
    plain = mobillama.load(tmp_path / "llama", device="cpu", dtype="float32")
    assert (plain.config.num_ffn_blocks, plain.config.ffn_gain) == (4, False)
    torch.testing.assert_close(plain(IDS), before(IDS), atol=1e-4, rtol=0)
    assert torch.equal(mobillama.load(tmp_path / "hf", device="cpu", dtype="float32")(IDS), before(IDS))
    with torch.no_grad():
        theirs = LlamaForCausalLM.from_pretrained(tmp_path / "llama")(torch.tensor(IDS)).logits
    torch.testing.assert_close(theirs, before(IDS), atol=1e-4, rtol=0)


@pytest.mark.parametrize("form", ["llama", "llama.cpp"])
def test_adapters_are_refused_by_forms_that_have_no_place_for_them(folder: Path, tmp_path: Path, form: str) -> None:
    own = own_parts(folder, ffn_adapter_rank=2)
    with pytest.raises(InputError, match=r"ffn_adapter_rank=2; .* has no place for .* --format hf"):
        export_model(own, tmp_path / "out", form)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "own"]


def test_bad_requests_leave_nothing_behind(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--format 'onnx' is not known; use one of: hf, llama"):
        export_model(folder, tmp_path / "out", "onnx")
    with pytest.raises(InputError, match=r"no folder .*nowhere"):
        export_model(tmp_path / "nowhere", tmp_path / "out", "hf")
    shutil.copytree(folder, tmp_path / "there")
    with pytest.raises(InputError, match="exists already"):
        export_model(folder, tmp_path / "there", "hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "there"]


def test_an_interrupted_export_is_done_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mobillama.export import folder as room

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(room, "llama_config", full)
        with pytest.raises(OSError, match="No space left"):
            export_model(folder, tmp_path / "out", "llama")
    assert not (tmp_path / "out").exists()
    export_model(folder, tmp_path / "out", "hf")
    assert manifest.differences(tmp_path / "out") == []
    assert (tmp_path / "out" / "modeling_mobillama.py").is_file()
