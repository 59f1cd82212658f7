"""Law: a run of several ranks is the run of one process, but for rounding; and no rank waits for one that is gone."""

import time

import numpy as np
import pytest
import ranks
import tiny

from mobillama.errors import InputError, RecipeError
from mobillama.train.check import check_run
from mobillama.train.ledger import FILE, read_ledger
from mobillama.train.loop import train
from mobillama.train.world import ALONE, copies, joined, read_world, spread

# Loss and norms of a run in float32: sums over ranks come in another order.
CLOSE = 1e-4
HOW = {"dtype": "float32", "steps": 20, "micro_batch_rows": 1, "rows_per_step": 6}


def results(run, kind="step"):
    return [line.result for line in read_ledger(run) if line.kind == kind]


def losses(run):
    """Loss of each step; of a repeated one the last."""
    return [{line["step"]: line["loss"] for line in results(run)}[step] for step in range(1, 21)]


def count_lines(run):
    return (run / FILE).read_bytes().count(b"\n") if (run / FILE).exists() else 0


@pytest.fixture(scope="module")
def one(tmp_path_factory, shards):
    """The run of one process."""
    run = tmp_path_factory.mktemp("one") / "run"
    train(tiny.recipe(**HOW), shards, run)
    return run


def compare(run, one):
    """Equal in what is read, close in what is computed."""
    found, expected = results(run), results(one)
    assert [(line["step"], line["rows"], line["tokens"]) for line in found] == [
        (line["step"], line["rows"], line["tokens"]) for line in expected
    ]
    for key in ("loss", "grad_norm", "grad_norm_ffn", "grad_norm_attention"):
        difference = np.subtract([line[key] for line in found], [line[key] for line in expected])
        assert np.abs(difference).max() < CLOSE, key
    for found_line, expected_line in zip(results(run, "validation"), results(one, "validation"), strict=True):
        assert found_line["loss"] == pytest.approx(expected_line["loss"], abs=CLOSE)
        assert found_line["tokens"] == expected_line["tokens"]


def test_two_ranks_train_what_one_process_trains_and_one_goes_on_from_what_they_saved(tmp_path, shards, one):
    """Rank 1 alone is asked to stop after step 7: both stop there, saved, and one process finishes."""
    run, log = tmp_path / "run", tmp_path / "log"
    stop = {"rank": 1, "step": 7, "how": "term"}
    assert ranks.train_ranks(2, shards, run, log, stop, **HOW) == [130, 130], log.read_text()
    assert results(run, "checkpoint")[-1]["step"] == 7
    assert train(tiny.recipe(**HOW), shards, run)["finished"]
    compare(run, one)
    environments = [line.circumstance["environment"] for line in read_ledger(run) if line.kind in ("start", "resumed")]
    assert [environment["world_size"] for environment in environments] == [2, 1]


def test_an_error_on_one_rank_ends_all_and_each_says_what_it_knows(tmp_path, shards):
    run, log = tmp_path / "run", tmp_path / "log"
    started = time.monotonic()
    codes = ranks.train_ranks(2, shards, run, log, {"rank": 1, "step": 7, "how": "raise"}, **HOW)
    assert all(code not in (0, 130) for code in codes)
    assert time.monotonic() - started < ranks.PATIENCE / 2
    said = log.read_text()
    assert "ValueError: planted" in said
    assert "rank 0 of 2 lost the others" in said
    assert (run / FILE).read_bytes().endswith(b"}\n")


@pytest.mark.slow
@pytest.mark.parametrize(("size", "over"), [(3, 0), (4, 0), (4, 2)], ids=["fsdp-3", "fsdp-4", "hsdp-2x2"])
def test_every_layout_trains_what_one_process_trains(tmp_path, shards, one, size, over):
    """Three and four ranks do not divide the six parts of a step evenly or not at all: the idle ones add nothing."""
    run, log = tmp_path / "run", tmp_path / "log"
    assert set(ranks.train_ranks(size, shards, run, log, shard_ranks=over, **HOW)) == {0}, log.read_text()
    compare(run, one)


@pytest.mark.slow
def test_four_ranks_go_on_from_what_two_saved(tmp_path, shards, one):
    run, log = tmp_path / "run", tmp_path / "log"
    stop = {"rank": 0, "step": 7, "how": "term"}
    assert ranks.train_ranks(2, shards, run, log, stop, **HOW) == [130, 130], log.read_text()
    assert set(ranks.train_ranks(4, shards, run, log, **HOW)) == {0}, log.read_text()
    compare(run, one)


@pytest.mark.slow
def test_twenty_kills_of_random_ranks_change_no_bit(tmp_path, shards):
    """torchrun starts both ranks again after each; every kill falls a random number of new lines and moments later."""
    dice = ranks.dice()
    how = {"steps": 160, "checkpoint_every": 3, "validate_every": 50}
    whole, run, log = tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    assert ranks.train_ranks(2, shards, whole, log, **how) == [0, 0], log.read_text()
    options = ["--nproc-per-node=2", "--max-restarts=60", f"--master-port={ranks.free_port()}"]
    agent = ranks.start_agent([*options, "--monitor-interval=0.05"], shards, run, log, {"pace": 0.02}, **how)
    killed, before = [], 0
    for _ in range(20):
        enough = before + dice.randrange(1, 12)
        ranks.wait_until(lambda enough=enough: count_lines(run) > enough, agent)
        time.sleep(dice.uniform(0, 0.1))
        rank = dice.randrange(2)
        ranks.kill(ranks.pids(run)[rank])
        killed.append(rank)
        ended = time.monotonic() + 0.3  # the other rank may write the lines of a step it was in
        ranks.wait_until(lambda ended=ended: time.monotonic() > ended, agent)
        before = count_lines(run)
    assert ranks.wait([agent], log) == [0], log.read_text()[-4000:]
    resumed = [line["step"] for line in results(run, "resumed")]
    print(f"killed ranks {killed}; went on from steps {resumed}")
    assert len(resumed) >= 20
    assert tiny.weights(run) == tiny.weights(whole)
    for kind in ("step", "validation", "end"):
        assert {str(line) for line in results(run, kind)} == {str(line) for line in results(whole, kind)}


@pytest.mark.slow
def test_a_node_that_is_lost_leaves_the_rest_to_go_on(tmp_path, shards, one):
    """Two agents of one process each; one is killed with its process, for good: the other ends on the same loss."""
    run, log, port = tmp_path / "run", tmp_path / "log", ranks.free_port()
    options = ["--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d", "--rdzv-id=tiny"]
    options += [f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-conf=last_call_timeout=3,join_timeout=60"]
    options += ["--monitor-interval=0.1", "--local-addr=127.0.0.1"]
    agents = [ranks.start_agent(options, shards, run, log, {"pace": 0.5}, **HOW)]
    time.sleep(1.0)  # the first keeps the meeting place
    agents.append(ranks.start_agent(options, shards, run, log, {"pace": 0.5}, **HOW))
    ranks.wait_until(lambda: (run / "checkpoints" / "step_000005").exists(), agents[0])
    processes = ranks.pids(run).values()
    children = {pid for pid in processes if ranks.parent(pid) == agents[1].pid}
    assert len(processes) == 2 and len(children) == 1
    for pid in (agents[1].pid, *children):
        ranks.kill(pid)
    agents[1].wait()
    assert ranks.wait(agents[:1], log) == [0], log.read_text()[-4000:]
    assert np.abs(np.subtract(losses(run), losses(one))).max() < CLOSE
    sizes = [
        line.circumstance["environment"]["world_size"] for line in read_ledger(run) if line.kind in ("start", "resumed")
    ]
    assert (sizes[0], sizes[-1]) == (2, 1)


@pytest.mark.slow
def test_what_is_left_of_the_ranks_goes_on_where_shard_ranks_does_not_divide_it(tmp_path, shards, one, capsys):
    """Begun in copies of two ranks; then three are there, and then one."""
    run, log = tmp_path / "run", tmp_path / "log"
    how = HOW | {"shard_ranks": 2}
    for size, step in ((2, 7), (3, 5)):
        stop = {"rank": 0, "step": step, "how": "term"}
        assert set(ranks.train_ranks(size, shards, run, log, stop, **how)) == {130}, log.read_text()
    capsys.readouterr()
    assert train(tiny.recipe(**how), shards, run)["finished"]
    assert "note: train.shard_ranks=2 does not divide the 1 ranks that train now" in capsys.readouterr().err
    assert [(line["step"], line["shard_ranks"]) for line in results(run, "resumed")] == [(7, 3), (12, 1)]
    compare(run, one)
    assert check_run(run).differences == []


def test_what_is_left_is_spread_over_no_fewer_than_before_or_over_all():
    for size in range(1, 41):
        for asked in range(1, 41):
            over = spread(size, asked)
            assert size % over == 0
            assert over == size if asked >= size else over >= asked
            assert over == asked or size % asked
    assert spread(152, 16) == 19


def test_ranks_that_do_not_divide_are_refused():
    assert [copies(8, 0), copies(8, 8), copies(8, 2), copies(1, 0)] == [1, 1, 4, 1]
    with pytest.raises(RecipeError, match=r"train.shard_ranks=3 does not divide the 8 ranks.*one of \[1, 2, 4, 8\]"):
        copies(8, 3)


def test_sharding_over_ranks_that_are_not_there_is_refused(tmp_path, shards):
    with pytest.raises(RecipeError, match=r"train.shard_ranks=2 does not divide the 1 ranks"):
        train(tiny.recipe(shard_ranks=2), shards, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ({"RANK": "0"}, r"has RANK=0 but no WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT; start .* with torchrun"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, r"RANK=2 with WORLD_SIZE=2.*ranks are 0 to 1"),
        ({"RANK": "one", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, r"RANK='one' in the environment is no number"),
    ],
)
def test_an_environment_that_is_not_torchruns_is_refused(monkeypatch, said, wrong):
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    if len(said) > 1:
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(InputError, match=wrong):
        read_world()


def test_without_torchrun_a_process_is_alone():
    with joined("cpu") as world:
        assert world == ALONE == read_world()
        assert (world.agree(True), world.agree(False), world.share("it")) == (True, False, "it")
        assert world.once(lambda: 3) == 3
