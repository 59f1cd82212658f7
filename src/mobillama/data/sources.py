"""Which files a data recipe reads, in which order, and how they are shared out to tasks.

Tasks are fixed by the input alone: one per file of JSON lines or Parquet, and runs of about `TASK_BYTES` of the files
of a folder. Their order is the order of documents everywhere after.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mobillama import manifest
from mobillama.config import SourceConfig, external_folder
from mobillama.errors import InputError

TASK_BYTES = 16 << 20
MOST_SUBSETS = 256  # a row of the shards names its source in one byte
JSONL = (".jsonl", ".jsonl.gz", ".jsonl.zst")
PARQUET = (".parquet",)
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "pydoc_data", "site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True)
class Task:
    """Files that one task reads in order: all of one subset. `names` are the paths as a document's locator has them.

    `how` is jsonl, parquet, file (one document a file), reference or packages; `url` and `license` are the defaults of
    documents that bring none, and `url` is followed by the name where it ends in a slash.
    """

    subset: str
    how: str
    paths: tuple[Path, ...]
    names: tuple[str, ...]
    url: str = ""
    license: str = ""
    max_bytes: int = 0


def list_tasks(source: SourceConfig) -> list[Task]:
    """The tasks of a source, in order. Errors: InputError for a folder without files or a subset that is not there."""
    if source.kind == "python-installation":
        tasks = _installation(source)
    else:
        root = external_folder("source.root", source.root, "MOBILLAMA_CORPORA")
        tasks = _folder(source, root) if source.kind == "folder" else _record_files(source, root)
    if not tasks:
        raise InputError(f"source of kind {source.kind!r} has no files to read; check source.root and source.subsets")
    if len(subsets := {task.subset for task in tasks}) > MOST_SUBSETS:
        raise InputError(
            f"the source has {len(subsets)} subsets; shards can name {MOST_SUBSETS}: choose some with source.subsets "
            "or put the files of several into one folder"
        )
    return _whole_subsets(tasks, source.max_bytes) if source.max_bytes else tasks


def describe(tasks: Iterable[Task]) -> list[dict[str, str]]:
    """The inputs as entries of a manifest's `made_from`: files of records by their sha256."""
    return [
        {"kind": "source file", "name": name, "digest": manifest.sha256_file(path)}
        for task in tasks
        if task.how in ("jsonl", "parquet")
        for path, name in zip(task.paths, task.names, strict=True)
    ]


def state(tasks: Iterable[Task]) -> list[list[object]]:
    """Name, size and time of change of every input: what must not change between a broken build and the next."""
    found: list[list[object]] = []
    for task in tasks:
        for path, name in zip(task.paths, task.names, strict=True):
            status = path.stat()
            found.append([task.subset, task.how, name, status.st_size, status.st_mtime_ns])
    return found


def _record_files(source: SourceConfig, root: Path) -> list[Task]:
    """Files `<subset>.jsonl` (.gz, .zst) or `<subset>.parquet`, or all such files under a folder `<subset>/`."""
    suffixes = JSONL if source.kind == "jsonl" else PARQUET
    if root.is_file():
        return [Task(_stem(root, suffixes), source.kind, (root,), (root.name,))]
    found: dict[str, list[Path]] = {}
    for path in sorted(root.iterdir()):
        if path.is_dir():
            if inner := sorted(file for file in path.rglob("*") if file.name.endswith(suffixes)):
                found.setdefault(path.name, []).extend(inner)
        elif path.name.endswith(suffixes):
            found.setdefault(_stem(path, suffixes), []).append(path)
    return [
        Task(subset, source.kind, (path,), (path.relative_to(root).as_posix(),))
        for subset in _chosen(source, found, root, f"files that end in {', '.join(suffixes)}")
        for path in found[subset]
    ]


def _folder(source: SourceConfig, root: Path) -> list[Task]:
    """Every file that is not hidden: one document each. Sub-folders of `root` are the subsets."""
    found: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root)
        if path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in inside.parts):
            found.setdefault(inside.parts[0] if len(inside.parts) > 1 else root.name, []).append(path)
    return [
        task for subset in _chosen(source, found, root, "files") for task in _runs(subset, root, found[subset], "", "")
    ]


def _installation(source: SourceConfig) -> list[Task]:
    """This Python: its library's source, its language reference, what the installed packages say of themselves, and
    the source of those packages. The four subsets: stdlib, reference, packages, libraries.
    """
    version, licence = platform.python_version(), "PSF-2.0"
    library, site = (Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib"))
    subsets = ("stdlib", "reference", "packages", "libraries")
    found: dict[str, list[Task]] = {subset: [] for subset in subsets}
    for subset in _chosen(source, found, Path("python-installation"), "text"):
        if subset == "stdlib":
            url = f"https://github.com/python/cpython/blob/v{version}/Lib/"
            found[subset] = _runs(subset, library, _python_files(library, source.max_bytes), url, licence)
        elif subset == "reference":
            url = f"https://docs.python.org/{version}/reference/"
            found[subset] = [Task(subset, "reference", (), (), url, licence)]
        elif subset == "packages":
            found[subset] = [Task(subset, "packages", (), (), "pkg:pypi/", "")]
        else:
            found[subset] = _runs(subset, site, _python_files(site, source.max_bytes), "", "LicenseRef-see-package")
    return [task for subset in source.subsets or subsets for task in found[subset]]


def installed_distributions() -> list[importlib.metadata.Distribution]:
    """Installed packages by name, without this one (its description changes with every commit)."""
    found = {dist.metadata["Name"]: dist for dist in importlib.metadata.distributions() if dist.metadata["Name"]}
    return [found[name] for name in sorted(found, key=str.lower) if name != "mobillama"]


def _python_files(root: Path, max_bytes: int) -> list[Path]:
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


def _chosen(source: SourceConfig, found: Iterable[str], root: Path, what: str) -> list[str]:
    """The subsets to read: those the recipe names, in its order, else all there are."""
    there = list(found)
    for subset in source.subsets:
        if subset not in there:
            raise InputError(
                f"source.subsets names {subset!r}, but {root} has {what} for {', '.join(there) or 'no subset'}; "
                "correct source.subsets or source.root"
            )
    return list(source.subsets) or there


def _runs(subset: str, root: Path, paths: list[Path], url: str, licence: str) -> list[Task]:
    """Files cut into runs of about TASK_BYTES."""
    runs: list[list[Path]] = []
    size = TASK_BYTES
    for path in paths:
        if size >= TASK_BYTES:
            runs.append([])
            size = 0
        runs[-1].append(path)
        size += path.stat().st_size
    names = [tuple(path.relative_to(root).as_posix() for path in run) for run in runs]
    return [Task(subset, "file", tuple(run), name, url, licence) for run, name in zip(runs, names, strict=True)]


def _whole_subsets(tasks: list[Task], max_bytes: int) -> list[Task]:
    """One task a subset, so that it can stop after `max_bytes`."""
    merged: dict[str, Task] = {}
    for task in tasks:
        first = merged.get(task.subset)
        paths, names = (first.paths, first.names) if first else ((), ())
        merged[task.subset] = Task(
            task.subset, task.how, paths + task.paths, names + task.names, task.url, task.license, max_bytes
        )
    return list(merged.values())


def _stem(path: Path, suffixes: tuple[str, ...]) -> str:
    return next(path.name.removesuffix(suffix) for suffix in suffixes if path.name.endswith(suffix))
