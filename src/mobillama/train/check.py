"""Whether a run folder is what it says: its ledger's chain, and shards, checkpoints and model against the ledger.

Reads only; imports no torch. What is checked and what counts as a difference: docs/formats.md, section Checking.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobillama import manifest, strict_json
from mobillama.errors import DamagedFileError, InputError, MobillamaError
from mobillama.train import digest, ledger
from mobillama.train.ledger import Line, read_ledger
from mobillama.train.ledger_order import Standing, standing_after
from mobillama.train.run import FILE, Parent, parent_of, promised_recipe, read_run

FORM = 2  # of checkpoints: the newest that is known here
FIRST_FORM = {"weights": "weights.safetensors", "optimizer": "optimizer.safetensors"}  # key of a line -> file
LAST = {"weights": "model.safetensors"}  # likewise, of an `end` line


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
        return Found("", [str(error)])
    if told is None:
        raise InputError(f"{run} has no {FILE}, so it is not a run; give the --out folder of a training")
    found = Found(_tip(run))
    lines, standing = _check_ledger(run, told, found)
    _check_told(told, lines, found)
    _check_shards(run, told, found)
    _check_code(run, found)
    there = {"checkpoints": set[str](), "published": set[str]()}
    for part in there:
        for folder in _parts(run, part, found):
            there[part].add(folder.name)
            if part == "checkpoints":
                _check_checkpoint(run, folder, lines, told, found)
            else:
                _check_published(run, folder, standing, told, found)
    _check_kept(run, standing, there, found)
    if (run / "model").exists():
        _check_model(run, lines, standing, told, found)
    return found


def _tip(run: Path) -> str:
    """sha256 of the last whole line of the ledger: by the chain it stands for all of them."""
    path = run / ledger.FILE
    whole = path.read_bytes().rpartition(b"\n")[0] if manifest.is_file(path) else b""
    return hashlib.sha256(whole.rpartition(b"\n")[2]).hexdigest() if whole else ""


def _check_ledger(run: Path, told: dict[str, Any], found: Found) -> tuple[list[Line], Standing]:
    """The ledger's lines and what they say that the folder holds; nothing, where they cannot be believed."""
    for name in (FILE, ledger.FILE, "code", "checkpoints", "published", "model"):
        if (run / name).is_symlink():
            found.differences.append(f"{name}: a link; a run holds its files itself")
    try:
        lines = read_ledger(run)
    except MobillamaError as error:
        found.differences.append(str(error))
        return [], Standing()
    if not lines:
        found.differences.append(f"{ledger.FILE} has no whole line: it says nothing of this run")
        return [], Standing()
    standing, wrong = standing_after(lines, told["recipe"])
    found.differences += [f"{ledger.FILE} {text}" for text in wrong]
    return ([], Standing()) if wrong else (lines, standing)


def _check_told(told: dict[str, Any], lines: list[Line], found: Found) -> None:
    """run.json against itself, and against what the ledger says that the run is trained with."""
    text = json.dumps(told["recipe"], sort_keys=True, separators=(",", ":")).encode()
    if (digest := hashlib.sha256(text).hexdigest()) != told["recipe_digest"]:
        found.differences.append(f"{FILE}: its recipe has digest {digest}; expected {told['recipe_digest']}")
    if not lines:
        return
    start = lines[0].result
    if start["shards"] != told["shards"]["digest"]:
        found.differences.append(
            f"{ledger.FILE} line 1: found shards {start['shards']}; expected {told['shards']['digest']} as in {FILE}"
        )
    parent = parent_of(told)
    if (start.get("parent") or None) != (parent.result() if parent else None):
        found.differences.append(f"{ledger.FILE} line 1: its parent is not the one in {FILE}")
    elif parent:
        _check_parent(parent, found)
    said = [line.result for line in lines if line.kind in ("start", "resumed")]
    promised = {"recipe_digest": promised_recipe(told, said), "steps": said[-1]["steps"]}
    found.differences += [
        f"{FILE}: {key} is {told.get(key)}; expected {expected} as in the ledger"
        for key, expected in promised.items()
        if told.get(key) != expected
    ]


def _check_parent(parent: Parent, found: Found) -> None:
    """The ledger of the run that a branch left, where it is at hand, has the line that the branch names."""
    path = Path(parent.run) / ledger.FILE
    if not manifest.is_file(path):
        found.not_checked.append(f"parent {parent.run}: not at hand")
    elif parent.ledger not in {hashlib.sha256(line).hexdigest() for line in path.read_bytes().split(b"\n")}:
        found.differences.append(f"parent {parent.run}: its ledger has no line of sha256 {parent.ledger}")


def _check_shards(run: Path, told: dict[str, Any], found: Found) -> None:
    """The shards that the run was trained on, where they were or beside the run."""
    path, promised = Path(told["shards"]["path"]), told["shards"]["digest"]
    for place in (path, run.resolve().parent / path.name):
        try:
            digest = manifest.digest_at(place, "shards")
        except (MobillamaError, OSError) as error:
            found.differences.append(f"shards {place}: {error}")
            return
        if digest is not None:
            if digest != promised:
                found.differences.append(f"shards {place}: found digest {digest}; expected {promised} as in {FILE}")
            return
    found.not_checked.append(f"shards {path.name} (digest {promised}): not at hand")


def _check_code(run: Path, found: Found) -> None:
    """The lists of files of the codes that trained the run: each has the digest that it is named by."""
    for path in sorted((run / "code").glob("*.json")):
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                raise ValueError("it is no regular file")
            digest = hashlib.sha256(manifest.canonical(strict_json.parse(path.read_bytes()))).hexdigest()
        except (OSError, ValueError) as error:
            digest = f"none ({error})"
        if digest != path.stem:
            found.differences.append(f"code/{path.name}: found digest {digest}; expected {path.stem}, its name")


def _parts(run: Path, part: str, found: Found) -> Iterator[Path]:
    """The artefacts in a folder of a run, without what a kill left; a checkpoint that was set aside is told of."""
    for path in sorted((run / part).iterdir()) if (run / part).is_dir() else ():
        if path.name.endswith((".partial", ".removed")):
            continue
        if part == "checkpoints" and path.name.endswith(".damaged"):
            found.not_checked.append(f"{part}/{path.name}: set aside as damaged, and not used since")
        elif path.is_symlink() or not path.is_dir():
            found.differences.append(f"{part}/{path.name}: expected a folder; a run holds its artefacts itself")
        else:
            yield path


def _sealed(run: Path, folder: Path, kind: str, told: dict[str, Any], found: Found) -> manifest.Manifest | None:
    """The manifest of a part of a run, checked with its lineage; None if its files are not as promised."""
    name = folder.relative_to(run).as_posix()
    try:
        sealed = manifest.read(folder, kind)
        strict_json.require(sealed.counts, {"step": int})
        changed = manifest.verified(folder, sealed)
        wrong = [*changed, *manifest.lineage(folder, run, run.resolve().parent)[0]]
    except (MobillamaError, OSError, ValueError) as error:
        found.differences.append(f"{name}: {error}")
        return None
    promised = told["shards"]["digest"]
    made_from = [entry["digest"] for entry in sealed.made_from if entry["kind"] == "shards"]
    wrong += [f"made from shards {each}; expected {promised} as in {FILE}" for each in made_from if each != promised]
    found.differences += [f"{name}/{text}" for text in wrong]
    return None if changed else sealed


def _reaches(name: str, step: int, lines: list[Line], found: Found) -> bool:
    """Whether the ledger goes as far as a part of the run."""
    if lines and (last := max(line.step for line in lines)) < step:
        found.differences.append(f"{name} is of step {step}; the ledger ends at step {last}: lines were lost")
    return bool(lines) and last >= step


def _check_checkpoint(run: Path, folder: Path, lines: list[Line], told: dict[str, Any], found: Found) -> None:
    """A checkpoint: its name, files and tensors, and its digests against the ledger's lines of its step."""
    name = f"checkpoints/{folder.name}"
    if (sealed := _sealed(run, folder, "checkpoint", told, found)) is None:
        return
    step, form = sealed.counts["step"], sealed.counts.get("form", 1)
    if folder.name != f"step_{step:06d}":
        found.differences.append(f"{name}: it is of step {step}; expected the name step_{step:06d}")
    if type(form) is not int or not 1 <= form <= FORM:
        found.differences.append(f"{name}: found version {form}; this mobillama reads 1 to {FORM}: install a newer one")
        return
    if form > 1:
        found.differences += [f"{name}: {text}" for text in _wrong_digests(folder, sealed)]
    if not _reaches(name, step, lines, found):
        return
    told_of = [line for line in lines if line.kind == "checkpoint"]
    said = [line for line in told_of if line.step == step and line.result.get("form", 1) == form]
    if not said:
        text = f"{name}: the ledger has no 'checkpoint' line of step {step}"
        if any(line.step >= step for line in told_of):
            found.differences.append(f"{text}, but one of a later step")
        else:  # a kill may have kept it from being written
            found.not_checked.append(text)
    elif form == 1:
        _check_files(name, sealed, said, FIRST_FORM, found)
    else:
        made = {part: sealed.counts.get(part) for part in digest.PARTS} | {"manifest": sealed.digest()}
        promised = [{**line.circumstance, **line.result} for line in said]
        for part, value in made.items():
            if value not in [each.get(part) for each in promised]:
                words = "root digest" if part == "manifest" else f"digest of {part}"
                expected = promised[-1].get(part)
                found.differences.append(f"{name}: {words} {value}; expected {expected} as in the ledger")


def _check_files(name: str, sealed: manifest.Manifest, said: list[Line], files: dict[str, str], found: Found) -> None:
    """Files whose sha256 one of some lines must give."""
    for key, file in files.items():
        sha256 = sealed.files.get(file, {}).get("sha256")
        if sha256 not in [line.result[key] for line in said]:
            found.differences.append(
                f"{name}/{file}: sha256 {sha256}; expected {said[-1].result[key]} as in the ledger"
            )


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


def _check_published(run: Path, folder: Path, standing: Standing, told: dict[str, Any], found: Found) -> None:
    """A published model: its name and files, the ledger's line of it, and its weights against its checkpoint."""
    name = f"published/{folder.name}"
    if (sealed := _sealed(run, folder, "model", told, found)) is None:
        return
    step, number = sealed.counts["step"], sealed.counts.get("published")
    if type(number) is not int or folder.name != f"ckpt_{number:03d}":
        found.differences.append(f"{name}: it is number {number}; expected the name ckpt_ and that number")
    elif (line := standing.published.get(number)) is None:
        found.not_checked.append(f"{name}: no 'published' line of the ledger counts; its weights alone are promised")
    elif (line.step, line.circumstance.get("manifest")) != (step, sealed.digest()):
        expected = f"step {line.step}, {line.circumstance.get('manifest')}"
        found.differences.append(f"{name}: step {step}, root digest {sealed.digest()}; expected {expected}")
    checkpoint = run / "checkpoints" / f"step_{step:06d}"
    try:
        if (root := manifest.digest_at(checkpoint, "checkpoint")) is None:
            found.not_checked.append(f"{name}: its checkpoint {checkpoint.name} is not at hand")
            return
        sources = [entry["digest"] for entry in sealed.made_from if entry["kind"] == "checkpoint"]
        if sources != [root]:
            found.differences.append(f"{name}: made from checkpoint {sources}; {checkpoint.name} is {root}")
            return
        promised = [text for key, text in digest.read_digests(checkpoint).items() if key.startswith("model.")]
        there = [tensor.digest() for tensor in digest.stored_tensors(folder).values()]
    except (MobillamaError, OSError) as error:
        found.differences.append(f"{name}: {error}")
        return
    if sorted(promised) != sorted(there):
        found.differences.append(f"{name}: its weights are not those of {checkpoint.name}")


def _check_model(run: Path, lines: list[Line], standing: Standing, told: dict[str, Any], found: Found) -> None:
    """The final model: its files, its weights by the `end` lines of its step, all of it by the last."""
    if (sealed := _sealed(run, run / "model", "model", told, found)) is None:
        return
    step = sealed.counts["step"]
    if not _reaches("model", step, lines, found):
        return
    said = [line for line in lines if line.kind == "end" and line.step == step]
    if standing.end and standing.end.step != step:
        found.differences.append(
            f"model: it is of step {step}; by the ledger the run ended at step {standing.end.step}"
        )
    elif not said:
        found.not_checked.append(f"model: the ledger has no 'end' line of step {step}")
    if not said:
        return
    _check_files("model", sealed, said, LAST, found)
    if standing.end is None:
        found.not_checked.append("model: the run went on after its 'end' line, which promises its weights alone")
    elif (root := standing.end.circumstance.get("manifest")) is None:
        found.not_checked.append("model: an older version wrote the 'end' line, which promises its weights alone")
    elif root != sealed.digest():
        found.differences.append(f"model: root digest {sealed.digest()}; expected {root} as in the ledger")


def _check_kept(run: Path, standing: Standing, there: dict[str, set[str]], found: Found) -> None:
    """What the ledger says that the run keeps: each of it is there."""
    kept = standing.saved | {line.step for line in standing.published.values()}
    for step in sorted(kept):
        name = f"step_{step:06d}"
        if name not in there["checkpoints"] and not (run / "checkpoints" / f"{name}.damaged").exists():
            found.differences.append(f"checkpoints/{name}: missing; by the ledger the run keeps it")
    for number in sorted(standing.published):
        if (name := f"ckpt_{number:03d}") not in there["published"]:
            found.differences.append(f"published/{name}: missing; by the ledger the run keeps it")
    if standing.end and not (run / "model").is_dir():
        found.differences.append("model: missing; by the ledger the run has ended, and keeps it")
