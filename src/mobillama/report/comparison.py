"""Tables of compared results, in the form of the paper's Tables 4, 5 and 9: Markdown, LaTeX and an HTML page.

Reads what `mobillama compare --json` prints (docs/formats.md, Results) and published rows; imports nothing of
evaluation, so that a table can be made wherever there are results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mobillama import manifest
from mobillama.report.page import render
from mobillama.report.score import digits_of, unit_of, unit_words, with_error

PUBLISHED = "published, not measured here"
CAPTION = "Per cent where no unit is named, with standard errors."
AVERAGES = {"average": "average", "average_without_bias": "average, more is better"}
SPECIAL = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}"}


def markdown(found: Mapping[str, Any]) -> str:
    """The comparison as Markdown: scores, then every pair, then notes."""
    table = score_table(found)
    lines = [_bar(table[0]), _bar(["---", *["--:"] * (len(table[0]) - 1)]), *map(_bar, table[1:])]
    for title, rows in pair_tables(found):
        lines += ["", f"**{title}**", "", _bar(rows[0]), _bar(["---", *["--:"] * (len(rows[0]) - 1)])]
        lines += map(_bar, rows[1:])
    lines += ["", *(f"- {note}" for note in remarks(found))]
    return "\n".join(lines)


def latex(found: Mapping[str, Any]) -> str:
    """The comparison as LaTeX tables, for the package booktabs."""
    parts = [_tabular(score_table(found), CAPTION)]
    parts += [_tabular(rows, title) for title, rows in pair_tables(found)]
    notes = [f"% {note}" for note in remarks(found)]
    return "\n\n".join([*parts, "\n".join(notes)])


def write_comparison_page(found: Mapping[str, Any], out: Path) -> Path:
    """Write the comparison as one HTML page to the file `out`; returns `out`."""
    page = render(
        "comparison.html.j2",
        title=f"Results on {found['suite']}",
        table=score_table(found),
        measured=len(found["models"]),
        pairs=pair_tables(found),
        notes=remarks(found),
        models=found["models"],
        caption=CAPTION,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_file(out, page.encode())
    return out


def score_table(found: Mapping[str, Any]) -> list[list[str]]:
    """The scores as cells, the head first: a model a row, published ones last."""
    benchmarks = found["benchmarks"]
    averages = [key for key in AVERAGES if any(row[key] for row in found["models"])]
    head = ["model"]
    for one in benchmarks:
        head.append(
            f"{one['name']} ({one['shots']}){unit_words(one)}" + ("" if one["in_average"] else ", not in average")
        )
        if one["unbiased_at"] is not None:
            head.append(f"distance from {one['unbiased_at']:g}")
    rows = [[*head, *(AVERAGES[key] for key in averages)]]
    for row in found["models"]:
        cells = [row["name"]]
        for one in benchmarks:
            score = row["scores"][one["name"]]
            cells.append(with_error(score["value"], score["stderr"], unit_of(one)))
            if one["unbiased_at"] is not None:
                cells.append(with_error(score["from_unbiased"], None, unit_of(one)))
        found_averages = [row[key] for key in averages]
        cells += [with_error(one["value"], one["stderr"], unit_of(one)) if one else "" for one in found_averages]
        rows.append(cells)
    rows += [_published(row, benchmarks, averages) for row in found.get("published", ())]
    return rows


def pair_tables(found: Mapping[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """For each pair of models a title and cells: difference, interval, p and corrected p of every benchmark."""
    tables = []
    described = {one["name"]: one for one in found["benchmarks"]}
    described |= {key: found["models"][0][key] or {} for key in AVERAGES} if found["models"] else {}
    for pair in found["pairs"]:
        a, b = (found["models"][index]["name"] for index in pair["models"])
        rows = [["benchmark", "difference", "95% interval", "p", "p corrected", ""]]
        for name, one in pair["differences"].items():
            digits = digits_of(unit_of(described[name]))
            cells = [f"{AVERAGES.get(name, name)}{unit_words(described[name])}", f"{one['difference']:+.{digits}f}"]
            cells.append(f"{one['low']:+.{digits}f} to {one['high']:+.{digits}f}")
            cells += [_p(one["p"]), _p(one["p_holm"]), "significant" if one["significant"] else ""]
            rows.append(cells)
        tables.append((f"{a} minus {b}", rows))
    return tables


def remarks(found: Mapping[str, Any]) -> list[str]:
    """What to know of the tables, in words."""
    notes = list(found["notes"])
    if found["pairs"]:
        notes.insert(
            0,
            f"paired bootstrap over items, {found['draws']:,} draws; p corrected by Holm over {found['tests']} tests, "
            f"significant below {found['level']:g}",
        )
    sources = dict.fromkeys(row["source"] for row in found.get("published", ()))
    return [*notes, *(f"rows marked '{PUBLISHED}': {source}" for source in sources)]


def _published(row: Mapping[str, Any], benchmarks: Sequence[Mapping[str, Any]], averages: Sequence[str]) -> list[str]:
    cells = [f"{row['model']} ({PUBLISHED}: Table {row['table']})"]
    for one in benchmarks:
        value = row["values"].get(one["name"])
        cells.append("" if value is None else f"{value:.2f}")
        if one["unbiased_at"] is not None:
            cells.append("" if value is None else f"{abs(value - one['unbiased_at']):.2f}")
    # The published average is of the paper's nine: it stands beside no other.
    nine = {one["name"] for one in benchmarks if one["in_average"]} == row["values"].keys()
    return [*cells, *(f"{row['average']:.2f}" if key == "average" and nine else "" for key in averages)]


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else "< 0.0001"


def _bar(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _tabular(rows: Sequence[Sequence[str]], caption: str) -> str:
    lines = [" & ".join(map(_escape, row)) + r" \\" for row in rows]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{_escape(caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _escape(text: str) -> str:
    text = "".join(SPECIAL.get(letter, letter) for letter in text.replace("\\", "/"))
    return text.replace("±", r"$\pm$").replace("<", "$<$")


FORMS: dict[str, Callable[[Mapping[str, Any]], str]] = {"markdown": markdown, "latex": latex}
