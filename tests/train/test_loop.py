import hashlib
import json
import os
import shutil
import signal

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F

from mobillama import manifest
from mobillama.data.shards import read_shards
from mobillama.data.stream import row_ids
from mobillama.device import place
from mobillama.errors import InputError, RecipeError, TrainingError
from mobillama.model.weights import load_model
from mobillama.train.check import check_run
from mobillama.train.checkpoint_writer import CheckpointWriter
from mobillama.train.ledger import FILE, Ledger, read_ledger
from mobillama.train.loop import train


class Crash(Exception):
    """Stands for anything that ends a process."""


def crash_at(step):
    def on_progress(shown):
        if shown["step"] == step:
            raise Crash

    return on_progress


def results(run, kind):
    return [line.result for line in read_ledger(run) if line.kind == kind]


def test_a_run_leaves_what_the_format_promises(whole_run):
    assert {path.name for path in whole_run.iterdir()} == {
        "run.json", "ledger.jsonl", "checkpoints", "code", "model", "tensorboard"
    }  # fmt: skip
    kinds = [line.kind for line in read_ledger(whole_run)]
    assert (kinds[0], kinds[-1], len(kinds)) == ("start", "end", 1 + 12 + 3 + 3 + 1)
    assert [line["step"] for line in results(whole_run, "validation")] == [4, 8, 12]
    assert [line["step"] for line in results(whole_run, "checkpoint")] == [5, 10, 12]  # each once it is sealed
    assert {path.name for path in (whole_run / "checkpoints").iterdir()} == {"step_000010", "step_000012"}
    for folder in (whole_run / "model", whole_run / "checkpoints" / "step_000012"):
        manifest.check(folder)
    tree = json.loads((whole_run / "run.json").read_text())
    assert (tree["format"], tree["recipe"], tree["steps"]) == ("mobillama.run", tiny.recipe().tree(), 12)


def test_a_step_line_says_what_the_step_read_and_did(whole_run, shards):
    data = read_shards(shards)
    for number, result in enumerate(results(whole_run, "step"), 1):
        ids = row_ids(tiny.recipe().train.seed, number, 4, data.chunk_rows)
        content = ids.astype("<i8").tobytes() + data.train_rows(ids).astype("<u4").tobytes()
        norms = ["grad_norm", "grad_norm_ffn", "grad_norm_attention"]
        assert list(result) == ["step", "rows", "tokens", "loss", *norms, "lr"]
        assert result["grad_norm"] ** 2 > result["grad_norm_ffn"] ** 2 + result["grad_norm_attention"] ** 2
        assert result["rows"] == hashlib.sha256(content).hexdigest()
        assert (result["step"], result["tokens"]) == (number, number * 4 * tiny.SEQ_LEN)


def test_the_loss_goes_down(whole_run):
    losses = [result["loss"] for result in results(whole_run, "step")]
    held_out = [result["loss"] for result in results(whole_run, "validation")]
    assert losses[-1] < losses[0] - 0.3
    assert held_out == sorted(held_out, reverse=True)


def test_the_saved_model_has_the_loss_that_the_ledger_ends_with(whole_run, shards):
    """Oracle: the model folder, loaded again, and PyTorch's own cross-entropy in float32."""
    rows = torch.from_numpy(read_shards(shards).validation_rows(np.arange(tiny.HELD_OUT)))
    with torch.no_grad():
        logits = load_model(whole_run / "model")(rows[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    tolerance = 1e-5 if place(tiny.recipe().train).dtype == torch.float32 else 2e-2  # bfloat16 keeps 8 bits
    assert results(whole_run, "validation")[-1]["loss"] == pytest.approx(float(loss), abs=tolerance)


@pytest.mark.parametrize("moment", [3, 7, 12])
def test_the_same_command_goes_on_and_ends_with_the_same_bits(tmp_path, shards, whole_run, moment):
    run = tmp_path / "run"
    with pytest.raises(Crash):
        train(tiny.recipe(), shards, run, on_progress=crash_at(moment))
    before = (run / FILE).read_bytes()
    assert train(tiny.recipe(), shards, run)["finished"]
    assert (run / FILE).read_bytes().startswith(before)
    stands = moment // 5 * 5 if moment < 12 else 10
    (resumed,) = results(run, "resumed")
    assert (resumed["step"], resumed["checkpoint"]) == (stands, f"step_{stands:06d}" if stands else None)
    repeated = [line["step"] for line in results(run, "step")]
    assert repeated == [*range(1, moment + 1), *range(stands + 1, 13)]
    assert tiny.weights(run) == tiny.weights(whole_run)
    for kind in ("step", "validation", "checkpoint", "end"):
        assert {str(line) for line in results(run, kind)} == {str(line) for line in results(whole_run, kind)}


def test_a_checkpoint_sealed_before_its_line_was_written_gets_its_line(tmp_path, shards, monkeypatch, whole_run):
    run = tmp_path / "run"
    append = Ledger.append

    def die(ledger, kind, *rest):
        if kind == "checkpoint":
            raise Crash
        return append(ledger, kind, *rest)

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(Ledger, "append", die)
        train(tiny.recipe(), shards, run)
    train(tiny.recipe(), shards, run)
    assert results(run, "checkpoint") == results(whole_run, "checkpoint")


def test_a_repeated_step_that_differs_stops_the_run(copied, shards):
    """The run is put back to step 10 with a ledger, chained anew, whose step 11 had another loss."""
    lines = read_ledger(copied)
    (copied / FILE).unlink()
    with Ledger.open(copied) as ledger:
        for line in lines:
            other = {"loss": line.result["loss"] + 1e-9} if (line.kind, line.step) == ("step", 11) else {}
            ledger.append(line.kind, {**line.result, **other}, {})
    manifest.remove(copied / "checkpoints" / "step_000012")
    with pytest.raises(TrainingError, match=r"step 11 did not repeat: the step line .* differs in loss"):
        train(tiny.recipe(), shards, copied)
    assert train(tiny.recipe(deterministic=False), shards, copied)["finished"]


def test_a_finished_run_is_left_as_it_is(whole_run, shards, capsys):
    before = (whole_run / FILE).read_bytes()
    summary = train(tiny.recipe(), shards, whole_run)
    assert summary["finished"]
    assert summary["loss"] == results(whole_run, "step")[-1]["loss"]
    assert summary["validation"]["bits_per_byte"] > 0
    assert (whole_run / FILE).read_bytes() == before
    assert "is finished" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_finishes_the_step_and_saves_it(tmp_path, shards, whole_run, number):
    run = tmp_path / "run"
    handlers = signal.getsignal(number)

    def ask(shown):
        if shown["step"] == 7:
            os.kill(os.getpid(), number)

    summary = train(tiny.recipe(), shards, run, on_progress=ask)
    assert (summary["finished"], summary["step"], summary["model"]) == (False, 7, None)
    assert (run / "checkpoints" / "step_000007" / "manifest.json").is_file()
    assert signal.getsignal(number) == handlers
    train(tiny.recipe(), shards, run)
    assert [line["step"] for line in results(run, "step")] == list(range(1, 13))
    assert tiny.weights(run) == tiny.weights(whole_run)


def test_zero_steps_are_one_pass_over_the_rows(tmp_path, shards):
    assert train(tiny.recipe(steps=0), shards, tmp_path / "run")["steps"] == tiny.ROWS // 4


def test_accumulation_changes_rounding_alone(tmp_path, shards):
    losses = []
    for micro in (1, 4):
        recipe = tiny.recipe(steps=5, micro_batch_rows=micro, dtype="float32")
        train(recipe, shards, tmp_path / str(micro))
        losses.append([line["loss"] for line in results(tmp_path / str(micro), "step")])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_names_and_cadence_may_change_and_are_recorded(tmp_path, shards, whole_run):
    run = tmp_path / "run"
    with pytest.raises(Crash):
        train(tiny.recipe(), shards, run, on_progress=crash_at(7))
    train(tiny.recipe(name="renamed", checkpoint_every=4, keep_last=1), shards, run)
    assert results(run, "resumed")[0]["changed"] == {
        "name": "renamed", "train.checkpoint_every": 4, "train.keep_last": 1
    }  # fmt: skip
    assert json.loads((run / "run.json").read_text())["recipe"]["name"] == "renamed"
    assert [folder.name for folder in (run / "checkpoints").iterdir()] == ["step_000012"]
    assert tiny.weights(run) == tiny.weights(whole_run)


def test_a_change_of_the_recipe_is_told_however_a_kill_falls(tmp_path, shards, monkeypatch):
    """run.json is written anew after the `resumed` line: killed between the two, the next start tells it again."""
    run = tmp_path / "run"

    def die(*_, **__):
        raise Crash

    with pytest.raises(Crash):
        train(tiny.recipe(), shards, run, on_progress=crash_at(7))
    for here in ("mobillama.train.session.complete_published", "mobillama.train.session.begin_run"):
        with monkeypatch.context() as patch, pytest.raises(Crash):
            patch.setattr(here, die)
            train(tiny.recipe(validate_every=3), shards, run)
        assert json.loads((run / "run.json").read_text())["recipe"]["train"]["validate_every"] == 4
    train(tiny.recipe(validate_every=3), shards, run)
    assert [line["changed"] for line in results(run, "resumed")] == [{"train.validate_every": 3}] * 2
    assert check_run(run).differences == []


def test_a_finished_run_keeps_the_recipe_it_was_trained_with(copied, shards, whole_run):
    shutil.copytree(whole_run / "model", copied / "model")
    before = (copied / "run.json").read_bytes()
    assert train(tiny.recipe(name="renamed"), shards, copied)["finished"]
    assert (copied / "run.json").read_bytes() == before
    assert check_run(copied).differences == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": 0.02, "seed": 3}, r"train.learning_rate was 0.01, now 0.02; train.seed was 11111, now 3"),
        ({"model": {"hidden_size": 32}}, "model.hidden_size was 16, now 32"),
        ({"dtype": "float32"}, "train.dtype was 'auto', now 'float32' .*train.deterministic=false"),
        ({"steps": 20}, "train.steps was 12, now 20 .*learning rate of the 12 steps"),
    ],
)
def test_another_recipe_is_refused_and_the_keys_are_named(copied, shards, changes, named):
    before = (copied / FILE).read_bytes(), (copied / "run.json").read_bytes()
    with pytest.raises(RecipeError, match=named):
        train(tiny.recipe(**changes), shards, copied)
    assert before == ((copied / FILE).read_bytes(), (copied / "run.json").read_bytes())


def test_what_changes_only_the_rounding_may_change_where_bits_need_not_repeat(tmp_path, shards):
    run = tmp_path / "run"
    with pytest.raises(Crash):
        train(tiny.recipe(deterministic=False), shards, run, on_progress=crash_at(7))
    assert train(tiny.recipe(deterministic=False, micro_batch_rows=4), shards, run)["finished"]


def test_other_shards_are_refused(copied, shards, tmp_path):
    other = tiny.make_shards(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match=f"was begun on shards {read_shards(shards).digest}.*found .* in {other}"):
        train(tiny.recipe(), other, copied)
    moved = tiny.make_shards(tmp_path / "moved")
    assert train(tiny.recipe(), moved, copied)["finished"]


def test_steps_may_be_raised_while_no_learning_rate_was_used_that_would_change(tmp_path, shards):
    constant = {"min_lr_ratio": 1.0}
    train(tiny.recipe(steps=8, **constant), shards, tmp_path / "run")
    train(tiny.recipe(steps=12, **constant), shards, tmp_path / "run")
    train(tiny.recipe(steps=12, **constant), shards, tmp_path / "straight")
    assert tiny.weights(tmp_path / "run") == tiny.weights(tmp_path / "straight")
    assert [line["step"] for line in results(tmp_path / "run", "end")] == [8, 12]


def test_two_processes_cannot_train_one_run(tmp_path, shards):
    def again(_):
        train(tiny.recipe(), shards, tmp_path / "run")

    with pytest.raises(InputError, match="is being trained by another process"):
        train(tiny.recipe(), shards, tmp_path / "run", on_progress=again)


def test_lost_ledger_lines_are_noticed(copied, shards):
    lines = (copied / FILE).read_bytes().splitlines(keepends=True)
    (copied / FILE).write_bytes(b"".join(lines[:5]))
    with pytest.raises(OSError, match=r"ends at step 4, but .*step_000012 is of step 12: lines were lost"):
        train(tiny.recipe(), shards, copied)


def test_a_gradient_that_is_no_number_stops_before_the_update(tmp_path, shards, monkeypatch, whole_run):
    from mobillama.train.step import TrainStep

    run, before = tmp_path / "run", {}
    update = TrainStep.update

    def spoil(trainer, lr, most):
        if any((run / "checkpoints").glob("step_*")):
            next(trainer.model.parameters()).grad[0, 0] = float("inf")
            before.update(trainer=trainer, state={name: value.clone() for name, value in trainer.state().items()})
        return update(trainer, lr, most)

    with monkeypatch.context() as patch, pytest.raises(TrainingError, match=r"gradient norm of step 6 is (inf|nan)"):
        patch.setattr(TrainStep, "update", spoil)
        train(tiny.recipe(), shards, run)
    after = before["trainer"].state()
    assert all(torch.equal(after[name], value) for name, value in before["state"].items())
    assert [line["step"] for line in results(run, "checkpoint")] == [5]
    train(tiny.recipe(), shards, run)
    assert tiny.weights(run) == tiny.weights(whole_run)


def test_a_loss_that_is_no_number_stops_the_run_and_says_where_to_look(tmp_path, shards):
    run = tmp_path / "run"
    with pytest.raises(TrainingError) as caught:
        train(tiny.recipe(learning_rate=1e30), shards, run)
    for part in ("expected a finite number", "learning rate", "rows ", "--step", "no checkpoint", "train.warmup_steps"):
        assert part in str(caught.value)
    assert all(np.isfinite(line["loss"]) for line in results(run, "step"))


def test_progress_says_speed_loss_and_time_left(tmp_path, shards, capsys):
    seen = []
    train(tiny.recipe(steps=4), shards, tmp_path / "shown")
    err = capsys.readouterr().err
    for part in ("training on", "tokens/s", "loss", "left", "step 4/4", "bits per byte", "peak memory"):
        assert part in err
    summary = train(tiny.recipe(steps=4), shards, tmp_path / "told", on_progress=seen.append)
    assert [shown["step"] for shown in seen] == [1, 2, 3, 4]
    assert capsys.readouterr().err == ""
    assert summary["tokens_per_second"] > 0
    (end,) = [line for line in read_ledger(tmp_path / "told") if line.kind == "end"]
    assert summary["peak_memory"]["resident_bytes"] >= end.circumstance["resident_bytes"] > 1 << 20


def test_tensorboard_draws_the_numbers_of_the_ledger(whole_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    drawn = EventAccumulator(str(whole_run / "tensorboard")).Reload()
    losses = [line["loss"] for line in results(whole_run, "step")]
    assert [point.value for point in drawn.Scalars("loss")] == pytest.approx(losses)
    assert [point.step for point in drawn.Scalars("validation/bits_per_byte")] == [4, 8, 12]


def test_the_tokenizer_travels_with_the_model(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    data = tiny.make_shards(tmp_path / "shards", tokenizer=tmp_path / "tokenizer")
    train(tiny.recipe(steps=3), data, tmp_path / "run")
    assert (tmp_path / "run" / "model" / "tokenizer.json").read_text() == "{}"


def test_shards_without_held_out_rows_train_without_validation(tmp_path):
    data = tiny.make_shards(tmp_path / "shards")
    empty = np.zeros((0, tiny.SEQ_LEN + 1), np.int64)
    from mobillama.data.shards import write_shards

    rows = read_shards(data).train_rows(np.arange(tiny.ROWS))
    write_shards(tmp_path / "unheld", rows, empty, vocab_size=tiny.VOCABULARY)
    summary = train(tiny.recipe(steps=4), tmp_path / "unheld", tmp_path / "run")
    assert (summary["finished"], summary["validation"]) == (True, None)


def test_the_last_checkpoint_needs_no_copy_of_the_state(tmp_path, shards, monkeypatch):
    """No step comes after it, so that the peak of a run of one checkpoint is that of its steps."""
    copied = []
    copy = CheckpointWriter._copy
    monkeypatch.setattr(CheckpointWriter, "_copy", lambda self, *state: copied.append(state[0]) or copy(self, *state))
    train(tiny.recipe(checkpoint_every=1000), shards, tmp_path / "one")
    assert copied == []
    assert results(tmp_path / "one", "checkpoint")
    train(tiny.recipe(checkpoint_every=1), shards, tmp_path / "many")
    assert copied
    assert results(tmp_path / "one", "end") == results(tmp_path / "many", "end")
