"""Scores that the paper published, from published.toml: to be set beside results, not to be mixed with them."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobillama.errors import InputError

FILE = Path(__file__).with_name("published.toml")


def published_rows(numbers: Sequence[int]) -> list[dict[str, Any]]:
    """The rows of some tables of the paper, by number: `model`, `table`, `source`, `values` by benchmark, `average`.

    Error: InputError for a table that is not in the file.
    """
    tree = tomllib.loads(FILE.read_text(encoding="utf-8"))
    tables = {int(table["number"]): table for table in tree["tables"]}
    rows = []
    for number in numbers:
        if number not in tables:
            known = ", ".join(map(str, sorted(tables)))
            raise InputError(f"--published {number}: the figures of that table are not here; expected one of {known}")
        rows += [
            {
                "model": row["model"],
                "table": number,
                "source": f"{tree['source']}, Table {number}",
                "values": dict(zip(tree["benchmarks"], row["values"], strict=True)),
                "average": row["average"],
            }
            for row in tables[number]["rows"]
        ]
    return rows
