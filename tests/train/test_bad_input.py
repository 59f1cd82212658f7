"""Every way in which what a run is given, or finds, can be wrong: found, expected and what to do are said."""

import resource
from contextlib import contextmanager

import numpy as np
import pytest
import tiny

from mobillama.data.shards import write_shards
from mobillama.errors import DamagedFileError, InputError, RecipeError
from mobillama.train.check import check_run
from mobillama.train.ledger import FILE, read_ledger
from mobillama.train.loop import train


def test_a_vocabulary_larger_than_the_model_is_refused_before_anything_is_written(tmp_path, shards):
    with pytest.raises(InputError, match=r"model.vocab_size=63 is smaller than .* 64 ids.*--set model.vocab_size=64"):
        train(tiny.recipe(model={"vocab_size": 63}), shards, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_rows_longer_than_the_model_are_refused(tmp_path, shards):
    with pytest.raises(InputError, match=r"seq_len=16 positions.*max_position_embeddings=8.*embeddings=16"):
        train(tiny.recipe(model={"max_position_embeddings": 8}), shards, tmp_path / "run")


def test_a_warm_up_longer_than_the_run_is_refused(tmp_path, shards):
    with pytest.raises(RecipeError, match=r"train.warmup_steps=2000 does not fit into 12 steps"):
        train(tiny.recipe(warmup_steps=2000), shards, tmp_path / "run")


def test_a_pass_shorter_than_a_step_is_refused(tmp_path, shards):
    with pytest.raises(RecipeError, match=r"train.rows_per_step=100, but .* has 48 rows in all"):
        train(tiny.recipe(steps=0, rows_per_step=100), shards, tmp_path / "run")


@pytest.mark.parametrize("split", ["train", "validation"])
def test_ids_outside_the_vocabulary_are_named(tmp_path, split):
    rows = {"train": np.zeros((8, 17), int), "validation": np.zeros((2, 17), int)}
    rows[split][-1, 5] = 64
    write_shards(tmp_path / "shards", **rows, vocab_size=64)
    with pytest.raises(InputError, match=rf"{split} row . holds id 64; the vocabulary has 64 ids"):
        train(tiny.recipe(), tmp_path / "shards", tmp_path / "run")


@pytest.mark.parametrize("name", ["chunk_001.safetensors", "validation.safetensors"])
def test_a_flipped_bit_in_the_shards_is_found_before_training(tmp_path, name):
    folder = tiny.make_shards(tmp_path / "shards")
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(DamagedFileError, match=rf"{name}: found sha256 [0-9a-f]{{64}}; expected [0-9a-f]{{64}}"):
        train(tiny.recipe(), folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_truncated_shards_are_named(tmp_path):
    folder = tiny.make_shards(tmp_path / "shards")
    path = folder / "chunk_000.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DamagedFileError, match=r"chunk_000.safetensors: found \d+ bytes"):
        train(tiny.recipe(), folder, tmp_path / "run")


def test_a_folder_that_is_no_shards_is_named(tmp_path):
    with pytest.raises(InputError, match=r"has no manifest.json"):
        train(tiny.recipe(), tmp_path, tmp_path / "run")


def test_a_folder_that_holds_something_else_is_not_trained_into(tmp_path, shards):
    (tmp_path / "letter.txt").write_text("dear reader")
    with pytest.raises(InputError, match=r"exists and is not a run \(it holds letter.txt\); choose another --out"):
        train(tiny.recipe(), shards, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "other"}'])
def test_a_damaged_run_description_is_named(copied, shards, text):
    (copied / "run.json").write_text(text)
    with pytest.raises(DamagedFileError, match=r"run.json is not a run's description"):
        train(tiny.recipe(), shards, copied)


def flip_last(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("shard-00001-model-00001", flip_last),
        ("shard-00001-model-00002", lambda path: path.unlink()),
        ("digests", flip_last),
        ("manifest", lambda path: path.unlink()),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_is_used_and_both_are_said(
    copied, shards, whole_run, capsys, name, damage
):
    folder = copied / "checkpoints" / "step_000012"
    damage(next(folder.glob(f"{name}*")))
    train(tiny.recipe(), shards, copied)
    said = capsys.readouterr().err
    assert "not used and set aside" in said
    assert "going on from step 10 of 12" in said
    resumed = next(line for line in read_ledger(copied) if line.kind == "resumed")
    assert (resumed.step, resumed.result["checkpoint"], [*resumed.result["refused"]]) == (
        *(10, "step_000010"),
        ["step_000012"],
    )
    assert name in resumed.result["refused"]["step_000012"]
    assert tiny.weights(copied) == tiny.weights(whole_run)
    left = {path.name for path in (copied / "checkpoints").iterdir()}
    assert left == {"step_000010", "step_000012", "step_000012.damaged"}
    assert check_run(copied).differences == []


def test_a_changed_ledger_stops_the_run(copied, shards):
    text = (copied / FILE).read_bytes()
    (copied / FILE).write_bytes(text.replace(b'"step":3,', b'"step":2,', 1))
    with pytest.raises(DamagedFileError, match=r"line \d+ was changed after it was written: its sha256 is"):
        train(tiny.recipe(), shards, copied)


@contextmanager
def room_for(size):
    """No file can grow beyond `size` bytes: the kernel refuses the write as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_while_a_checkpoint_is_written_costs_only_that_checkpoint(tmp_path, shards, whole_run):
    run = tmp_path / "run"
    with room_for(12_000) as fill, pytest.raises(OSError, match="too large") as caught:
        train(tiny.recipe(), shards, run, on_progress=lambda shown: shown["step"] == 7 and fill())
    assert "step_000010" in caught.value.filename
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_000005"]  # and the room is given back
    train(tiny.recipe(), shards, run)
    assert tiny.weights(run) == tiny.weights(whole_run)


def test_a_disk_that_fills_in_the_middle_of_a_ledger_line_leaves_whole_lines(tmp_path, shards, whole_run):
    run = tmp_path / "run"
    with room_for(4_000) as fill, pytest.raises(OSError, match="too large") as caught:
        train(tiny.recipe(checkpoint_every=100), shards, run, on_progress=lambda shown: shown["step"] == 1 and fill())
    assert caught.value.filename == str(run / FILE)
    assert (run / FILE).read_bytes().endswith(b"}\n")
    assert 1 < len(read_ledger(run)) < 12
    train(tiny.recipe(checkpoint_every=100), shards, run)
    assert tiny.weights(run) == tiny.weights(whole_run)
