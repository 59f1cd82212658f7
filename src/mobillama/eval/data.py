"""Benchmark rows on this machine: found, read through and hashed before any model is loaded.

Layout: `DATA/<benchmark>/`, a data set that `datasets` loads as a folder (README.md names configurations and splits);
MMLU has one folder a subject inside. Rows are JSON lines, plain or gzip-compressed. Nothing is read from outside DATA:
symbolic links are resolved, and what README.md names is checked, before `datasets` looks.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import os
import re
import sys
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mobillama import manifest
from mobillama.data.benchmarks import is_gzip
from mobillama.errors import DamagedFileError, InputError

PATTERNS = ("*.jsonl.gz", "*.jsonl")
STEERING = (".huggingface.yaml", "dataset_infos.json")  # `datasets` would take them before README.md


def stay_offline() -> None:
    """Let neither the hub's client nor `datasets` ask the network, whether they are imported already or not."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ[name] = "1"
    for module, name in (("huggingface_hub.constants", "HF_HUB_OFFLINE"), ("datasets.config", "HF_DATASETS_OFFLINE")):
        if module in sys.modules:
            setattr(sys.modules[module], name, True)
    if "datasets.config" in sys.modules:
        sys.modules["datasets.config"].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


@dataclass(frozen=True)
class LocalData:
    """A folder of benchmarks that were read through."""

    folder: Path
    hashes: dict[str, str]  # file relative to the folder -> sha256

    def cache_folder(self, name: str) -> Path:
        """Where `datasets` may keep its copy of a benchmark's rows: a place that their content alone decides.

        Left to itself it takes two folders of one name for the same data set, and gives the rows of the first.
        """
        import datasets

        mine = {file: digest for file, digest in self.hashes.items() if file.startswith(f"{name}/")}
        key = hashlib.sha256(manifest.canonical(mine)).hexdigest()[:32]
        return Path(datasets.config.HF_DATASETS_CACHE) / "mobillama" / key


def check_folders(data: Path, names: Iterable[str]) -> LocalData:
    """Read every row file of some benchmarks.

    Errors: InputError for a folder that is missing, holds no rows or leads out of DATA, DamagedFileError for a file
    that is cut or whose line is no JSON object.
    """
    if not data.is_dir():
        raise InputError(f"--data {data} is no folder; expected one with a folder a benchmark")
    hashes: dict[str, str] = {}
    for name in sorted(set(names)):
        folder = data / name
        if "\0" in name or not folder.resolve().is_relative_to(data.resolve()):
            raise InputError(
                f"{name!r} leads out of --data {data}; put the benchmark's folder there, or name one there"
            )
        if not folder.is_dir():
            there = ", ".join(sorted(path.name for path in data.iterdir() if path.is_dir())) or "none"
            raise InputError(f"{data} has no folder {name}; found {there}: add the benchmark, or leave --data out")
        files = sorted(path for pattern in PATTERNS for path in folder.rglob(pattern))
        if not files:
            raise InputError(f"{folder} holds no {' or '.join(PATTERNS)}; expected the benchmark's rows")
        if not (folder / "README.md").is_file():
            raise InputError(f"{folder} has no README.md; it names the configurations and splits of the data set")
        for path in folder.rglob("*"):
            if not path.resolve().is_relative_to(data.resolve()) or (path.is_symlink() and path.is_dir()):
                raise InputError(
                    f"{path} leads to {path.resolve()}; put a copy of it there: rows come from --data alone"
                )
            if not path.is_file() and not path.is_dir():
                raise InputError(f"{path} is neither a file nor a folder; take it out of the benchmark's folder")
        _check_readme(folder)
        for path in (*files, folder / "README.md"):
            if path.suffix != ".md":
                _check_rows(path)
            hashes[path.relative_to(data).as_posix()] = manifest.sha256_file(path)
    return LocalData(data, hashes)


def _check_readme(folder: Path) -> None:
    """Raise InputError unless all that `datasets` would take for rows of a folder are its row files."""
    import yaml

    readme = folder / "README.md"
    if strange := [name for name in STEERING if (folder / name).exists()]:
        raise InputError(f"{folder / strange[0]} would stand above README.md; say in README.md what it says, remove it")
    try:
        parts = re.split(r"^---\s*$", readme.read_text(encoding="utf-8"), maxsplit=2, flags=re.MULTILINE)
        head = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        words = " ".join(str(error).split())[:200]
        raise InputError(f"{readme} has no YAML at its head ({words}); name configurations and splits there") from None
    configs = head.get("configs", []) if isinstance(head, dict) else None
    if not isinstance(configs, list) or not all(isinstance(one, dict) for one in configs):
        raise InputError(f"{readme}: expected `configs`, a list of configurations with their data_files")
    named = [_names(one.get("data_files")) for one in configs]
    for name in (*itertools.chain(*named), *(name for one in configs for name in _names(one.get("data_dir")))):
        if "://" in name or "::" in name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(f"{readme} names {name}; expected files in its folder")
    if named and all(names and all(map(_is_rows, names)) for names in named):
        return
    for path in sorted(folder.rglob("*")):  # `datasets` chooses among them
        if (
            not path.is_dir()
            and path != readme
            and not _is_rows(path.name)
            and not path.name.startswith((".", "LICEN"))
        ):
            raise InputError(
                f"{path} is not {' or '.join(PATTERNS)}; take it out, or name the files of every configuration in"
                f" {readme} under data_files"
            )


def _is_rows(name: str) -> bool:
    return name.endswith(tuple(pattern.removeprefix("*") for pattern in PATTERNS))


def _names(found: object) -> list[str]:
    """The names of files that a configuration has under `data_files`, in any of the forms it can have."""
    if isinstance(found, str):
        return [found]
    if isinstance(found, dict):
        inner = found["path"] if "path" in found else [*found.values()]
        return _names(inner)
    return [name for one in found for name in _names(one)] if isinstance(found, list) else []


def _check_rows(path: Path) -> None:
    """Read one file of rows to its end."""
    rows = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for line in file:
                rows += 1
                if not isinstance(json.loads(line), dict):
                    raise ValueError("no JSON object")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        if not is_gzip(path):
            raise InputError(
                f"{path} is not compressed, though its name says so; rename it to {path.stem}, or compress it with gzip"
            ) from None
        raise DamagedFileError(f"{path} is cut or damaged after row {rows} ({error}); get the file again") from None
    except ValueError as error:
        raise DamagedFileError(
            f"{path}, row {rows}: {error}; expected a JSON object a line: correct that row, or get the file again"
        ) from None
    if not rows:
        raise DamagedFileError(f"{path} holds no rows; remove it, or put the benchmark's file in its place")
