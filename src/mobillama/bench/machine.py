"""What a bench ran on: said beside its figures."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from typing import Any

from mobillama.cores import cores

ROOT = Path("/")


def describe(root: Path = ROOT) -> dict[str, Any]:
    """CPU, cores, caches, memory and kernel, from /proc and /sys; what the system does not tell is ""."""
    return {
        "cpu": _line_of(root / "proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": cores(),
        "caches": _caches(root / "sys/devices/system/cpu/cpu0/cache"),
        "memory": _line_of(root / "proc/meminfo", "MemTotal"),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "huge_pages": _text(root / "sys/kernel/mm/transparent_hugepage/enabled"),
        "frequency_governor": _text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    }


def describe_file(path: Path) -> dict[str, Any]:
    """Name, size in bytes and sha256 of a file that was measured."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": str(path), "bytes": path.stat().st_size, "sha256": digest}


def _caches(folder: Path) -> dict[str, str]:
    """Size of each cache that core 0 sees, with the number of cores that share it."""
    found = {}
    for each in sorted(folder.glob("index*")):
        kind = _text(each / "type")
        name = f"L{_text(each / 'level')}" + {"Data": "d", "Instruction": "i"}.get(kind, "")
        found[name] = f"{_text(each / 'size')}, cores {_text(each / 'shared_cpu_list')}"
    return found


def _line_of(path: Path, key: str) -> str:
    lines = (line.partition(":") for line in _text(path).splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == key), "")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
