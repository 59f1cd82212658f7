"""Artefacts whose `--out` is an address (s3://, hf://, ...): built on this machine, uploaded, and checked there.

Files go first, the manifest last, so that the artefact looks whole only when it is. Every file is read back and its
sha256 compared. A file that is there already with the right bytes is not sent again: after an interruption the same
command goes on. The folder on this machine stays; remove it when you like.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobillama import manifest
from mobillama.config import DataRecipe, with_defaults
from mobillama.data.build import build_shards, corpus_folder
from mobillama.data.executor import Executor, OnProgress
from mobillama.data.remote import BUFFER, open_file_system
from mobillama.errors import DamagedFileError, InputError

if TYPE_CHECKING:
    from mobillama.tokenizer.tokenizer import Tokenizer

OnFile = Callable[[str], None]


def local_folder(address: str) -> Path:
    """Where what is to be uploaded to `address` is built: below MOBILLAMA_CACHE, else ~/.cache/mobillama."""
    cache = Path(os.environ.get("MOBILLAMA_CACHE") or Path.home() / ".cache" / "mobillama").expanduser()
    name = address.rstrip("/").rpartition("/")[2]
    return cache / "uploads" / hashlib.sha256(address.rstrip("/").encode()).hexdigest()[:16] / name


def publish(folder: Path, address: str, on_file: OnFile = lambda name: None) -> None:
    """Upload the artefact at `folder` to `address`; nothing is sent if it is there. `on_file(name)` before each file.

    Errors: InputError if another artefact is at the address or it cannot be written; DamagedFileError for a file that
    is not what was sent.
    """
    found = manifest.read(folder)
    system, root = open_file_system(address.rstrip("/"))
    head = (folder / manifest.FILE).read_bytes()
    there = _read(system, f"{root}/{manifest.FILE}")
    if there is not None and there != head:
        raise InputError(f"{address} holds another artefact; choose another --out or remove it")
    if there is None:
        for name, promised in found.files.items():
            on_file(name)
            _send(system, folder / name, f"{root}/{name}", promised["sha256"])
        on_file(manifest.FILE)
        _send(system, folder / manifest.FILE, f"{root}/{manifest.FILE}", hashlib.sha256(head).hexdigest())


def build_at(
    recipe: DataRecipe,
    address: str,
    *,
    executor: str | Executor = "local",
    tokenizer: Tokenizer | None = None,
    on_progress: OnProgress | None = None,
    on_file: OnFile = lambda name: None,
) -> manifest.Manifest:
    """Build the shards of a recipe and upload them to `address`, their corpus to `<address>-corpus`.

    What is there already, of this recipe, is given back without a build. Errors: those of `build_shards` and `publish`.
    """
    address = address.rstrip("/")
    if (found := published(address)) is not None:
        if with_defaults(DataRecipe, found.recipe) != recipe.tree():
            raise InputError(f"{address} exists already, built from another recipe; choose another --out or remove it")
        return found
    folder = local_folder(address)
    made = build_shards(recipe, folder, executor=executor, tokenizer=tokenizer, on_progress=on_progress)
    publish(corpus_folder(folder), f"{address}-corpus", on_file)
    publish(folder, address, on_file)
    return made


def published(address: str) -> manifest.Manifest | None:
    """The manifest of the artefact at an address, or None."""
    system, root = open_file_system(address.rstrip("/"))
    head = _read(system, f"{root}/{manifest.FILE}")
    if head is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / manifest.FILE).write_bytes(head)
        return manifest.read(Path(folder))


def _send(system: Any, path: Path, to: str, sha256: str) -> None:
    if _sha256(system, to) == sha256:
        return
    try:
        system.makedirs(to.rpartition("/")[0], exist_ok=True)
        system.put_file(str(path), to)
    except Exception as error:  # every file system has errors of its own
        raise InputError(
            f"{path.name} cannot be written to {system.unstrip_protocol(to)} ({error}); may you write there, and does "
            "the network hold? The same command goes on where this one stopped"
        ) from None
    if (arrived := _sha256(system, to)) != sha256:
        raise DamagedFileError(
            f"{system.unstrip_protocol(to)}: found sha256 {arrived} after the upload; expected {sha256}: run the same "
            "command again"
        )


def _sha256(system: Any, path: str) -> str | None:
    """sha256 (hex) of a file behind an address, None if it is not there."""
    system.invalidate_cache()
    if not system.exists(path):
        return None
    digest = hashlib.sha256()
    with system.open(path, "rb") as file:
        while data := file.read(BUFFER):
            digest.update(data)
    return digest.hexdigest()


def _read(system: Any, path: str) -> bytes | None:
    system.invalidate_cache()
    return bytes(system.cat_file(path)) if system.exists(path) else None
