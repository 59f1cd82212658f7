"""Differences with their intervals as SVG text: one line a comparison, zero in the middle of the argument.

The thick bar is the interval over seeds, the thin one that over held-out documents, the dots are the seeds. Colours as
in `chart.py`: the page's, or the picture's own where it stands alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from mobillama.errors import InputError
from mobillama.report.chart import CHARACTER, PALETTE, choose_ticks, format_tick

WIDTH, ROW, HEADING, TOP, BOTTOM, RIGHT = 860, 26, 30, 44, 48, 20
LONGEST_NAME = 380  # pixels


def draw_intervals(comparisons: Sequence[Mapping[str, Any]], *, title: str, standalone: bool = False) -> str:
    """Comparisons as results.json has them, in order, under the headings of their groups. Error: InputError if none."""
    if not comparisons:
        raise InputError("there is no comparison to draw; results.json holds an empty list of them")
    paint = _Paint(standalone)
    edges = [0.0]
    for pair in comparisons:
        edges += [*pair["by_seed"], *(pair["documents"] or []), *(pair["seeds"] or [])]
    ticks = choose_ticks(min(edges), max(edges), 8)
    left = min(LONGEST_NAME, max(CHARACTER * len(" - ".join(pair["titles"])) for pair in comparisons)) + 16
    groups = list(dict.fromkeys(pair["group"] for pair in comparisons))
    height = TOP + HEADING * len(groups) + ROW * len(comparisons) + BOTTOM
    bottom = height - BOTTOM

    def x(value: float) -> float:
        return left + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (WIDTH - RIGHT - left)

    parts = [f"<title>{escape(title)}</title><desc>{escape(_describe(comparisons))}</desc>"]
    if standalone:
        parts.append(f'<rect width="{WIDTH}" height="{height}" rx="8" fill="{PALETTE["plate"]}"/>')
    parts.append(paint.text(12, 22, title, weight=600, colour="ink"))
    for tick in ticks:
        colour = "muted" if math.isclose(tick, 0, abs_tol=1e-12) else "grid"
        parts.append(paint.rule(x(tick), TOP, x(tick), bottom, colour, 1))
        parts.append(paint.text(x(tick), bottom + 16, format_tick(tick), anchor="middle"))
    middle = (left + WIDTH - RIGHT) / 2
    parts.append(
        paint.text(middle, bottom + 36, "difference in bits per byte; left of 0: the first is better", "middle")
    )
    y = float(TOP)
    for group in groups:
        y += HEADING
        parts.append(paint.text(12, y - 8, group, weight=600))
        for pair in comparisons:
            if pair["group"] != group:
                continue
            y += ROW
            parts += _draw_pair(pair, y - ROW / 2, x, paint)
    space = ' xmlns="http://www.w3.org/2000/svg"' if standalone else ""
    font = ' font-family="system-ui, sans-serif"'
    return f'<svg{space} role="img" viewBox="0 0 {WIDTH} {height}"{font}>{"".join(parts)}</svg>'


class _Paint:
    """Marks in the page's colours, or in the picture's own."""

    def __init__(self, standalone: bool) -> None:
        self.standalone = standalone

    def colour(self, what: str, name: str) -> str:
        return f'{what}="{PALETTE[name]}"' if self.standalone else f'style="{what}:var(--{name})"'

    def text(
        self, x: float, y: float, text: str, anchor: str = "start", *, weight: int = 400, colour: str = "muted"
    ) -> str:
        place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="12" font-weight="{weight}"'
        return f"<text {place} {self.colour('fill', colour)}>{escape(text)}</text>"

    def rule(self, x1: float, y1: float, x2: float, y2: float, colour: str, width: float) -> str:
        place = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
        return f'<line {place} stroke-width="{width}" {self.colour("stroke", colour)}/>'


def _draw_pair(pair: Mapping[str, Any], y: float, x: Any, paint: _Paint) -> list[str]:
    series = {"better": "series-2", "worse": "series-1"}.get(pair["verdict"], "muted")
    name = " - ".join(pair["titles"])
    longest = int(LONGEST_NAME / CHARACTER)
    parts = [paint.text(12, y + 4, name if len(name) <= longest else f"{name[: longest - 1]}…", colour="ink")]
    if pair["documents"]:
        parts.append(paint.rule(x(pair["documents"][0]), y + 5, x(pair["documents"][1]), y + 5, series, 1.5))
    if pair["seeds"]:
        parts.append(paint.rule(x(pair["seeds"][0]), y, x(pair["seeds"][1]), y, series, 4))
    dot = f'cy="{y:.1f}" r="2.5" {paint.colour("fill", "ink")}'
    return [*parts, *(f'<circle cx="{x(value):.1f}" {dot}/>' for value in pair["by_seed"])]


def _describe(comparisons: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(f"{' minus '.join(pair['titles'])}: {pair['difference']:+.4f}" for pair in comparisons)
