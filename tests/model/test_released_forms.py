"""Checkpoints as they were really released: many copies or any one of them, pickled or not, with a config that errs."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from twins import TINY, llama_tensors, llama_twin, new_seed, random_ids, tiny_model

from mobillama.errors import DamagedFileError, InputError
from mobillama.model.transformer import Transformer
from mobillama.model.weights import load_model, read_config

LAYERS = 22
HEADS = 32
RELEASED: dict[str, Any] = {
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "hidden_size": 64,
    "initializer_range": 0.1,
}
PARTS = ("gate_proj", "up_proj", "down_proj")


def write_config(folder: Path, model: Transformer, **changes: Any) -> None:
    """A config.json of the old form: no num_ffn_blocks, rope_theta outside rope_parameters."""
    config = model.config
    tree = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "pretraining_tp": 1,
        "rope_scaling": None,
        "torch_dtype": "float32",
        **config.model_dump(exclude={"name", "num_ffn_blocks"}),
        **changes,
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(tree))


def write_shards(folder: Path, tensors: dict[str, Tensor], name: str, save: Callable[[Any, Path], Any]) -> None:
    """Two shards and their index, called `name` with -0000N-of-00002 in it."""
    stem, suffix = name.split(".")
    names = list(tensors)
    weight_map = {}
    for number, part in enumerate((names[: len(names) // 3], names[len(names) // 3 :]), 1):
        file = f"{stem}-{number:05}-of-00002.{suffix}"
        save({key: tensors[key] for key in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))


def released_tensors(model: Transformer) -> dict[str, Tensor]:
    """A copy of the FFN for every layer, and each layer's rotary buffer: what a base `.bin` holds."""
    tensors = {name: tensor.clone() for name, tensor in llama_tensors(model).items()}
    for layer in range(model.config.num_hidden_layers):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(1)
    return tensors


def ffn_of(layer: int) -> list[str]:
    return [f"model.layers.{layer}.mlp.{part}.weight" for part in PARTS]


def keep_layers(tensors: dict[str, Tensor], layers: set[int]) -> dict[str, Tensor]:
    dropped = {name for layer in range(LAYERS) if layer not in layers for name in ffn_of(layer)}
    return {name: tensor for name, tensor in tensors.items() if name not in dropped}


def assert_same(found: Transformer, model: Transformer) -> None:
    assert found.config.num_ffn_blocks == model.config.num_ffn_blocks
    assert found.config.num_key_value_heads == model.config.num_key_value_heads
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, found.state_dict()[name]), name


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_model(3, **RELEASED)


def test_base_release_loads_from_sharded_pickles_with_a_config_that_errs(tmp_path: Path, model: Transformer) -> None:
    tensors = released_tensors(model)
    assert len(tensors) == 223
    write_config(tmp_path, model, num_key_value_heads=4)
    write_shards(tmp_path, tensors, "pytorch_model.bin", torch.save)
    found = load_model(tmp_path)
    assert (found.config.num_key_value_heads, found.config.num_ffn_blocks, len(found.ffns)) == (HEADS, 1, 1)
    assert_same(found, model)
    ids = random_ids(1, 2, 9)
    with torch.no_grad():
        torch.testing.assert_close(found(ids), llama_twin(model)(ids).logits, atol=1e-4, rtol=0)


def test_a_differing_copy_is_named(tmp_path: Path, model: Transformer) -> None:
    seed = new_seed()
    layer, part = random.Random(seed).randrange(1, LAYERS), random.Random(seed).choice(PARTS)
    tensors = released_tensors(model)
    name = f"model.layers.{layer}.mlp.{part}.weight"
    tensors[name].view(torch.int32)[-1, -1] ^= 1  # the last bit of the last number
    write_config(tmp_path, model, num_key_value_heads=4)
    write_shards(tmp_path, tensors, "pytorch_model.bin", torch.save)
    for explicit in (None, 1):
        with pytest.raises(InputError, match=name.replace(".", r"\.") + " differs from model"):
            load_model(tmp_path, num_ffn_blocks=explicit)
    assert len(load_model(tmp_path, num_ffn_blocks=LAYERS).ffns) == LAYERS


def test_the_first_of_several_differing_copies_is_named(tmp_path: Path, model: Transformer) -> None:
    tensors = released_tensors(model)
    for layer in (19, 7, 12):
        tensors[f"model.layers.{layer}.mlp.up_proj.weight"] += layer
    tensors["model.layers.12.mlp.gate_proj.weight"] += 1
    write_config(tmp_path, model)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"model\.layers\.7\.mlp\.up_proj\.weight differs"):
        read_config(tmp_path)
    write_config(tmp_path, model, num_ffn_blocks=1)
    with pytest.raises(InputError, match=r"model\.layers\.7\.mlp\.up_proj\.weight differs"):
        load_model(tmp_path)


@pytest.mark.parametrize("layers", [{0}, {11}, {21}, {0, 11}, {3, 4, 20}, set(range(1, 22))], ids=str)
@pytest.mark.parametrize("said", [None, 1])
def test_any_subset_of_the_copies_is_enough(
    tmp_path: Path, model: Transformer, layers: set[int], said: int | None
) -> None:
    tensors = keep_layers(released_tensors(model), layers)
    write_config(tmp_path, model, num_ffn_blocks=said)
    save_file(tensors, tmp_path / "model.safetensors")
    assert_same(load_model(tmp_path), model)


def test_each_matrix_may_be_under_another_layer_s_name(tmp_path: Path, model: Transformer) -> None:
    tensors = released_tensors(model)
    kept = {"model.layers.2.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"}
    kept |= {"model.layers.9.mlp.down_proj.weight"}
    write_config(tmp_path, model)
    save_file({n: t for n, t in tensors.items() if ".mlp." not in n or n in kept}, tmp_path / "model.safetensors")
    assert_same(load_model(tmp_path), model)


def test_chat_release_loads_from_pickled_aliases(tmp_path: Path, model: Transformer) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in model.state_dict().items() if not name.startswith("ffns")}
    shared = {part: model.ffns[0].get_parameter(f"{part}.weight").detach().bfloat16() for part in PARTS}
    tensors = {n if n == "lm_head.weight" else f"model.{n}": tensor for n, tensor in tensors.items()}
    for layer in range(LAYERS):
        tensors |= {f"model.layers.{layer}.mlp.{part}.weight": weight for part, weight in shared.items()}
    write_config(tmp_path, model, num_key_value_heads=4)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert (tmp_path / "pytorch_model.bin").stat().st_size < 2.2 * sum(w.numel() for w in model.parameters())
    found = load_model(tmp_path)
    assert len(found.ffns) == 1
    assert torch.equal(found.ffns[0].up_proj.weight, model.ffns[0].up_proj.weight.bfloat16().float())


def test_copies_that_are_all_different_are_a_dense_model(tmp_path: Path) -> None:
    model = tiny_model(5, num_ffn_blocks=0, num_key_value_heads=2)
    write_config(tmp_path, model)
    write_shards(tmp_path, released_tensors(model), "model.safetensors", lambda t, p: save_file(t, p))
    assert_same(load_model(tmp_path), model)


def test_first_users_alone_are_grouped_sharing(tmp_path: Path) -> None:
    model = tiny_model(5, **RELEASED, num_ffn_blocks=4)
    write_config(tmp_path, model)
    save_file(keep_layers(released_tensors(model), {0, 6, 11, 17}), tmp_path / "model.safetensors")
    assert_same(load_model(tmp_path), model)


def test_other_subsets_that_differ_are_an_error_until_the_number_is_given(tmp_path: Path) -> None:
    model = tiny_model(5, **RELEASED, num_ffn_blocks=4)
    write_config(tmp_path, model)
    tensors = keep_layers(released_tensors(model), {1, 6, 12, 17, 21})
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.layers\.6\.mlp\..* differs from model\.layers\.1\.mlp"):
        load_model(tmp_path)
    assert_same(load_model(tmp_path, num_ffn_blocks=4), model)
    with pytest.raises(InputError, match=r"model\.layers\.6\.mlp\.gate_proj\.weight differs from model\.layers\.1"):
        load_model(tmp_path, num_ffn_blocks=3)


def test_copies_in_groups_need_their_number(tmp_path: Path) -> None:
    model = tiny_model(5, num_ffn_blocks=2)
    write_config(tmp_path, model)
    save_file(released_tensors(model), tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.layers\.3\.mlp\.gate_proj\.weight differs from model\.layers\.0"):
        load_model(tmp_path)
    assert_same(load_model(tmp_path, num_ffn_blocks=2), model)
    with pytest.raises(InputError, match=r"model\.layers\.3\.mlp\.gate_proj\.weight differs from model\.layers\.2"):
        load_model(tmp_path, num_ffn_blocks=3)


def test_a_one_layer_model_needs_no_rule(tmp_path: Path) -> None:
    model = tiny_model(5, num_hidden_layers=1)
    write_config(tmp_path, model)
    save_file(released_tensors(model), tmp_path / "model.safetensors")
    assert_same(load_model(tmp_path), model)


@pytest.mark.parametrize("said", [4, 1, None])
def test_grouped_query_heads_come_from_the_weights(tmp_path: Path, said: int | None) -> None:
    model = tiny_model(5, num_key_value_heads=2)
    write_config(tmp_path, model, num_key_value_heads=said)
    save_file(released_tensors(model), tmp_path / "model.safetensors")
    assert read_config(tmp_path).num_key_value_heads == 2
    assert_same(load_model(tmp_path), model)


def test_impossible_key_heads_are_an_error(tmp_path: Path) -> None:
    model = tiny_model(5)
    tensors = released_tensors(model)
    tensors["model.layers.0.self_attn.k_proj.weight"] = torch.zeros(13, TINY["hidden_size"])
    write_config(tmp_path, model)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="has 13 rows; expected a multiple of the head size 12"):
        load_model(tmp_path)


class Trap:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, new_format: bool) -> None:
    model = tiny_model(5)
    write_config(tmp_path, model)
    trap = {"model.norm.weight": Trap(tmp_path / "ran")}
    torch.save(trap, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=new_format)
    with pytest.raises(InputError, match="something other than tensors"):
        load_model(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_an_old_pickle_without_mapping_loads_too(tmp_path: Path) -> None:
    model = tiny_model(5)
    write_config(tmp_path, model)
    torch.save(released_tensors(model), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert_same(load_model(tmp_path), model)


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_pickle_is_an_error(tmp_path: Path, share: float, new_format: bool) -> None:
    model = tiny_model(5)
    write_config(tmp_path, model)
    path = tmp_path / "pytorch_model.bin"
    torch.save(released_tensors(model), path, _use_new_zipfile_serialization=new_format)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises((DamagedFileError, InputError), match=r"pytorch_model\.bin"):
        load_model(tmp_path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"state_dict": {}}], ids=str)
def test_a_pickle_of_something_else_is_an_error(tmp_path: Path, content: object) -> None:
    write_config(tmp_path, tiny_model(5))
    with (tmp_path / "pytorch_model.bin").open("wb") as file:
        torch.save(content, file)
    with pytest.raises(InputError, match="does not hold a plain dictionary of tensors"):
        load_model(tmp_path)
    with (tmp_path / "pytorch_model.bin").open("wb") as file:
        pickle.dump(content, file)
    with pytest.raises((InputError, DamagedFileError), match=r"pytorch_model\.bin"):
        load_model(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    model = tiny_model(5)
    write_config(tmp_path, model)
    write_shards(tmp_path, released_tensors(model), "model.safetensors", lambda t, p: save_file(t, p))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"names the shard model-00002-of-00002\.safetensors, which is missing"):
        load_model(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"weight_map": 3}'])
def test_a_damaged_index_is_named(tmp_path: Path, text: str) -> None:
    write_config(tmp_path, tiny_model(5))
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(DamagedFileError, match=r"model\.safetensors\.index\.json is not an index"):
        load_model(tmp_path)


def test_an_index_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    model = tiny_model(5)
    write_config(tmp_path / "model", model)
    save_file(released_tensors(model), tmp_path / "other.safetensors")
    index = {"weight_map": dict.fromkeys(released_tensors(model), "../other.safetensors")}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="expected the name of a file in the same folder"):
        load_model(tmp_path / "model")


def test_safetensors_are_preferred_to_pickles(tmp_path: Path) -> None:
    model, other = tiny_model(5), tiny_model(6)
    write_config(tmp_path, model)
    save_file(released_tensors(model), tmp_path / "model.safetensors")
    torch.save(released_tensors(other), tmp_path / "pytorch_model.bin")
    assert_same(load_model(tmp_path), model)
