"""Which files a data recipe reads, in which order, and how they are shared out to tasks.

Tasks are fixed by the input alone: one per file of records, and runs of about `TASK_BYTES` of small files. Their order
is the order of documents everywhere after. A subset comes from its own source where the recipe gives it one
(`subset.NAME.source`), else from the recipe's; files lie on this machine or behind an address.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import importlib.metadata
import json
import os
import platform
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import NoReturn

from mobillama import manifest
from mobillama.config import DataRecipe, SourceConfig, external_folder
from mobillama.data import remote
from mobillama.data.compressed import DAMAGE, opened, printable
from mobillama.data.installation import python_files
from mobillama.data.remote import RemoteFile, is_remote, local_path
from mobillama.errors import InputError

TASK_BYTES = 16 << 20
MOST_SUBSETS = 256  # a row of the shards names its source in one byte
PACKED = ("", ".gz", ".zst", ".bz2", ".xz")
# What files of a kind are called, in capitals or not.
SUFFIXES: dict[str, tuple[str, ...]] = {
    "jsonl": tuple(name + packed for name in (".jsonl", ".ndjson", ".json") for packed in PACKED),
    "parquet": (".parquet",),
    "warc": tuple(name + packed for name in (".warc", ".wet") for packed in PACKED),
    "latex": (*(name + packed for name in (".tar", ".tex") for packed in PACKED), ".tgz", ".gz"),
    "stackexchange": tuple("posts.xml" + packed for packed in PACKED),
}
# A .json file is lines of records, or something else (a description, one large array): what its first lines say.
SNIFFED_LINES, SNIFFED_BYTES = 20, 1 << 20
# The text of a web page depends on the version of what extracts it.
EXTRACTOR = {"warc": f" {importlib.metadata.version('trafilatura')}"} if find_spec("trafilatura") else {}
# Kinds whose documents are named by their sub-folders alone and read many files a task.
SMALL_FILES = ("file", "latex")
# What a source of a kind takes no notice of, so that giving it is an error.
FIELDS = ("text_field", "id_field", "url_field", "license_field")
UNUSED: dict[str, tuple[str, ...]] = {
    "python-installation": ("root", "files", "url_list", "subset", *FIELDS, "license", "encoding"),
    "folder": ("url_list", *FIELDS),
    "warc": (*FIELDS, "encoding"),
    "latex": (*FIELDS, "encoding"),
    "stackexchange": (*FIELDS, "license", "encoding"),
}

File = Path | RemoteFile
Unread = dict[str, dict[str, int]]  # what lies there and is not read: suffix -> {"files", "bytes"}


DEFAULT_SOURCE = SourceConfig()


@dataclass(frozen=True)
class Task:
    """Files that one task reads in order: all of one subset. `names` are the paths as a document's locator has them.

    `how` is jsonl, parquet, warc, latex, stackexchange, file (one document a file), reference or packages; `url` and
    `license` are the defaults of documents that bring none, and `url` is followed by the name where it ends in a slash.
    `stamps` are size and time of change (or tag) of the files when listed, `source` tells how records are read.
    """

    subset: str
    how: str
    paths: tuple[File, ...]
    names: tuple[str, ...]
    url: str = ""
    license: str = ""
    max_bytes: int = 0
    stamps: tuple[str, ...] = ()
    source: SourceConfig = DEFAULT_SOURCE


def recipe_tasks(recipe: DataRecipe, unread: Unread | None = None) -> list[Task]:
    """The tasks of a recipe, in order: the subsets of `source.subsets`, else all of the recipe's source; then those
    with sources of their own that were not named, by name.

    A recipe whose subsets have sources and whose [source] is left out reads those alone. Files below a source's root
    that are none of its kind are counted in `unread`. Errors: InputError for a source without files, a subset that is
    not there or more subsets than shards can name.
    """
    own = {name: subset.source for name, subset in recipe.subset.items() if subset.source is not None}
    named = recipe.source.subsets
    tasks: list[Task] = []
    if not named and (not own or recipe.source != SourceConfig()):
        tasks += [task for task in list_tasks(recipe.source, unread) if task.subset not in own]
    shared = tuple(name for name in named if name not in own)
    common = list_tasks(recipe.source.model_copy(update={"subsets": shared}), unread) if shared else []
    for name in [*named, *sorted(own.keys() - set(named))]:
        mine = subset_tasks(name, own[name], unread) if name in own else common
        tasks += [task for task in mine if task.subset == name]
    return _checked(tasks)


def describe_unread(unread: Unread) -> str:
    """What was not read, in words; "" if all was."""
    files = sum(counts["files"] for counts in unread.values())
    kinds = ", ".join(f"{suffix} {counts['files']:,}" for suffix, counts in sorted(unread.items()))
    size = sum(counts["bytes"] for counts in unread.values())
    return f"not read, being of another kind: {files:,} files, {size:,} bytes ({kinds})" if files else ""


def list_tasks(source: SourceConfig, unread: Unread | None = None) -> list[Task]:
    """The tasks of a source, in order. Errors: InputError for a folder without files or a subset that is not there."""
    tasks = _checked(_list(source, unread={} if unread is None else unread))
    return _whole_subsets(tasks, source.max_bytes) if source.max_bytes else tasks


def subset_tasks(name: str, source: SourceConfig, unread: Unread | None = None) -> list[Task]:
    """The tasks of a source that is all of subset `name`, whatever its files are called."""
    try:
        listed = _list(source, "" if source.subsets else name, unread={} if unread is None else unread)
        tasks = [dataclasses.replace(task, subset=name) for task in listed]
    except InputError as error:
        raise InputError(f"subset {name}: {error}") from None
    if not tasks:
        raise InputError(f"subset {name} has no files to read; check subset.{name}.source")
    return _whole_subsets(tasks, source.max_bytes) if source.max_bytes else tasks


def describe(tasks: Sequence[Task], digests: Path | None = None) -> list[dict[str, str]]:
    """The inputs as entries of a manifest's `made_from`: files of records by their sha256.

    Files of this machine are hashed now; those behind addresses were hashed while they were read, into folder `digests`
    (`<task>.json`). One that `max_bytes` left unread is named by its size and tag. Error: InputError if a file is not
    what it was when it was listed.
    """
    entries = []
    for number, task in enumerate(tasks):
        told = digests / f"{number:05d}.json" if digests else None
        known: dict[str, str] = json.loads(told.read_text()) if told and told.is_file() else {}
        for path, name, stamp in zip(task.paths, task.names, task.stamps, strict=True):
            if isinstance(path, RemoteFile):
                kind = "source file" if name in known else "unread source file"
                digest = known.get(name) or hashlib.sha256(manifest.canonical([str(path), stamp])).hexdigest()
                entries.append({"kind": kind, "name": name, "digest": digest})
                continue
            if (now := _stamp(path)) != stamp:
                raise InputError(
                    f"{path} changed while it was read (size:time {stamp}, now {now}); run the same command again: it "
                    "begins anew"
                )
            if task.how in SUFFIXES:
                entries.append({"kind": "source file", "name": name, "digest": manifest.sha256_file(path)})
    return entries


def state(tasks: Iterable[Task]) -> list[list[object]]:
    """Name, size and time of change of every input: what must not change between a broken build and the next."""
    return [
        [task.subset, task.how + EXTRACTOR.get(task.how, ""), name, stamp]
        for task in tasks
        for name, stamp in zip(task.names, task.stamps, strict=True)
    ]


def _list(source: SourceConfig, only: str = "", *, unread: Unread) -> list[Task]:
    """The tasks of a source before `max_bytes`; all of subset `only`, where that is given."""
    for field in UNUSED.get(source.kind, ()):
        if getattr(source, field) != SourceConfig.model_fields[field].default:
            raise InputError(f"source.{field} means nothing to a source of kind {source.kind!r}; leave it out")
    if source.kind == "python-installation":
        return _installation(source)
    only = only or source.subset
    files, root = _listed(source, unread)
    return (_folder if source.kind == "folder" else _record_files)(source, files, root, only, unread)


def _checked(tasks: list[Task]) -> list[Task]:
    if not tasks:
        raise InputError("the source has no files to read; check source.kind, source.root and source.subsets")
    if len(subsets := {task.subset for task in tasks}) > MOST_SUBSETS:
        raise InputError(
            f"the source has {len(subsets)} subsets; shards can name {MOST_SUBSETS}: each file or sub-folder is one; "
            "make all files one subset with source.subset=NAME, choose some with source.subsets, or put the files of "
            "several into one folder"
        )
    return tasks


def _listed(source: SourceConfig, unread: Unread) -> tuple[list[tuple[File, str]], str]:
    """Every file of a source with its name, in the order of the names (of the list, for a list); and its root."""
    if source.url_list:
        return _url_list(source), source.url_list
    files: list[tuple[File, str]] = []
    if is_remote(source.root):
        root = source.root
        files = [(file, name) for file, name in remote.list_files(root)]
    else:
        folder = external_folder("source.root", local_path(source.root), "MOBILLAMA_CORPORA").absolute()
        root = str(folder)
        if folder.is_file():
            files = [(folder, printable(folder.name))]
        else:
            below = _files_below(folder, unread)
            files = [(path, printable(path.relative_to(folder).as_posix())) for path in below]
    if source.files:
        matched = [pair for pair in files if any(_matches(pair[1], pattern) for pattern in source.files)]
        if not matched:
            raise InputError(f"no file below {root} matches {', '.join(source.files)}; correct source.files")
        return matched, root
    return files, root


def _files_below(folder: Path, unread: Unread) -> list[Path]:
    """All files in the order of their paths; links to folders are followed where they stand at the top.

    Other links to folders, links to nothing, pipes and devices are counted in `unread`. Error: InputError for a folder
    that cannot be listed.
    """
    found: list[Path] = []
    below = [Path(entry) for entry in _scan(folder)]
    for top in below:
        if not top.is_dir():
            found.append(top)
            continue
        for where, folders, names in os.walk(top, onerror=_not_listed):
            found += [Path(where, name) for name in names]
            found += [link for name in folders if (link := Path(where, name)).is_symlink()]
    files = [path for path in found if path.is_file()]
    for path in found if len(files) < len(found) else ():
        if not path.is_file():
            _note(unread, "(no file)", 0)
    return sorted(files)


def _scan(folder: Path) -> list[str]:
    try:
        return [entry.path for entry in os.scandir(folder)]
    except OSError as error:
        return _not_listed(error)


def _not_listed(error: OSError) -> NoReturn:
    raise InputError(f"{printable(error.filename)} cannot be listed ({error.strerror}); mend that and go on") from None


def _note(unread: Unread, suffix: str, size: int) -> None:
    """Count one file that is not read."""
    counts = unread.setdefault(suffix, {"files": 0, "bytes": 0})
    counts["files"] += 1
    counts["bytes"] += size


def _note_file(unread: Unread, file: File, name: str) -> None:
    last = PurePosixPath(name.lower())
    packed = last.suffix if last.suffix in PACKED else ""
    suffix = (last.with_suffix("").suffix if packed else last.suffix) + packed
    _note(unread, suffix or "(no suffix)", int(_stamp(file).partition(":")[0]))


def _url_list(source: SourceConfig) -> list[tuple[File, str]]:
    """The files of a list. Lines that are no addresses are relative to source.root, or to the list's own folder."""
    where = source.url_list
    if source.files:
        raise InputError("source.files and source.url_list exclude each other; leave one out")
    if is_remote(where):
        text = remote.read_text(where)
    else:
        path = Path(local_path(where)).expanduser()
        if not path.is_file():
            raise InputError(f"{path} (source.url_list) is no file; give a list with one address a line")
        text, where = path.read_text(encoding="utf-8"), str(path.absolute())
    base = (source.root or where.rpartition("/")[0]).rstrip("/")
    lines = [line for line in (line.strip() for line in text.splitlines()) if line and not line.startswith("#")]
    full = [line if "://" in line or line.startswith("/") else f"{base}/{line}" for line in lines]
    asked = iter(remote.look_up([address for address in full if is_remote(address)]))
    files: list[tuple[File, str]] = []
    for line, address in zip(lines, full, strict=True):
        file = next(asked) if is_remote(address) else Path(local_path(address)).expanduser().absolute()
        if isinstance(file, Path) and not file.is_file():
            raise InputError(f"{file} ({source.url_list}) is no file; correct the list")
        files.append((file, line.removeprefix("file://").lstrip("/")))
    return files


def _matches(name: str, pattern: str) -> bool:
    """Whether a path fits a pattern: part by part, `**` for any number of parts."""
    parts, wanted = name.split("/"), pattern.strip("/").split("/")
    if "**" in wanted:
        place = wanted.index("**")
        before, after = wanted[:place], wanted[place + 1 :]
        if len(parts) < len(before) + len(after) or not all(map(fnmatch.fnmatchcase, parts, before)):
            return False
        rest = parts[len(before) :]
        return any(_matches("/".join(rest[cut:]), "/".join(after)) for cut in range(len(rest))) if after else True
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def _record_files(
    source: SourceConfig, files: list[tuple[File, str]], root: str, only: str, unread: Unread
) -> list[Task]:
    """Files `<subset>.jsonl` (or what the kind has for it), or all such files under a folder `<subset>/`."""
    suffixes = SUFFIXES[source.kind]
    found: dict[str, list[tuple[File, str]]] = {}
    for file, name in files:
        if source.files or source.url_list or _is_of_kind(source, file, name):
            found.setdefault(only or _subset_of(name, suffixes), []).append((file, name))
        else:
            _note_file(unread, file, name)
    make = partial(Task, how=source.kind, license=source.license, source=source)
    return [
        make(subset, paths=paths, names=names, stamps=stamps)
        for subset in _chosen(source, found, root, f"files that end in {', '.join(suffixes)}")
        for paths, names, stamps in _runs(found[subset], TASK_BYTES if source.kind in SMALL_FILES else 0)
    ]


def _is_of_kind(source: SourceConfig, file: File, name: str) -> bool:
    """Whether a file is one that the source reads: by its name, and one called .json by its first lines as well."""
    name = name.lower()
    if not name.endswith(SUFFIXES[source.kind]):
        return False
    if not name.endswith(tuple(".json" + packed for packed in PACKED)) or not isinstance(file, Path):
        return True
    with opened(file) as here:
        try:
            stream = here.bytes()
            return any(_is_record(stream.readline(SNIFFED_BYTES), source) for _ in range(SNIFFED_LINES))
        except DAMAGE:
            return True  # reading it says what is wrong


def _is_record(line: bytes, source: SourceConfig) -> bool:
    """Whether a line is a JSON object with a text (or begins one that is too long to be looked at)."""
    if len(line) == SNIFFED_BYTES and not line.endswith(b"\n"):
        return line.lstrip().startswith(b"{")
    try:
        record = json.loads(line.decode("utf-8-sig", "replace"), strict=False)
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and not {source.text_field, source.text_field.partition(".")[0]}.isdisjoint(record)


def _folder(source: SourceConfig, files: list[tuple[File, str]], root: str, only: str, unread: Unread) -> list[Task]:
    """Every file that is not hidden: one document each. Sub-folders of the root are the subsets."""
    found: dict[str, list[tuple[File, str]]] = {}
    for file, name in files:
        parts = name.split("/")
        if not any(part.startswith(".") or part == "__pycache__" for part in parts):
            subset = parts[0] if len(parts) > 1 else printable(PurePosixPath(root).name)
            found.setdefault(only or subset, []).append((file, name))
        else:
            _note_file(unread, file, name)
    return [
        Task(subset, "file", paths, names, license=source.license, stamps=stamps, source=source)
        for subset in _chosen(source, found, root, "files")
        for paths, names, stamps in _runs(found[subset], TASK_BYTES)
    ]


def _installation(source: SourceConfig) -> list[Task]:
    """This Python: its library's source, its language reference, what the installed packages say of themselves, and
    the source of those packages. The four subsets: stdlib, reference, packages, libraries.
    """
    version, licence = platform.python_version(), "PSF-2.0"
    library, site = (Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib"))
    subsets = ("stdlib", "reference", "packages", "libraries")
    found: dict[str, list[Task]] = {subset: [] for subset in subsets}

    def files(subset: str, root: Path, url: str, licence: str) -> list[Task]:
        listed: list[tuple[File, str]] = [
            (path, path.relative_to(root).as_posix()) for path in python_files(root, source.max_bytes)
        ]
        return [
            Task(subset, "file", *run[:2], url, licence, stamps=run[2], source=source)
            for run in _runs(listed, TASK_BYTES)
        ]

    for subset in _chosen(source, found, "python-installation", "text"):
        if subset == "stdlib":
            found[subset] = files(subset, library, f"https://github.com/python/cpython/blob/v{version}/Lib/", licence)
        elif subset == "reference":
            url = f"https://docs.python.org/{version}/reference/"
            found[subset] = [Task(subset, "reference", (), (), url, licence)]
        elif subset == "packages":
            found[subset] = [Task(subset, "packages", (), (), "pkg:pypi/", "")]
        else:
            found[subset] = files(subset, site, "", "LicenseRef-see-package")
    return [task for subset in source.subsets or subsets for task in found[subset]]


def _chosen(source: SourceConfig, found: Iterable[str], root: str, what: str) -> list[str]:
    """The subsets to read: those the recipe names, in its order, else all there are."""
    there = list(found)
    for subset in source.subsets:
        if subset not in there:
            raise InputError(
                f"source.subsets names {subset!r}, but {root} has {what} for {', '.join(there) or 'no subset'}; "
                "correct source.subsets or source.root"
            )
    return list(source.subsets) or there


def _runs(
    files: list[tuple[File, str]], task_bytes: int
) -> list[tuple[tuple[File, ...], tuple[str, ...], tuple[str, ...]]]:
    """Files with their names and stamps, cut into runs of about `task_bytes`; 0 = each alone."""
    runs: list[list[tuple[File, str, str]]] = []
    size = task_bytes
    for file, name in files:
        stamp = _stamp(file)
        if size >= task_bytes:
            runs.append([])
            size = 0
        runs[-1].append((file, name, stamp))
        size += int(stamp.partition(":")[0])
    return [tuple(zip(*run, strict=True)) for run in runs]  # type: ignore[misc]


def _stamp(file: File) -> str:
    """Size, and time of change or tag. Error: InputError for a file that is gone."""
    if isinstance(file, RemoteFile):
        return f"{max(file.size, 0)}:{file.tag}"
    try:
        status = file.stat()
    except FileNotFoundError:
        raise InputError(f"{printable(file)} is gone; put it back and run the same command again") from None
    except OSError as error:
        raise InputError(f"{printable(file)} cannot be looked at ({error.strerror}); mend that and go on") from None
    return f"{status.st_size}:{status.st_mtime_ns}"


def _whole_subsets(tasks: list[Task], max_bytes: int) -> list[Task]:
    """One task a subset, so that it can stop after `max_bytes`."""
    merged: dict[str, Task] = {}
    for task in tasks:
        first = merged.get(task.subset)
        merged[task.subset] = dataclasses.replace(
            task,
            paths=(first.paths if first else ()) + task.paths,
            names=(first.names if first else ()) + task.names,
            stamps=(first.stamps if first else ()) + task.stamps,
            max_bytes=max_bytes,
        )
    return list(merged.values())


def _subset_of(name: str, suffixes: tuple[str, ...]) -> str:
    """The first folder of a name, else the name without its suffix. An address counts by its last part."""
    folder, slash, _ = name.partition("/")
    if slash and "://" not in name and folder:
        return folder
    last = name.rpartition("/")[2]
    lower = last.lower()
    return next((last[: -len(suffix)] for suffix in suffixes if lower.endswith(suffix)), last) or "posts"
