"""A run whose shards were moved: where they are is said once, and every command finds them again."""

import json
import shutil
from pathlib import Path

import pytest
import tiny

from mobillama.cli.commands import app
from mobillama.data.reading import open_reading
from mobillama.errors import InputError
from mobillama.train.loop import train
from mobillama.train.run import FILE

FORMAT_1 = Path(__file__).parents[1] / "fixtures" / "format_1"


@pytest.fixture
def moved(tmp_path, whole_run, shards):
    """A run, and its shards at another place than the run was trained with."""
    run, there = tmp_path / "run", tmp_path / "elsewhere" / "moved"
    shutil.copytree(whole_run, run)
    shutil.copytree(shards, there)
    told = json.loads((run / FILE).read_text())
    told["shards"]["path"] = str(tmp_path / "gone" / "shards")
    (run / FILE).write_text(json.dumps(told))
    return run, there


def test_a_reading_says_where_it_looked_and_takes_data(moved, whole_run):
    run, there = moved
    with pytest.raises(InputError, match=r"not at .*gone/shards nor at .*--data SHARDS"):
        open_reading(run)
    assert open_reading(run, there).shards.digest == open_reading(whole_run).shards.digest
    with pytest.raises(InputError, match="is no run"):
        open_reading(there, there)


def test_other_shards_than_the_runs_are_refused(moved, tmp_path):
    run, _ = moved
    with pytest.raises(InputError, match=r"has root digest .*--data SHARDS"):
        open_reading(run, tiny.make_shards(tmp_path / "others", seed=1))


@pytest.mark.parametrize("command", [["show", "--step", "2"], ["find", "--document", "book/0"]])
def test_the_command_line_takes_data(tmp_path, capsys, command):
    verb, *options = command
    recorded, run = FORMAT_1 / "run", tmp_path / "runs" / "run"
    shutil.copytree(recorded, run)
    shutil.copytree(FORMAT_1 / "shards", tmp_path / "moved")
    with pytest.raises(InputError, match="--data SHARDS"):
        app(["data", verb, str(run), *options], standalone_mode=False)
    told = []
    for arguments in ([str(recorded)], [str(run), "--data", str(tmp_path / "moved")]):
        app(["data", verb, *arguments, *options, "--json"], standalone_mode=False)
        found = json.loads(capsys.readouterr().out)
        told.append({key: value for key, value in found.items() if key not in ("run", "shards")})
    assert told[0] == told[1] and len(told[0]) > 1


def test_a_run_that_is_taken_up_again_writes_down_where_its_shards_are_now(moved, whole_run):
    run, there = moved
    (run / "model").rename(run.parent / "model")  # so that there is something to do
    before = json.loads((run / FILE).read_text())
    train(tiny.recipe(), there, run)
    told = json.loads((run / FILE).read_text())
    assert told["shards"]["path"] == str(there.resolve())
    assert {**told, "shards": before["shards"]} == before
    assert tiny.weights(run) == tiny.weights(whole_run)
    assert open_reading(run).folder == there.resolve()
