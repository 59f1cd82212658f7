"""transformers loads, runs and saves MobiLlama: registered here, by remote code where mobillama is not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from twins import new_seed, random_ids, tiny_model

from mobillama.model.huggingface import register
from mobillama.model.transformer import Transformer
from mobillama.model.weights import load_model, save_model

VARIANTS = [
    pytest.param({"num_ffn_blocks": 1}, id="shared"),
    pytest.param({"num_ffn_blocks": 4, "num_key_value_heads": 2}, id="four-blocks"),
    pytest.param({"num_ffn_blocks": 6}, id="dense"),
    pytest.param({"num_ffn_blocks": 1, "tie_word_embeddings": True}, id="tied-embeddings"),
    pytest.param({"ffn_adapter_rank": 3, "ffn_gain": True}, id="adapters-and-gains"),
]

# What another machine runs: no mobillama, only torch and transformers and the saved folder.
ELSEWHERE = """
import sys
from importlib.abc import MetaPathFinder

class NoMobillama(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "mobillama":
            raise ModuleNotFoundError("mobillama is not installed here", name=name)
        return None

sys.meta_path.insert(0, NoMobillama())
try:
    import mobillama
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("mobillama can be imported; the test proves nothing")

import torch
from pathlib import Path
from transformers import AutoModelForCausalLM

for place in sorted(Path(sys.argv[1]).glob("variant-*")):
    model, report = AutoModelForCausalLM.from_pretrained(
        place / "model", trust_remote_code=True, output_loading_info=True
    )
    ids = torch.load(place / "ids.pt")
    with torch.no_grad():
        logits = model(ids).logits
    settings = dict(max_new_tokens=6, do_sample=False, attention_mask=torch.ones_like(ids), pad_token_id=0)
    texts = [model.generate(ids, use_cache=cached, **settings) for cached in (True, False)]
    model.save_pretrained(place / "again")
    reloaded = AutoModelForCausalLM.from_pretrained(place / "again", trust_remote_code=True)
    torch.save({
        "logits": logits,
        "texts": texts,
        "missing": sorted(report["missing_keys"]),
        "unexpected": sorted(report["unexpected_keys"]),
        "type": type(model).__name__,
        "modules": len({id(layer.mlp) for layer in model.model.layers}),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "reloaded": reloaded(ids).logits.detach(),
        "imported": sorted(name for name in sys.modules if name.split(".")[0] == "mobillama"),
    }, place / "found.pt")
"""


def assert_saved_again(folder: Path, model: Transformer) -> None:
    """A folder that transformers wrote holds each FFN once, and is the same model to us."""
    tensors = load_file(folder / "model.safetensors")
    config = model.config
    firsts = [config.first_layer_of(block) for block in range(config.num_ffn_blocks)]
    for part in ("gate_proj", "up_proj", "down_proj"):
        stored = {name for name in tensors if f"mlp.{part}" in name}
        assert stored == {f"model.layers.{layer}.mlp.{part}.weight" for layer in firsts}
    assert sum(tensor.numel() for tensor in tensors.values()) == sum(weight.numel() for weight in model.parameters())
    again = load_model(folder)
    assert again.config == model.config
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


def test_saved_folders_work_where_mobillama_cannot_be_imported(tmp_path: Path) -> None:
    seed = new_seed()
    variants = {
        "shared": tiny_model(seed, num_ffn_blocks=1),
        "four-blocks": tiny_model(seed, num_ffn_blocks=4, num_key_value_heads=2),
        "tied": tiny_model(seed, num_ffn_blocks=1, tie_word_embeddings=True),
        "own-parts": tiny_model(seed, num_ffn_blocks=2, ffn_adapter_rank=3, ffn_gain=True),
    }
    ids = random_ids(seed, 2, 9)
    for name, model in variants.items():
        save_model(tmp_path / f"variant-{name}" / "model", model, model.config)
        torch.save(ids, tmp_path / f"variant-{name}" / "ids.pt")
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for name, model in variants.items():
        found = torch.load(tmp_path / f"variant-{name}" / "found.pt")
        assert found["imported"] == found["missing"] == found["unexpected"] == []
        assert found["type"] == "MobiLlamaForCausalLM"
        assert found["modules"] == model.config.num_ffn_blocks
        assert found["parameters"] == sum(weight.numel() for weight in model.parameters())
        with torch.no_grad():
            torch.testing.assert_close(found["logits"], model(ids), atol=1e-5, rtol=0)
        assert torch.equal(found["logits"], found["reloaded"])
        assert torch.equal(*found["texts"])
        assert_saved_again(tmp_path / f"variant-{name}" / "again", model)


@pytest.mark.parametrize("changes", VARIANTS)
def test_registered_classes_load_and_save_with_each_ffn_once(tmp_path: Path, changes: dict[str, object]) -> None:
    seed = new_seed()
    model = tiny_model(seed, **changes)
    save_model(tmp_path / "model", model, model.config)
    register()
    register()
    twin, report = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert type(twin).__module__ == "mobillama.model.modeling_mobillama"
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    # What device maps, quantisers and sharding ask before they move or copy a tensor.
    named_again = set(twin.state_dict()) - {name for name, _ in twin.named_parameters()}
    assert set(twin.all_tied_weights_keys) == named_again
    ids = random_ids(seed, 2, 9)
    with torch.no_grad():
        torch.testing.assert_close(twin(ids).logits, model(ids), atol=1e-5, rtol=0)
    twin.save_pretrained(tmp_path / "again")
    assert_saved_again(tmp_path / "again", model)
    assert (tmp_path / "again" / "modeling_mobillama.py").is_file(), "the folder must load anywhere"


@pytest.mark.parametrize("max_shard_size", ["10kB", "30kB"])
def test_shards_saved_by_transformers_read_back(tmp_path: Path, max_shard_size: str) -> None:
    model = tiny_model(new_seed(), num_ffn_blocks=2)
    save_model(tmp_path / "model", model, model.config)
    register()
    twin = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    twin.save_pretrained(tmp_path / "again", max_shard_size=max_shard_size)
    assert (tmp_path / "again" / "model.safetensors.index.json").is_file()
    for name, weight in load_model(tmp_path / "again").state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name


def test_a_model_made_by_transformers_shares_and_trains_one_ffn(tmp_path: Path) -> None:
    register()
    config = AutoConfig.for_model(
        "mobillama", vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2
    )
    torch.manual_seed(1)
    twin = AutoModelForCausalLM.from_config(config)
    assert len({id(layer.mlp) for layer in twin.model.layers}) == 1
    ids = random_ids(1, 2, 8, vocab_size=31)
    twin(ids, labels=ids).loss.backward()
    torch.optim.SGD(twin.parameters(), lr=0.1).step()
    twin.save_pretrained(tmp_path / "model")
    model = load_model(tmp_path / "model")
    assert model.config.num_ffn_blocks == 1
    with torch.no_grad():
        torch.testing.assert_close(model(ids), twin(ids).logits, atol=1e-5, rtol=0)


def test_the_rotary_base_reaches_transformers(tmp_path: Path) -> None:
    model = tiny_model(1, rope_theta=777.0)
    save_model(tmp_path / "model", model, model.config)
    register()
    assert AutoConfig.from_pretrained(tmp_path / "model").rope_parameters["rope_theta"] == 777.0
    tree = json.loads((tmp_path / "model" / "config.json").read_text())
    assert tree["rope_theta"] == 777.0


def test_remote_code_imports_nothing_of_ours() -> None:
    import mobillama.model.modeling_mobillama as remote

    lines = Path(remote.__file__).read_text().splitlines()
    imported = {line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))}
    assert imported == {"__future__", "typing", "torch", "transformers"}


def test_a_model_made_by_transformers_starts_with_adapters_that_give_nothing() -> None:
    register()
    shape = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4}
    config = AutoConfig.for_model("mobillama", **shape, num_attention_heads=2, ffn_adapter_rank=2, ffn_gain=True)
    layer = AutoModelForCausalLM.from_config(config).model.layers[1]
    assert not layer.ffn_adapter.up.weight.any()
    assert layer.ffn_adapter.down.weight.std() > 0.005
    assert torch.equal(layer.ffn_gain, torch.ones(16))


def test_hidden_states_of_layers_with_own_parts_are_recorded(tmp_path: Path) -> None:
    model = tiny_model(3, ffn_adapter_rank=2)
    save_model(tmp_path / "model", model, model.config)
    register()
    twin = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    found = twin(random_ids(3, 1, 5), output_hidden_states=True).hidden_states
    assert len(found) == model.config.num_hidden_layers + 1
