"""Law: what cleaning does with a text takes lines of Python in proportion to the text, however hostile it is."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from types import FrameType
from typing import Any

import pytest
from datatrove.data import Document

from mobillama.config import CleanConfig
from mobillama.data.clean import normalising
from mobillama.data.latex import MOST_GROWTH, main_text, without_comments
from mobillama.data.mask import changes
from mobillama.data.minhash import MinHash
from mobillama.data.quality import WORDS, c4_changes, judge
from mobillama.data.stackexchange import light_text

MINHASH = MinHash(CleanConfig())


def judged(name: str) -> Callable[[str], object]:
    ask = judge(name)
    return lambda text: ask(Document(text, "d", [], {"raw": text.encode(), "source": "s"}))


READERS: dict[str, Callable[[str], object]] = {
    "latex": lambda text: main_text({"a.tex": "\\documentclass{a}" + text, "b.tex": "\\input{b}"}),
    "latex comments": without_comments,
    "posts": light_text,
    "line ends": normalising,
    "addresses": changes,
    "words of near-duplicates": MINHASH.shingles,
    "sentences": WORDS.span_tokenize,
    **{f"filter {name}": judged(name) for name in ("gopher_repetition", "gopher_quality", "c4", "code", "light")},
}
UNITS = [
    "a",
    " ",
    "\n",
    ".",
    "a.\n",
    "@",
    "a@b.c ",
    "1.",
    ":",
    "<",
    "<a ",
    "<!--",
    "<br>",
    "<li>",
    "&#1",
    "\\input{",
    "\\",
]
UNITS += ["\\input{b}", "%", "/*", "#!", " //", "[1] ", "{", "海", "e\u0301", '"', "<blockquote>a"]


def lines_run(call: Callable[[], object]) -> int:
    """Lines of the package's Python that a call runs."""
    count = 0

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return local

    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        return local if "mobillama" in frame.f_code.co_filename else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("name", READERS)
def test_lines_run_grow_with_the_text(name: str) -> None:
    read = READERS[name]
    for unit in UNITS:
        one, two, four = (lines_run(lambda: read((unit * size)[:size])) for size in (400, 800, 1600))  # noqa: B023
        assert four <= 2.3 * max(two, 2 * one) + 100, (unit, one, two, four)


def test_files_that_put_each_other_in_many_times_over_stop_at_a_share_of_their_size() -> None:
    files = {f"f{n}.tex": f"\\input{{f{n + 1}}}" * 40 for n in range(15)} | {"ms.tex": "\\documentclass{a}\\input{f0}"}
    size = sum(map(len, files.values()))
    text = main_text(files)
    assert text is not None and len(text) < (MOST_GROWTH + 2) * size


class PlainParser(HTMLParser):
    """Tags and text of a post as Python's own parser tells them."""

    def __init__(self, told: list[tuple[str, str]]) -> None:
        super().__init__(convert_charrefs=True)
        self.told = told

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.told.append(("start", tag))

    def handle_endtag(self, tag: str) -> None:
        self.told.append(("end", tag))

    def handle_data(self, data: str) -> None:
        self.told.append(("data", data))


def test_posts_are_read_as_pythons_own_parser_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from mobillama.data import stackexchange

    told: list[tuple[str, str]] = []

    class Told:
        def __getattr__(self, event: str) -> Callable[[str], None]:
            return lambda value: told.append((event, value))

        def data(self, html: str) -> None:
            if html:
                told.append(("data", stackexchange.unescape(html)))

        def text(self) -> str:
            return ""

    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    tags = ["p", "em", "code", "pre", "ul", "li", "blockquote", "h2", "DIV", "sup"]
    parts = [f"<{tag}>" for tag in tags] + [f"</{tag}>" for tag in tags]
    parts += [
        "<br>",
        "<br/>",
        "<hr />",
        '<pre class="lang-js">',
        "<a href=\"https://x.org/?a=1&amp;b=2\" title='it > is'>",
    ]
    parts += ["<!-- language: lang-js -->", "text", "  ", "\n", "a &lt; b", "&amp;", "&#39;", "1 > 0", '"', "'", "é海"]
    monkeypatch.setattr(stackexchange, "_LightText", Told)
    for _ in range(3000):
        html = "".join(chance.choice(parts) for _ in range(chance.randrange(25)))
        told.clear()
        light_text(html)
        expected: list[tuple[str, str]] = []
        parser = PlainParser(expected)
        parser.feed(html)
        parser.close()
        assert told == expected, html


def test_odd_posts_are_read() -> None:
    assert light_text("<li>an item without a list</li>") == "- an item without a list"
    assert light_text("&#" + "1" * 5000 + ";") == "\ufffd"  # Python reads no number of so many digits
    deep = light_text("<blockquote>a" * 1000)
    assert len(deep) < 100 * 1000


def test_a_mark_of_a_citation_at_the_beginning_goes_with_the_space_behind_it() -> None:
    text = "[1] [2]  One two three.[3] Four"
    assert c4_changes(text, "One two three. Four") == [(0, 9, ""), (23, 26, "")]
