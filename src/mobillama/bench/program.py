"""The stand-alone program mobillama-run, as the benches call it: what it says of one run."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobillama.errors import InputError, MeasurementError

NAME = "mobillama-run"


def find() -> Path:
    """The program beside this interpreter, or on the path. Error: InputError if it was not built."""
    beside = Path(sys.executable).with_name(NAME)
    if beside.is_file():
        return beside
    if found := shutil.which(NAME):
        return Path(found)
    raise InputError(f"{NAME} was found neither at {beside} nor on the path; it comes with the package: make setup")


def run(
    file: Path, ids: Sequence[int], threads: int, *, new: int = 1, context: int = 0, kv: str = "f16"
) -> dict[str, Any]:
    """One greedy answer of `new` ids: the program's own JSON (seconds, peak memory, sizes)."""
    command = [str(find()), str(file), "--ids", ",".join(map(str, ids)), "-n", str(new), "--temperature", "0"]
    command += ["--threads", str(threads), "--context", str(context), "--kv", kv, "--json"]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        raise MeasurementError(f"{NAME} ended with status {made.returncode}: {made.stderr.strip()}")
    found: dict[str, Any] = json.loads(made.stdout)
    return found


class Ended:
    """The CPU time of all child processes that have ended: of sides that are a new process at every turn."""

    def cpu_seconds(self) -> float:
        """User and system seconds."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime
