import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mobillama import manifest
from mobillama.config import TrainRecipe, resolve
from mobillama.errors import InputError
from mobillama.train import digest
from mobillama.train.check import check_run
from mobillama.train.checkpoint import (
    SavedState,
    checkpoints_folder,
    load_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    set_aside,
    sweep_checkpoints,
)
from mobillama.train.checkpoint_writer import CheckpointWriter
from mobillama.train.ledger import read_ledger
from mobillama.train.loop import train
from mobillama.train.state_digest import state_digests

RECORDED = Path(__file__).parents[1] / "fixtures" / "format_1" / "run"


def state(seed=0):
    torch.manual_seed(seed)
    return {
        "model.b": torch.randn(3, 5),
        "model.a": torch.randn(7),
        "model.half": torch.randn(2, 2).bfloat16(),
        "optimizer.a.exp_avg": torch.randn(7),
        "optimizer.none.exp_avg": torch.empty(0, 3),
        "optimizer.step": torch.tensor(4.0),
    }


def save(run, step, seed=0, *, tensors=None, asynchronous=False, **given):
    origin = {"kind": "shards", "name": "s", "digest": "0" * 64}
    with CheckpointWriter(run, asynchronous=asynchronous) as writer:
        writer.begin(
            tensors or state(seed),
            step=step,
            tokens=step * 10,
            made_from=origin,
            recipe={"name": "r"},
            circumstance={},
            **given,
        )
        return writer.wait()


def test_a_state_comes_back_bit_for_bit(tmp_path):
    saved = save(tmp_path, 4)
    found = newest_checkpoint(tmp_path).checkpoint
    assert (found.step, found.tokens, found.result()) == (4, 40, saved.result())
    again, live, before = SavedState(found), state(1), state()
    load_checkpoint(found, live)
    assert again.keys() == live.keys() == before.keys()
    for name, tensor in before.items():
        for other in (again[name], live[name]):
            assert torch.equal(other, tensor)
            assert (other.shape, other.dtype) == (tensor.shape, tensor.dtype)


def test_training_may_change_the_state_while_it_is_written(tmp_path):
    tensors = state()
    writer = CheckpointWriter(tmp_path)
    with writer:
        for step in (1, 2):  # the second time into the buffers of the first
            writer.begin(tensors, step=step, tokens=0, made_from={}, recipe={}, circumstance={})
            expected = {name: tensor.clone() for name, tensor in tensors.items()}
            for tensor in tensors.values():
                tensor.add_(1)
            saved = SavedState(writer.wait())
            assert all(torch.equal(saved[name], expected[name]) for name in expected)


def test_a_checkpoint_is_told_of_once_and_the_next_waits_for_that(tmp_path):
    writer = CheckpointWriter(tmp_path)
    assert writer.finished() is writer.wait() is None
    given = {"tokens": 0, "made_from": {}, "recipe": {}, "circumstance": {}}
    writer.begin(state(), step=1, **given)
    with pytest.raises(RuntimeError, match="step_000001 is still being written, or nobody asked"):
        writer.begin(state(), step=2, **given)
    assert writer.wait().step == 1
    assert writer.finished() is None


def test_the_digest_is_that_of_the_format_and_follows_from_the_tensors_alone(tmp_path):
    """Oracle: the definition in docs/formats.md, by hand, over what the safetensors library reads."""
    import hashlib

    saved = save(tmp_path / "a", 1)
    told = digest.read_digests(saved.folder)
    found = {}
    for path in saved.folder.glob("*.safetensors"):
        for name, tensor in load_file(path).items():
            kind = {torch.float32: "F32", torch.bfloat16: "BF16"}[tensor.dtype]
            head = f"{kind} {json.dumps(list(tensor.shape), separators=(',', ':'))}\n".encode()
            found[name] = hashlib.sha256(head + tensor.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
    assert told == found == state_digests(state())
    for part, prefix in (("weights", "model."), ("optimizer", "optimizer.")):
        tree = {name: told[name] for name in sorted(told) if name.startswith(prefix)}
        whole = hashlib.sha256(json.dumps(tree, separators=(",", ":")).encode()).hexdigest()
        assert saved.result()[part] == whole
    again = save(tmp_path / "b", 1)
    assert (again.result(), again.manifest.digest()) == (saved.result(), saved.manifest.digest())
    assert save(tmp_path / "c", 1, seed=1).result()["weights"] != saved.result()["weights"]


@pytest.mark.parametrize("change", ["shape", "dtype", "name", "value"])
def test_the_digest_sees_every_kind_of_change(change):
    tensors = {"model.a": torch.zeros(2, 3)}
    other = {
        "shape": {"model.a": torch.zeros(3, 2)},
        "dtype": {"model.a": torch.zeros(2, 3, dtype=torch.int32)},
        "name": {"model.b": torch.zeros(2, 3)},
        "value": {"model.a": -torch.zeros(2, 3)},  # equal as numbers, not as bits
    }[change]
    one, two = (digest.part_digests(state_digests(given))["weights"] for given in (tensors, other))
    assert one != two


def test_a_large_state_lies_in_several_files(tmp_path, monkeypatch):
    from mobillama.train import checkpoint_writer

    monkeypatch.setattr(checkpoint_writer, "FILE_BYTES", 50)
    saved = SavedState(save(tmp_path, 1))
    assert len(list((tmp_path / "checkpoints" / "step_000001").glob("*.safetensors"))) == 4
    assert all(torch.equal(saved[name], tensor) for name, tensor in state().items())


def test_only_the_newest_and_the_published_are_kept(tmp_path):
    for step in (5, 10, 999_999, 1_000_000):
        save(tmp_path, step, published=0 if step == 5 else None)
    prune_checkpoints(tmp_path, 2)
    kept = {folder.name for folder in checkpoints_folder(tmp_path).iterdir()}
    assert kept == {"step_000005", "step_999999", "step_1000000"}
    assert newest_checkpoint(tmp_path).checkpoint.step == 1_000_000


def test_half_written_and_half_removed_ones_are_swept_away_and_never_used(tmp_path):
    save(tmp_path, 5)
    folder = checkpoints_folder(tmp_path)
    (folder / "step_000010.partial").mkdir()
    (folder / "step_000010.partial" / "shard.safetensors").write_bytes(b"half")
    (folder / ".step_000001.removed").mkdir()
    assert newest_checkpoint(tmp_path).checkpoint.step == 5
    sweep_checkpoints(tmp_path)
    assert [left.name for left in folder.iterdir()] == ["step_000005"]


def test_there_is_none_before_the_first(tmp_path):
    assert newest_checkpoint(tmp_path).checkpoint is None
    assert newest_checkpoint(tmp_path).refused == {}


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-2])


WEIGHTS = "shard-00001-model-00001-of-00002.safetensors"


@pytest.mark.parametrize("name", [WEIGHTS, WEIGHTS.replace("model-00001", "model-00002"), "digests.json"])
@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (flip, "found sha256 [0-9a-f]{64}; expected [0-9a-f]{64}"),
        (cut, r"found \d+ bytes; expected \d+"),
        (lambda path: path.unlink(), "missing; expected"),
    ],
)
def test_a_damaged_one_is_refused_and_named_and_the_one_before_is_used(tmp_path, name, damage, found):
    save(tmp_path, 5)
    folder = save(tmp_path, 10).folder
    damage(folder / name)
    newest = newest_checkpoint(tmp_path)
    assert newest.checkpoint.step == 5
    assert [*newest.result()] == ["step_000010"]
    assert re.search(rf"step_000010 is damaged: {name}: {found}", newest.result()["step_000010"])
    assert folder.is_dir()  # looking changes nothing


@pytest.mark.parametrize("damage", [cut, lambda path: path.unlink(), lambda path: path.write_text("{}")])
def test_one_with_a_damaged_manifest_is_refused(tmp_path, damage):
    folder = save(tmp_path, 5).folder
    damage(folder / "manifest.json")
    newest = newest_checkpoint(tmp_path)
    assert newest.checkpoint is None
    assert "manifest.json" in newest.refused[folder]


def test_a_refused_one_is_set_aside_and_makes_room_for_its_step(tmp_path):
    save(tmp_path, 5)
    flip(save(tmp_path, 10).folder / WEIGHTS)
    set_aside(newest_checkpoint(tmp_path))
    assert newest_checkpoint(tmp_path).refused == {}
    save(tmp_path, 10)
    prune_checkpoints(tmp_path, 1)
    assert {folder.name for folder in checkpoints_folder(tmp_path).iterdir()} == {"step_000010", "step_000010.damaged"}


def test_a_newer_version_is_refused_with_what_to_do_and_not_passed_over(tmp_path):
    save(tmp_path, 5)
    path = save(tmp_path, 10).folder / "manifest.json"
    path.write_text(path.read_text().replace('"form": 2', '"form": 3'))
    with pytest.raises(InputError, match=r"checkpoint of version 3; this mobillama reads up to 2: install a newer one"):
        newest_checkpoint(tmp_path)


def test_another_models_checkpoint_is_refused_before_anything_is_changed(tmp_path):
    saved = save(tmp_path, 5)
    live = {**state(1), "model.new": torch.zeros(1)}
    with pytest.raises(InputError, match=r"lacks 'model.new'"):
        load_checkpoint(saved, live)
    with pytest.raises(InputError, match=r"'model.b' of .* has shape \(3, 5\); this model has \(5, 3\)"):
        load_checkpoint(saved, {**state(1), "model.b": torch.zeros(5, 3)})
    assert torch.equal(live["model.a"], state(1)["model.a"])


def test_the_first_version_is_still_read(tmp_path):
    """Golden: a checkpoint that the first version wrote."""
    shutil.copytree(RECORDED, tmp_path / "run")
    found = newest_checkpoint(tmp_path / "run").checkpoint
    weights = load_file(found.folder / "weights.safetensors")
    saved = SavedState(found)
    assert {name for name in saved if name.startswith("model.")} == {f"model.{name}" for name in weights}
    live = {name: torch.zeros(saved.shape(name)) for name in saved}
    load_checkpoint(found, live)
    assert all(torch.equal(live[f"model.{name}"], tensor) for name, tensor in weights.items())
    assert float(live["optimizer.step"]) == found.step
    assert found.result()["weights"] == manifest.sha256_file(found.folder / "weights.safetensors")


def test_a_run_of_the_first_version_goes_on(tmp_path):
    """As if it had been killed after step 3 of 5: new checkpoints are of today's form, and they verify."""
    chain = tmp_path / "chain"
    shutil.copytree(RECORDED.parent, chain)
    run = chain / "run"
    shutil.rmtree(run / "model")
    lines = (run / "ledger.jsonl").read_text().splitlines(keepends=True)
    (run / "ledger.jsonl").write_text("".join(lines[:-1]))  # without its `end`
    told = json.loads((run / "run.json").read_text())
    told["steps"] = told["recipe"]["train"]["steps"] = 5
    (run / "run.json").write_text(json.dumps(told))
    train(resolve(TrainRecipe, told["recipe"], "test"), chain / "shards", run)
    after = [(line.kind, line.step) for line in read_ledger(run)[len(lines) - 1 :]]
    assert after[0] == ("resumed", 3)
    assert {("step", 4), ("step", 5), ("checkpoint", 4), ("checkpoint", 5), ("end", 5)} <= {*after}
    assert newest_checkpoint(run).checkpoint.form == 2
    assert not [text for text in check_run(run).differences if "checkpoints" in text]
