"""Stacked and paired bars as SVG text: what became of each subset, and the mix beside the one that was wanted.

Colours are CSS variables of the page. The pictures are narrow, so that their words can be read on a phone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, FONT, BAR, LINE, GAP = 480, 14, 14, 20, 14
CHARACTER = 7.6  # mean width in pixels of a 14-pixel sans-serif character, for the legend
REASON_COLOURS = 8  # --reason-0 ... of the page; what comes after them shares --muted
KEPT, EDITED = "kept", "edited away in kept documents"


@dataclass(frozen=True)
class Bar:
    """One bar: `parts` of a whole, in order, with the colour (a CSS variable's name) of each."""

    label: str
    said: str  # figures, right of the label
    parts: Sequence[tuple[str, float, str]]  # name, size, colour


@dataclass(frozen=True)
class Group:
    """The bars of one subset."""

    name: str
    bars: Sequence[Bar] = field(default_factory=list)


def draw_bars(groups: Sequence[Group], legend: Sequence[tuple[str, str]], *, title: str, largest: float = 0.0) -> str:
    """All groups below each other as one `<svg>`; `legend` is (name, colour).

    Each bar fills the width (its parts are shares of it), or with `largest` > 0 is as long as its parts' sum beside it.
    """
    rows = _legend_rows(legend)
    y = 4.0
    drawn = []
    for row in rows:
        for x, name, colour in row:
            drawn.append(f'<rect x="{x:.0f}" y="{y:.0f}" width="12" height="12" rx="3" style="fill:var(--{colour})"/>')
            drawn.append(_text(x + 18, y + 11, name, "ink"))
        y += LINE
    y += GAP / 2
    told = []
    for group in groups:
        drawn.append(_text(0, y + FONT, group.name, "ink", weight=600))
        y += LINE
        for bar in group.bars:
            drawn.append(_text(0, y + FONT - 1, bar.label, "muted"))
            drawn.append(_text(WIDTH, y + FONT - 1, bar.said, "muted", anchor="end"))
            y += LINE - 1
            drawn += _draw_bar(group.name, bar, y, largest)
            told.append(f"{group.name}, {bar.label}: {bar.said}")
            y += BAR + 5
        y += GAP
    about = f"<title>{escape(title)}</title><desc>{escape('; '.join(told))}</desc>"
    size = f'viewBox="0 0 {WIDTH} {y:.0f}" style="max-width:720px" font-family="system-ui, sans-serif"'
    return f'<svg role="img" {size}>{about}{"".join(drawn)}</svg>'


def _draw_bar(group: str, bar: Bar, y: float, largest: float) -> list[str]:
    total = largest or sum(size for _, size, _ in bar.parts)
    drawn = [f'<rect x="0" y="{y:.1f}" width="{WIDTH}" height="{BAR}" rx="2" style="fill:var(--grid)"/>']
    x = 0.0
    for name, size, colour in bar.parts:
        if size <= 0 or total <= 0:
            continue
        width = min(WIDTH * size / total, WIDTH - x)
        tip = escape(f"{group}, {bar.label}: {name} {size:,.6g} ({size / total:.1%})")
        place = f'x="{x:.2f}" y="{y:.1f}" width="{max(width, 0.5):.2f}" height="{BAR}"'
        drawn.append(f'<rect class="part" {place} style="fill:var(--{colour})"><title>{tip}</title></rect>')
        x += width
    return drawn


def _legend_rows(legend: Sequence[tuple[str, str]]) -> list[list[tuple[float, str, str]]]:
    """(x, name, colour) of each entry, wrapped into rows that fit the width."""
    rows: list[list[tuple[float, str, str]]] = []
    x = float(WIDTH)
    for name, colour in legend:
        length = 18 + CHARACTER * len(name) + 14
        if x + length > WIDTH or not rows:
            rows.append([])
            x = 0.0
        rows[-1].append((x, name, colour))
        x += length
    return rows


def _text(x: float, y: float, text: str, colour: str, *, anchor: str = "start", weight: int = 400) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{FONT}" font-weight="{weight}"'
    return f'<text {place} style="fill:var(--{colour})">{escape(text)}</text>'
