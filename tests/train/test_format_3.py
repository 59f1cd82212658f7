"""Golden: a run with checkpoints of form 2, as first written, is read, checked, replayed and trained on today."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mobillama import manifest
from mobillama.config import TrainRecipe, resolve
from mobillama.model.weights import load_model
from mobillama.train.check import check_run
from mobillama.train.checkpoint import SavedState, newest_checkpoint, read_checkpoint
from mobillama.train.ledger import FILE, read_ledger
from mobillama.train.loop import train
from mobillama.train.replay import replay

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests" / "fixtures" / "format_3" / "run"
SHARDS = RECORDED.parents[1] / "format_2" / "shards"
DIGESTS = {  # as the code that wrote them gave them
    "checkpoints/step_000002": "5b830bb6a961bbab674169a70d6f562c253eecff79bbb49592a281784ddbeec0",
    "checkpoints/step_000004": "6078578d33e2c7f9a02297c540134ec00df8f7d68763d83dfd5a8c943d535acc",
    "published/ckpt_000": "3f12361ac16d2ecedfb911aded2db1973ea7e5e88cb4bec434ec6491a2aaf3b5",
    "published/ckpt_001": "b36d083f9cbeea2e6bf00bf899d07c3d46a0a53750b5087fe0eb8e886e2e66a2",
    "model": "69b694c1b7e6cbdab48a453b1170490b45bed565ad5882b2ff3176ec64954e5f",
}
LEDGER = "440db94897c8f3cf267ecf993ef3428b7acb254b6050360d65f89eee3d587ad8"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of the run, its shards beside it."""
    shutil.copytree(SHARDS, tmp_path / "shards")
    shutil.copytree(RECORDED, tmp_path / "run")
    return tmp_path / "run"


def test_the_artefacts_are_as_promised_and_keep_their_digests(run: Path) -> None:
    for name, digest in DIGESTS.items():
        assert manifest.read(RECORDED / name).digest() == digest
    found = check_run(run)
    assert (found.digest, found.differences) == (LEDGER, [])
    # Its ledger tells nothing of what lies beside the weights, which is said.
    assert [text.partition(":")[0] for text in found.not_checked] == [
        "published/ckpt_000",
        "published/ckpt_001",
        "model",
    ]
    tool = [sys.executable, "-I", "-S", str(ROOT / "tools" / "verify.py"), str(run.parent)]
    done = subprocess.run(tool, capture_output=True, text=True)
    assert (done.returncode, "DIFFERS" in done.stdout) == (0, False), done.stdout


def test_the_pieces_of_two_ranks_and_of_one_are_whole_tensors() -> None:
    trained = {line.step: line.result["tokens"] for line in read_ledger(RECORDED) if line.kind == "step"}
    for step, ranks in ((2, 2), (4, 1)):
        checkpoint = read_checkpoint(RECORDED / "checkpoints" / f"step_{step:06d}")
        assert len([*checkpoint.folder.glob("*.safetensors")]) == 2 * ranks
        assert (checkpoint.form, checkpoint.step, checkpoint.tokens) == (2, step, trained[step])
        state = SavedState(checkpoint)
        model = load_model(RECORDED / "published" / f"ckpt_{checkpoint.published:03d}")
        assert state["optimizer.step"] == step
        for name, weight in model.named_parameters():
            assert (state[f"model.{name}"] == weight).all()
            for moment in ("exp_avg", "exp_avg_sq"):
                assert state[f"optimizer.{name}.{moment}"].shape == weight.shape


def test_the_steps_of_one_rank_are_replayed_from_what_two_saved(run: Path) -> None:
    found = replay(run, 2, 4, on_progress=lambda _: None)
    assert found["inputs"] == []
    assert found["compared"] == {"step": 2, "validation": 1, "checkpoint": 1, "end": 1, "states": 1}
    # The machine at hand may add in another order than the one it was recorded on; what is read it may not change.
    assert not {each["field"] for each in found["differences"]} & {"rows", "tokens", "lr", "step"}
    for each in found["differences"]:
        if each["kind"] in ("step", "validation") and each["field"] != "sources":
            assert each["found"] == pytest.approx(each["expected"], rel=1e-4)


def test_the_run_is_lengthened_and_goes_on_from_its_newest_checkpoint(run: Path) -> None:
    told = json.loads((run / "run.json").read_text())["recipe"]
    told["train"]["steps"] = 6
    before = (run / FILE).read_bytes()
    assert newest_checkpoint(run).checkpoint == read_checkpoint(run / "checkpoints" / "step_000004")
    recipe = resolve(TrainRecipe, told, "test")
    assert train(recipe, run.with_name("shards"), run, on_progress=lambda _: None)["finished"]
    assert (run / FILE).read_bytes().startswith(before)
    lines = read_ledger(run)[before.count(b"\n") :]
    assert (lines[0].kind, lines[0].result["checkpoint"]) == ("resumed", "step_000004")
    assert lines[0].result["changed"]["train.steps"] == 6
    steps = [line.result for line in lines if line.kind == "step"]
    assert [line["step"] for line in steps] == [5, 6]
    assert all(line["loss"] < 5.75 for line in steps)  # it began at 5.70, and goes down from there
    assert check_run(run).differences == []
