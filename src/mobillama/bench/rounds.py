"""Rounds of a fair comparison: every side takes its turn, and a round that something else disturbed is repeated.

A round is thrown away if other processes or the hypervisor took more than 5% of the CPU in it, or if a side's median
time per token made it slower than 80% of its best round. What was thrown away is counted and said.

The cores of a virtual machine may change places: at times they share a cache and a way to memory, at times they do not,
which shows in how long a word takes from one to the other and back, and can double the speed of memory. Rounds of one
placement are compared with each other only; the one that has enough clean rounds first gives the figures. Where one
placement is asked for, every round waits until the cores are there.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from mobillama.bench.process import PROC, cpu_seconds
from mobillama.errors import MeasurementError

OTHERS = 0.05  # share of all cores that others may take in a round
OF_BEST = 0.80  # a side's median speed in a round, against that of its best round
ATTEMPTS = 5  # rounds tried for each one wanted
MOVED = 2.0  # times the shortest round trip seen: from there on the cores are elsewhere
PATIENCE = 300.0  # seconds that a round waits for the placement that is asked for

Placement = Literal["any", "near", "far"]  # near: the cores share a cache
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
    probes: frozenset[str] = frozenset()  # sides that measure the machine: their best condemns no round
    round_trip: Callable[[], float] | None = None  # seconds between two cores; None: placement is not looked at


@dataclass
class Round:
    """One turn of every side."""

    seconds: dict[str, list[float]] = field(default_factory=dict)  # of each token
    cores: dict[str, float] = field(default_factory=dict)  # that the side kept busy
    others: float = 0.0  # share of the CPU that others took
    trips: list[float] = field(default_factory=list)  # seconds between two cores: before every turn, and at the end

    def speed(self, side: str) -> float:
        """Tokens per second, all of them."""
        return len(self.seconds[side]) / sum(self.seconds[side])

    def typical(self, side: str) -> float:
        """Tokens per second of the median token: one that stumbled does not count."""
        return 1.0 / statistics.median(self.seconds[side])


@dataclass(frozen=True)
class Measured:
    """The clean rounds of one placement, why others were thrown away, and the clean ones of other placements."""

    rounds: list[Round]
    discarded: list[str]
    elsewhere: list[Round] = field(default_factory=list)

    def speeds(self, side: str) -> list[float]:
        """Tokens per second of a side's median token, round by round."""
        return [each.typical(side) for each in self.rounds]

    def speeds_with_stumbles(self, side: str) -> list[float]:
        """Tokens over seconds, round by round: where being held up is what is measured."""
        return [each.speed(side) for each in self.rounds]

    def cores(self, side: str) -> float:
        """Cores that a side kept busy, median."""
        return statistics.median(each.cores[side] for each in self.rounds)

    def tree(self) -> dict[str, Any]:
        """What a result says about the rounds: `others`, the median share of the CPU that others took."""
        others = statistics.median(each.others for each in self.rounds)
        found: dict[str, Any] = {"clean": len(self.rounds), "discarded": self.discarded, "others": round(others, 4)}
        if self.rounds[0].trips:
            found["round_trip_ns"] = _nanoseconds(self.rounds)
        if self.elsewhere:
            found["elsewhere"] = {
                "clean": len(self.elsewhere),
                "round_trip_ns": _nanoseconds(self.elsewhere),
                "speeds": {
                    name: statistics.median(each.typical(name) for each in self.elsewhere)
                    for name in self.elsewhere[0].seconds
                },
            }
        return found


def _nanoseconds(rounds: list[Round]) -> int:
    return round(1e9 * statistics.median(trip for each in rounds for trip in each.trips))


def interleave(
    what: str,
    sides: Sides,
    wanted: int,
    *,
    placement: Placement = "any",
    of_best: float = OF_BEST,
    proc: Path = PROC,
) -> Measured:
    """`wanted` clean rounds of one placement, the order turning round by round; one more before them warms up.

    of_best = 0: the second reason to discard does not hold (where the state to measure is itself unsteady).
    Error: MeasurementError if ATTEMPTS x wanted rounds do not hold as many clean ones, or the cores do not come to the
    placement that is asked for.
    """
    for turn in sides.turns.values():
        turn()
    rounds: list[Round] = []
    names = list(sides.turns)
    most = 0
    seen: list[float] = []
    for attempt in range(ATTEMPTS * wanted):
        at = attempt % len(names)
        if placement != "any":
            wait_for(placement, sides.round_trip, seen)
        rounds.append(take(sides, names[at:] + names[:at], proc))
        seen += rounds[-1].trips
        least = min(seen, default=0.0)
        places, faults = placements(rounds, least), judge(rounds, of_best, sides.probes, least)
        clean = {
            place: [each for each, fault, own in zip(rounds, faults, places, strict=True) if not fault and own == place]
            for place in (False, True)
        }
        most = max(len(each) for place, each in clean.items() if placement in ("any", "far" if place else "near"))
        speeds = ", ".join(f"{name} {rounds[-1].typical(name):.4g}" for name in names)
        print(f"{what}: {most} clean rounds of {wanted}, {len(rounds)} taken; {speeds}", file=sys.stderr)
        if most == wanted:
            far = placement == "far" or (placement == "any" and len(clean[True]) == wanted)
            return Measured(clean[far], [fault for fault in faults if fault], clean[not far])
    raise MeasurementError(
        f"{what}: {most} clean rounds of {len(rounds)}, expected {wanted}; thrown away: "
        f"{'; '.join(fault for fault in faults if fault)}. End what else runs on this machine and measure again"
    )


def wait_for(
    placement: Literal["near", "far"], round_trip: Callable[[], float] | None, seen: list[float], pause: float = 0.1
) -> None:
    """Return when the cores are placed so; every round trip looked at is added to `seen`.

    Errors: MeasurementError if they are not so within PATIENCE, or if nothing tells where they are.
    """
    if round_trip is None:
        raise MeasurementError(
            f"no round trip between cores is measured here; expected one to wait for {placement} cores: "
            "measure with two threads or more, or any placement"
        )
    end = time.monotonic() + PATIENCE
    while True:
        seen.append(round_trip())
        if (seen[-1] > MOVED * min(seen)) == (placement == "far"):
            return
        if time.monotonic() > end:
            raise MeasurementError(
                f"the cores were not {placement} from each other within {PATIENCE:.0f} s (from one to the other and "
                f"back: {1e9 * min(seen):.0f} to {1e9 * max(seen):.0f} ns); measure with any placement"
            )
        time.sleep(pause)


def take(sides: Sides, order: list[str], proc: Path = PROC) -> Round:
    """One round in this order."""
    taken = Round()
    trip = sides.round_trip
    ids = [os.getpid(), *sides.beside]
    before, ours = read_cpu(proc), sum(cpu_seconds(each, proc) for each in ids)
    used = {name: process.cpu_seconds() for name, process in sides.processes.items()}
    for name in order:
        if trip is not None:
            taken.trips.append(trip())
        process = sides.processes[name]
        cpu, start = process.cpu_seconds(), time.perf_counter()
        taken.seconds[name] = sides.turns[name]()
        taken.cores[name] = (process.cpu_seconds() - cpu) / (time.perf_counter() - start)
    if trip is not None:
        taken.trips.append(trip())
    after = read_cpu(proc)
    ours = sum(cpu_seconds(each, proc) for each in ids) - ours
    # Sides may share a process: count each process once.
    found = {id(process): process.cpu_seconds() - used[name] for name, process in sides.processes.items()}
    taken.others = others(before, after, ours + sum(found.values()))
    return taken


def placements(rounds: list[Round], least: float | None = None) -> list[bool | None]:
    """For every round whether its cores were far from each other; None: they moved during it.

    least: the shortest round trip seen, if others than these rounds' were looked at.
    """
    if least is None:
        least = min((trip for each in rounds for trip in each.trips), default=0.0)
    found: list[bool | None] = []
    for each in rounds:
        far = [trip > MOVED * least for trip in each.trips]
        found.append(None if any(far) and not all(far) else any(far))
    return found


def judge(
    rounds: list[Round], of_best: float = OF_BEST, probes: Collection[str] = (), least: float | None = None
) -> list[str]:
    """For every round why it is thrown away, or "": a later, faster round can condemn an earlier one."""
    places = placements(rounds, least)
    faults = []
    for number, (each, place) in enumerate(zip(rounds, places, strict=True), 1):
        reasons = [f"others took {each.others:.1%} of the CPU"] if each.others > OTHERS else []
        if place is None:
            trips = ", ".join(f"{1e9 * trip:.0f}" for trip in each.trips)
            reasons.append(f"the cores changed places (from one to the other and back: {trips} ns)")
        for name in each.seconds:
            best = max(other.typical(name) for other, own in zip(rounds, places, strict=True) if own == place)
            if place is not None and name not in probes and each.typical(name) < of_best * best:
                reasons.append(f"{name} at {each.typical(name) / best:.0%} of its best")
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
