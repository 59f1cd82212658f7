"""The text that every Python brings along: its library's source, and what is installed beside it."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

SKIPPED = {"test", "tests", "idlelib", "lib2to3", "pydoc_data", "site-packages", "dist-packages", "__pycache__"}


def installed_distributions() -> list[importlib.metadata.Distribution]:
    """Installed packages by name, without this one (its description changes with every commit)."""
    found = {dist.metadata["Name"]: dist for dist in importlib.metadata.distributions() if dist.metadata["Name"]}
    return [found[name] for name in sorted(found, key=str.lower) if name != "mobillama"]


def python_files(root: Path, max_bytes: int) -> list[Path]:
    """Python files in a fixed order, without tests: all, or the first that hold `max_bytes`."""
    found: list[Path] = []
    size = 0
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if name not in SKIPPED and not name.startswith("_"))
        for path in (Path(folder, name) for name in sorted(names) if name.endswith(".py")):
            found.append(path)
            size += path.stat().st_size
            if max_bytes and size >= max_bytes:
                return found
    return found
