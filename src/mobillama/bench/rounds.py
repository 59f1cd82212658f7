"""Rounds of a fair comparison: every side takes its turn, and a round that something else disturbed is repeated.

A round is thrown away if other processes or the hypervisor took more than 5% of the CPU in it, or if a side's median
time per token made it slower than 80% of its best round. What was thrown away is counted and said.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mobillama.bench.process import PROC, cpu_seconds
from mobillama.errors import MeasurementError

OTHERS = 0.05  # share of all cores that others may take in a round
OF_BEST = 0.80  # a side's median speed in a round, against that of its best round
ATTEMPTS = 3  # rounds tried for each one wanted

Turn = Callable[[], list[float]]


class Computing(Protocol):
    """Something whose CPU time can be asked for: a process, or all that have ended."""

    def cpu_seconds(self) -> float:
        """User and system seconds so far."""


@dataclass(frozen=True)
class Sides:
    """Who takes turns: for each name its process and what it does, giving the seconds of each token."""

    processes: Mapping[str, Computing]
    turns: Mapping[str, Turn]
    beside: tuple[int, ...] = ()  # processes that are meant to run meanwhile, and are not "others"


@dataclass
class Round:
    """One turn of every side."""

    seconds: dict[str, list[float]] = field(default_factory=dict)  # of each token
    cores: dict[str, float] = field(default_factory=dict)  # that the side kept busy
    others: float = 0.0  # share of the CPU that others took

    def speed(self, side: str) -> float:
        """Tokens per second."""
        return len(self.seconds[side]) / sum(self.seconds[side])

    def typical(self, side: str) -> float:
        """Tokens per second of the median token: one that stumbled does not count."""
        return 1.0 / statistics.median(self.seconds[side])


@dataclass(frozen=True)
class Measured:
    """The clean rounds, and why others were thrown away."""

    rounds: list[Round]
    discarded: list[str]

    def speeds(self, side: str) -> list[float]:
        """Tokens per second of a side, round by round."""
        return [each.speed(side) for each in self.rounds]

    def cores(self, side: str) -> float:
        """Cores that a side kept busy, median."""
        return statistics.median(each.cores[side] for each in self.rounds)

    def tree(self) -> dict[str, Any]:
        """What a result says about the rounds: `others`, the median share of the CPU that others took."""
        others = statistics.median(each.others for each in self.rounds)
        return {"clean": len(self.rounds), "discarded": self.discarded, "others": round(others, 4)}


def interleave(what: str, sides: Sides, wanted: int, *, of_best: float = OF_BEST, proc: Path = PROC) -> Measured:
    """`wanted` clean rounds, the order turning round by round; one more before them warms up.

    of_best = 0: the second reason to discard does not hold (where the state to measure is itself unsteady).
    Error: MeasurementError if ATTEMPTS x wanted rounds do not hold as many clean ones.
    """
    for turn in sides.turns.values():
        turn()
    rounds: list[Round] = []
    names = list(sides.turns)
    for attempt in range(ATTEMPTS * wanted):
        at = attempt % len(names)
        rounds.append(take(sides, names[at:] + names[:at], proc))
        faults = judge(rounds, of_best)
        clean = [each for each, fault in zip(rounds, faults, strict=True) if not fault]
        print(f"{what}: {len(clean)} clean rounds of {wanted}, {len(rounds)} taken", file=sys.stderr)
        if len(clean) == wanted:
            return Measured(clean, [fault for fault in faults if fault])
    raise MeasurementError(
        f"{what}: {len(clean)} clean rounds of {len(rounds)}, expected {wanted}; thrown away: "
        f"{'; '.join(fault for fault in faults if fault)}. End what else runs on this machine and measure again"
    )


def take(sides: Sides, order: list[str], proc: Path = PROC) -> Round:
    """One round in this order."""
    taken = Round()
    ids = [os.getpid(), *sides.beside]
    before, ours = read_cpu(proc), sum(cpu_seconds(each, proc) for each in ids)
    used = {name: process.cpu_seconds() for name, process in sides.processes.items()}
    for name in order:
        process = sides.processes[name]
        cpu, start = process.cpu_seconds(), time.perf_counter()
        taken.seconds[name] = sides.turns[name]()
        taken.cores[name] = (process.cpu_seconds() - cpu) / (time.perf_counter() - start)
    after = read_cpu(proc)
    ours = sum(cpu_seconds(each, proc) for each in ids) - ours
    # Sides may share a process: count each process once.
    found = {id(process): process.cpu_seconds() - used[name] for name, process in sides.processes.items()}
    taken.others = others(before, after, ours + sum(found.values()))
    return taken


def judge(rounds: list[Round], of_best: float = OF_BEST) -> list[str]:
    """For every round why it is thrown away, or "": a later, faster round can condemn an earlier one."""
    best = {name: max(each.typical(name) for each in rounds) for name in rounds[0].seconds}
    faults = []
    for number, each in enumerate(rounds, 1):
        reasons = [f"others took {each.others:.1%} of the CPU"] if each.others > OTHERS else []
        reasons += [
            f"{name} at {each.typical(name) / best[name]:.0%} of its best"
            for name in each.seconds
            if each.typical(name) < of_best * best[name]
        ]
        faults.append(f"round {number}: {', '.join(reasons)}" if reasons else "")
    return faults


def read_cpu(proc: Path = PROC) -> tuple[float, float]:
    """Seconds that all cores together were busy (stolen ones included), and that passed, since the start.

    Source: proc(5), first line of /proc/stat: user nice system idle iowait irq softirq steal; the guests' times after
    them are part of user and nice.
    """
    try:
        text = (proc / "stat").read_text()
    except FileNotFoundError:
        raise MeasurementError(
            f"{proc / 'stat'} does not exist: what else runs cannot be seen, and no pair is fair; measure on Linux"
        ) from None
    fields = [int(each) for each in text.splitlines()[0].split()[1:9]]
    total = sum(fields)
    tick = os.sysconf("SC_CLK_TCK")
    return (total - fields[3] - fields[4]) / tick, total / tick


def others(before: tuple[float, float], after: tuple[float, float], ours: float) -> float:
    """Share of all cores' time between two readings that was taken by anything but `ours` seconds of CPU."""
    passed = after[1] - before[1]
    return max(0.0, (after[0] - before[0] - ours) / passed) if passed > 0 else 0.0
