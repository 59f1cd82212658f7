"""Rounds: what else ran on the machine is seen, a disturbed round is thrown away and counted, too few are an error."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mobillama.bench.process import cpu_seconds
from mobillama.bench.rounds import Measured, Placement, Round, Sides, interleave, judge, others, placements, read_cpu
from mobillama.errors import MeasurementError

TICK = os.sysconf("SC_CLK_TCK")
BESIDE = 77  # a process


class Machine:
    """A made-up /proc of two cores, whose time passes when a side takes a turn."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.total, self.busy, self.stolen = folder, 1000.0, 500.0, 0.0
        self.beside = 0.0  # seconds of noise so far, which process BESIDE says are its own
        self.write()

    def write(self) -> None:
        idle = self.total - self.busy - self.stolen
        fields = [self.busy, 0, 0, idle, 0, 0, 0, self.stolen, 7, 7]  # user .. steal, then the guests' (not counted)
        text = "cpu  " + " ".join(str(round(each * TICK)) for each in fields)
        (self.folder / "stat").write_text(f"{text}\ncpu0 1 2 3\n")
        for pid, used in ((os.getpid(), 0.0), (BESIDE, self.beside)):
            (self.folder / str(pid)).mkdir(exist_ok=True)
            (self.folder / str(pid) / "stat").write_text(f"{pid} (a name) S {'0 ' * 10}{round(used * TICK)} 0 0 0\n")

    def side(self, seconds: list[float], noise: list[float], stolen: float = 0.0) -> Side:
        return Side(self, seconds, noise, stolen)


class Side:
    """A fake side: each turn lasts what the list says, on both cores, while others take `noise` seconds of CPU."""

    def __init__(self, machine: Machine, seconds: list[float], noise: list[float], stolen: float) -> None:
        self.machine, self.left, self.noise, self.stolen, self.used = machine, seconds, noise, stolen, 0.0

    def cpu_seconds(self) -> float:
        return self.used

    def turn(self) -> list[float]:
        lasts, noise = self.left.pop(0), self.noise.pop(0) if self.noise else 0.0
        used = 2 * lasts - noise - self.stolen
        self.used += used
        self.machine.total += 2 * lasts
        self.machine.busy += used + noise
        self.machine.beside += noise
        self.machine.stolen += self.stolen
        self.machine.write()
        return [lasts / 4] * 4


def run(proc: Path, wanted: int, of_best: float = 0.8, **sides: Side) -> Measured:
    turns: dict[str, Callable[[], list[float]]] = {name: side.turn for name, side in sides.items()}
    return interleave("test", Sides(sides, turns), wanted, of_best=of_best, proc=proc)


def test_busy_and_stolen_time_is_read_and_the_guests_is_not_counted_twice(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("cpu  1000 200 300 5000 400 10 20 70 999 888\ncpu0 0 0 0 0\n")
    busy, total = read_cpu(tmp_path)
    assert busy * TICK == 1000 + 200 + 300 + 10 + 20 + 70
    assert total * TICK == 7000


def test_the_cpu_time_of_a_process_is_read_behind_a_name_with_brackets_and_blanks(tmp_path: Path) -> None:
    (tmp_path / "12").mkdir()
    (tmp_path / "12" / "stat").write_text("12 (a) b) c) S 1 1 1 0 -1 0 0 0 0 0 150 50 0 0 20 0 3\n")
    assert cpu_seconds(12, tmp_path) * TICK == 200
    assert cpu_seconds(os.getpid()) > 0


def test_a_share_of_others_is_what_is_left_of_the_busy_time() -> None:
    assert others((10.0, 100.0), (30.0, 140.0), 18.0) == pytest.approx(2 / 40)
    assert others((10.0, 100.0), (30.0, 140.0), 20.3) == 0.0  # clocks differ by a tick: never below nothing
    assert others((1.0, 2.0), (1.0, 2.0), 0.0) == 0.0


def test_without_proc_a_pair_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="does not exist"):
        read_cpu(tmp_path)


def test_clean_rounds_are_kept_and_their_speeds_are_pairs(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    found = run(tmp_path, 3, ours=machine.side([9, 1, 1, 1], []), peer=machine.side([9, 2, 2, 2.2], []))
    assert found.discarded == []
    assert found.speeds("ours") == [4.0, 4.0, 4.0]
    assert found.speeds("peer") == [2.0, 2.0, pytest.approx(4 / 2.2)]
    assert all(each.others == 0.0 for each in found.rounds)
    assert found.tree() == {"clean": 3, "discarded": [], "others": 0.0}


def test_the_order_of_the_sides_turns(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    order: list[str] = []

    def noted(name: str, side: Side) -> Callable[[], list[float]]:
        return lambda: (order.append(name), side.turn())[1]

    sides = {name: machine.side([1] * 4, []) for name in "abc"}
    interleave("test", Sides(sides, {k: noted(k, v) for k, v in sides.items()}), 3, proc=tmp_path)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"


@pytest.mark.parametrize("stolen", [False, True])
def test_a_round_in_which_others_or_the_hypervisor_took_more_than_5_percent_is_repeated(
    tmp_path: Path, stolen: bool
) -> None:
    machine = Machine(tmp_path)
    # The warm-up, then rounds of 2 x (1 + 1) core seconds: 0.16 of them is 4%, 0.24 is 6%.
    taken = [0.0, 0.16, 0.24, 0.0]
    ours = machine.side([1.0] * 4, [] if stolen else list(taken))
    if stolen:
        original = ours.turn

        def turn() -> list[float]:
            ours.stolen = taken.pop(0)
            return original()

        ours.turn = turn  # type: ignore[method-assign]
    found = run(tmp_path, 2, ours=ours, peer=machine.side([1.0] * 4, []))
    assert found.discarded == ["round 2: others took 6.0% of the CPU"]
    assert [round(each.others, 4) for each in found.rounds] == [0.04, 0.0]


def test_a_side_under_80_percent_of_its_best_is_repeated_even_if_the_best_comes_later(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    found = run(tmp_path, 2, ours=machine.side([1, 1.3, 1.0, 1.2], []), peer=machine.side([1] * 4, []))
    assert found.discarded == ["round 1: ours at 77% of its best"]
    assert [each.seconds["ours"][0] * 4 for each in found.rounds] == [1.0, 1.2]


def test_one_slow_token_does_not_condemn_a_round_and_counts_where_stumbles_are_measured() -> None:
    steady, stumbled = Round(seconds={"a": [1.0] * 9}), Round(seconds={"a": [1.0] * 8 + [10.0]})
    assert judge([steady, stumbled]) == ["", ""]
    measured = Measured([stumbled], [])
    assert measured.speeds("a") == [1.0] and measured.speeds_with_stumbles("a") == [0.5]


def test_an_unsteady_state_is_judged_by_the_others_alone(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    found = run(tmp_path, 2, 0.0, ours=machine.side([1, 1, 3], []), peer=machine.side([1] * 3, []))
    assert found.discarded == [] and len(found.rounds) == 2


def test_a_process_that_is_meant_to_run_beside_is_not_among_the_others(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    side = machine.side([1] * 6, [0, *[1.0] * 5])  # 1 of 2 core seconds is not the side's
    with pytest.raises(MeasurementError, match="others took 50"):
        interleave("test", Sides({"a": side}, {"a": side.turn}), 1, proc=tmp_path)
    side = machine.side([1, 1], [0, 1.0])
    found = interleave("test", Sides({"a": side}, {"a": side.turn}, beside=(BESIDE,)), 1, proc=tmp_path)
    assert found.rounds[0].others == 0.0


NEAR, FAR = 57e-9, 335e-9


def placed(trips: list[float], **seconds: float) -> Round:
    return Round(seconds={name: [each] * 4 for name, each in seconds.items()}, trips=trips)


def test_rounds_of_cores_that_are_far_apart_are_judged_among_themselves() -> None:
    rounds = [placed([NEAR, 60e-9], a=1.0), placed([FAR, FAR], a=2.0), placed([FAR, 0.9 * FAR], a=2.6)]
    assert placements(rounds) == [False, True, True]
    assert judge(rounds) == ["", "", "round 3: a at 77% of its best"]


def test_a_round_in_which_the_cores_changed_places_is_thrown_away_and_says_so() -> None:
    rounds = [placed([NEAR, NEAR], a=1.0), placed([NEAR, FAR], a=1.0)]
    assert placements(rounds) == [False, None]
    assert judge(rounds) == ["", "round 2: the cores changed places (from one to the other and back: 57, 335 ns)"]


def test_without_round_trips_every_round_is_of_one_placement() -> None:
    assert placements([placed([], a=1.0), placed([], a=2.0)]) == [False, False]


def test_a_probe_condemns_no_round() -> None:
    rounds = [placed([], a=1.0, memory=1.0), placed([], a=1.0, memory=2.0)]
    assert judge(rounds, probes=["memory"]) == ["", ""]
    assert judge(rounds) == ["", "round 2: memory at 50% of its best"]


def test_the_first_placement_with_enough_clean_rounds_gives_the_figures(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    trips = iter([NEAR, NEAR, FAR, FAR, FAR, NEAR, FAR, FAR])
    side = machine.side([1, 1, 2, 1, 2.2], [])
    found = interleave("test", Sides({"a": side}, {"a": side.turn}, round_trip=lambda: next(trips)), 2, proc=tmp_path)
    assert found.speeds("a") == [2.0, pytest.approx(4 / 2.2)]
    assert [reason.split(":")[0] for reason in found.discarded] == ["round 3"]
    told = found.tree()
    assert told["round_trip_ns"] == 335
    assert told["elsewhere"] == {"clean": 1, "round_trip_ns": 57, "speeds": {"a": 4.0}}


@pytest.mark.parametrize(("placement", "trip", "speeds"), [("near", 57, [4.0, 4.0]), ("far", 335, [2.0, 1.0])])
def test_rounds_wait_for_the_placement_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, placement: Placement, trip: int, speeds: list[float]
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    machine = Machine(tmp_path)
    # Looked at until a round begins, then in it before the turn and after it.
    trips = {
        "near": [NEAR, NEAR, NEAR, FAR, FAR, NEAR, NEAR, NEAR],
        "far": [NEAR, FAR, FAR, FAR, NEAR, NEAR, FAR, FAR, NEAR, FAR, FAR, FAR],
    }
    left = iter(trips[placement])
    side = machine.side([1, 1, 1] if placement == "near" else [1, 2, 3, 4], [])
    sides = Sides({"a": side}, {"a": side.turn}, round_trip=lambda: next(left))
    found = interleave("test", sides, 2, placement=placement, of_best=0, proc=tmp_path)
    assert found.speeds("a") == speeds
    assert found.tree()["round_trip_ns"] == trip
    assert list(left) == []
    assert len(found.discarded) == (0 if placement == "near" else 1)


def test_a_placement_that_does_not_come_or_cannot_be_seen_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobillama.bench.rounds.PATIENCE", 0.0)
    side = Machine(tmp_path).side([1, 1], [])
    with pytest.raises(MeasurementError, match=r"not far from each other within 0 s .*57 to 57 ns"):
        interleave("test", Sides({"a": side}, {"a": side.turn}, round_trip=lambda: NEAR), 1, placement="far")
    with pytest.raises(MeasurementError, match="no round trip between cores is measured"):
        interleave("test", Sides({"a": side}, {"a": side.turn}), 1, placement="near")


def test_too_few_clean_rounds_is_an_error_that_counts_and_names_them(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    ours = machine.side([1.0] * 11, [0.0, *[1.0] * 9, 0.0])
    with pytest.raises(MeasurementError, match=r"1 clean rounds of 10, expected 2.*round 1: others took 50\.0%"):
        run(tmp_path, 2, ours=ours)
