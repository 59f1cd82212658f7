"""A process that a bench drives by lines of JSON: one side of a pair, asleep on its pipe while the other computes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from mobillama.errors import MeasurementError

PROC = Path("/proc")


class ProcessEndedError(MeasurementError):
    """The process of a side ended instead of answering: its name, how it ended, in words, and what it was asked."""

    name = status = asked = ""

    @classmethod
    def of(cls, name: str, code: int, asked: str) -> Self:
        """code: as Popen gives it, negative if a signal ended the process."""
        by_signal = f"it ended by {signal.Signals(-code).name}" if -code in {*signal.Signals} else ""
        status = by_signal or f"it ended with status {code}"
        error = cls(f"the process of {name!r}: {status} when asked to {asked!r}; its own message is above")
        error.name, error.status, error.asked = name, status, asked
        return error


class Process:
    """A side of a bench. Each question is one JSON object on its standard input, each answer one on its output."""

    def __init__(self, name: str, command: list[str], environment: Mapping[str, str] | None = None) -> None:
        """Start `command`; environment: variables to set besides those of this process."""
        self.name = name
        self.about: dict[str, Any] = {}  # what it said when it opened a model
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """The answer to one question. Error: ProcessEndedError if the process ended instead."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)
            reply = self._process.stdout.readline()
        except BrokenPipeError:
            reply = ""
        if not reply:
            raise ProcessEndedError.of(self.name, self._process.wait(), do)
        answer: dict[str, Any] = json.loads(reply)
        return answer

    def cpu_seconds(self) -> float:
        """User and system seconds that the process has used, all its threads together."""
        return cpu_seconds(self._process.pid)

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):  # what it did not live to read is still in the buffer
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def cpu_seconds(pid: int, proc: Path = PROC) -> float:
    """User and system seconds of a process (proc(5): fields 14 and 15, counted behind the name in brackets)."""
    fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
