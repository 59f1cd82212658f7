"""What the data room reads of a run folder: what was to be read, and how far the run came. Format: docs/formats.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mobillama import strict_json
from mobillama.errors import DamagedFileError, InputError

FORMAT, FORMAT_VERSION = "mobillama.run", 3  # 3: a branch, which names its parent

PARENT = {"run": str, "ledger": str, "checkpoint": str, "step": int, "first_row": int}  # of a branch


def read_run_file(folder: Path) -> dict[str, Any]:
    """run.json of a run folder. Errors: DamagedFileError if it is none, InputError for a newer format."""
    path = folder / "run.json"
    try:
        tree = strict_json.require(strict_json.parse(path.read_bytes()), {"recipe": dict, "steps": int, "shards": dict})
        version = strict_json.require({"format_version": 1, **tree}, {"format_version": int})["format_version"]
        if tree.get("format", FORMAT) != FORMAT or version < 1:
            raise ValueError(f"it is not of format {FORMAT!r}, version 1 to {FORMAT_VERSION}")
        if "parent" in tree:
            strict_json.require(strict_json.require(tree, {"parent": dict})["parent"], PARENT)
    except ValueError as error:
        raise DamagedFileError(f"{path} is not a run's description ({error}); restore it from a copy") from None
    if version > FORMAT_VERSION:
        raise InputError(
            f"{path} has format version {version}; this mobillama reads up to {FORMAT_VERSION}: install a newer one"
        )
    return tree


def steps_taken(folder: Path) -> int:
    """The last step in a run's ledger; 0 before the first. Error: DamagedFileError for a line that is none."""
    path = folder / "ledger.jsonl"
    if not path.is_file():
        return 0
    last = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):  # a kill cut it off: it is no line
                break
            try:
                tree = json.loads(line)
                if tree["kind"] == "step":
                    last = max(last, int(tree["result"]["step"]))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise DamagedFileError(
                    f"{path} line {number} is not a ledger line ({error}); restore the file from a copy"
                ) from None
    return last
