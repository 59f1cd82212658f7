"""Curves of a run's scores over tokens: a picture a benchmark, and a page, from OUT/curves.json alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mobillama import manifest
from mobillama.errors import DamagedFileError, InputError
from mobillama.report.chart import Line, draw_lines
from mobillama.report.page import render
from mobillama.report.score import digits_of, unit_of, unit_words

FORMAT, FORMAT_VERSION = "mobillama.curves", 1
AVERAGES = {"average": "average", "average_without_bias": "average, more is better"}


def write_curves_page(folder: Path) -> Path:
    """Write `index.html` and `curves/NAME.svg` into the folder of an evaluated run; returns the page."""
    tree = read_curves(folder)
    points = tree["points"]
    pictures = []
    (folder / "curves").mkdir(exist_ok=True)
    for name, label, found in _series(points):
        title = f"{name} of {tree['run']}"
        lines = [Line("one standard error above", [(x, y + error) for x, y, error in found], 0, "faint")]
        lines.append(Line("one standard error below", [(x, y - error) for x, y, error in found], 0, "faint"))
        lines.append(Line(name, [(x, y) for x, y, _ in found], 0, "dots"))
        said: dict[str, Any] = {"title": title, "x_label": "tokens seen", "y_label": label, "height": 280}
        picture = draw_lines(lines, **said, standalone=True)
        manifest.write_file(folder / "curves" / f"{name.replace(', ', '-').replace(' ', '-')}.svg", picture.encode())
        pictures.append((name, draw_lines(lines, **said)))
    columns = [(row["benchmark"], unit_words(row)) for row in points[-1]["benchmarks"]]
    page = render(
        "evaluation.html.j2",
        title=f"Scores of {tree['run']} over training",
        pictures=pictures,
        points=points,
        columns=columns,
        digits=lambda row: digits_of(unit_of(row)),
    )
    manifest.write_file(folder / "index.html", page.encode())
    return folder / "index.html"


def _unit(row: dict[str, Any]) -> str:
    """The unit of a row, with the direction where lower is better."""
    return f"{unit_of(row)} (lower is better)" if row.get("higher_is_better") is False else unit_of(row)


def read_curves(folder: Path) -> dict[str, Any]:
    """curves.json of an evaluated run. Errors: InputError if there is none or a newer one, DamagedFileError."""
    path = folder / "curves.json"
    if not path.is_file():
        raise InputError(f"{folder} holds no curves.json; evaluate a run into it with `mobillama eval RUN --every K`")
    try:
        tree = dict(json.loads(path.read_text(encoding="utf-8")))
        if tree["format"] != FORMAT or not tree["points"]:
            raise KeyError("format")
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(f"{path} holds no curves ({error}); evaluate the run again") from None
    if tree["format_version"] > FORMAT_VERSION:
        raise InputError(f"{path} has format version {tree['format_version']}; this mobillama reads {FORMAT_VERSION}")
    return tree


def _series(points: list[dict[str, Any]]) -> list[tuple[str, str, list[tuple[float, float, float]]]]:
    """Name, label and (tokens, value, standard error) of each benchmark and average; a missing error counts as 0."""
    found: dict[str, tuple[str, list[tuple[float, float, float]]]] = {}
    for point in points:
        rows = [(row["benchmark"], f"{row['metric']}, {_unit(row)}", row) for row in point["benchmarks"]]
        rows += [(name, _unit(point[key]), point[key]) for key, name in AVERAGES.items() if point[key]]
        for name, label, row in rows:
            found.setdefault(name, (label, []))[1].append((point["tokens"], row["value"], row["stderr"] or 0.0))
    return [(name, label, values) for name, (label, values) in found.items()]
