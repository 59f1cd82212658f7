"""Threads under ThreadSanitizer: the pool's phases, and what the C door allows several threads; an idle pool's cost."""

from __future__ import annotations

import os
import random
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Type
from tests.native.tiny_models import write_tiny_model

from mobillama.runtime.engine import Engine

Sources = tuple[list[str], dict[str, list[str]]]


@pytest.fixture(scope="session")
def pool_driver(compiled: Callable[..., Path]) -> Path:
    sources = ["tests/threads_pool.cpp", "src/pool.cpp"]
    delays = {"src/pool.cpp": ["-fsanitize-coverage=trace-pc"]}
    return compiled(sources, own_flags=delays, flags=["-O1"], sanitize="thread")


@pytest.fixture(scope="session")
def door_driver(compiled: Callable[..., Path], engine: Sources) -> Path:
    sources = ["tests/threads_door.cpp", "tests/seeds.cpp", *engine[0]]
    return compiled(sources, own_flags=engine[1], flags=["-O1"], sanitize="thread")


@pytest.fixture(scope="session", params=["thread", "address,undefined"])
def orders_driver(request: pytest.FixtureRequest, compiled: Callable[..., Path], engine: Sources) -> Path:
    sources = ["tests/orders_door.cpp", "tests/seeds.cpp", *engine[0]]
    return compiled(sources, own_flags=engine[1], flags=["-O1"], sanitize=request.param)


def run(driver: Path, *arguments: object, seconds: float, isa: str = "") -> dict[str, int]:
    """The numbers that the driver prints, by their words; its failure fails the test with what it says."""
    return numbers([driver, *arguments, "--seconds", seconds], seconds, isa)


def numbers(arguments: Sequence[object], seconds: float, isa: str = "") -> dict[str, int]:
    seed = random.randrange(2**32)
    command = [*map(str, arguments), "--seed", str(seed)]
    environment = {**os.environ, "MOBILLAMA_ISA": isa, "TSAN_OPTIONS": "halt_on_error=1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=seconds + 240)
    print(f"seed {seed}\n{done.stdout}")
    assert done.returncode == 0, f"seed {seed}: exit status {done.returncode}\n{done.stdout}\n{done.stderr[-6000:]}"
    return {word: int(number) for word, number in re.findall(r"([a-z][a-z ]*): (\d+)", done.stdout)}


def test_each_chunk_of_a_phase_is_done_once_and_nobody_waits_for_ever(pool_driver: Path) -> None:
    done = run(pool_driver, seconds=3)
    assert done["pools"] > 5
    assert done["chunks"] > 500


@pytest.mark.slow
def test_thousands_of_jobs_keep_the_pools_laws(pool_driver: Path) -> None:
    done = run(pool_driver, seconds=60)
    assert done["jobs"] > 2000


def test_threads_meet_at_the_door_in_order(door_driver: Path, tmp_path: Path) -> None:
    done = run(door_driver, tmp_path, seconds=2)
    assert done["accepted"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["scalar", ""])  # "": the fastest of this machine
def test_threads_meet_at_the_door_many_times(door_driver: Path, tmp_path: Path, isa: str) -> None:
    done = run(door_driver, tmp_path, seconds=60, isa=isa)
    # Both outcomes of each race were seen.
    assert min(done[word] for word in ("cancelled", "too late", "accepted", "refused")) > 0
    assert min(done[word] for word in ("side by side", "opened", "rounded")) > 4  # what it does on any machine


@pytest.mark.parametrize(
    "orders", [20, pytest.param(1000, marks=pytest.mark.slow), pytest.param(10000, marks=pytest.mark.long)]
)
def test_any_order_of_use_and_freeing_is_safe(orders_driver: Path, tmp_path: Path, orders: int) -> None:
    done = numbers([orders_driver, tmp_path, "--orders", orders], seconds=orders)
    assert done["orders"] == orders
    if orders > 100:  # every kind of moment was met
        assert min(done[word] for word in ("freed inside", "freed idle", "computed", "ended", "children")) > 0


@pytest.mark.slow
def test_an_idle_context_takes_less_than_a_hundredth_of_a_core(tmp_path: Path) -> None:
    path = write_tiny_model(
        *(tmp_path / "tiny.gguf", Type.F16), vocab_size=8, hidden_size=16, intermediate_size=16, heads=2, kv_heads=1
    )
    with Engine.open(path) as engine, engine.context(threads=8) as context:
        context.prefill([1, 2, 3])  # its threads have worked, and wait for more
        before = time.process_time()
        time.sleep(5)
        assert time.process_time() - before < 0.05
        context.decode([1])
