"""Energy of a piece of work, where the machine has a sensor: RAPL, NVML, or a battery that is being emptied.

Joules are what the work took above the idle machine. Nothing is estimated: without a sensor the answer says what was
looked for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SYS = Path("/sys")
IDLE_SECONDS = 5.0
SAMPLE_SECONDS = 0.1


@dataclass(frozen=True)
class Counter:
    """A sensor that counts joules, from 0 to `wraps` and over again (0 = never)."""

    name: str
    read: Callable[[], float]
    wraps: float = 0.0


@dataclass(frozen=True)
class Battery:
    """A sensor that tells the present volts and amperes of a battery."""

    name: str
    read: Callable[[], tuple[float, float]]


def measure(work: Callable[[], int], sys: Path = SYS, idle_seconds: float = IDLE_SECONDS) -> dict[str, Any]:
    """Energy of `work`, which gives the number of tokens it made.

    Per sensor: `joules_per_1000_tokens` above idle, `idle_watts`; for a battery also `volts`, the mean voltage, and
    `mah_per_1000_tokens` at it. `looked_for`: every place that was asked, with what was found there.
    """
    counters, batteries, looked = find(sys)
    if not counters and not batteries:
        return {"sensors": {}, "looked_for": looked}
    idle = _record(counters, batteries, lambda: time.sleep(idle_seconds))
    made: list[int] = []
    busy = _record(counters, batteries, lambda: made.append(work()))
    sensors = {}
    for name, (joules, seconds, volts) in busy.items():
        watts = idle[name][0] / idle[name][1]
        per_thousand = (joules - watts * seconds) / made[0] * 1000
        sensors[name] = {"joules_per_1000_tokens": per_thousand, "idle_watts": watts}
        if volts:
            sensors[name] |= {"volts": volts, "mah_per_1000_tokens": per_thousand / volts / 3.6}
    return {"sensors": sensors, "looked_for": looked}


def find(sys: Path = SYS) -> tuple[list[Counter], list[Battery], list[str]]:
    """The sensors of this machine, and what was looked for."""
    counters, batteries, looked = [], [], []
    # Packages only (intel-rapl:N; AMD's appear under the same name): the domains inside (N:M) are part of them.
    zones = sorted(zone for zone in sys.glob("class/powercap/intel-rapl:*") if zone.name.count(":") == 1)
    for zone in zones:
        path = zone / "energy_uj"
        try:
            path.read_text()
        except OSError as error:
            looked.append(f"{path}: {error.strerror}")
            continue
        wraps = int((zone / "max_energy_range_uj").read_text()) / 1e6
        counters.append(Counter(f"RAPL {zone.name}", lambda path=path: int(path.read_text()) / 1e6, wraps))  # type: ignore[misc]
        looked.append(f"{path}: read")
    if not zones:
        looked.append(f"{sys}/class/powercap/intel-rapl:*: none")
    gpus, word = _nvml()
    counters += gpus
    looked.append(f"NVML: {word}")
    supplies = sorted(sys.glob("class/power_supply/*"))
    for supply in supplies:
        kind, status = _text(supply / "type"), _text(supply / "status")
        if kind != "Battery" or status != "Discharging" or not (supply / "current_now").exists():
            looked.append(f"{supply}: type {kind or 'not told'}, status {status or 'not told'}: not used")
            continue
        batteries.append(Battery(f"battery {supply.name}", lambda supply=supply: _volts_amperes(supply)))  # type: ignore[misc]
        looked.append(f"{supply}: read")
    if not supplies:
        looked.append(f"{sys}/class/power_supply/*: none")
    return counters, batteries, looked


def _record(
    counters: list[Counter], batteries: list[Battery], work: Callable[[], object]
) -> dict[str, tuple[float, float, float]]:
    """Of each sensor: joules while `work` ran, seconds, and mean volts (0 where the sensor has none)."""
    samples: dict[str, list[tuple[float, float]]] = {each.name: [] for each in batteries}
    done = threading.Event()

    def sample() -> None:
        while True:
            for each in batteries:
                samples[each.name].append(each.read())
            if done.wait(SAMPLE_SECONDS):
                return

    sampler = threading.Thread(target=sample, daemon=True)
    before = {each.name: each.read() for each in counters}
    start = time.perf_counter()
    if batteries:
        sampler.start()
    work()
    seconds = time.perf_counter() - start
    done.set()
    found = {}
    for each in counters:
        joules = each.read() - before[each.name]
        found[each.name] = (joules + each.wraps if joules < 0 else joules, seconds, 0.0)
    if batteries:
        sampler.join()
    for name, taken in samples.items():
        watts = sum(volts * amperes for volts, amperes in taken) / len(taken)
        found[name] = (watts * seconds, seconds, sum(volts for volts, _ in taken) / len(taken))
    return found


def _nvml() -> tuple[list[Counter], str]:
    try:
        import pynvml  # type: ignore[import-not-found]
    except ImportError:
        return [], "its Python library (pynvml) is not installed"
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        return [], str(error)

    def reader(handle: Any) -> Callable[[], float]:
        return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3

    return [Counter(f"NVML {i}", reader(each)) for i, each in enumerate(handles)], f"{len(handles)} devices"


def _volts_amperes(supply: Path) -> tuple[float, float]:
    """Present volts and amperes (the files hold millionths; some write a current of discharge as negative)."""
    return int(_text(supply / "voltage_now")) / 1e6, abs(int(_text(supply / "current_now"))) / 1e6


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
