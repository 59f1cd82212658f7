"""Memory of a process and its workers while they run: PSS, so that a page shared by several counts once in all."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

SAMPLE_SECONDS = 0.05


class Peak:
    """The largest sums of bytes seen: `all` processes together, `worker` (any one below the first), `driver`."""

    def __init__(self) -> None:
        self.all = self.worker = self.driver = 0

    def watch(self, process: subprocess.Popen[str]) -> None:
        """Sample until the process ends. All stay 0 where /proc does not tell."""
        while process.poll() is None:
            self.take(process.pid)
            time.sleep(SAMPLE_SECONDS)

    def take(self, pid: int) -> None:
        """One sample."""
        driver, *workers = (proportional_bytes(each) for each in descendants(pid))
        self.driver = max(self.driver, driver)
        self.worker = max([self.worker, *workers])
        self.all = max(self.all, driver + sum(workers))


def descendants(pid: int) -> list[int]:
    """A process and all below it, itself first."""
    found = [pid]
    for parent in found:
        for listed in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(child) for child in listed.read_text().split()]
            except OSError:
                continue
    return found


def proportional_bytes(pid: int) -> int:
    """PSS of one process; 0 if it has just ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:")), 0)
