"""What the bits of a run can depend on besides its recipe and its shards: place, number of ranks, versions, code.

The ledger says of the code one digest; `RUN/code/<digest>.json` says of what files it is, so that a changed one can be
named later.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import mobillama
from mobillama import manifest
from mobillama.device import Place
from mobillama.train.world import World

FOLDER = "code"  # of a run


def environment(place: Place, world: World) -> dict[str, Any]:
    """The environment of the ledger's `start` and `resumed` lines, and of checkpoints: plain JSON types."""
    return {
        **place.environment(),
        "world_size": world.size,
        "mobillama": mobillama.__version__,
        "code": code_digest(),
    }


def code_digest() -> str:
    """sha256 (hex) of the canonical JSON of `code_files`."""
    return _digest(code_files())


@cache
def code_files() -> Mapping[str, str]:
    """Path in the package -> sha256 of each of its .py files.

    Read once a process: asked for at its beginning, it is of the code that runs.
    """
    root = Path(mobillama.__file__).parent
    return {path.relative_to(root).as_posix(): manifest.sha256_file(path) for path in sorted(root.rglob("*.py"))}


def keep_code_files(run: Path) -> None:
    """Write down of what files the digest of this code is, once for each code that trains a run."""
    path = run / FOLDER / f"{code_digest()}.json"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        manifest.write_file(path, json.dumps(code_files(), indent=1).encode() + b"\n")


def changed_files(run: Path, digest: str) -> list[str] | None:
    """The files of the package that are not those of the code `digest`; None where the run does not tell its files."""
    try:
        then = json.loads((run / FOLDER / f"{digest}.json").read_text(encoding="utf-8"))
        if _digest(then) != digest:
            return None
    except (OSError, ValueError):
        return None
    here = code_files()
    return sorted(name for name in {**then, **here} if then.get(name) != here.get(name))


def _digest(files: Mapping[str, str]) -> str:
    return hashlib.sha256(manifest.canonical(files)).hexdigest()
