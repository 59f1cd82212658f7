"""Energy: counters and batteries are read as they write, idle power is taken off, and nothing is made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobillama.bench import energy


def zone(sys: Path, name: str, microjoules: int, wraps: int = 10_000_000) -> Path:
    folder = sys / "class/powercap" / name
    folder.mkdir(parents=True)
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{wraps}\n")
    return folder / "energy_uj"


def supply(sys: Path, **files: object) -> None:
    folder = sys / "class/power_supply/BAT0"
    folder.mkdir(parents=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")


@pytest.fixture(autouse=True)
def no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "_nvml", lambda: ([], "not asked"))


def test_without_a_sensor_it_says_where_it_looked_and_gives_no_figure(tmp_path: Path) -> None:
    found = energy.measure(lambda: pytest.fail("nothing to measure"), tmp_path)
    assert found["sensors"] == {}
    words = " ".join(found["looked_for"])
    assert "intel-rapl" in words and "NVML" in words and "power_supply" in words


def test_a_counter_gives_joules_above_the_idle_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = zone(tmp_path, "intel-rapl:0", 1_000_000)
    zone(tmp_path, "intel-rapl:0:0", 1_000_000)  # a part of the package: not counted again
    clock = iter([0.0, 10.0, 10.0, 14.0])
    monkeypatch.setattr(energy.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(energy.time, "sleep", lambda _: counter.write_text("3000000"))  # 2 J in 10 s: 0.2 W

    def work() -> int:
        counter.write_text("7800000")  # 4.8 J in 4 s, of which 0.8 J are idle
        return 500

    found = energy.measure(work, tmp_path)["sensors"]
    assert list(found) == ["RAPL intel-rapl:0"]
    assert found["RAPL intel-rapl:0"] == {
        "joules_per_1000_tokens": pytest.approx(8.0),
        "idle_watts": pytest.approx(0.2),
    }


def test_a_counter_that_began_anew_meanwhile_is_understood(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", 9_000_000)
    counters, _, _ = energy.find(tmp_path)
    recorded = energy._record(counters, [], lambda: counter.write_text("500000"))
    assert recorded["RAPL intel-rapl:0"][0] == pytest.approx(1.5)


def test_a_counter_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone(tmp_path, "intel-rapl:0", 1)
    read = Path.read_text

    def refuse(path: Path, *arguments: object, **options: object) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_text", refuse)
    counters, _, looked = energy.find(tmp_path)
    assert counters == [] and any("Permission denied" in each for each in looked)


def test_a_battery_that_is_emptied_gives_joules_and_milliampere_hours_at_its_voltage(tmp_path: Path) -> None:
    supply(tmp_path, type="Battery", status="Discharging", voltage_now=4_000_000, current_now=-500_000)

    def work() -> int:
        now = tmp_path / "class/power_supply/BAT0/current_now"
        now.with_suffix(".new").write_text("2000000")
        now.with_suffix(".new").rename(now)  # as a whole: it is being read all the while
        energy.time.sleep(0.5)
        return 100

    found = energy.measure(work, tmp_path, idle_seconds=0.2)["sensors"]["battery BAT0"]
    assert found["idle_watts"] == pytest.approx(2.0)
    assert found["volts"] == pytest.approx(4.0)
    # 8 W for half a second, less 2 W of idle, for a tenth of 1,000 tokens (its first sample is from before the work).
    assert found["joules_per_1000_tokens"] > 20
    assert found["mah_per_1000_tokens"] == pytest.approx(found["joules_per_1000_tokens"] / 4.0 / 3.6)


def test_a_battery_on_its_charger_is_not_used(tmp_path: Path) -> None:
    supply(tmp_path, type="Battery", status="Charging", voltage_now=4_000_000, current_now=500_000)
    _, batteries, looked = energy.find(tmp_path)
    assert batteries == [] and any("Charging: not used" in each for each in looked)
