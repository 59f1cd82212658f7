"""Law: any order of open, use, look, cancel, close, fork and end is safe, from any threads."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).with_name("lifetimes.py")


def run(program: str, *arguments: object, seconds: float = 180) -> str:
    command = [sys.executable, PROGRAMS, program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, f"{command}: exit status {done.returncode}\n{done.stdout}\n{done.stderr[-4000:]}"
    assert not done.stderr
    return done.stdout


@pytest.mark.parametrize("how", ["leave", "close", "drop"])
def test_a_model_can_be_left_while_others_generate(how: str, file: Path) -> None:
    run(f"{how}_while_generating", file)


def test_an_array_of_logits_outlives_context_and_model(file: Path) -> None:
    run("views_outlive_all", file)


def test_a_forked_child_gets_errors_and_never_hangs(file: Path) -> None:
    run("fork", file)


@pytest.mark.parametrize("program", ["end_while_computing", "end_while_opening"])
def test_the_interpreter_ends_while_threads_are_inside(program: str, file: Path) -> None:
    run(program, file)


def test_a_long_call_works_at_the_interpreters_end(file: Path) -> None:
    assert run("compute_at_the_end", file) == "100\n"


def test_a_long_call_keeps_its_arrays_whatever_interrupts_the_main_thread(file: Path) -> None:
    run("interrupted", file)


def test_a_call_is_cancelled_by_another_thread(file: Path) -> None:
    run("busy_and_cancelled", file)


@pytest.mark.parametrize(
    "orders", [100, pytest.param(2000, marks=pytest.mark.slow), pytest.param(30000, marks=pytest.mark.long)]
)
def test_any_order_is_safe(orders: int, file: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    run("any_order", file, seed, orders, seconds=180 + orders / 10)
