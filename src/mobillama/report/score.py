"""Scores as text: two digits of a per cent, four of what is no share; how a benchmark's unit is named beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PER_CENT = "per cent"  # of results that name no unit too: older ones


def digits_of(unit: str) -> int:
    """How many digits stand behind the point."""
    return 2 if unit == PER_CENT else 4


def with_error(value: float, error: float | None, unit: str = PER_CENT) -> str:
    """A score with its standard error."""
    digits = digits_of(unit)
    return f"{value:.{digits}f}" if error is None else f"{value:.{digits}f} ± {error:.{digits}f}"


def unit_of(row: Mapping[str, Any]) -> str:
    """The unit of a benchmark or an average."""
    return str(row.get("unit", PER_CENT))


def unit_words(row: Mapping[str, Any]) -> str:
    """What to say of a benchmark's unit behind its name: nothing of a per cent of which more is better."""
    words = [] if unit_of(row) == PER_CENT else [unit_of(row)]
    words += ["lower is better"] if row.get("higher_is_better") is False else []
    return "".join(f", {word}" for word in words)
