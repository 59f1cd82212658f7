"""A branch goes on from another run's checkpoint: state kept, each next row read once, every link checked."""

import importlib.util
import json
import random
import shutil
from pathlib import Path

import pytest
import tiny
from click.exceptions import ClickException
from typer.testing import CliRunner

from mobillama import manifest
from mobillama.cli.commands import app
from mobillama.data.order import Steps
from mobillama.data.reading import open_reading
from mobillama.data.shards import read_shards
from mobillama.data.stream import positions, row_ids, rows_from
from mobillama.errors import InputError, MobillamaError, RecipeError
from mobillama.train.branch import branch_recipe, read_origin
from mobillama.train.check import check_run
from mobillama.train.ledger import read_ledger
from mobillama.train.loop import digest_rows, train
from mobillama.train.replay import replay
from mobillama.train.run import FILE

TOOL = Path(__file__).parents[2] / "tools" / "verify.py"


def quiet(shown):
    """Progress that nobody sees."""


def branch(parent: Path, step: int, out: Path, shards: Path, *settings: str) -> Path:
    origin = read_origin(f"{parent}@{step}", out)
    known = out if (out / FILE).is_file() else Path(origin.run)
    train(branch_recipe(known, None, settings), shards, out, parent=origin, on_progress=quiet)
    return out


@pytest.fixture(scope="module")
def parent(tmp_path_factory, shards) -> Path:
    run = tmp_path_factory.mktemp("parent") / "run"
    train(tiny.recipe(keep_last=9), shards, run, on_progress=quiet)
    return run


@pytest.fixture(scope="module")
def branched(tmp_path_factory, shards, parent) -> Path:
    """Off step 5 (20 rows read), with 6 rows a step and another learning rate; tests must not change it."""
    out = tmp_path_factory.mktemp("branched") / "branch"
    settings = ("train.rows_per_step=6", "train.learning_rate=0.003", "train.steps=14", "train.publish_tokens=128")
    return branch(parent, 5, out, shards, *settings)


def verify_tool(*folders: Path) -> int:
    spec = importlib.util.spec_from_file_location("verify", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(list(map(str, folders)))


def test_positions_of_steps_and_steps_of_positions_are_inverse():
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    for _ in range(300):
        steps = Steps(draw.randint(1, 9), draw.randint(0, 50), draw.randint(0, 500))
        step, row = steps.after + draw.randint(1, 60), draw.randrange(steps.rows_per_step)
        assert steps.place_of(steps.first_position(step) + row) == (step, row)
        assert steps.first_position(step + 1) == steps.first_position(step) + steps.rows_per_step
    assert Steps(4, 5, 20).place_of(19) is None


def test_a_branch_at_another_batch_reads_each_next_row_once(branched, parent, shards):
    data = read_shards(shards)
    seed = tiny.recipe().train.seed
    lines = [line for line in read_ledger(branched) if line.kind == "step"]
    assert [line.step for line in lines] == list(range(6, 15))
    read = []
    for number, line in enumerate(lines):
        ids = rows_from(seed, 20 + 6 * number, 6, data.chunk_rows)
        assert line.result["rows"] == digest_rows(ids, data.train_rows(ids))
        read += ids.tolist()
    before = [row for step in range(1, 6) for row in row_ids(seed, step, 4, data.chunk_rows).tolist()]
    one_pass = before + read[: len(data.train_rows(range(data.num_rows))) - len(before)]
    assert sorted(one_pass) == list(range(data.num_rows))  # its own 28 rows of the pass, each once, and none again


def test_a_branch_with_nothing_changed_has_the_parents_bits(tmp_path, parent, shards):
    """The law that the optimiser's state is kept: the same steps, the same results."""
    out = branch(parent, 5, tmp_path / "same", shards)
    assert tiny.weights(out) == tiny.weights(parent)
    kinds = ("step", "validation", "checkpoint", "end")
    told = [[line.result for line in read_ledger(run) if line.kind in kinds and line.step > 5] for run in (out, parent)]
    # A checkpoint that is written beside training gets its line when it is done, after one step or another.
    assert sorted(told[0], key=repr) == sorted(told[1], key=repr)


def test_a_branch_says_what_it_was_branched_off(branched, parent):
    told = json.loads((branched / FILE).read_text())
    start, checkpoint = read_ledger(branched)[:2]
    assert told["format_version"] == 3 and json.loads((parent / FILE).read_text())["format_version"] == 2
    assert told["parent"]["run"] == str(parent.resolve())
    assert start.result["parent"] == {key: value for key, value in told["parent"].items() if key != "run"}
    assert (told["parent"]["step"], told["parent"]["first_row"]) == (5, 20)
    assert told["parent"]["checkpoint"] == manifest.read(parent / "checkpoints/step_000005").digest()
    assert (checkpoint.kind, checkpoint.step) == ("checkpoint", 5)


def test_a_branch_is_replayed_from_its_beginning(branched):
    found = replay(branched, 5, None, on_progress=quiet)
    assert (found["ok"], found["differences"], found["reached"]) == (True, [], 14)
    with pytest.raises(InputError, match="no checkpoint of step 0; --from can be 5"):
        replay(branched, 0, 8, on_progress=quiet)


def test_both_verifiers_pass_a_branch_and_refuse_another_parent(tmp_path, branched, parent, shards):
    found = check_run(branched)
    assert (found.differences, verify_tool(branched, parent)) == ([], 0)
    told = json.loads((branched / FILE).read_text())
    for key, value in (("first_row", 24), ("checkpoint", "0" * 64), ("step", 4)):
        copy = tmp_path / key
        shutil.copytree(branched, copy)
        (copy / FILE).write_text(json.dumps({**told, "parent": {**told["parent"], key: value}}))
        assert any("parent" in text for text in check_run(copy).differences), key
        assert verify_tool(copy) == 1, key
    copy = tmp_path / "other"  # another run where the parent was
    shutil.copytree(branched, copy)
    train(tiny.recipe(learning_rate=0.02, steps=3), shards, tmp_path / "not_it", on_progress=quiet)
    (copy / FILE).write_text(json.dumps({**told, "parent": {**told["parent"], "run": str(tmp_path / "not_it")}}))
    assert any("no line of sha256" in text for text in check_run(copy).differences)
    assert verify_tool(copy) == 1
    gone = tmp_path / "gone"
    shutil.copytree(branched, gone)
    (gone / FILE).write_text(json.dumps({**told, "parent": {**told["parent"], "run": str(tmp_path / "nowhere")}}))
    assert check_run(gone).differences == [] and any("parent" in text for text in check_run(gone).not_checked)


def test_a_branch_publishes_by_what_was_read_in_all(branched):
    """128 tokens are 8 rows: 20 had been read before, so that 24, 32, 40, ... are ends."""
    steps = [line.step for line in read_ledger(branched) if line.kind == "published"]
    expected = [step for step in range(6, 15) if (20 + 6 * (step - 5)) // 8 > (20 + 6 * (step - 6)) // 8 or step == 14]
    assert steps == expected


def test_the_order_of_a_branch_is_told_by_its_folder(branched):
    reading = open_reading(branched)
    assert (reading.order, reading.parent) == (
        Steps(6, 5, 20),
        json.loads((branched / FILE).read_text())["parent"]["run"],
    )
    for step in (6, 9, 14):
        rows = rows_from(reading.seed, 20 + 6 * (step - 6), 6, reading.shards.chunk_rows).tolist()
        for place, row in enumerate(rows):
            found = [positions(reading.seed, [row], epoch, reading.shards.chunk_rows)[0] for epoch in range(3)]
            assert (step, place) in [reading.order.place_of(int(position)) for position in found]


def test_a_killed_branch_goes_on_even_if_the_parent_is_gone(tmp_path, parent, shards, branched):
    """Killed before its first checkpoint: it holds the checkpoint it began with."""
    moved, out = tmp_path / "run", tmp_path / "branch"
    shutil.copytree(parent, moved)
    settings = ("train.rows_per_step=6", "train.learning_rate=0.003", "train.steps=14", "train.publish_tokens=128")

    def stop(shown):
        if shown["step"] == 7:
            raise KeyboardInterrupt

    origin = read_origin(f"{moved}@5", out)
    with pytest.raises(KeyboardInterrupt):
        train(branch_recipe(moved, None, settings), shards, out, parent=origin, on_progress=stop)
    shutil.rmtree(moved)
    branch(moved, 5, out, shards, *settings)
    assert tiny.weights(out) == tiny.weights(branched)
    assert (out / "checkpoints/step_000005").is_dir()  # its beginning is kept, for replays


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        ("{run}", "not of the form RUN@step"),
        ("{run}@x", "not of the form RUN@step"),
        ("{run}@4", "no checkpoint of step 4; those that are there: 5, 10, 12"),
        ("nowhere@5", "is not a run"),
    ],
)
def test_an_origin_that_is_none_is_refused(tmp_path, parent, origin, words):
    with pytest.raises(InputError, match=words):
        read_origin(origin.format(run=parent), tmp_path / "out")


@pytest.mark.parametrize(
    "setting", ["train.seed=3", "train.optimizer=muon", "model.hidden_size=32", "init.model=somewhere", "train.steps=5"]
)
def test_what_a_branch_cannot_change_is_named(tmp_path, parent, shards, setting):
    key = setting.partition("=")[0].replace("model.hidden_size", "model")
    with pytest.raises(RecipeError, match=key.replace(".", r"\.")):
        branch(parent, 5, tmp_path / "out", shards, setting)
    assert not (tmp_path / "out" / FILE).exists()


def test_a_branch_of_a_branch_counts_rows_on(tmp_path, branched, shards):
    out = branch(branched, 14, tmp_path / "second", shards, "train.rows_per_step=2", "train.steps=16")
    told = json.loads((out / FILE).read_text())["parent"]
    assert (told["step"], told["first_row"]) == (14, 20 + 9 * 6)
    assert check_run(out).differences == [] and verify_tool(out) == 0


def test_another_branch_in_the_same_folder_is_refused(parent, branched, shards):
    with pytest.raises(InputError, match=r"was branched off .* after step 5; --from names .*@10"):
        branch(parent, 10, branched, shards)


def test_the_command_line_branches_with_the_parents_recipe_and_shards(tmp_path, parent):
    out = tmp_path / "branch"
    command = ["train", "--from", f"{parent}@10", "--out", str(out), "--set", "train.learning_rate=0.001"]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    rates = [line.result["lr"] for line in read_ledger(out) if line.kind == "step"]
    assert len(rates) == 2 and all(rate <= 0.001 for rate in rates)
    for arguments, words in ((["train"], "give a train recipe"), (command[:3], "--from needs --out")):
        with pytest.raises((MobillamaError, ClickException), match=words):
            app(arguments, standalone_mode=False)
