"""Going on with a run: what was begun before a field existed, and what of the new fields may change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

from mobillama.data.shards import read_shards
from mobillama.errors import RecipeError
from mobillama.train.run import FILE, begin_run, compare_run, read_run

NEW = ("optimizer", "ffn_lr_scale", "ffn_init_scale", "schedule", "decay_share", "decay_norms", "decay_embeddings")


def test_a_run_begun_before_these_fields_existed_goes_on_with_their_defaults(tmp_path: Path, shards: Path) -> None:
    begin_run(tmp_path, tiny.recipe(), read_shards(shards), 12)
    tree = json.loads((tmp_path / FILE).read_text())
    for table, keys in (("train", NEW), ("model", ("ffn_adapter_rank", "ffn_gain"))):
        for key in keys:
            del tree["recipe"][table][key]
    del tree["recipe"]["init"]
    (tmp_path / FILE).write_text(json.dumps(tree))
    began = read_run(tmp_path)
    assert began is not None
    assert compare_run(tmp_path, began, tiny.recipe(), read_shards(shards), 12, 5) == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "muon"},
        {"muon_learning_rate": 0.1},
        {"ffn_lr_scale": "1/uses"},
        {"decay_norms": False},
        {"schedule": "wsd"},
        {"model": {"ffn_gain": True}},
        {"model": {"ffn_adapter_rank": 2}},
    ],
    ids=str,
)
def test_a_run_does_not_go_on_with_another_science(tmp_path: Path, shards: Path, changes: dict) -> None:
    data = read_shards(shards)
    begin_run(tmp_path, tiny.recipe(), data, 12)
    began = read_run(tmp_path)
    assert began is not None
    table = "model" if "model" in changes else "train"
    key = next(iter(changes.get("model", changes)))
    with pytest.raises(RecipeError, match=rf"another recipe: {table}\.{key} was "):
        compare_run(tmp_path, began, tiny.recipe(**changes), data, 12, 5)


def test_a_stable_run_may_be_lengthened_before_its_decay_begins(tmp_path: Path, shards: Path) -> None:
    data, wsd = read_shards(shards), {"schedule": "wsd", "decay_share": 0.3}  # of ten steps after warm-up: from 10 on
    begin_run(tmp_path, tiny.recipe(**wsd), data, 12)
    began = read_run(tmp_path)
    assert began is not None
    longer = tiny.recipe(**wsd, steps=20)
    assert compare_run(tmp_path, began, longer, data, 20, 9) == {"train.steps": 20}
    with pytest.raises(RecipeError, match=r"train\.steps shapes the learning rate of the 10 steps"):
        compare_run(tmp_path, began, longer, data, 20, 10)
