"""Artefact folders: written whole or not at all, hashed, and tied to what they were made from.

A folder under construction is called `<name>.partial`; sealing it writes `manifest.json`, syncs everything to disk and
renames it. `manifest.json` names every file with its size and sha256, the digests of the artefacts it was made from,
the resolved recipe and counts; `circumstance` (time, host, versions) is kept outside the digest, so that the same
inputs give the same digest on any machine. Format: docs/formats.md.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mobillama
from mobillama import strict_json
from mobillama.errors import WRITING, DamagedFileError, InputError, MobillamaError, naming

FORMAT_VERSION = 1
FILE = "manifest.json"
TYPES = {"kind": str, "made_from": list, "recipe": dict, "counts": dict, "files": dict, "circumstance": dict}
BARRED = re.compile(r"[\x00-\x1f\\]")  # in a name of a file
LOCK_SECONDS = 1.0


@dataclass(frozen=True)
class Manifest:
    """What one artefact folder is, what it was made from and which bytes it holds."""

    kind: str
    files: dict[str, dict[str, Any]]  # relative path -> {"bytes": int, "sha256": hex}
    made_from: list[dict[str, str]] = field(default_factory=list)  # {"kind", "digest", "name"}
    recipe: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    circumstance: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def digest(self) -> str:
        """sha256 (hex) of the canonical JSON of all but the circumstance: the identity of the artefact."""
        return hashlib.sha256(canonical(self.tree(circumstance=False))).hexdigest()

    def tree(self, *, circumstance: bool = True) -> dict[str, Any]:
        """The manifest as plain JSON types."""
        tree = {
            "format": "mobillama.manifest",
            "format_version": self.format_version,
            "kind": self.kind,
            "made_from": self.made_from,
            "recipe": self.recipe,
            "counts": self.counts,
            "files": self.files,
        }
        return {**tree, "circumstance": self.circumstance} if circumstance else tree


def canonical(tree: Any) -> bytes:
    """JSON with sorted keys and no spaces, UTF-8: the form that is hashed."""
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sha256_file(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_object(path: Path, remedy: str = "restore it") -> dict[str, Any]:
    """The JSON object in a file. Error: DamagedFileError naming the file, what is wrong, and the remedy."""
    try:
        tree = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # bytes that are no text among the ValueErrors
        raise DamagedFileError(f"{path} is not valid JSON ({error}); {remedy}") from None
    if not isinstance(tree, dict):
        raise DamagedFileError(f"{path} holds a {type(tree).__name__}; expected one JSON object: {remedy}")
    return tree


def partial_path(out: Path) -> Path:
    """The folder in which `out` is built before it is sealed; it survives a kill, so that work can go on."""
    return out.with_name(out.name + ".partial")


@contextlib.contextmanager
def building(out: Path) -> Iterator[Path]:
    """Hold the right to build `out` and give the folder to build it in (kept if the block fails or is killed).

    Errors: InputError if `out` is there already, or if another process is building it.
    """
    if out.exists():
        raise InputError(f"{out} exists already; choose another --out or remove it")
    partial = partial_path(out)
    partial.mkdir(parents=True, exist_ok=True)
    with locked(partial, f"{out} is being built by another process; wait for it"), naming(partial, WRITING):
        yield partial


@contextlib.contextmanager
def locked(folder: Path, busy: str) -> Iterator[None]:
    """Hold an exclusive lock on a folder; the kernel frees it if the process dies. Error: InputError(busy).

    Waits a moment first: the workers of a process that was killed may need one to end.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                raise InputError(busy) from None
            time.sleep(0.02)
    try:
        yield
    finally:
        os.close(descriptor)


def seal(
    partial: Path,
    out: Path,
    kind: str,
    *,
    made_from: Sequence[Mapping[str, str]] = (),
    recipe: Mapping[str, Any] | None = None,
    counts: Mapping[str, Any] | None = None,
    circumstance: Mapping[str, Any] | None = None,
) -> Manifest:
    """Hash every file under `partial`, write its manifest, sync, and rename it to `out`."""
    files = {}
    for path in sorted(p for p in partial.rglob("*") if p.is_file() and p != partial / FILE):
        files[path.relative_to(partial).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        sync(path)
    manifest = Manifest(
        kind=kind,
        files=files,
        made_from=[dict(origin) for origin in made_from],
        recipe=dict(recipe or {}),
        counts=dict(counts or {}),
        circumstance={**here(), **(circumstance or {})},
    )
    write_file(partial / FILE, json.dumps(manifest.tree(), indent=1, ensure_ascii=False).encode() + b"\n")
    for folder in [*(p for p in partial.rglob("*") if p.is_dir()), partial]:
        sync(folder)
    partial.rename(out)
    sync(out.parent)
    return manifest


def read(folder: Path, kind: str | None = None) -> Manifest:
    """Read a folder's manifest. Errors: InputError if it has none or is of another kind or a newer format."""
    path = folder / FILE
    if not is_file(path):
        unfinished = f"; {partial_path(folder)} is an unfinished build" if partial_path(folder).is_dir() else ""
        raise InputError(f"{folder} has no {FILE}, so it is not an artefact of mobillama{unfinished}")
    try:
        tree = strict_json.require(strict_json.parse(path.read_bytes()), {"format": str, "format_version": int})
        version = tree.pop("format_version")
        if tree.pop("format") != "mobillama.manifest" or version < 1:
            raise ValueError(f"it is not of format 'mobillama.manifest', version 1 to {FORMAT_VERSION}")
        if version > FORMAT_VERSION:
            raise InputError(
                f"{path} has format version {version}; this mobillama reads up to {FORMAT_VERSION}: install a newer one"
            )
        found = Manifest(**_checked(tree), format_version=version)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise DamagedFileError(f"{path} is not a manifest ({error}); restore it or build the artefact again") from None
    if kind is not None and found.kind != kind:
        raise InputError(f"{folder} is an artefact of kind {found.kind!r}; expected {kind!r}")
    return found


def _checked(tree: dict[str, Any]) -> dict[str, Any]:
    """The keys of a manifest beside its format. Error: ValueError for one that is not as docs/formats.md says."""
    strict_json.require(tree, TYPES)
    if other := sorted(tree.keys() - TYPES.keys()):
        raise ValueError(f"the key {other[0]!r} is not known")
    for entry in tree["made_from"]:
        strict_json.require(entry, {"kind": str, "name": str, "digest": str})
    for name, entry in tree["files"].items():
        strict_json.require(entry, {"bytes": int, "sha256": str})
        if not is_inside(name):
            raise ValueError(f"it names {name!r:.80}; expected names of files inside its folder")
    return tree


def is_inside(name: str) -> bool:
    """Whether a name is one of something inside a folder, whatever the system: no `..`, no `/` at its beginning.

    >>> [name for name in ("a/b.json", "", "/a", "../a", "a//b", "a/./b", "a" + chr(92) + "b") if is_inside(name)]
    ['a/b.json']
    """
    return not BARRED.search(name) and not {"", ".", ".."} & set(name.split("/"))


def origin(folder: Path, manifest: Manifest | None = None) -> dict[str, str]:
    """The entry that names the artefact at `folder` in another's `made_from`."""
    manifest = manifest or read(folder)
    return {"kind": manifest.kind, "name": folder.name, "digest": manifest.digest()}


def differences(folder: Path) -> list[str]:
    """Every way in which the bytes under `folder` are not those its manifest names; empty = all as promised.

    What readers ask: a file may be a link to one elsewhere. `verified` is stricter.
    """
    return [text for name, promised in read(folder).files.items() if (text := _difference(folder, name, promised))]


def _difference(folder: Path, name: str, promised: Mapping[str, Any]) -> str | None:
    path = folder / name
    if not is_file(path):
        return f"{name}: missing; expected {promised['bytes']} bytes, sha256 {promised['sha256']}"
    if (size := path.stat().st_size) != promised["bytes"]:
        return f"{name}: found {size} bytes; expected {promised['bytes']}"
    if (digest := sha256_file(path)) != promised["sha256"]:
        return f"{name}: found sha256 {digest}; expected {promised['sha256']}"
    return None


def extra_files(folder: Path) -> list[str]:
    """Files under `folder` that its manifest does not name, in the words of `differences`."""
    return _extra(entries(folder), read(folder))


def _extra(there: Iterable[str], found: Manifest) -> list[str]:
    return [f"{name}: not in the manifest; expected no such file" for name in there if name not in {*found.files, FILE}]


def verified(folder: Path, found: Manifest | None = None) -> list[str]:
    """`differences` and `extra_files` of an artefact, and everything under it that is not a regular file or a folder.

    A link is never followed, a pipe or a device never opened.
    """
    found, there = found or read(folder), entries(folder)
    wrong = [f"{name}: a link, pipe or device; expected a regular file" for name in there if not there[name]]
    for name, promised in found.files.items():
        if there.get(name, True) and (text := _difference(folder, name, promised)):
            wrong.append(text)
    return wrong + _extra([name for name in there if there[name]], found)


def entries(folder: Path) -> dict[str, bool]:
    """All that lies under a folder but the folders themselves: relative name -> whether it is a regular file.

    Of a name that is no text, the odd bytes are spelled out.
    """
    there = {}
    for above, folders, files in os.walk(folder):  # os.walk enters no link
        for path in (Path(above, name) for name in [*folders, *files]):
            mode = path.lstat().st_mode
            if not stat.S_ISDIR(mode):
                name = path.relative_to(folder).as_posix().encode(errors="backslashreplace").decode()
                there[name] = stat.S_ISREG(mode)
    return dict(sorted(there.items()))


def is_file(path: Path) -> bool:
    """As Path.is_file; a name that no file can have, or a folder that may not be entered, holds none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def lineage(folder: Path, *beside: Path) -> tuple[list[str], list[str]]:
    """What an artefact was made from against what is at hand: differences, and what was not there to be checked.

    An origin is looked for by its name inside the folder (but source files), then beside it, then in the folders
    `beside`; the first found is compared by digest (docs/formats.md, Checking).
    """
    wrong, not_checked = [], []
    places = (folder, folder.resolve().parent, *beside)
    for entry in read(folder).made_from:
        kind, name, promised = entry["kind"], entry["name"], entry["digest"]
        around = places[1:] if kind == "source file" else places  # what is inside was not read to make it
        paths = [place / name for place in around] if is_inside(name) else []
        try:
            found = next(
                ((path, digest) for path in paths if not _same(path, folder) and (digest := digest_at(path, kind))),
                None,
            )
        except (MobillamaError, OSError) as error:
            wrong.append(f"{kind} {name}: {error}")
            continue
        if found is None:
            not_checked.append(f"{kind} {name} (digest {promised}): not at hand")
        elif found[1] != promised:
            wrong.append(f"{kind} {name}: found digest {found[1]} at {found[0]}; expected {promised}")
    return wrong, not_checked


def digest_at(path: Path, kind: str) -> str | None:
    """The digest by which `made_from` names what lies at `path`; None if no origin of this kind lies there.

    Of a source file the sha256 of its bytes, of a tokenizer that of its tokenizer.json, else the root digest.
    """
    if kind in ("source file", "tokenizer"):
        file = path / "tokenizer.json" if kind == "tokenizer" else path
        return sha256_file(file) if is_file(file) else None
    return read(path).digest() if is_file(path / FILE) else None


def _same(path: Path, folder: Path) -> bool:
    try:
        return path.samefile(folder)
    except OSError:  # nothing is there, or nothing can be
        return False


def check(folder: Path) -> None:
    """Raise DamagedFileError naming the first files that differ from the manifest."""
    if found := differences(folder):
        raise DamagedFileError(f"{folder} is damaged: {'; '.join(found[:3])}. Restore the files or build it again")


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: beside it, synced, renamed over it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path), beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Force a file's or folder's bytes to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(folder: Path) -> None:
    """Remove an artefact folder so that a kill in the middle never leaves something that looks whole."""
    if folder.exists():
        doomed = folder.with_name(f".{folder.name}.removed")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed)


def here() -> dict[str, Any]:
    """Time, host and versions: the circumstance of an artefact."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": platform.node(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "mobillama": mobillama.__version__,
    }
