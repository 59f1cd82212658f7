"""The ledger of a run: one JSON line per event, appended, chained by hash, never rewritten.

`result` holds what a replay must repeat bit for bit, `circumstance` what it need not (time, host, speed) and
`previous`, the sha256 of the line before. Reads and writes `RUN/ledger.jsonl` (docs/formats.md, section Run). Imports
no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

from mobillama import strict_json
from mobillama.errors import DamagedFileError, InputError, TrainingError

FILE = "ledger.jsonl"
FIRST = "0" * 64  # `previous` of the first line
Kind = Literal["start", "step", "validation", "checkpoint", "published", "resumed", "end"]
# What a line of each kind must have for it to be read; older versions wrote less of the rest.
TYPES: Mapping[str, Mapping[str, type]] = {
    "start": {"recipe": str, "shards": str, "steps": int},
    "step": {"step": int},
    "validation": {"step": int},
    "checkpoint": {"step": int, "weights": str, "optimizer": str},
    "published": {"step": int, "weights": str},
    "resumed": {"step": int, "steps": int, "changed": dict},
    "end": {"step": int, "weights": str},
}
# Keys of a kind that lines of earlier versions lack: nothing is compared there.
ADDED: Mapping[str, frozenset[str]] = {"step": frozenset({"grad_norm_ffn", "grad_norm_attention"})}
REPEATABLE = (
    "step",
    "validation",
    "checkpoint",
    "published",
    "end",
)  # kinds whose result must repeat when its step is repeated


@dataclass(frozen=True)
class Line:
    """One event of a run."""

    kind: Kind
    result: Mapping[str, Any]
    circumstance: Mapping[str, Any]

    @property
    def step(self) -> int:
        """The step the event belongs to; 0 before the first."""
        return int(self.result.get("step", 0))


def read_ledger(run: str | Path) -> list[Line]:
    """Every line of a run's ledger, oldest first; a last line that a kill cut off is left out.

    Errors: InputError if the folder has no ledger; DamagedFileError naming the first line that is not what the chain
    of hashes promises.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as run:
    ...     with Ledger.open(Path(run)) as ledger:
    ...         _ = ledger.append("step", {"step": 1, "loss": 0.1 + 0.2})
    ...     [(line.kind, line.step, line.result["loss"]) for line in read_ledger(run)]
    [('step', 1, 0.30000000000000004)]
    """
    path = Path(run) / FILE
    if not path.is_file():
        raise InputError(f"{run} has no {FILE}, so it is not a run; give the --out folder of a training")
    with path.open("rb") as file:
        return [line for line, _ in _verified(file, path)]


class Ledger:
    """The writing end of a run's ledger; one process holds it at a time (the run folder's lock sees to that)."""

    def __init__(self, path: Path, descriptor: int, tip: str) -> None:
        self.path = path
        self.tip = tip  # sha256 of the last line
        self.lines = 0
        self.last_step = 0  # largest step recorded
        self.newest: dict[Kind, Line] = {}
        self.published: dict[int, str] = {}  # number of a published model -> root digest by the newest line of it
        self.ended = False  # whether the newest process said that the run is at its end
        self.environment: Mapping[str, Any] = {}  # of the newest process
        self.exact = False  # whether a repeated result must equal the earlier one
        self._results: dict[tuple[str, int], bytes] = {}  # of the steps that will be repeated
        self._descriptor = descriptor

    @classmethod
    def open(cls, run: Path, *, repeats_after: int | None = None) -> Self:
        """Open a run's ledger to append to it, making it if need be, and check the chain of what is there.

        Results of steps above `repeats_after` are kept to be compared with their repetition: with a number given,
        `append` raises TrainingError if a repeated result differs. A last line without its newline was cut off by a
        kill, never was a line, and is cut away; every whole line stays as it is.
        """
        path = run / FILE
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        ledger = cls(path, descriptor, FIRST)
        ledger.exact = repeats_after is not None
        whole = 0
        try:
            with path.open("rb") as file:
                for line, raw in _verified(file, path):
                    whole += len(raw) + 1
                    ledger._note(line, raw)
                    if repeats_after is not None and line.kind in REPEATABLE and line.step > repeats_after:
                        ledger._results.setdefault((line.kind, line.step), _canonical(line.result))
            if os.fstat(descriptor).st_size > whole:
                os.ftruncate(descriptor, whole)
        except BaseException:
            os.close(descriptor)
            raise
        return ledger

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sync()
        os.close(self._descriptor)

    def append(self, kind: Kind, result: Mapping[str, Any], circumstance: Mapping[str, Any] | None = None) -> Line:
        """Write one line. Errors: TrainingError if this repeats a step with another result (nothing is written)."""
        step = int(result.get("step", 0))
        earlier = self._results.get((kind, step)) if self.exact else None
        if earlier is not None and not _repeats(kind, earlier, result):
            raise TrainingError(self._unrepeated(kind, step, json.loads(earlier), result))
        line = Line(kind, dict(result), {**_now(), **(circumstance or {}), "previous": self.tip})
        raw = _canonical({"kind": line.kind, "result": line.result, "circumstance": line.circumstance})
        self._write(raw + b"\n")
        self._note(line, raw)
        return line

    def step_of(self, kind: Kind) -> int:
        """The step of the newest line of a kind; 0 if there is none."""
        return self.newest[kind].step if kind in self.newest else 0

    def is_ended(self, steps: int) -> bool:
        """Whether the run took `steps` steps and the newest process said so."""
        return self.ended and steps == self.last_step == self.step_of("end")

    def sync(self) -> None:
        """Force the lines to disk."""
        os.fsync(self._descriptor)

    def _write(self, data: bytes) -> None:
        """One line in one write; what a full disk cut off is taken back."""
        size = os.fstat(self._descriptor).st_size
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            os.ftruncate(self._descriptor, size)
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def _note(self, line: Line, raw: bytes) -> None:
        """Keep what is asked of the ledger later."""
        self.tip = hashlib.sha256(raw).hexdigest()
        self.lines += 1
        self.last_step = max(self.last_step, line.step)
        self.newest[line.kind] = line
        self.ended = line.kind == "end" or (self.ended and line.kind != "resumed")
        if line.kind == "published":
            self.published[line.circumstance["number"]] = line.circumstance["manifest"]
        if line.kind in ("start", "resumed"):
            before, self.environment = self.environment, line.circumstance.get("environment", {})
            if before and before.get("world_size", 1) != self.environment.get("world_size", 1):
                self._results.clear()  # other ranks, other sums: what they computed need not repeat

    def _unrepeated(self, kind: str, step: int, earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str:
        different = [key for key in {**earlier, **now} if earlier.get(key) != now.get(key)]
        found = ", ".join(f"{key} {now.get(key)!r} (earlier {earlier.get(key)!r})" for key in different)
        return (
            f"step {step} did not repeat: the {kind} line of {self.path} differs in {found}. With"
            " train.deterministic = true a repeated step gives the same bits on the same kind of machine with the same"
            " threads, dtype and versions: compare those in the ledger's start and resumed lines with this machine,"
            " then go on where the run began, or start a new run with another --out"
        )


def _verified(file: BinaryIO, path: Path) -> Iterator[tuple[Line, bytes]]:
    """Every whole line and its bytes without the newline, checked against the chain."""
    tip = FIRST
    for number, raw in enumerate(file, 1):
        if not raw.endswith(b"\n"):
            return
        raw = raw[:-1]
        try:
            line = _line(strict_json.parse(raw))
            previous = line.circumstance["previous"]
        except ValueError as error:
            raise DamagedFileError(
                f"{path} line {number} is not a ledger line ({error}); restore the file from a copy"
            ) from None
        if previous != tip:
            raise DamagedFileError(
                f"{path} line {number - 1} was changed after it was written: its sha256 is {tip}, but line {number} "
                f"expects {previous}; restore the file from a copy"
            )
        tip = hashlib.sha256(raw).hexdigest()
        yield line, raw


def _line(tree: Any) -> Line:
    """A line with what every reader asks of it. Error: ValueError."""
    strict_json.require(tree, {"kind": str, "result": dict, "circumstance": dict})
    if tree["kind"] not in TYPES:
        raise ValueError(f"kind {tree['kind']!r:.60}")
    more = {"number": int, "manifest": str} if tree["kind"] == "published" else {}
    strict_json.require(tree["circumstance"], {"previous": str, **more})
    result = strict_json.require(tree["result"], TYPES[tree["kind"]])
    if result.get("step", 0) < 0:
        raise ValueError(f"step {result['step']}")
    return Line(tree["kind"], result, tree["circumstance"])


def _repeats(kind: Kind, earlier: bytes, result: Mapping[str, Any]) -> bool:
    """Whether a result is the earlier one again, as far as the version that wrote the earlier one tells."""
    if earlier == _canonical(result):
        return True
    tree: dict[str, Any] = json.loads(earlier)
    if kind == "checkpoint" and tree.get("form", 1) != result.get("form", 1):
        return True  # digests of another kind
    added = ADDED.get(kind, frozenset()) - tree.keys()
    return tree == {key: value for key, value in result.items() if key not in added}


def _canonical(tree: Mapping[str, Any]) -> bytes:
    """Compact JSON in the order given; floats as the shortest text that reads back to the same bits, no NaN."""
    return json.dumps(tree, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _now() -> dict[str, Any]:
    moment = time.time()
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment))
    return {"time": f"{text}.{int(moment * 1000) % 1000:03d}Z", "host": platform.node()}
