"""CPU cores this process may use: those it may run on, within the time that its control groups (containers) allow.

The engine asks the same question in C++ (native/src/cgroup.cpp).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")


def cores(root: Path = ROOT) -> int:
    """At least 1. A quota of one and a half cores counts as 2: the half would lie idle otherwise."""
    may_run_on = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(may_run_on, math.ceil(min(cpu_quota(root), may_run_on))))


def cpu_quota(root: Path = ROOT) -> float:
    """Seconds of CPU time that this process may use a second; infinite where no control group limits it.

    The least of the process's group and the groups around it, as far as they can be seen, of versions 1 and 2.
    root: where /proc and the file systems it names are. Source: cgroups(7), the kernel's cgroup-v2.rst.
    """
    return min((_limit(group) for top, own in _groups(root) for group in _up_to(top, own)), default=math.inf)


def _groups(root: Path) -> Iterator[tuple[Path, Path]]:
    """Mounted hierarchies that can limit CPU time: the topmost group that is visible, and this process's."""
    paths = {}  # by the names of their controllers; version 2 names none
    for line in _text(root / "proc/self/cgroup").splitlines():
        if len(fields := line.split(":", 2)) == 3:
            for controller in fields[1].split(","):
                paths[controller] = fields[2]
    for line in _text(root / "proc/self/mountinfo").splitlines():
        place, _, kind = line.partition(" - ")
        if len(fields := place.split(" ")) < 5 or len(kinds := kind.split(" ")) < 3:
            continue
        name = {"cgroup2": "", "cgroup": "cpu"}.get(kinds[0])
        if name is None or name not in paths or (name and name not in kinds[2].split(",")):
            continue
        top = root / _unescaped(fields[4]).lstrip("/")
        # A container sees the hierarchy from its own group on, whose path may be named from the top all the same.
        path, mounted = PurePosixPath(paths[name]), PurePosixPath(_unescaped(fields[3]))
        below = path.is_relative_to(mounted) and ".." not in path.parts
        yield top, top / path.relative_to(mounted) if below else top


def _up_to(top: Path, group: Path) -> Iterator[Path]:
    """A group and those around it."""
    yield group
    while group != top:
        yield (group := group.parent)


def _limit(group: Path) -> float:
    """A group's own limit."""
    found = _text(group / "cpu.max").split()  # version 2
    if not found:
        found = [*_text(group / "cpu.cfs_quota_us").split(), *_text(group / "cpu.cfs_period_us").split()]
    if len(found) != 2 or not all(re.fullmatch("[0-9]{1,18}", number) for number in found):
        return math.inf  # no such file, "max" or -1
    quota, period = map(int, found)
    return quota / period if quota > 0 and period > 0 else math.inf


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="surrogateescape")
    except OSError:  # what cannot be read limits nothing that we know of
        return ""


def _unescaped(name: str) -> str:
    """A name as in mountinfo: blanks are written as octal numbers there."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), name)
