"""`mobillama data show` without the application around it, whose import takes longer than the look-up.

Only command lines that are plainly right are taken here; every other one, wrong ones and `--help` included, goes to the
application, which alone says what is wrong with it. Both end in the same function and print the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobillama.cli.output import to_json


def run_short(arguments: Sequence[str]) -> bool:
    """Carry out `data show FOLDER --step N [--row N] [--json]` in any order; False, and nothing done, for all else."""
    if list(arguments[:2]) != ["data", "show"] or (asked := read_arguments(arguments[2:])) is None:
        return False
    show_rows(Path(asked["folder"]), asked["step"], asked["row"], asked["json"])
    return True


def read_arguments(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Folder, step, row (None: all) and json of a command line that is plainly right; None for another."""
    asked: dict[str, Any] = {"row": None, "json": False}
    left = list(arguments)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        key: str
        found: bool | int | str
        if word == "--json":
            key, found = "json", True
        elif name in ("--step", "--row"):
            key, text = name[2:], value if equals else (left.pop(0) if left else "")
            if not (text.isascii() and text.isdigit()) or int(text) < (key == "step"):
                return None
            found = int(text)
        elif word and not word.startswith("-"):
            key, found = "folder", word
        else:
            return None
        if key == "folder" and key in asked:
            return None
        asked[key] = found
    return asked if {"folder", "step"} <= asked.keys() else None


def show_rows(folder: Path, step: int, row: int | None, as_json: bool, data: Path | None = None) -> None:
    """Print what a training step read."""
    from mobillama.data import lookup

    rows = lookup.show(folder, step, row, data)
    result = {"step": step, "rows": rows}
    print(to_json(result) if as_json else lookup.describe(rows), flush=True)
