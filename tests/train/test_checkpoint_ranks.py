"""Law: a checkpoint is the same whoever wrote it, on however many ranks, and can be read on any other number."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RANKS = {"1": 1, "2": 2, "4": 4, "2x2": 4}  # the last as HSDP holds it: two copies, each over two ranks


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict:
    script = Path(__file__).parent / "checkpoint_ranks.py"
    run = [sys.executable, str(script), str(tmp_path_factory.mktemp("ranks"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(run, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_digests_depend_on_neither_ranks_nor_the_way_of_saving(told):
    assert {name: len(each) for name, each in told["saved"].items()} == RANKS
    first = told["saved"]["1"][0]
    assert first["saved True"] == first["saved False"]
    assert len(first["memory"]) == 9
    assert all(rank == first for each in told["saved"].values() for rank in each)


def test_what_some_ranks_saved_any_other_number_loads_bit_for_bit(told):
    good = {"live": True, "whole": True, "names": True}
    assert told["loaded"] == {name: [dict.fromkeys(RANKS, good)] * size for name, size in RANKS.items()}


def test_no_room_on_one_rank_is_an_error_on_all_and_costs_that_checkpoint_alone(told):
    for heard in told["refused"]:
        assert "File too large" in heard["error"]
        assert "step_000008" in heard["error"]
        assert heard["left"] == ["step_000004"]
        assert heard["later"] == 12
