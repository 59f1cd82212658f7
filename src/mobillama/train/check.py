"""Whether a run folder is what it says: its ledger's chain, and shards, checkpoints and model against the ledger.

Reads only; imports no torch. What is checked and what counts as a difference: docs/formats.md, section Checking.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobillama import manifest
from mobillama.errors import DamagedFileError, InputError, MobillamaError
from mobillama.train import ledger
from mobillama.train.ledger import Line, read_ledger
from mobillama.train.run import FILE, read_run

# kind of line -> what it says the sha256 of, file by file
SAID = {
    "checkpoint": {"weights": "weights.safetensors", "optimizer": "optimizer.safetensors"},
    "end": {"weights": "model.safetensors"},
}


@dataclass
class Found:
    """What checking a run gave. `digest` is the sha256 of the last line of the ledger ("" if there is none)."""

    digest: str
    differences: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)


def check_run(run: Path) -> Found:
    """Check a run folder. Error: InputError if it is none or of a newer format."""
    try:
        told = read_run(run)
    except DamagedFileError as error:
        return Found("", [f"{FILE}: {error}"])
    if told is None:
        raise InputError(f"{run} has no {FILE}, so it is not a run; give the --out folder of a training")
    found = Found(_tip(run))
    try:
        lines = read_ledger(run)
    except MobillamaError as error:
        found.differences.append(f"{ledger.FILE}: {error}")
        lines = []
    _check_start(told, lines, found)
    _check_shards(run, told, found)
    for folder in sorted((run / "checkpoints").glob("step_*")):
        if not folder.name.endswith(".partial"):
            _check_artefact(run, folder, "checkpoint", lines, told, found)
    if (run / "model").is_dir():
        _check_artefact(run, run / "model", "end", lines, told, found)
    return found


def _tip(run: Path) -> str:
    """sha256 of the last whole line of the ledger: by the chain it stands for all of them."""
    path = run / ledger.FILE
    whole = path.read_bytes().rpartition(b"\n")[0] if path.is_file() else b""
    return hashlib.sha256(whole.rpartition(b"\n")[2]).hexdigest() if whole else ""


def _check_start(told: dict[str, Any], lines: list[Line], found: Found) -> None:
    """run.json against itself and against the first line of the ledger."""
    text = json.dumps(told["recipe"], sort_keys=True, separators=(",", ":")).encode()
    if (digest := hashlib.sha256(text).hexdigest()) != told["recipe_digest"]:
        found.differences.append(f"{FILE}: its recipe has digest {digest}; expected {told['recipe_digest']}")
    if not lines:
        return
    if lines[0].kind != "start":
        found.differences.append(f"{ledger.FILE} line 1: found kind {lines[0].kind!r}; expected 'start'")
        return
    start = lines[0].result
    if start["shards"] != told["shards"]["digest"]:
        found.differences.append(
            f"{ledger.FILE} line 1: found shards {start['shards']}; expected {told['shards']['digest']} as in {FILE}"
        )
    lengthened = any(line.kind == "resumed" and line.result["changed"] for line in lines)
    if not lengthened and start["recipe"] != told["recipe_digest"]:
        found.differences.append(
            f"{ledger.FILE} line 1: found recipe {start['recipe']}; expected {told['recipe_digest']} as in {FILE}"
        )


def _check_shards(run: Path, told: dict[str, Any], found: Found) -> None:
    """The shards that the run was trained on, where they were or beside the run."""
    path = Path(told["shards"]["path"])
    for place in (path, run.resolve().parent / path.name):
        if (place / manifest.FILE).is_file():
            if (digest := manifest.read(place).digest()) != told["shards"]["digest"]:
                found.differences.append(
                    f"shards {place}: found digest {digest}; expected {told['shards']['digest']} as in {FILE}"
                )
            return
    found.not_checked.append(f"shards {path.name} (digest {told['shards']['digest']}): not at hand")


def _check_artefact(run: Path, folder: Path, kind: str, lines: list[Line], told: dict[str, Any], found: Found) -> None:
    """A checkpoint or the model: its files, its shards, and its weights against the ledger's line of that step."""
    name = folder.relative_to(run).as_posix()
    try:
        sealed = manifest.read(folder)
        wrong = [*manifest.differences(folder), *manifest.extra_files(folder)]
        step = int(sealed.counts["step"])
    except (MobillamaError, KeyError, TypeError, ValueError) as error:
        found.differences.append(f"{name}: {error}")
        return
    found.differences += [f"{name}/{text}" for text in wrong]
    for entry in sealed.made_from:
        if entry["kind"] == "shards" and entry["digest"] != told["shards"]["digest"]:
            found.differences.append(
                f"{name}: made from shards {entry['digest']}; expected {told['shards']['digest']} as in {FILE}"
            )
    if not lines:
        return
    last = max(line.step for line in lines)
    if last < step:
        found.differences.append(f"{name} is of step {step}; the ledger ends at step {last}: lines were lost")
        return
    said = [line.result for line in lines if line.kind == kind and line.step == step]
    if not said:
        found.not_checked.append(f"{name}: the ledger has no {kind!r} line of step {step}")
        return
    for key, file in SAID[kind].items():
        digest = sealed.files.get(file, {}).get("sha256")
        if digest not in [result[key] for result in said]:
            found.differences.append(f"{name}/{file}: sha256 {digest}; expected {said[-1][key]} as in the ledger")
