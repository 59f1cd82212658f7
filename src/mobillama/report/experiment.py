"""The page and the picture of an experiment, from its results.json alone (docs/formats.md, section Experiment)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mobillama import manifest
from mobillama.errors import DamagedFileError, InputError
from mobillama.report.intervals import draw_intervals
from mobillama.report.page import render

FORMAT, FORMAT_VERSION = "mobillama.experiment", 1


def read_experiment(folder: Path) -> dict[str, Any]:
    """The results of the experiment in `folder`. Errors: InputError if there are none, DamagedFileError."""
    path = folder / "results.json"
    if not path.is_file():
        raise InputError(f"{folder} holds no results.json; finish it with `mobillama experiment NAME --out {folder}`")
    try:
        results = dict(json.loads(path.read_text(encoding="utf-8")))
        if results["format"] != FORMAT:
            raise KeyError("format")
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(f"{path} is not an experiment's results ({error}); remove it and run again") from None
    if results["format_version"] > FORMAT_VERSION:
        raise InputError(
            f"{path} has format version {results['format_version']}; this mobillama reads {FORMAT_VERSION}"
        )
    return results


def write_experiment_page(folder: Path, out: Path) -> Path:
    """Write the page of the experiment in `folder` to the file `out`; returns `out`."""
    results = read_experiment(folder)
    sources = sorted(results["held_out"]["sources"])
    picture = draw_intervals(results["comparisons"], title=results["title"])
    page = render("experiment.html.j2", title=results["title"], results=results, sources=sources, picture=picture)
    manifest.write_file(out, page.encode())
    return out


def write_experiment_picture(folder: Path, out: Path) -> Path:
    """Write the differences of the experiment in `folder` as an SVG file that can be read on any background."""
    results = read_experiment(folder)
    picture = draw_intervals(results["comparisons"], title=results["title"], standalone=True)
    manifest.write_file(out, picture.encode() + b"\n")
    return out
