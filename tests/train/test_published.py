import shutil

import pytest
import tiny
import torch

import mobillama
from mobillama import manifest
from mobillama.train.check import check_run
from mobillama.train.checkpoint import SavedState, newest_checkpoint, sealed_folders
from mobillama.train.loop import train
from mobillama.train.published import is_publication

PUBLISHING = {"checkpoint_every": 100, "keep_last": 1, "publish_chunks": True}  # chunks of 24 rows, 4 rows a step


@pytest.fixture(scope="module")
def published(tmp_path_factory, shards):
    """A run whose two chunks end at steps 6 and 12, and that ends at step 14."""
    run = tmp_path_factory.mktemp("published") / "run"
    train(tiny.recipe(steps=14, **PUBLISHING), shards, run)
    return run


def models(run):
    return {path.name: manifest.read(path).counts["step"] for path in sorted((run / "published").iterdir())}


def test_each_chunk_end_and_the_last_step_are_published_and_kept(published):
    assert models(published) == {"ckpt_000": 6, "ckpt_001": 12, "ckpt_002": 14}
    assert [folder.name for folder in sealed_folders(published)] == ["step_000006", "step_000012", "step_000014"]


def test_a_published_model_is_an_ordinary_one_with_the_weights_of_its_checkpoint(published):
    for name, folder in zip(models(published), sealed_folders(published), strict=True):
        model = mobillama.model.weights.load_model(published / "published" / name)
        saved = SavedState(newest_checkpoint(published).checkpoint) if name == "ckpt_002" else None
        assert manifest.lineage(published / "published" / name, published, published.parent)[0] == []
        source = manifest.read(published / "published" / name).made_from[0]
        assert source["digest"] == manifest.read(folder).digest()
        if saved:
            for key, weight in model.named_parameters():
                assert torch.equal(weight, saved[f"model.{key}"])


def test_a_run_with_published_models_verifies_and_a_change_of_one_is_found(published, tmp_path):
    assert check_run(published).differences == []
    run = tmp_path / "run"
    shutil.copytree(published, run)
    folder = run / "published" / "ckpt_001"
    for name in ("config.json", "model.safetensors", "manifest.json"):  # the weights of another, sealed as one's own
        shutil.copy(run / "published" / "ckpt_000" / name, folder / name)
    tree = (folder / "manifest.json").read_text()
    step6, step12 = (manifest.read(run / "checkpoints" / f"step_0000{n}").digest() for n in ("06", "12"))
    tree = tree.replace(step6, step12).replace('"step": 6', '"step": 12')
    (folder / "manifest.json").write_text(tree)
    assert any("its weights are not those of step_000012" in text for text in check_run(run).differences)


def test_a_model_that_a_kill_kept_from_being_written_is_written_at_the_next_start(published, shards, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(published, run)
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "published" / "ckpt_001")
    train(tiny.recipe(steps=14, **PUBLISHING), shards, run)
    assert models(run) == models(published)
    for name in models(run):
        weights = "model.safetensors"
        assert (run / "published" / name / weights).read_bytes() == (
            published / "published" / name / weights
        ).read_bytes()


def test_tokens_and_chunks_say_which_steps_are_published():
    chunks = tiny.recipe(publish_chunks=True).train
    assert [step for step in range(1, 25) if is_publication(chunks, [10, 6], 16, step, 24)] == [
        3,
        4,
        7,
        8,
        11,
        12,
        15,
        16,
        19,
        20,
        23,
        24,
    ]
    tokens = tiny.recipe(publish_tokens=160).train  # 64 a step
    assert [step for step in range(1, 13) if is_publication(tokens, [48], 16, step, 12)] == [3, 5, 8, 10, 12]
    assert not is_publication(tiny.recipe().train, [4], 16, 1, 1)
