"""Laws of the charts: ticks are round and enclose, points land where the axes say, nothing is fetched."""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobillama.errors import InputError
from mobillama.report.chart import Level, Line, choose_ticks, draw_lines, format_tick, smooth, thin

SVG = "{http://www.w3.org/2000/svg}"
values = st.floats(-1e9, 1e9)


def draw(lines: list[Line], **options: object) -> ET.Element:
    svg = draw_lines(lines, title="t <&>", x_label="x", y_label="y", standalone=True, **options)  # type: ignore[arg-type]
    return ET.fromstring(svg)


@settings(deadline=None)
@given(values, values, st.integers(2, 12))
def test_ticks_are_evenly_spaced_and_enclose_the_range(a: float, b: float, count: int) -> None:
    low, high = min(a, b), max(a, b)
    ticks = choose_ticks(low, high, count)
    step = ticks[1] - ticks[0]
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    assert ticks[0] <= low + slack and ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= count + 2
    assert all(math.isclose(t - s, step, rel_tol=1e-6, abs_tol=slack) for s, t in itertools.pairwise(ticks))


@pytest.mark.parametrize("low, high", [(math.nan, 1.0), (0.0, math.inf), (2.0, 1.0)])
def test_an_axis_that_cannot_be_drawn_is_an_error(low: float, high: float) -> None:
    with pytest.raises(InputError, match="cannot be drawn"):
        choose_ticks(low, high)


def test_ticks_of_a_flat_line_have_room_on_both_sides() -> None:
    ticks = choose_ticks(3.0, 3.0)
    assert ticks[0] < 3.0 < ticks[-1]


def test_tick_labels_are_short() -> None:
    assert [format_tick(v) for v in (500000.0, 1500000.0, 0.0003, 6.5)] == ["500k", "1.5M", "0.0003", "6.5"]


def test_points_land_on_their_ticks() -> None:
    line = Line("a", [(0.0, 0.0), (10.0, 5.0)])
    root = draw([line])
    drawn = root.find(f"{SVG}polyline").attrib["points"].split()  # type: ignore[union-attr]
    grid = [float(rule.attrib["y1"]) for rule in root.iter(f"{SVG}line") if rule.get("class") == "grid"]
    assert float(drawn[0].split(",")[1]) == max(grid)
    assert float(drawn[-1].split(",")[1]) == min(grid)
    assert float(drawn[0].split(",")[0]) < float(drawn[-1].split(",")[0])


def test_every_point_is_inside_the_picture_and_non_finite_ones_are_left_out() -> None:
    points = [(0.0, 8.0), (1.0, math.nan), (2.0, math.inf), (3.0, -4.0)]
    root = draw([Line("a", points), Line("b", points, 1, "dots")], levels=[Level("goal", 20.0)])
    width, height = (float(size) for size in root.attrib["viewBox"].split()[2:])
    for polyline in root.iter(f"{SVG}polyline"):
        pairs = [tuple(map(float, pair.split(","))) for pair in polyline.attrib["points"].split()]
        assert len(pairs) == 2
        assert all(0 < x < width and 0 < y < height for x, y in pairs)


def test_legend_names_every_series_but_the_faint_ones() -> None:
    lines = [Line(f"series number {i}", [(0.0, 1.0), (1.0, 2.0)], i) for i in range(7)]
    root = draw([*lines, Line("raw", [(0.0, 1.0)], 0, "faint")])
    texts = list(root.iter(f"{SVG}text"))
    named = {text.text: text for text in texts if text.text and text.text.startswith("series")}
    assert set(named) == {line.name for line in lines}
    assert all(float(text.attrib["x"]) + 6 * len(name) < 760 for name, text in named.items())
    assert "raw" not in [text.text for text in texts]


def test_long_tick_labels_keep_clear_of_the_axis_label() -> None:
    root = draw([Line("lr", [(0.0, 0.00021), (1.0, 0.00022)])])
    ticks = [t for t in root.iter(f"{SVG}text") if t.get("text-anchor") == "end"]
    assert ticks and all(float(t.attrib["x"]) - 6.6 * len(str(t.text)) > 14 for t in ticks)


def test_title_and_description_say_what_is_seen() -> None:
    root = draw([Line("loss", [(0.0, 8.0), (1.0, 4.5)])])
    assert root.find(f"{SVG}title").text == "t <&>"  # type: ignore[union-attr]
    assert root.find(f"{SVG}desc").text == "loss: from 8 to 4.5"  # type: ignore[union-attr]


def test_chart_without_points_says_so() -> None:
    assert "no points yet" in draw_lines([Line("a", [])], title="t", x_label="x", y_label="y")


@settings(deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=200), st.integers(1, 50))
def test_smoothing_keeps_the_places_and_the_range(ys: list[float], window: int) -> None:
    points = [(float(x), y) for x, y in enumerate(ys)]
    smoothed = smooth(points, window)
    assert [x for x, _ in smoothed] == [x for x, _ in points]
    assert all(min(ys) - 1e-9 <= y <= max(ys) + 1e-9 for _, y in smoothed)
    assert smooth(points, 1) == points


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(2, 700))
def test_thinning_bounds_the_points_and_keeps_the_last(count: int, at_most: int) -> None:
    points = [(float(x), float(x) % 7) for x in range(count)]
    thinned = thin(points, at_most)
    assert len(thinned) <= at_most
    assert thinned[-1] == points[-1]
    assert [x for x, _ in thinned] == sorted(x for x, _ in thinned)
