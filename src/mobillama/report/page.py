"""Static HTML pages from ledgers, manifests and results alone: one file each, no script, nothing fetched.

`write_run_page` shows one training run, `write_quickstart_page` the whole chain with its two models, `write_picture`
the loss curves of the latter as a stand-alone SVG. The results of a quickstart are specified in docs/formats.md.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mobillama import manifest
from mobillama.errors import missing_extra
from mobillama.report.chart import PALETTE, Level, Line, draw_lines, smooth, thin
from mobillama.report.run import Run, read_run

DARK = {
    "ink": "#e6edf3",
    "muted": "#9198a1",
    "grid": "#30363d",
    "plate": "#151b23",
    "series-0": "#58a6ff",
    "series-1": "#f0883e",
    "series-2": "#3fb98a",
    "series-3": "#bc8cff",
}
REASONS = {
    "empty": "no text at all",
    "too_short": "fewer characters than the recipe asks for",
    "too_long": "more characters than the recipe allows",
    "binary": "too many control characters: not text",
    "invalid_utf8": "bytes that are not UTF-8",
    "undecodable": "bytes that are not of the encoding that the recipe names",
    "bad_json": "a line that is no JSON object",
    "bad_xml": "a row of a dump with a number that is none",
    "no_text": "a record without a text: no such field, null, or not a string",
    "record_too_long": "a record longer than the recipe's source.max_record_bytes",
    "damaged": "a record that cannot be unpacked",
    "damaged_file": "what of a damaged file could not be read (one for each damage, without its bytes)",
    "trailing_bytes": "bytes behind the end of a compressed file",
    "no_source": "a paper without TeX source",
    "unanswered": "a question without an answer",
    "low_score": "a question with a score below 0",
    "duplicate": "the same text, after normalisation, was seen before",
}
SUBSETS = {
    "stdlib": "source of this Python's own library, without its tests",
    "reference": "this Python's language reference, as its help() shows it",
    "packages": "what the installed packages say of themselves",
    "libraries": "source of the installed packages",
}


def write_run_page(run: Path, out: Path) -> Path:
    """Write the page of one training run (finished or not) to the file `out`; returns `out`."""
    found = read_run(run)
    window = smoothing_window(len(found.steps))
    pictures = [("Loss", draw_losses([found], window, title=f"Loss of {found.name}"))]
    for what, label in (("lr", "learning rate"), ("grad_norm", "gradient norm before clipping")):
        line = Line(label, thin(found.curve(what)))
        pictures.append((label.capitalize(), _draw(line, f"{label} of {found.name}", label)))
    page = render("run.html.j2", title=f"Training run {found.name}", run=found, pictures=pictures)
    manifest.write_file(out, page.encode())
    return out


def write_quickstart_page(folder: Path, out: Path) -> Path:
    """Write the page of the quickstart in `folder` (its `results.json`, runs, corpus and shards); returns `out`."""
    results = read_results(folder)
    runs = quickstart_runs(folder, results)
    corpus = folder / results["corpus"]
    parts = [_part(folder, results[name]) for name in ("corpus", "shards")]
    parts += [_part(folder, f"{model['run']}/model") for model in results["models"]]
    window = smoothing_window(max(len(run.steps) for run in runs))
    page = render(
        "quickstart.html.j2",
        title="mobillama quickstart",
        results=results,
        runs=runs,
        window=window,
        picture=_draw_quickstart(results, runs, standalone=False),
        validation_rows=_validation_rows(runs),
        corpus=describe_corpus(manifest.read(corpus, "corpus")),
        longest=max((stage["seconds"] for stage in results["stages"]), default=0) or 1,
        total_seconds=math.fsum(stage["seconds"] for stage in results["stages"]),
        parts=parts,
    )
    manifest.write_file(out, page.encode())
    return out


def write_picture(folder: Path, out: Path) -> Path:
    """Write the loss curves of the quickstart in `folder` as an SVG file that can be read on any background."""
    results = read_results(folder)
    picture = _draw_quickstart(results, quickstart_runs(folder, results), standalone=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_file(out, picture.encode() + b"\n")
    return out


def read_results(folder: Path) -> dict[str, Any]:
    """The `results.json` of a quickstart."""
    return manifest.read_object(folder / "results.json", "run the quickstart again")


def quickstart_runs(folder: Path, results: Mapping[str, Any]) -> list[Run]:
    """The runs of a quickstart, named as its results name the models."""
    found = [(model["title"], read_run(folder / model["run"])) for model in results["models"]]
    return [Run(**{**vars(run), "name": title}) for title, run in found]


def smoothing_window(steps: int) -> int:
    """Steps over which a training loss is averaged for the eye: a twentieth of the run."""
    return max(1, steps // 20)


def draw_losses(
    runs: Sequence[Run], window: int, *, title: str, levels: Sequence[Level] = (), standalone: bool = False
) -> str:
    """Training loss (raw and averaged) and validation loss of one or several runs over tokens seen."""
    lines = []
    for series, run in enumerate(runs):
        raw = run.curve()
        prefix = f"{run.name}: " if len(runs) > 1 else ""
        lines.append(Line(f"{prefix}training, each step", thin(raw), series, "faint"))
        lines.append(Line(f"{prefix}training", thin(smooth(raw, window)), series))
        if points := run.validation_curve():
            lines.append(Line(f"{prefix}validation", points, series, "dots"))
    return draw_lines(
        lines, title=title, x_label="tokens seen", y_label="nats per token", levels=levels, standalone=standalone
    )


def describe_corpus(corpus: manifest.Manifest) -> dict[str, Any]:
    """The funnel of a corpus manifest as rows for a page: per subset, in all, and per reason for dropping."""
    subsets, reasons = [], Counter[str]()
    for name, found in corpus.counts["funnel"].items():
        dropped = {reason: pair["documents"] for reason, pair in found["dropped"].items()}
        reasons.update(dropped)
        subsets.append(
            {
                "name": name,
                "meaning": SUBSETS.get(name, ""),
                "read": found["documents_in"],
                "kept": found["documents_out"],
                "dropped": sum(dropped.values()),
                "bytes": found["bytes_out"],
            }
        )
    total = {key: sum(row[key] for row in subsets) for key in ("read", "kept", "dropped", "bytes")}
    rows = [
        {"reason": reason, "meaning": REASONS.get(reason, ""), "documents": count}
        for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
        if count
    ]
    return {"subsets": subsets, "total": total, "reasons": rows}


def _draw_quickstart(results: Mapping[str, Any], runs: Sequence[Run], *, standalone: bool) -> str:
    entropy, wanted = results["unigram"]["entropy"], results["wanted_margin"]
    levels = [
        Level("unigram entropy of the validation split", entropy),
        Level(f"{wanted:g} nat below it", entropy - wanted),
    ]
    window = smoothing_window(max(len(run.steps) for run in runs))
    title = "Loss of the two quickstart models"
    return draw_losses(runs, window, title=title, levels=levels, standalone=standalone)


def _draw(line: Line, title: str, label: str) -> str:
    return draw_lines([line], title=title, x_label="tokens seen", y_label=label, height=240)


def _validation_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row per number of tokens at which any run was validated, with what each run scored there."""
    scored = []
    for run in runs:
        seen = {int(step["step"]): int(step["tokens"]) for step in run.steps}
        scored.append({seen.get(int(line["step"]), 0): line for line in run.validations})
    tokens = sorted(set().union(*scored)) if scored else []
    return [{"tokens": count, "found": [lines.get(count) for lines in scored]} for count in tokens]


def _part(folder: Path, name: str) -> dict[str, str]:
    found = manifest.read(folder / name)
    return {"kind": found.kind, "folder": name, "digest": found.digest()}


def render(template: str, **values: Any) -> str:
    """A page from one of the templates. Error: MissingExtraError without jinja2."""
    try:
        import jinja2
    except ImportError as error:
        raise missing_extra("report", error) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = _figure
    environment.filters["as_json"] = lambda tree: json.dumps(tree, indent=2, ensure_ascii=False)
    return str(environment.get_template(template).render(light=PALETTE, dark=DARK, **values))


def _figure(value: float, digits: int = 3) -> str:
    """A number for people: thousands separated, a fixed number of decimals; what is not finite in words."""
    return f"{value:,.{digits}f}" if math.isfinite(value) else "not a number"
