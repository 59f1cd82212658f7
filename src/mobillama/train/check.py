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
from mobillama.train import digest, ledger
from mobillama.train.ledger import Line, read_ledger
from mobillama.train.run import FILE, promised_recipe, read_run

FORM = 2  # of checkpoints: the newest that is known here
# kind of line -> what it says the sha256 of, file by file; of checkpoints that is so in form 1
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
    _check_told(told, lines, found)
    _check_shards(run, told, found)
    _check_code(run, found)
    for folder in sorted((run / "checkpoints").glob("step_*")):
        if folder.name.endswith(".damaged"):
            found.not_checked.append(f"checkpoints/{folder.name}: set aside as damaged, and not used since")
        elif not folder.name.endswith(".partial"):
            _check_artefact(run, folder, "checkpoint", lines, told, found)
    for folder in sorted((run / "published").glob("ckpt_*")):
        if not folder.name.endswith(".partial"):
            _check_published(run, folder, found)
    if (run / "model").is_dir():
        _check_artefact(run, run / "model", "end", lines, told, found)
    return found


def _tip(run: Path) -> str:
    """sha256 of the last whole line of the ledger: by the chain it stands for all of them."""
    path = run / ledger.FILE
    whole = path.read_bytes().rpartition(b"\n")[0] if path.is_file() else b""
    return hashlib.sha256(whole.rpartition(b"\n")[2]).hexdigest() if whole else ""


def _check_told(told: dict[str, Any], lines: list[Line], found: Found) -> None:
    """run.json against itself, and against what the ledger says that the run is trained with."""
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
    said = [line.result for line in lines if line.kind in ("start", "resumed")]
    promised = {"recipe_digest": promised_recipe(told, said), "steps": said[-1]["steps"]}
    found.differences += [
        f"{FILE}: {key} is {told.get(key)}; expected {expected} as in the ledger"
        for key, expected in promised.items()
        if told.get(key) != expected
    ]


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


def _check_code(run: Path, found: Found) -> None:
    """The lists of files of the codes that trained the run: each has the digest that it is named by."""
    for path in sorted((run / "code").glob("*.json")):
        try:
            digest = hashlib.sha256(manifest.canonical(json.loads(path.read_bytes()))).hexdigest()
        except ValueError as error:
            digest = f"none ({error})"
        if digest != path.stem:
            found.differences.append(f"code/{path.name}: found digest {digest}; expected {path.stem}, its name")


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
    form = sealed.counts.get("form", 1)
    if form > FORM:
        found.differences.append(
            f"{name}: found version {form}; this mobillama reads up to {FORM}: install a newer one"
        )
        return
    if form > 1 and not wrong:
        found.differences += [f"{name}: {text}" for text in _wrong_digests(folder, sealed)]
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
    if form > 1:
        for part in digest.PARTS:
            if sealed.counts.get(part) not in [result[part] for result in said]:
                found.differences.append(
                    f"{name}: digest of {part} {sealed.counts.get(part)}; expected {said[-1][part]} as in the ledger"
                )
        roots = [line.circumstance.get("manifest") for line in lines if line.kind == kind and line.step == step]
        if sealed.digest() not in roots:
            found.differences.append(f"{name}: root digest {sealed.digest()}; expected {roots[-1]} as in the ledger")
        return
    for key, file in SAID[kind].items():
        sha256 = sealed.files.get(file, {}).get("sha256")
        if sha256 not in [result[key] for result in said]:
            found.differences.append(f"{name}/{file}: sha256 {sha256}; expected {said[-1][key]} as in the ledger")


def _wrong_digests(folder: Path, sealed: manifest.Manifest) -> list[str]:
    """Tensors that have not the digest a checkpoint gives them, and parts whose digest is not that of their tensors."""
    try:
        told = digest.read_digests(folder)
        there = {name: tensor.digest() for name, tensor in digest.stored_tensors(folder).items()}
    except DamagedFileError as error:
        return [str(error)]
    wrong = [
        f"tensor {name}: found digest {there.get(name, 'of none')}; expected {told.get(name, 'no such tensor')}"
        for name in sorted({*told, *there})
        if told.get(name) != there.get(name)
    ]
    parts = digest.part_digests(told)
    return wrong + [
        f"{part} of {digest.FILE}: digest {parts[part]}; expected {sealed.counts.get(part)} as in the manifest"
        for part in parts
        if parts[part] != sealed.counts.get(part)
    ]


def _check_published(run: Path, folder: Path, found: Found) -> None:
    """A published model: its files, the checkpoint it was made from, and its weights against that one's digests."""
    name = folder.relative_to(run).as_posix()
    try:
        sealed = manifest.read(folder)
        wrong = [*manifest.differences(folder), *manifest.extra_files(folder)]
        source = next(entry for entry in sealed.made_from if entry["kind"] == "checkpoint")
        checkpoint = run / "checkpoints" / f"step_{int(sealed.counts['step']):06d}"
        if not (checkpoint / manifest.FILE).is_file():
            found.not_checked.append(f"{name}: its checkpoint {checkpoint.name} is not at hand")
        elif (root := manifest.read(checkpoint).digest()) != source["digest"]:
            wrong.append(f"made from checkpoint {source['digest']}; {checkpoint.name} is {root}")
        elif not wrong:
            told = [text for key, text in digest.read_digests(checkpoint).items() if key.startswith("model.")]
            there = [tensor.digest() for tensor in digest.stored_tensors(folder).values()]
            if sorted(told) != sorted(there):
                wrong.append(f"its weights are not those of {checkpoint.name}")
    except (MobillamaError, KeyError, TypeError, ValueError, StopIteration) as error:
        wrong = [f"manifest.json cannot be used: {error!r}"]
    found.differences += [f"{name}/{text}" for text in wrong]
