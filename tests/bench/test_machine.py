"""The machine described beside the figures."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from mobillama.bench import machine
from mobillama.cores import cores


def test_a_machine_is_described_from_what_the_system_tells(tmp_path: Path) -> None:
    cache = tmp_path / "sys/devices/system/cpu/cpu0/cache/index3"
    cache.mkdir(parents=True)
    for name, value in {"level": "3", "type": "Unified", "size": "32768K", "shared_cpu_list": "0-1"}.items():
        (cache / name).write_text(f"{value}\n")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nmodel name\t: A CPU: fast\n\nmodel name\t: A CPU: fast\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal:       24000000 kB\n")
    found = machine.describe(tmp_path)
    assert found["cpu"] == "A CPU: fast"
    assert found["memory"] == "24000000 kB"
    assert found["caches"] == {"L3": "32768K, cores 0-1"}
    assert found["huge_pages"] == ""  # not told
    assert found["cores"] == cores() >= 1
    assert os.uname().release in found["kernel"]


def test_a_file_is_described_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    sha256 = hashlib.sha256(b"GGUF").hexdigest()
    assert machine.describe_file(path) == {"file": str(path), "bytes": 4, "sha256": sha256}
