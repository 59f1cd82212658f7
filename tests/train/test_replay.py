"""A run trained again gives the same bits, and what was changed in it is found and named."""

import gzip
import hashlib
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from mobillama import manifest
from mobillama.cli.commands import app
from mobillama.data.shards import read_shards, write_shards
from mobillama.data.stream import row_ids
from mobillama.errors import DamagedFileError, InputError
from mobillama.train import anomaly, environment
from mobillama.train import optimizer as optimizer_module
from mobillama.train.ledger import FILE, Ledger, Line, read_ledger
from mobillama.train.loop import train
from mobillama.train.replay import lines_to_repeat, replay

SETTINGS = {"keep_last": 3}  # all of them: at steps 5, 10 and 12
TWO_RANKS = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
FORMAT_1 = Path(__file__).parents[1] / "fixtures" / "format_1"


def quiet(shown):
    """Progress that nobody sees."""


def again(run, first=None, last=None, **more):
    return replay(run, first, last, on_progress=quiet, **more)


@pytest.fixture(scope="module")
def run(tmp_path_factory, shards) -> Path:
    """A whole tiny run with all its checkpoints; tests must not change it."""
    folder = tmp_path_factory.mktemp("replayed") / "run"
    train(tiny.recipe(**SETTINGS), shards, folder, on_progress=quiet)
    return folder


@pytest.fixture
def changed_run(tmp_path, run) -> Path:
    """A copy of the run, to be changed."""
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def changed_shards(tmp_path, shards) -> Path:
    """A copy of the shards, to be changed."""
    shutil.copytree(shards, tmp_path / "shards")
    return tmp_path / "shards"


def listing(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("first", "last", "compared"),
    [
        (0, 3, {"step": 3}),
        (0, 12, {"step": 12, "validation": 3, "checkpoint": 3, "end": 1, "states": 3}),
        (5, 11, {"step": 6, "validation": 1, "checkpoint": 1, "states": 1}),
        (10, None, {"step": 2, "validation": 1, "checkpoint": 1, "end": 1, "states": 1}),
    ],
)
def test_a_replay_repeats_every_bit_and_writes_nothing_into_the_run(run, first, last, compared):
    before = listing(run)
    found = again(run, first, last)
    assert (found["ok"], found["differences"], found["environment"]) == (True, [], [])
    assert found["compared"] == compared
    assert found["not_compared"] == []
    assert listing(run) == before


def test_without_an_interval_the_last_steps_are_replayed(run):
    found = again(run)
    assert (found["from"], found["to"], found["ok"]) == (10, 12, True)


@pytest.mark.parametrize(
    ("first", "last", "words"),
    [
        (4, 8, "no checkpoint of step 4; --from can be 0, 5, 10, 12"),
        (5, 13, "ends at step 12; --to 13"),
        (10, 10, "nothing to replay"),
        (12, None, "nothing to replay"),
    ],
)
def test_an_interval_that_cannot_be_is_refused(run, first, last, words):
    with pytest.raises(InputError, match=words):
        again(run, first, last)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a run"):
        again(tmp_path / "nowhere")


def test_one_changed_value_in_a_shard_is_named_with_its_file_and_its_step(changed_run, changed_shards):
    """The chunk is named; replayed anyway, the step that reads the row is the first that differs."""
    data = read_shards(changed_shards)
    row = int(row_ids(tiny.recipe().train.seed, 8, 4, data.chunk_rows)[2])  # read by step 8
    chunk, place = divmod(row, data.chunk_rows[0])  # the chunks are of one size
    path = changed_shards / f"chunk_00{chunk}.safetensors"
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    at = end + json.loads(content[8:end])["ids"]["data_offsets"][0] + 2 * (place * data.row_len + 3)  # its fourth id
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])

    with pytest.raises(InputError, match=rf"{path.name}: found sha256 .*--anyway"):
        again(changed_run, 5, 12, data=changed_shards)
    found = again(changed_run, 5, 12, data=changed_shards, anyway=True)
    assert not found["ok"]
    assert path.name in found["inputs"][0]
    first = found["differences"][0]
    assert (first["step"], first["kind"], first["field"]) == (8, "step", "rows")


def test_other_shards_are_refused_by_their_digest(run, tmp_path):
    other = tiny.make_shards(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match=f"found digest {manifest.read(other).digest()}; expected"):
        again(run, 5, 6, data=other)


def test_shards_that_are_nowhere_are_asked_for(changed_run):
    tree = json.loads((changed_run / "run.json").read_text())
    tree["shards"]["path"] = "/nowhere/shards-of-old"
    (changed_run / "run.json").write_text(json.dumps(tree))
    with pytest.raises(InputError, match="--data SHARDS"):
        again(changed_run)


def test_a_changed_recipe_value_is_named(changed_run):
    tree = json.loads((changed_run / "run.json").read_text())
    tree["recipe"]["train"]["weight_decay"] = 0.2
    (changed_run / "run.json").write_text(json.dumps(tree))
    with pytest.raises(InputError, match=r"train\.weight_decay is 0\.2, was 0\.1"):
        again(changed_run, 5, 12)
    found = again(changed_run, 5, 12, anyway=True)
    assert found["inputs"] and not found["ok"]
    # The loss of step 6 is that of the weights before its update: step 7 is the first to show it.
    first = found["differences"][0]
    assert (first["step"], first["kind"], first["field"]) == (7, "step", "loss")


def test_a_changed_recipe_with_a_new_digest_is_named_too(changed_run):
    tree = json.loads((changed_run / "run.json").read_text())
    tree["recipe"]["train"]["seed"] = 1
    text = json.dumps(tree["recipe"], sort_keys=True, separators=(",", ":")).encode()
    tree["recipe_digest"] = hashlib.sha256(text).hexdigest()
    (changed_run / "run.json").write_text(json.dumps(tree))
    with pytest.raises(InputError, match=r"train\.seed is 1, was 11111"):
        again(changed_run, 5, 12)


def test_changed_code_is_named_and_the_first_step_and_tensor_that_it_changes(run, monkeypatch):
    """Stands for a changed line: more weight decay than the recipe says, and another digest of its file."""
    group_of = optimizer_module.group_of

    def changed(*arguments):
        group = group_of(*arguments)
        return type(group)(group.algorithm, group.factor, group.decay * 1.5)

    monkeypatch.setattr(optimizer_module, "group_of", changed)
    files = {**environment.code_files(), "train/optimizer.py": "of the changed file"}
    monkeypatch.setattr(environment, "code_files", lambda: files)
    found = again(run, 5, 10)
    assert not found["ok"]
    assert [(each["key"], each["files"]) for each in found["environment"]] == [("code", ["train/optimizer.py"])]
    first = found["differences"][0]
    assert (first["step"], first["kind"], first["field"]) == (7, "step", "loss")
    (state,) = [each for each in found["differences"] if each["kind"] == "state"]
    assert (state["step"], state["field"]) == (10, "step_000010")
    assert 0 < state["elements"] <= state["of"]
    assert 0 < state["largest"] < 0.1


def test_the_ledger_says_which_code_trained(run):
    """Its digest follows from the files alone."""
    import mobillama

    root = Path(mobillama.__file__).parent
    files = {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*.py"))
    }
    text = json.dumps(files, sort_keys=True, separators=(",", ":")).encode()
    told = read_ledger(run)[0].circumstance["environment"]
    assert (told["code"], told["world_size"]) == (hashlib.sha256(text).hexdigest(), 1)
    assert json.loads((run / "code" / f"{told['code']}.json").read_text()) == files


def test_a_changed_environment_is_named_and_is_no_difference_by_itself(changed_run):
    rewrite(
        changed_run, lambda line: line["kind"] == "start", lambda line: line["circumstance"]["environment"], torch="1.0"
    )
    found = again(changed_run, 10)
    assert found["ok"]
    assert found["environment"] == [{"key": "torch", "run": "1.0", "here": str(torch.__version__)}]


def test_a_run_of_more_ranks_is_refused_with_the_command_that_fits(changed_run):
    rewrite(
        changed_run,
        lambda line: line["kind"] == "start",
        lambda line: line["circumstance"]["environment"],
        world_size=2,
    )
    with pytest.raises(InputError, match=r"on 2 ranks; found 1\..*torchrun --nproc-per-node 2 -m mobillama"):
        again(changed_run, 10)


def test_a_forged_line_is_the_only_difference(changed_run):
    rewrite(
        changed_run,
        lambda line: (line["kind"], line["result"].get("step")) == ("step", 8),
        lambda line: line["result"],
        loss=1.0,
    )
    found = again(changed_run, 5, 12)
    (only,) = found["differences"]
    assert (only["step"], only["kind"], only["field"], only["expected"], only["lines"]) == (8, "step", "loss", 1.0, 1)


def test_a_damaged_checkpoint_is_not_started_from_and_is_named_on_the_way(changed_run):
    folder = changed_run / "checkpoints" / "step_000010"
    path = next(iter(sorted(folder.glob("*.safetensors"))))
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DamagedFileError, match=f"{path.name}: found sha256"):
        again(changed_run, 10, 12)
    found = again(changed_run, 5, 12)
    (only,) = found["differences"]
    assert (only["step"], only["kind"]) == (10, "state")
    assert path.name in only["damaged"]


def test_another_checkpoint_in_place_of_the_runs_is_found(changed_run, shards, tmp_path):
    """Sealed, whole, and of the right step, but of a run with another seed."""
    train(tiny.recipe(seed=1, **SETTINGS), shards, tmp_path / "other", on_progress=quiet)
    shutil.rmtree(changed_run / "checkpoints" / "step_000010")
    shutil.copytree(tmp_path / "other" / "checkpoints" / "step_000010", changed_run / "checkpoints" / "step_000010")
    found = again(changed_run, 10, 12)
    first = found["differences"][0]
    assert (first["step"], first["kind"], first["field"]) == (10, "checkpoint", "weights")


def test_a_run_that_was_killed_and_went_on_repeats(tmp_path, shards):
    """Steps that were taken twice are in the ledger twice."""

    class Crash(Exception):
        pass

    def crash(shown):
        if shown["step"] == 8:
            raise Crash

    folder = tmp_path / "run"
    with pytest.raises(Crash):
        train(tiny.recipe(**SETTINGS), shards, folder, on_progress=crash)
    train(tiny.recipe(**SETTINGS), shards, folder, on_progress=quiet)
    found = again(folder, 5, 12)
    assert found["ok"]
    assert found["compared"]["step"] == 7


def test_a_run_that_was_lengthened_repeats_across_the_seam(tmp_path, shards):
    """While the learning rate does not depend on it, train.steps may change; run.json then has the new number."""
    settings = SETTINGS | {"keep_last": 9, "min_lr_ratio": 1.0}
    folder = tmp_path / "run"
    train(tiny.recipe(steps=7, **settings), shards, folder, on_progress=quiet)
    train(tiny.recipe(steps=12, **settings), shards, folder, on_progress=quiet)
    found = again(folder, 5, 12)
    assert (found["ok"], found["inputs"], found["differences"]) == (True, [], [])
    assert found["compared"]["end"] == 2

    # The `resumed` line has the digest of the recipe as it is since: a key that changed later is found all the same.
    tree = json.loads((folder / "run.json").read_text())
    tree["recipe"]["train"]["beta2"] = 0.9
    text = json.dumps(tree["recipe"], sort_keys=True, separators=(",", ":")).encode()
    tree["recipe_digest"] = hashlib.sha256(text).hexdigest()
    (folder / "run.json").write_text(json.dumps(tree))
    with pytest.raises(InputError, match=r"train\.beta2 is 0\.9, was 0\.95"):
        again(folder, 5, 12)


def test_a_run_that_is_not_deterministic_is_compared_with_what_it_ended_on(tmp_path, shards):
    """On one thread its bits repeat all the same; of lines that a restart made void nothing is asked."""
    folder = tmp_path / "run"
    train(tiny.recipe(deterministic=False, **SETTINGS), shards, folder, on_progress=quiet)
    lines = [json.loads(line) for line in (folder / FILE).read_text().splitlines()]
    void = [{**line, "result": {**line["result"], "loss": 9.0}} for line in lines if line["result"].get("step") == 6]
    resumed = {
        "kind": "resumed",
        "result": {"step": 5, "steps": 12, "changed": {}},
        "circumstance": lines[0]["circumstance"],
    }
    after = [line for line in lines if line["result"].get("step", 0) > 5]
    write_ledger(folder, [*[line for line in lines if line not in after], *void, resumed, *after])
    found = again(folder, 5, 12)
    assert (found["ok"], found["deterministic"]) == (True, False)


def test_lines_that_another_number_of_ranks_made_void_are_not_asked_for():
    """A node was lost after step 7: steps 6 and 7 were taken again on one rank, with other bits."""
    two, one = ({"environment": {"world_size": ranks}} for ranks in (2, 1))
    lines = [Line("start", {}, two), *(Line("step", {"step": step, "loss": 2.0}, {}) for step in range(1, 8))]
    lines += [Line("resumed", {"step": 5}, one), *(Line("step", {"step": step, "loss": 1.0}, {}) for step in (6, 7))]
    kept = lines_to_repeat(lines, deterministic=True)
    assert [(step, said.line.result["loss"]) for step, each in kept.items() for said in each] == [
        *((step, 2.0) for step in range(1, 6)), (6, 1.0), (7, 1.0)
    ]  # fmt: skip
    assert [said.environment["world_size"] for each in kept.values() for said in each] == [2, 2, 2, 2, 2, 1, 1]


def test_skipped_steps_are_skipped_again(tmp_path, shards, monkeypatch):
    """What is a spike follows from the norms before the interval, which are in the ledger."""
    monkeypatch.setattr(anomaly, "WINDOW", 3)
    folder = tmp_path / "run"
    train(tiny.recipe(anomaly="skip", spike_factor=1.0, **SETTINGS), shards, folder, on_progress=quiet)
    skipped = [line.step for line in read_ledger(folder) if line.result.get("skipped")]
    assert any(step > 5 for step in skipped)
    found = again(folder, 5, 12)
    assert (found["ok"], found["compared"]["step"]) == (True, 7)


@pytest.mark.slow
def test_a_run_of_two_ranks_is_replayed_by_two_ranks(tmp_path, shards):
    """Checkpoints of two ranks, on the way and to begin with; by one rank it is refused."""
    folder, log = tmp_path / "run", tmp_path / "log"
    settings = ["keep_last=3", "micro_batch_rows=1"]
    with log.open("wb") as sink:
        trained = subprocess.run([*TWO_RANKS, tiny.__file__, shards, folder, *settings], stdout=sink, stderr=sink)
    assert trained.returncode == 0, log.read_text()[-4000:]
    before = listing(folder)
    words = [*TWO_RANKS, "-m", "mobillama.cli", "replay", folder, "--from", "5", "--json"]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert (found["ok"], found["differences"]) == (True, [])
    assert found["compared"] == {"step": 7, "validation": 2, "checkpoint": 2, "end": 1, "states": 2}
    assert listing(folder) == before
    with pytest.raises(InputError, match=r"on 2 ranks; found 1\."):
        again(folder, 5, 12)


def test_a_run_of_the_first_format_is_replayed(tmp_path):
    """Its digests are of files, its recipe lacks today's fields; it was recorded on another machine."""
    shutil.copytree(FORMAT_1, tmp_path / "format_1")
    found = again(tmp_path / "format_1" / "run", 0, 3)
    assert found["inputs"] == []
    assert found["compared"] == {"step": 3, "validation": 2, "checkpoint": 2, "end": 1, "states": 1}
    rounding = {each["field"] for each in found["differences"]}
    assert not rounding & {"rows", "tokens", "lr", "step"}
    for each in found["differences"]:  # where this machine adds in another order
        if each["kind"] in ("step", "validation") and each["field"] != "sources":
            assert each["found"] == pytest.approx(each["expected"], rel=1e-4)


def test_the_command_prints_one_object_and_exits_with_1_where_something_differs(run, changed_run, capsys):
    assert command("replay", run, "--from", 10, "--json") == 0
    assert json.loads(capsys.readouterr().out)["compared"]["step"] == 2
    rewrite(changed_run, lambda line: line["kind"] == "end", lambda line: line["result"], weights="00")
    assert command("replay", changed_run, "--from", 10) == 1
    said = capsys.readouterr().out
    digest = hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()
    assert f"step 12: end weights is '{digest}', expected '00'" in said


def command(*words) -> int:
    """The command line in this process; its exit status."""
    with pytest.raises(SystemExit) as status:
        app([str(word) for word in words])
    return int(status.value.code or 0)


@pytest.mark.slow
def test_three_random_intervals_of_a_real_run_repeat_bit_for_bit(tmp_path, shared_folder):
    """Real text, compiled, the machine's own compute type and threads; checkpoints on the way."""
    corpora = shared_folder("MOBILLAMA_CORPORA")
    with gzip.open(corpora / "c4.jsonl.gz") as file:
        text = b"".join(json.loads(line)["text"].encode() + b"\0" for line, _ in zip(file, range(400), strict=False))
    rows = np.frombuffer(text, np.uint8)[: len(text) // 257 * 257].reshape(-1, 257)
    shards = tmp_path / "shards"
    write_shards(shards, rows[:-32], rows[-32:], vocab_size=256, chunks=4)
    shape = {
        "vocab_size": 256, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 256,
    }  # fmt: skip
    settings = {"steps": 72, "rows_per_step": 4, "compile": True, "threads": 0, "validate_every": 18}
    settings |= {"checkpoint_every": 12, "keep_last": 9, "learning_rate": 5e-3, "warmup_steps": 5}
    folder = tmp_path / "run"
    train(tiny.recipe(model=shape, **settings), shards, folder, on_progress=quiet)
    losses = [line.result["loss"] for line in read_ledger(folder) if line.kind == "step"]
    assert losses[-1] < losses[0] - 1

    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    dice = random.Random(seed)
    for first in dice.sample(range(0, 72, 12), 3):
        last = dice.randrange(first + 1, min(first + 30, 72) + 1)
        found = again(folder, first, last)
        assert (found["ok"], found["differences"], found["environment"]) == (True, [], []), (first, last)
        assert found["compared"]["step"] == last - first


def rewrite(run, which, part, **values):
    """Change values in lines of a ledger, and chain it anew, as a forger would."""
    lines = [json.loads(line) for line in (run / FILE).read_text().splitlines()]
    chosen = [line for line in lines if which(line)]
    assert chosen
    for line in chosen:
        part(line).update(values)
    write_ledger(run, lines)


def write_ledger(run, lines):
    (run / FILE).unlink()
    with Ledger.open(run) as ledger:
        for line in lines:
            kept = {key: value for key, value in line["circumstance"].items() if key != "previous"}
            ledger.append(line["kind"], line["result"], kept)
