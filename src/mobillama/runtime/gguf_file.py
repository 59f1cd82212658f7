"""Which files the engine opens, and of which files a model that was split consists."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobillama.tokenizer.gguf_keys import MAGIC

SUFFIX = ".gguf"


def is_gguf(name: str | Path) -> bool:
    """Whether a model's name is that of a GGUF file: by its suffix, or, of a file that is there, by its first bytes.

    Stores of other programs name such files by their digest.
    """
    path = Path(name)
    try:
        if path.is_dir():
            return False
        if str(name).lower().endswith(SUFFIX):
            return True
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except (OSError, ValueError):  # a name that no file can have, or one that may not be read: whoever opens it says so
        return str(name).lower().endswith(SUFFIX)


def part_paths(path: Path, keys: Mapping[str, Any]) -> list[Path]:
    """The files of a model whose first part, or whose only file, is `path`; keys: those of that file."""
    count = int(keys.get("split.count", 1))
    own = f"-00001-of-{count:05}{SUFFIX}"
    stem = path.name.removesuffix(own)
    return [path, *(path.with_name(f"{stem}-{number:05}-of-{count:05}{SUFFIX}") for number in range(2, count + 1))]
