"""Line charts as SVG text: axes, ticks, legend; no library, no script, nothing fetched.

Colours are CSS variables of the page (so that a dark page gets its own), unless the chart stands alone: then it carries
its colours and a light plate, and can be read on a white and on a dark background.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from mobillama.errors import InputError

Point = tuple[float, float]

# One hue per series, told apart also by the colour-blind; the page defines the same names for dark backgrounds.
PALETTE = {
    "ink": "#1f2328",
    "muted": "#59636e",
    "grid": "#e4e8ec",
    "plate": "#ffffff",
    "series-0": "#1f6fd1",
    "series-1": "#d9601a",
    "series-2": "#1a8a5f",
    "series-3": "#8a4fc2",
}
SERIES = sum(name.startswith("series-") for name in PALETTE)
FLAT = 1e-9  # a range this small beside its values is drawn as a flat line in the middle
CHARACTER = 6.6  # mean width in pixels of a 12-pixel sans-serif character, for legend spacing
LEFT, RIGHT, BOTTOM, TITLE, LEGEND_ROW = 58, 18, 46, 24, 20


@dataclass(frozen=True)
class Line:
    """One series. `faint` is drawn thin and pale (raw values), `dots` as a line with a mark and a tooltip per point."""

    name: str
    points: Sequence[Point]
    series: int = 0
    style: Literal["line", "faint", "dots"] = "line"


@dataclass(frozen=True)
class Level:
    """A dashed horizontal line at `value`, labelled on the chart."""

    name: str
    value: float


def choose_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that enclose [low, high], about `count` of them.

    >>> choose_ticks(0.3, 4.2)
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """
    if not (math.isfinite(low) and math.isfinite(high)) or low > high:
        raise InputError(f"an axis from {low} to {high} cannot be drawn; give finite values, the smaller first")
    if high - low <= max(FLAT * max(abs(low), abs(high)), 1e-300):
        room = 0.5 * max(abs(low), abs(high))
        low, high = (low - room, high + room) if room > 1e-300 else (-0.5, 0.5)
    rough = (high - low) / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def format_tick(value: float) -> str:
    """A tick's label: no exponent and thousands as k, M or B.

    >>> [format_tick(v) for v in (0.0, 0.25, 12.0, 1500.0, 2000000.0)]
    ['0', '0.25', '12', '1.5k', '2M']
    """
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.6g}{suffix}"
    return f"{value:.6g}"


def smooth(points: Sequence[Point], window: int) -> list[Point]:
    """Mean over the `window` values around every point (fewer at the ends); a non-finite value counts as absent."""
    before, after = window // 2, window - window // 2
    smoothed = []
    for middle in range(len(points)):
        values = [y for _, y in points[max(0, middle - before) : middle + after] if math.isfinite(y)]
        if values:
            smoothed.append((points[middle][0], math.fsum(values) / len(values)))
    return smoothed


def thin(points: Sequence[Point], at_most: int = 600) -> list[Point]:
    """Means of equal runs of points, so that a long run stays a small picture; the last point is kept as it is."""
    if len(points) <= at_most:
        return list(points)
    size = math.ceil((len(points) - 1) / (at_most - 1))
    runs = [points[start : min(start + size, len(points) - 1)] for start in range(0, len(points) - 1, size)]
    means = [(math.fsum(x for x, _ in run) / len(run), math.fsum(y for _, y in run) / len(run)) for run in runs]
    return [*means, points[-1]]


def draw_lines(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    levels: Sequence[Level] = (),
    width: int = 760,
    height: int = 400,
    standalone: bool = False,
) -> str:
    """The chart as one `<svg>` element. Non-finite points are left out; a chart without points says so.

    `standalone` gives an SVG file with its own colours and font instead of one that takes them from the page.
    """
    lines = [Line(line.name, finite(line.points), line.series, line.style) for line in lines]
    legend = [line for line in lines if line.style != "faint"]
    if len(legend) == 1:
        legend = []  # title and axis say what a single line is
    rows = _legend_rows(legend, width)
    top = (TITLE if standalone else 8) + LEGEND_ROW * len(rows) + 10
    frame = _Frame(lines, levels, width, height, top) if any(line.points for line in lines) else None
    parts = [f"<title>{escape(title)}</title><desc>{escape(_describe(lines, levels))}</desc>"]
    if standalone:
        parts.append(f'<rect width="{width}" height="{height}" rx="8" fill="{PALETTE["plate"]}"/>')
        parts.append(_text(LEFT, 22, title, weight="600", size=14, standalone=True))
    parts += _draw_legend(rows, TITLE if standalone else 8, standalone)
    if frame is None:
        parts.append(_text(width / 2, height / 2, "no points yet", anchor="middle", standalone=standalone))
    else:
        parts += frame.draw_axes(x_label, y_label, standalone)
        order = sorted(lines, key=lambda line: line.style != "faint")
        parts += [frame.draw_line(line, standalone) for line in order if line.points]
        parts += [frame.draw_level(level, standalone) for level in levels if math.isfinite(level.value)]
    space = ' xmlns="http://www.w3.org/2000/svg"' if standalone else ""
    font = ' font-family="system-ui, sans-serif"'
    return f'<svg{space} role="img" viewBox="0 0 {width} {height}"{font}>{"".join(parts)}</svg>'


def finite(points: Iterable[Point]) -> list[Point]:
    """The points whose both coordinates are finite."""
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


class _Frame:
    """Maps values to pixels inside the axes."""

    def __init__(self, lines: Sequence[Line], levels: Sequence[Level], width: int, height: int, top: int) -> None:
        xs = [x for line in lines for x, _ in line.points]
        ys = [y for line in lines for _, y in line.points]
        ys += [level.value for level in levels if math.isfinite(level.value)]
        x_ticks, self.y_ticks = choose_ticks(min(xs), max(xs), 8), choose_ticks(min(ys), max(ys))
        # A curve may end between two ticks: the axis ends with it.
        self.x_low, self.x_high = x_ticks[0], max(xs) if max(xs) > min(xs) else x_ticks[-1]
        self.x_ticks = [tick for tick in x_ticks if tick <= self.x_high]
        longest = max(len(format_tick(tick)) for tick in self.y_ticks)
        self.left, self.right = max(LEFT, 30 + CHARACTER * longest), width - RIGHT
        self.top, self.bottom = top, height - BOTTOM

    def x(self, value: float) -> float:
        return self.left + (value - self.x_low) / (self.x_high - self.x_low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def draw_axes(self, x_label: str, y_label: str, standalone: bool) -> list[str]:
        parts = []
        for tick in self.y_ticks:
            y = self.y(tick)
            stroke = _paint("stroke", "grid", standalone)
            parts.append(f'<line class="grid" x1="{self.left}" y1="{y:.1f}" x2="{self.right}" y2="{y:.1f}" {stroke}/>')
            parts.append(_text(self.left - 8, y + 4, format_tick(tick), "end", standalone=standalone))
        below = self.bottom + 18
        parts += [_text(self.x(t), below, format_tick(t), "middle", standalone=standalone) for t in self.x_ticks]
        stroke = _paint("stroke", "muted", standalone)
        parts.append(f'<line x1="{self.left}" y1="{self.bottom}" x2="{self.right}" y2="{self.bottom}" {stroke}/>')
        middle_x, middle_y = (self.left + self.right) / 2, (self.top + self.bottom) / 2
        parts.append(_text(middle_x, self.bottom + 38, x_label, "middle", standalone=standalone))
        turned = _text(0, 0, y_label, "middle", standalone=standalone)
        parts.append(f'<g transform="translate(14 {middle_y:.1f}) rotate(-90)">{turned}</g>')
        return parts

    def draw_level(self, level: Level, standalone: bool) -> str:
        y, stroke = self.y(level.value), _paint("stroke", "muted", standalone)
        rule = f'<line x1="{self.left}" y1="{y:.1f}" x2="{self.right}" y2="{y:.1f}" stroke-dasharray="5 4" {stroke}/>'
        # A rim in the colour of the plate keeps the name readable over the curves.
        rim = f'<g paint-order="stroke" stroke-width="4" {_paint("stroke", "plate", standalone)}>'
        return f"{rule}{rim}{_text(self.right - 4, y - 5, level.name, 'end', standalone=standalone)}</g>"

    def draw_line(self, line: Line, standalone: bool) -> str:
        colour = _colour(line)
        points = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in line.points)
        width, opacity = ("1", "0.3") if line.style == "faint" else ("2", "1")
        dash = ' stroke-dasharray="2 3"' if line.style == "dots" else ""
        drawn = (
            f'<polyline points="{points}" fill="none" stroke-width="{width}" opacity="{opacity}"{dash}'
            f' stroke-linejoin="round" {_paint("stroke", colour, standalone)}/>'
        )
        if line.style == "dots":
            fill = _paint("fill", colour, standalone)
            for x, y in line.points:
                tip = escape(f"{line.name}: {y:.4g} at {format_tick(x)}")
                drawn += f'<circle cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="4" {fill}><title>{tip}</title></circle>'
        return drawn


def _legend_rows(lines: Sequence[Line], width: int) -> list[list[tuple[float, Line]]]:
    """(x position, line) of each legend entry, wrapped into rows that fit the width."""
    rows: list[list[tuple[float, Line]]] = []
    x = float(width)
    for line in lines:
        length = 34 + CHARACTER * len(line.name) + 14
        if x + length > width - RIGHT or not rows:
            rows.append([])
            x = float(LEFT)
        rows[-1].append((x, line))
        x += length
    return rows


def _draw_legend(rows: Sequence[Sequence[tuple[float, Line]]], top: int, standalone: bool) -> list[str]:
    parts = []
    for row, entries in enumerate(rows):
        y = top + LEGEND_ROW * row + 14
        for x, line in entries:
            stroke, fill = (_paint(what, _colour(line), standalone) for what in ("stroke", "fill"))
            dash = ' stroke-dasharray="2 3"' if line.style == "dots" else ""
            parts.append(f'<line x1="{x:.0f}" y1="{y}" x2="{x + 26:.0f}" y2="{y}" stroke-width="2"{dash} {stroke}/>')
            if line.style == "dots":
                parts.append(f'<circle cx="{x + 13:.0f}" cy="{y}" r="4" {fill}/>')
            parts.append(_text(x + 34, y + 4, line.name, standalone=standalone, colour="ink"))
    return parts


def _colour(line: Line) -> str:
    return f"series-{line.series % SERIES}"


def _paint(what: str, name: str, standalone: bool) -> str:
    return f'{what}="{PALETTE[name]}"' if standalone else f'style="{what}:var(--{name})"'


def _text(
    x: float,
    y: float,
    text: str,
    anchor: str = "start",
    *,
    weight: str = "400",
    size: int = 12,
    colour: str = "",
    standalone: bool,
) -> str:
    fill = _paint("fill", colour or ("ink" if weight != "400" else "muted"), standalone)
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-size="{size}" font-weight="{weight}" {fill}>{escape(text)}</text>'


def _describe(lines: Sequence[Line], levels: Sequence[Level]) -> str:
    """What the chart shows, in words, for readers who cannot see it."""
    said = [
        f"{line.name}: from {line.points[0][1]:.4g} to {line.points[-1][1]:.4g}"
        for line in lines
        if line.points and line.style != "faint"
    ]
    return "; ".join([*said, *(f"{level.name}: {level.value:.4g}" for level in levels)])
