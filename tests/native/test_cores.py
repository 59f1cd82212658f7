"""Cores that a container may use: the engine and the package read the same control groups, and read them right."""

from __future__ import annotations

import ctypes
import math
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Type
from tests.native.tiny_models import write_tiny_model

from mobillama.cores import cores, cpu_quota
from mobillama.runtime.engine import Engine

Files = Mapping[str, str]

V2 = "30 23 0:26 {root} {at} rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "32 31 0:29 {root} {at} rw,relatime - cgroup cgroup rw,{controllers}\n"
OTHER = "23 1 0:21 / /proc rw - proc proc rw\n31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,cpu,mode=755\n"

CASES: dict[str, tuple[float, str, str, Files]] = {
    # limit, /proc/self/cgroup, /proc/self/mountinfo, files of groups
    "nothing": (math.inf, "", "", {}),
    "version 2, no limit": (math.inf, "0::/\n", V2.format(root="/", at="/cg"), {"cg/cpu.max": "max 100000\n"}),
    "version 2, a container's own view": (
        1.5,
        "0::/\n",
        V2.format(root="/", at="/cg"),
        {"cg/cpu.max": "150000 100000\n"},
    ),
    "version 2, a nested group": (
        *(0.5, "0::/a/b\n", OTHER + V2.format(root="/", at="/sys/fs/cgroup")),
        {"sys/fs/cgroup/a/cpu.max": "50000 100000\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"},
    ),
    "version 2, the least of all": (
        *(0.25, "0::/a/b\n", V2.format(root="/", at="/cg")),
        {"cg/cpu.max": "400000 100000", "cg/a/cpu.max": "50000 100000\n", "cg/a/b/cpu.max": "50000 200000\n"},
    ),
    "version 2, a path from the host's top": (
        *(2.0, "0::/docker/f00\n", V2.format(root="/docker/f00", at="/cg")),
        {"cg/cpu.max": "200000 100000\n"},
    ),
    "version 2, below a path from the host's top": (
        *(3.0, "0::/docker/f00/in\n", V2.format(root="/docker/f00", at="/cg")),
        {"cg/in/cpu.max": "300000 100000\n"},
    ),
    "version 2, a name that only begins alike": (
        *(4.0, "0::/docker/f001\n", V2.format(root="/docker/f00", at="/cg")),
        {"cg/cpu.max": "400000 100000\n", "cg/1/cpu.max": "1 100000\n"},
    ),
    "version 2, outside the namespace": (
        *(4.0, "0::/../other\n", V2.format(root="/", at="/cg")),
        {"cg/cpu.max": "400000 100000\n", "other/cpu.max": "1 100000\n"},
    ),
    "version 2, a mount with a blank in its name": (
        *(2.5, "0::/\n", V2.format(root="/", at="/c\\040g")),
        {"c g/cpu.max": "250000 100000\n"},
    ),
    "version 1": (
        *(
            1.0,
            "3:cpuset:/x\n2:cpu,cpuacct:/a\n1:memory:/m\n",
            V1.format(root="/", at="/cg", controllers="cpu,cpuacct"),
        ),
        {"cg/a/cpu.cfs_quota_us": "100000\n", "cg/a/cpu.cfs_period_us": "100000\n"},
    ),
    "version 1, no limit": (
        *(math.inf, "2:cpu,cpuacct:/\n", V1.format(root="/", at="/cg", controllers="cpuacct,cpu")),
        {"cg/cpu.cfs_quota_us": "-1\n", "cg/cpu.cfs_period_us": "100000\n"},
    ),
    "version 1, another controller": (
        *(math.inf, "4:cpuset:/\n", V1.format(root="/", at="/cg", controllers="cpuset")),
        {"cg/cpu.cfs_quota_us": "100000\n", "cg/cpu.cfs_period_us": "100000\n"},
    ),
    "both versions": (
        *(
            0.75,
            "1:cpu:/a\n0::/b\n",
            V1.format(root="/", at="/one", controllers="cpu") + V2.format(root="/", at="/two"),
        ),
        {
            "one/a/cpu.cfs_quota_us": "75000",
            "one/a/cpu.cfs_period_us": "100000",
            "two/b/cpu.max": "900000 100000\n",
        },
    ),
    "files that are none": (
        *(math.inf, "::\n0:\n0::/\n\n", " - \n1 - cgroup2\n" + V2.format(root="/", at="/cg")),
        {"cg/cpu.max": "100000 0\n"},
    ),
    "numbers that are none": (math.inf, "0::/\n", V2.format(root="/", at="/cg"), {"cg/cpu.max": "1e5 100000\n"}),
}


@pytest.fixture(scope="session")
def door(compiled: Callable[..., Path]) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(compiled(["tests/cgroup_door.cpp", "src/cgroup.cpp"], flags=["-O1", "-shared"])))
    loaded.quota.restype = ctypes.c_double
    return loaded


def write(root: Path, groups: str, mounts: str, files: Files) -> None:
    for name, text in {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize("case", CASES)
def test_the_quota_of_a_container_is_read(case: str, door: ctypes.CDLL, tmp_path: Path) -> None:
    limit, *rest = CASES[case]
    write(tmp_path, *rest)
    assert cpu_quota(tmp_path) == limit
    assert door.quota(bytes(tmp_path)) == limit


def test_engine_and_package_agree_on_any_groups(door: ctypes.CDLL, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    names = ["", "/a", "/a/b", "/a/b/c", "/ab", "/.."]
    limits = ["max 100000", "50000 100000", "-1", "7 0", "", "99999999999999999999 1", "123456 1000", "100000"]
    for number in range(100):
        root = tmp_path / str(number)
        controllers = draw.choice(["cpu", "cpu,cpuacct", "cpuset"])
        groups = [f"0::{draw.choice(names) or '/'}", f"1:{controllers}:{draw.choice(names) or '/'}"]
        two = V2.format(root=draw.choice(names) or "/", at="/two")
        one = V1.format(root=draw.choice(names) or "/", at="/one", controllers=controllers)
        files = {f"two{name}/cpu.max": draw.choice(limits) for name in names[:4] if draw.random() < 0.7}
        for name in names[:4]:
            quota, _, period = draw.choice(limits).partition(" ")
            files |= {f"one{name}/cpu.cfs_quota_us": quota, f"one{name}/cpu.cfs_period_us": period}
        write(root, "\n".join(draw.sample(groups, draw.randrange(3))), draw.choice([one, two, one + two]), files)
        assert cpu_quota(root) == door.quota(bytes(root)), (groups, files)


@pytest.mark.parametrize(("limit", "expected"), [("10000", 1), ("100000", 1), ("100001", 2), ("99900000", 10**9)])
def test_a_part_of_a_core_counts_as_one(limit: str, expected: int, tmp_path: Path) -> None:
    write(tmp_path, "0::/\n", V2.format(root="/", at="/cg"), {"cg/cpu.max": f"{limit} 100000\n"})
    assert cores(tmp_path) == min(expected, cores(tmp_path / "nothing"))


def tasks() -> int:
    return sum(1 for _ in Path("/proc/self/task").iterdir())


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_the_engine_computes_with_as_many_threads(tmp_path: Path) -> None:
    path = write_tiny_model(
        *(tmp_path / "tiny.gguf", Type.F16), vocab_size=8, hidden_size=16, intermediate_size=16, heads=2, kv_heads=1
    )
    before, threads = os.sched_getaffinity(0), tasks()
    try:
        for allowed in (before, {min(before)}):
            os.sched_setaffinity(0, allowed)
            with Engine.open(path) as engine, engine.context():
                assert tasks() == threads + cores() - 1
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, before)
