"""What a version without some of today's recipe keys made or began is gone on with, their defaults added."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from samples import make_recipe

from mobillama import manifest
from mobillama.config import DataRecipe
from mobillama.data.build import build_shards
from mobillama.data.corpus import CorpusSettings
from mobillama.data.executor import Progress
from mobillama.errors import InputError
from mobillama.tokenizer.tokenizer import Tokenizer

OLDER: dict[str, Any] = {"shards": DataRecipe, "shards-corpus": CorpusSettings}


def without_defaults(path: Path, section: Any) -> None:
    """The JSON file with a recipe as a version would have written it that knew only the keys that are set."""
    tree = json.loads(path.read_text())
    older = section.model_validate(tree["recipe"]).model_dump(mode="json", exclude_defaults=True)
    assert older != tree["recipe"]
    path.write_text(json.dumps({**tree, "recipe": older}))


def test_finished_shards_and_their_corpus_are_given_back_unchanged(
    built: Path, corpora: Path, tokenizer: Tokenizer, tmp_path: Path
):
    for name, section in OLDER.items():
        shutil.copytree(built.with_name(name), tmp_path / name)
        without_defaults(tmp_path / name / manifest.FILE, section)
    older = {name: manifest.read(tmp_path / name).digest() for name in OLDER}
    recipe, stages = make_recipe(corpora), []
    found = build_shards(recipe, tmp_path / "shards", tokenizer=tokenizer, on_progress=stages.append)
    assert found.digest() == older["shards"] and not stages
    shutil.rmtree(tmp_path / "shards")
    build_shards(recipe, tmp_path / "shards", tokenizer=tokenizer, on_progress=stages.append)
    assert not {"clean", "corpus"} & {progress.stage for progress in stages}
    assert manifest.read(tmp_path / "shards-corpus").digest() == older["shards-corpus"]
    with pytest.raises(InputError, match="built from another recipe"):
        build_shards(make_recipe(corpora, seq_len=16), tmp_path / "shards", tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("stage", "folder", "done"), [("dedup", "shards-corpus", "clean"), ("pack", "shards", "encode")]
)
def test_a_half_finished_build_goes_on(
    stage: str, folder: str, done: str, built: Path, corpora: Path, tokenizer: Tokenizer, tmp_path: Path
):
    first: dict[str, Progress] = {}

    def stop(progress: Progress) -> None:
        if progress.stage == stage:
            raise KeyboardInterrupt

    recipe, out = make_recipe(corpora), tmp_path / "shards"
    with pytest.raises(KeyboardInterrupt):
        build_shards(recipe, out, workers=1, tokenizer=tokenizer, on_progress=stop)
    without_defaults(tmp_path / f"{folder}.work" / "plan.json", OLDER[folder])
    build_shards(recipe, out, tokenizer=tokenizer, on_progress=lambda told: first.setdefault(told.stage, told) and None)
    assert first[done].tasks_done == first[done].tasks
    assert manifest.read(out).files == manifest.read(built).files
