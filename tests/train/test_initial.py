"""What a run starts from: new weights, or a trained model's FFNs shared as the recipe says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray

from mobillama import manifest
from mobillama.config import TrainRecipe, resolve
from mobillama.errors import DamagedFileError, InputError, RecipeError
from mobillama.model.ffn_fit import sharing_errors
from mobillama.model.initialise import build_model
from mobillama.model.weights import load_model, save_model
from mobillama.train.initial import check_start, initial_model, start_digest


def unread(_: int) -> NDArray[np.int64]:
    raise AssertionError("rows are read only where FFNs are fitted")


def starting(model: Path, **init: object) -> TrainRecipe:
    return resolve(TrainRecipe, tiny.recipe().tree() | {"init": {"model": str(model), **init}}, "test")


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    """A sealed folder of a model with an FFN for each of the two layers."""
    model = build_model(tiny.recipe(model={"num_ffn_blocks": 2, "initializer_range": 0.3}).model, 9)
    partial = manifest.partial_path(tmp_path / "dense")
    save_model(partial, model, model.config)
    manifest.seal(partial, tmp_path / "dense", "model")
    return tmp_path / "dense"


def test_without_a_model_to_start_from_the_weights_are_new_and_scaled_as_the_recipe_says() -> None:
    for scale in ("1", "1/uses"):
        recipe = tiny.recipe(ffn_init_scale=scale)
        expected = build_model(recipe.model, recipe.train.seed, ffn_init_scale=scale).state_dict()
        found = initial_model(recipe, unread).state_dict()
        assert all(torch.equal(weight, expected[name]) for name, weight in found.items())
    assert start_digest(tiny.recipe()) is None


def test_a_trained_model_s_ffns_are_taken_by_the_recipe_s_method(dense: Path) -> None:
    ups = [ffn.up_proj.weight for ffn in load_model(dense).ffns]
    mean = initial_model(starting(dense), unread)
    torch.testing.assert_close(mean.ffn_of(1).up_proj.weight, (ups[0] + ups[1]) / 2)
    assert torch.equal(initial_model(starting(dense, ffn="layer", layer=1), unread).ffn_of(0).up_proj.weight, ups[1])
    assert torch.equal(mean.embed_tokens.weight, load_model(dense).embed_tokens.weight)


def test_least_squares_reads_as_many_training_rows_as_the_recipe_says(dense: Path) -> None:
    asked = []

    def read(count: int) -> NDArray[np.int64]:
        asked.append(count)
        return np.random.default_rng(1).integers(0, tiny.VOCABULARY, (count, tiny.SEQ_LEN + 1))

    fitted = initial_model(starting(dense, ffn="least_squares", rows=5), read)
    assert asked == [5]
    rows = torch.from_numpy(read(5)[:, :-1])
    by_mean = initial_model(starting(dense), unread)
    assert sharing_errors(load_model(dense), fitted, rows) < sharing_errors(load_model(dense), by_mean, rows)


def test_what_does_not_fit_is_known_before_any_weight_is_read(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mobillama.train.initial.load_model", lambda _: pytest.fail("weights were read"))
    tree = starting(dense).tree()
    tree["model"]["hidden_size"] = 32
    with pytest.raises(RecipeError, match=r"model\.hidden_size=32, but the model to start from has 16"):
        initial_model(resolve(TrainRecipe, tree, "test"), unread)
    check_start(starting(dense))
    check_start(tiny.recipe())
    with pytest.raises(InputError, match="no folder"):
        check_start(starting(dense.with_name("nowhere")))


def test_the_digest_names_the_model_that_a_run_started_from(dense: Path) -> None:
    assert start_digest(starting(dense)) == manifest.read(dense).digest()
    bare = dense.with_name("bare")
    save_model(bare, load_model(dense), load_model(dense).config)
    before = start_digest(starting(bare))
    assert before == start_digest(starting(bare))
    for folder in (bare, dense):
        weights = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert start_digest(starting(bare)) != before
    with pytest.raises(DamagedFileError, match=r"model\.safetensors: found sha256"):
        start_digest(starting(dense))
