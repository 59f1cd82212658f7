import pytest
import torch
from safetensors.torch import load_file

from mobillama import manifest
from mobillama.errors import DamagedFileError
from mobillama.train.checkpoint import (
    SavedState,
    checkpoints_folder,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    sweep_checkpoints,
    write_tensors,
)


def state(seed=0):
    torch.manual_seed(seed)
    return {
        "model.b": torch.randn(3, 5),
        "model.a": torch.randn(7),
        "optimizer.a.exp_avg": torch.randn(7),
        "optimizer.step": torch.tensor(4.0),
    }


def save(run, step, seed=0):
    origin = {"kind": "shards", "name": "s", "digest": "0" * 64}
    return save_checkpoint(
        run, state(seed), step=step, tokens=step * 10, made_from=origin, recipe={"name": "r"}, circumstance={}
    )


def test_a_state_comes_back_bit_for_bit(tmp_path):
    saved = save(tmp_path, 4)
    found = newest_checkpoint(tmp_path)
    assert (found.step, found.tokens, found.result()) == (4, 40, saved.result())
    again, before = SavedState(found), state()
    assert again.keys() == before.keys()
    assert all(torch.equal(again[name], before[name]) and again[name].shape == before[name].shape for name in before)


def test_the_digests_are_those_of_the_files_and_follow_from_the_tensors_alone(tmp_path):
    first, second = save(tmp_path / "a", 1), save(tmp_path / "b", 1)
    assert first.result() == second.result()
    assert first.result()["weights"] == manifest.sha256_file(first.folder / "weights.safetensors")
    assert first.result()["optimizer"] == manifest.sha256_file(first.folder / "optimizer.safetensors")
    assert save(tmp_path / "c", 1, seed=1).result()["weights"] != first.result()["weights"]


def test_tensor_files_are_read_by_the_safetensors_library(tmp_path):
    """Oracle: types, shapes, an empty tensor, a scalar and one that is not contiguous."""
    tensors = {
        "wide": torch.arange(6, dtype=torch.float64).reshape(2, 3).t(),
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "count": torch.tensor(7),
        "none": torch.empty(0, 3),
    }
    write_tensors(tmp_path / "t.safetensors", tensors)
    found = load_file(tmp_path / "t.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_only_the_newest_are_kept(tmp_path):
    for step in (5, 10, 999_999, 1_000_000):
        save(tmp_path, step)
    prune_checkpoints(tmp_path, 2)
    assert {folder.name for folder in checkpoints_folder(tmp_path).iterdir()} == {"step_999999", "step_1000000"}
    assert newest_checkpoint(tmp_path).step == 1_000_000


def test_half_written_and_half_removed_ones_are_swept_away_and_never_used(tmp_path):
    save(tmp_path, 5)
    folder = checkpoints_folder(tmp_path)
    (folder / "step_000010.partial").mkdir()
    (folder / "step_000010.partial" / "weights.safetensors").write_bytes(b"half")
    (folder / ".step_000001.removed").mkdir()
    assert newest_checkpoint(tmp_path).step == 5
    sweep_checkpoints(tmp_path)
    assert [left.name for left in folder.iterdir()] == ["step_000005"]


def test_there_is_none_before_the_first(tmp_path):
    assert newest_checkpoint(tmp_path) is None


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (flip, "found sha256 [0-9a-f]{64}; expected [0-9a-f]{64}"),
        (cut, r"found \d+ bytes; expected \d+"),
        (lambda path: path.unlink(), "missing; expected"),
    ],
)
def test_a_damaged_one_is_named_with_what_to_do(tmp_path, name, damage, found):
    save(tmp_path, 5)
    folder = save(tmp_path, 10).folder
    damage(folder / name)
    with pytest.raises(DamagedFileError, match=rf"step_000010 is damaged: {name}: {found}") as caught:
        newest_checkpoint(tmp_path)
    assert f"remove {folder}: the same command then goes on from step_000005" in str(caught.value)
    manifest.remove(folder)
    assert newest_checkpoint(tmp_path).step == 5


@pytest.mark.parametrize("damage", [cut, lambda path: path.unlink(), lambda path: path.write_text("{}")])
def test_a_damaged_manifest_is_named(tmp_path, damage):
    folder = save(tmp_path, 5).folder
    damage(folder / "manifest.json")
    if damage is cut:  # the last byte is a newline: cut into the text
        damage(folder / "manifest.json")
    with pytest.raises(DamagedFileError, match=r"manifest.json.*remove .*step_000005.*starts from the initial weights"):
        newest_checkpoint(tmp_path)
