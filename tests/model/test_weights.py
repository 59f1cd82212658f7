"""Model folders: what is written can be read, each FFN once; what does not fit is a clear error."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from twins import TINY, new_seed, random_ids, tiny_model

from mobillama import manifest
from mobillama.cli import system_errors
from mobillama.errors import DamagedFileError, InputError, MobillamaError, RecipeError
from mobillama.model import tensor_files
from mobillama.model.weights import disk_name, load_model, read_config, save_model


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    tree = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in tree.items() if value is not ...}))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tiny_model(1)
    save_model(tmp_path / "model", model, model.config)
    return tmp_path / "model"


@pytest.mark.parametrize("blocks", [1, 4, 6])
@pytest.mark.parametrize("tied", [False, True])
def test_a_saved_model_reads_back_bit_for_bit(tmp_path: Path, blocks: int, tied: bool) -> None:
    model = tiny_model(new_seed(), num_ffn_blocks=blocks, tie_word_embeddings=tied, num_key_value_heads=2)
    save_model(tmp_path / "model", model, model.config)
    found = load_model(tmp_path / "model")
    assert found.config == model.config == read_config(tmp_path / "model")
    assert not found.training
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, found.state_dict()[name]), name


def test_adapters_and_gains_read_back_under_their_layers_names(tmp_path: Path) -> None:
    model = tiny_model(new_seed(), ffn_adapter_rank=3, ffn_gain=True)
    save_model(tmp_path / "model", model, model.config)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert torch.equal(stored["model.layers.4.ffn_gain"], model.state_dict()["layers.4.ffn_gain"])
    assert stored["model.layers.4.ffn_adapter.down.weight"].shape == (3, TINY["hidden_size"])
    found = load_model(tmp_path / "model")
    assert found.config == model.config
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, found.state_dict()[name]), name
    edit_config(tmp_path / "model", ffn_gain=False)
    with pytest.raises(InputError, match=r"layers\.0\.ffn_gain.* unexpected"):
        load_model(tmp_path / "model")


def test_each_ffn_is_stored_once_under_the_first_layer_that_uses_it(tmp_path: Path) -> None:
    model = tiny_model(1, num_ffn_blocks=4)
    save_model(tmp_path / "model", model, model.config)
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    stored = sorted(name for name in tensors if "gate_proj" in name)
    assert stored == [f"model.layers.{layer}.mlp.gate_proj.weight" for layer in (0, 2, 3, 5)]
    assert sum(tensor.numel() for tensor in tensors.values()) == sum(weight.numel() for weight in model.parameters())
    assert torch.equal(tensors[stored[1]], model.ffns[1].gate_proj.weight)
    assert disk_name("ffns.3.up_proj.weight", model.config) == "model.layers.5.mlp.up_proj.weight"


def test_config_names_the_rotary_base_for_old_and_new_readers(folder: Path) -> None:
    tree = json.loads((folder / "config.json").read_text())
    assert tree["rope_theta"] == tree["rope_parameters"]["rope_theta"] == TINY["rope_theta"]
    assert tree["num_ffn_blocks"] == 1
    assert tree["model_type"] == "mobillama"
    assert tree["auto_map"]["AutoModelForCausalLM"] == "modeling_mobillama.MobiLlamaForCausalLM"


@pytest.mark.parametrize("change", [{"rope_theta": ...}, {"rope_parameters": ...}], ids=["new form", "old form"])
def test_either_form_of_the_rotary_base_is_read(folder: Path, change: dict[str, Any]) -> None:
    edit_config(folder, **change)
    assert read_config(folder).rope_theta == TINY["rope_theta"]


def test_rotary_base_defaults_to_llama_s_and_two_bases_are_an_error(folder: Path) -> None:
    edit_config(folder, rope_theta=7.0)
    with pytest.raises(InputError, match=r"rope_theta=5000.0 but rope_theta=7.0"):
        read_config(folder)
    edit_config(folder, rope_theta=..., rope_parameters=...)
    assert read_config(folder).rope_theta == 10000.0


def test_weights_are_cast_to_the_type_asked_for(folder: Path) -> None:
    wide, narrow = load_model(folder), load_model(folder, dtype=torch.bfloat16)
    for name, weight in narrow.state_dict().items():
        assert torch.equal(weight, wide.state_dict()[name].bfloat16()), name


def test_a_narrow_model_is_stored_in_its_own_type(tmp_path: Path) -> None:
    model = tiny_model(1).bfloat16()
    save_model(tmp_path / "model", model, model.config)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model" / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_state_dict_is_saved_like_its_model(tmp_path: Path) -> None:
    model = tiny_model(1)
    save_model(tmp_path / "a", model, model.config)
    save_model(tmp_path / "b", dict(model.state_dict()), model.config)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_saved_weights_do_not_follow_later_training(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    model = load_model(folder)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert (folder / "model.safetensors").read_bytes() == before


def test_loaded_weights_do_not_need_the_folder_any_more(folder: Path) -> None:
    model = load_model(folder)
    (folder / "model.safetensors").write_bytes(b"")
    shutil.rmtree(folder)
    assert model(random_ids(1, 1, 4)).isfinite().all()


def test_extra_files_are_copied(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("tokens")
    model = tiny_model(1)
    save_model(tmp_path / "model", model, model.config, {"tokenizer.json": tmp_path / "source"})
    assert (tmp_path / "model" / "tokenizer.json").read_text() == "tokens"


@pytest.mark.parametrize("failing", ["sync", "write_file"])
@pytest.mark.parametrize("exists", [False, True])
def test_a_failed_save_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, exists: bool
) -> None:
    model = tiny_model(1)
    if exists:
        save_model(tmp_path / "model", model, model.config)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manifest, failing, full)
    with pytest.raises(OSError, match="No space left"):
        save_model(tmp_path / "model", model, model.config)
    left = [path.name for path in tmp_path.rglob("*")]
    assert "config.json" not in left
    assert exists or not left
    assert not [name for name in left if name.endswith(".tmp")]


def test_weights_of_another_config_cannot_be_saved(tmp_path: Path) -> None:
    model = tiny_model(1)
    with pytest.raises(InputError, match=r"ffns\.1\..* missing"):
        save_model(tmp_path / "model", model, model.config.model_copy(update={"num_ffn_blocks": 2}))
    assert not (tmp_path / "model").exists()


def test_missing_tensors_are_named(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop("model.layers.3.self_attn.v_proj.weight"))
    with pytest.raises(InputError, match=r"model\.layers\.3\.self_attn\.v_proj\.weight is missing"):
        load_model(folder)


def test_missing_ffn_is_named(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop("model.layers.0.mlp.up_proj.weight"))
    with pytest.raises(InputError, match=r"model\.layers\.0\.mlp\.up_proj\.weight is missing"):
        load_model(folder)
    edit_config(folder, num_ffn_blocks=...)
    with pytest.raises(InputError, match=r"model\.layers\.0\.mlp\.up_proj\.weight is missing"):
        load_model(folder)


def test_unexpected_tensors_are_named(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(48)}))
    with pytest.raises(InputError, match=r"model\.layers\.0\.self_attn\.q_proj\.bias is unexpected"):
        load_model(folder)


def test_misshapen_tensors_are_named_with_both_shapes(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({"model.layers.2.self_attn.o_proj.weight": torch.zeros(48, 3)}))
    with pytest.raises(InputError, match=r"o_proj\.weight has shape \(48, 3\); expected \(48, 48\)"):
        load_model(folder)


def test_wrong_vocabulary_is_an_error(folder: Path) -> None:
    edit_config(folder, vocab_size=54)
    with pytest.raises(InputError, match=r"embed_tokens\.weight has shape \(53, 48\); expected \(54, 48\)"):
        load_model(folder)


def test_fewer_layers_than_stored_is_an_error(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=5)
    with pytest.raises(InputError, match=r"model\.layers\.5\..*unexpected"):
        load_model(folder)


def test_a_tied_head_that_is_not_the_embedding_is_an_error(folder: Path) -> None:
    edit_config(folder, tie_word_embeddings=True)
    with pytest.raises(InputError, match=r"lm_head\.weight differs from the embedding"):
        load_model(folder)
    edit_tensors(
        folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    )
    assert load_model(folder).lm_head is None


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights_are_a_damaged_file(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DamagedFileError, match=r"model\.safetensors \(\d+ bytes\) is not a whole safetensors file"):
        load_model(folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_damaged_config_is_a_damaged_file(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(DamagedFileError, match=r"config\.json"):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "mistral"}, "model_type='mistral'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'; a MobiLlama has 'silu'"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling="),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type='yarn'"),
        ({"head_dim": 24}, "head_dim=24"),
        ({"hidden_size": None}, "hidden_size not given"),
        ({"num_attention_heads": 5}, "hidden_size=48 is not divisible by num_attention_heads=5"),
        ({"num_ffn_blocks": 7}, "num_ffn_blocks=7 is more than num_hidden_layers=6"),
        ({"num_ffn_blocks": "one"}, "num_ffn_blocks='one'"),
    ],
)
def test_a_config_of_another_architecture_is_an_error(folder: Path, changes: dict[str, Any], said: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises((InputError, RecipeError)) as caught:
        load_model(folder)
    assert said in str(caught.value)
    assert "config.json" in str(caught.value)


def test_a_folder_without_a_model_says_what_it_lacks(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place, read in ((tmp_path / "empty", read_config), (tmp_path / "nowhere", load_model)):
        with pytest.raises(InputError, match=r"has no config\.json; a model folder holds"):
            read(place)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no weights; expected model\.safetensors"):
        load_model(folder)


def test_every_error_is_one_a_user_can_mend() -> None:
    assert all(issubclass(kind, MobillamaError) for kind in (InputError, DamagedFileError, RecipeError))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pointer_of_git_lfs_is_not_called_a_damaged_file(folder: Path, name: str) -> None:
    for path in folder.glob("*.safetensors"):
        path.unlink()
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
    with pytest.raises(InputError, match=rf"{name} is the pointer that Git LFS keeps.*git lfs pull"):
        load_model(folder)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_file_that_the_system_cannot_read_is_not_called_damaged(
    folder: Path, name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        if name.endswith(".bin"):
            raise OSError(number, os.strerror(number))
        raise SafetensorError(f"I/O error: {os.strerror(number)} (os error {number})")

    torch.save({}, folder / "pytorch_model.bin")
    if name.endswith(".bin"):
        (folder / "model.safetensors").unlink()
    monkeypatch.setattr(torch, "load", fail)
    monkeypatch.setattr(tensor_files, "safe_open", fail)
    with pytest.raises(Exception, match=os.strerror(number)) as error:
        load_model(folder)
    assert not isinstance(error.value, DamagedFileError)
    assert str(system_errors.words(error.value)).startswith(str(folder / name))
