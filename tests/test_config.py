"""Recipes: checked whole, before anything runs, in the user's words."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobillama.config import (
    DataRecipe,
    ModelConfig,
    TrainRecipe,
    external_folder,
    presets,
    read_recipe,
    recipes_folder,
    with_defaults,
)
from mobillama.errors import InputError, RecipeError


@pytest.mark.parametrize("kind, recipe", [("model", ModelConfig), ("data", DataRecipe), ("train", TrainRecipe)])
def test_every_shipped_recipe_resolves(kind, recipe):
    assert presets(kind)
    for name in presets(kind):
        resolved = read_recipe(recipe, name)
        assert resolved.name == name
        assert recipe.model_validate(resolved.tree()).digest() == resolved.digest()


def test_every_recipe_folder_holds_only_kinds_that_are_read():
    assert {path.name for path in recipes_folder().iterdir() if any(path.glob("*.toml"))} == {
        *("model", "data", "train"),
        "eval",  # read by eval/suite.py
    }


def test_a_preset_in_a_train_recipe_is_overlaid_by_its_other_keys(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('[model]\npreset = "mobillama-0.5b"\nvocab_size = 512\n')
    model = read_recipe(TrainRecipe, path).model
    assert (model.name, model.hidden_size, model.vocab_size, model.num_ffn_blocks) == ("mobillama-0.5b", 2048, 512, 1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["hidden_sise=64"], ["hidden_sise", "did you mean 'hidden_size'"]),
        (["hidden_size=100"], ["hidden_size=100", "num_attention_heads=32", "64, 128"]),
        (["hidden_size=96", "num_attention_heads=32"], ["odd head size of 3"]),
        (["num_key_value_heads=3"], ["num_key_value_heads=3", "[1, 2, 4, 8, 16, 32]"]),
        (["num_ffn_blocks=23"], ["num_ffn_blocks=23", "num_hidden_layers=22"]),
        (["ffn_adapter_rank=2049"], ["ffn_adapter_rank=2049", "hidden_size=2048"]),
        (["vocab_size=0"], ["vocab_size=0", "greater than or equal to 1"]),
        (["vocab_size=many"], ["vocab_size='many'", "integer"]),
        (["hidden_size=2532", "intermediate_size=11080"], ["2532", "2560/10240", "mobillama-0.8b.toml"]),
        (["hidden_size.deep=3", "hidden_size.deep.er=3"], ["deep"]),
    ],
)
def test_impossible_shapes_and_unknown_keys_are_named(settings, words):
    with pytest.raises(RecipeError) as error:
        read_recipe(ModelConfig, "mobillama-0.5b", settings)
    for word in words:
        assert word in str(error.value)


def test_a_batch_that_does_not_divide_lists_the_sizes_that_do():
    with pytest.raises(RecipeError, match=r"micro_batch_rows=4.*\[1, 2, 3, 6\]"):
        read_recipe(TrainRecipe, "mini-amber", ["train.rows_per_step=6", "train.micro_batch_rows=4"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["train.float8=true", "train.device=cpu"], ["float8=true", "device='cpu'", "only a GPU"]),
        (["train.float8=true", "train.dtype=float32"], ["float8=true", "dtype='float32'"]),
        (["init.model=m", "train.ffn_init_scale=1/uses"], ["ffn_init_scale='1/uses'", "init.model='m'"]),
        (["init.model=m", "init.layer=3"], ["init.layer=3", "init.ffn='mean'"]),
        (["train.decay_share=0"], ["train.decay_share=0", "greater than 0"]),
        (["train.optimizer=sgd"], ["train.optimizer='sgd'", "'adamw' or 'muon'"]),
        (["train.ffn_lr_scale=2"], ["train.ffn_lr_scale=2", "'1/sqrt(uses)'"]),
    ],
)
def test_settings_that_cannot_be_or_would_be_ignored_are_refused(settings, words):
    with pytest.raises(RecipeError) as error:
        read_recipe(TrainRecipe, "mini-amber", settings)
    for word in words:
        assert word in str(error.value)


@given(layers=st.integers(1, 40), data=st.data())
def test_the_layers_of_the_blocks_are_all_layers_in_order(layers, data):
    config = ModelConfig(num_hidden_layers=layers, num_ffn_blocks=data.draw(st.integers(1, layers)))
    of_blocks = [(layer, block) for block in range(config.num_ffn_blocks) for layer in config.layers_of(block)]
    assert of_blocks == [(layer, config.ffn_block_of(layer)) for layer in range(layers)]


def test_broken_toml_names_the_file(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("[model\n")
    with pytest.raises(RecipeError, match=r"broken\.toml is not valid TOML"):
        read_recipe(ModelConfig, path)


def test_zero_blocks_is_dense_and_zero_kv_heads_is_all():
    config = ModelConfig(num_hidden_layers=5, num_ffn_blocks=0, num_attention_heads=4, hidden_size=64)
    assert config.num_ffn_blocks == 5
    assert config.num_key_value_heads == 4


@given(layers=st.integers(1, 40), data=st.data())
def test_blocks_are_contiguous_and_first_layers_are_first(layers, data):
    blocks = data.draw(st.integers(1, layers))
    config = ModelConfig(num_hidden_layers=layers, num_ffn_blocks=blocks)
    used = [config.ffn_block_of(layer) for layer in range(layers)]
    assert used == sorted(used)
    assert set(used) == set(range(blocks))
    assert [config.first_layer_of(block) for block in range(blocks)] == [used.index(block) for block in range(blocks)]


def test_external_folders_come_from_the_field_then_the_variable(tmp_path, monkeypatch):
    monkeypatch.delenv("MOBILLAMA_CORPORA", raising=False)
    with pytest.raises(InputError, match="MOBILLAMA_CORPORA"):
        external_folder("source.root", "", "MOBILLAMA_CORPORA")
    monkeypatch.setenv("MOBILLAMA_CORPORA", str(tmp_path / "absent"))
    with pytest.raises(InputError, match="does not exist"):
        external_folder("source.root", "", "MOBILLAMA_CORPORA")
    assert external_folder("source.root", str(tmp_path), "MOBILLAMA_CORPORA") == tmp_path


def test_continuous_integration_has_the_test_data_or_says_that_it_is_absent():
    """Where a folder `shared` lies beside the checkout the variables are set, so that no test that needs it skips."""
    shared = Path(__file__).parents[2] / "shared"
    if os.environ.get("CI") and shared.is_dir():
        for variable in ("MOBILLAMA_CORPORA", "MOBILLAMA_TOKENIZER", "MOBILLAMA_BENCHMARKS"):
            assert Path(os.environ[variable]).is_dir()


@pytest.mark.parametrize(("kind", "recipe"), [("model", ModelConfig), ("data", DataRecipe), ("train", TrainRecipe)])
def test_a_tree_of_a_version_that_did_not_know_a_key_is_todays_with_its_default(kind, recipe):
    for name in presets(kind):
        today = read_recipe(recipe, name)
        older = today.model_dump(mode="json", exclude_defaults=True)
        assert older != today.tree()
        assert with_defaults(recipe, older) == today.tree()


def test_a_tree_with_another_value_or_an_unknown_key_equals_none_of_todays():
    tree = DataRecipe().tree()
    assert with_defaults(DataRecipe, {**tree, "seed": 1}) != tree
    assert with_defaults(DataRecipe, {**tree, "of a later version": 1}) != tree


STEERING = [
    "../../x",
    "/tmp/x",
    "a/b",
    "a\\b",
    "..",
    ".",
    ".hidden",
    "",
    " ",
    "a\nb",
    "a\x1b[2Jb",
    "a\u202eb",
    "n" * 201,
]


@pytest.mark.parametrize("name", STEERING, ids=repr)
def test_a_name_that_would_lead_elsewhere_is_refused_in_every_recipe(name, tmp_path):
    import json

    from mobillama.eval.suite import read_suite

    text, path = json.dumps(name), tmp_path / "own.toml"
    rows = '[[benchmarks]]\nname = {}\ntasks = ["piqa"]\nshots = 0\nmetric = "acc"\n'
    for read, recipe in (
        (lambda: read_recipe(ModelConfig, path), f"name = {text}\n"),
        (lambda: read_recipe(DataRecipe, path), f"name = {text}\n"),
        (lambda: read_recipe(DataRecipe, path), f"[subset.{text}]\nlanguages = []\n"),
        (lambda: read_recipe(TrainRecipe, path), f'name = {text}\nmodel.preset = "mobillama-0.5b"\n'),
        (lambda: read_suite(path), f'name = {text}\nabout = "x"\n{rows.format(json.dumps("piqa"))}'),
        (lambda: read_suite(path), f'about = "x"\n{rows.format(text)}'),
    ):
        if "subset" in recipe and not name:
            continue  # TOML's empty key: the recipe's own source, which has no name
        path.write_text(recipe.replace('"\\ud', '"'), encoding="utf-8")
        with pytest.raises(RecipeError, match=r"expected a plain name|is too long") as error:
            read()
        assert str(error.value).isprintable()
    with pytest.raises(RecipeError, match="expected a plain name"):
        read_recipe(DataRecipe, "mini-amber", ['name="../x"'])


@pytest.mark.parametrize("name", ["mini-amber", "a b", "\u00fcber-\u4f60\u597d", "v1.0_x", "a..b", "n" * 200])
def test_a_plain_name_is_taken_in_any_script(name, tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(f'name = "{name}"\n[subset."{name}"]\nlanguages = []\n', encoding="utf-8")
    assert read_recipe(DataRecipe, path).name == name
