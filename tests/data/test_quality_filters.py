"""Quality filters: datatrove's decisions on every document, lines removed as edits, and ours on real documents."""

from __future__ import annotations

import gzip
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.utils.text import split_into_parts
from hypothesis import given
from hypothesis import strategies as st
from samples import make_text

from mobillama.config import SubsetConfig
from mobillama.data.edits import apply_edits
from mobillama.data.quality import WORDS, Quality, judge, letters
from mobillama.data.repetition import Runs

ORACLES: dict[str, Any] = {
    "gopher_repetition": GopherRepetitionFilter,
    "gopher_quality": GopherQualityFilter,
    "c4": C4QualityFilter,
    "fineweb": FineWebQualityFilter,
}
PROSE = "The ships sailed past the old harbour that morning, and we had to wait for the tide to turn again. "


def document(text: str, source: str = "web") -> Document:
    return Document(text, "d", [], {"raw": text.encode(), "source": source})


def check_against_datatrove(name: str, texts: Iterator[str]) -> set[str | None]:
    """Reasons met, after comparing decision, reason and text of every document."""
    oracle, ours, met = ORACLES[name](language=WORDS), judge(name), set()
    for text in texts:
        theirs, mine = document(text), document(text)
        answer = oracle.filter(theirs)
        reason = ours(mine)
        met.add(reason)
        split_into_parts.cache_clear()
        assert reason == (None if answer is True else expected(name, answer[1]))
        if reason is None:
            assert mine.text == theirs.text
            assert apply_edits(text.encode(), mine.metadata.get("edits", ())) == theirs.text.encode()
        else:
            assert mine.text == text
    return met


def expected(name: str, reason: str) -> str:
    return reason if reason.startswith(name.partition("_")[0] + "_") else f"{name}_{reason}"


def made_texts(count: int, seed: int) -> Iterator[str]:
    """Prose with repeated words, lines and paragraphs, bullets, citations, brackets and odd line ends."""
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(count):
        lines: list[str] = []
        for _ in range(chance.randrange(1, 30)):
            line = chance.choice(
                (PROSE, PROSE * 3, make_text(chance, 20).replace("\n", " "), "- item", "so it goes...")
            )
            line = (
                chance.choice(("", "[1] ", " ", "javascript ", "• "))
                + line
                + chance.choice((".", "", "!", "[2].", " [edit]"))
            )
            lines.append(line + chance.choice(("\n", "\n", "\n\n", "\r", "\x0b", "\u2028", " ")))
            if chance.random() < 0.3:
                lines.append(chance.choice(lines))
        if chance.random() < 0.1:
            lines.append(chance.choice(("{", "Lorem Ipsum dolor sit amet.", "the privacy policy is here.", "#" * 30)))
        yield "".join(lines)


@pytest.mark.parametrize("name", ORACLES)
def test_decision_reason_and_text_are_datatroves(name: str):
    met = check_against_datatrove(name, made_texts(300, random.randrange(1 << 32)))
    assert len(met) > 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ORACLES)
def test_decision_reason_and_text_are_datatroves_on_every_web_document(shared_folder: Callable[[str], Path], name: str):
    check_against_datatrove(name, (text for subset in ("c4", "refinedweb") for text in real(shared_folder, subset)))


@given(st.lists(st.sampled_from(["a", "b", "ab", "ba", "aab", "é", "🙂"]), min_size=1, max_size=40))
def test_runs_of_words_are_counted_as_datatrove_counts_them(words: list[str]):
    from datatrove.pipeline.filters.gopher_repetition_filter import (
        find_all_duplicate,
        find_top_duplicate,
        get_n_grams,
    )

    runs = Runs(words)
    for n in range(1, min(10, len(words)) + 1):
        assert runs.top(n) == find_top_duplicate(get_n_grams(words, n))
        assert runs.repeated(n, 0) == find_all_duplicate(words, n)


def test_lines_that_c4_removes_are_edits():
    kept = (PROSE * 6).strip()
    text = f"Heading\r\n\r\n[1]  {kept}[23]\n* a list item\n  {kept}[edit]\x0cAnd one more line, at last.\n\n"
    left = document(text)
    assert judge("c4")(left) is None
    assert left.text == f"{kept}\n{kept}\nAnd one more line, at last."
    assert apply_edits(text.encode(), left.metadata["edits"]) == left.text.encode()


def real(shared_folder: Callable[[str], Path], subset: str, most: int = 1 << 60) -> Iterator[str]:
    with gzip.open(shared_folder("MOBILLAMA_CORPORA") / f"{subset}.jsonl.gz") as file:
        for number, line in enumerate(file):
            if number >= most:
                return
            yield json.loads(line)["text"]


@pytest.mark.parametrize(
    ("subset", "name"),
    [("arxiv", "light"), ("book", "light"), ("stackexchange", "light"), ("wikipedia", "light"), ("starcoder", "code")],
)
def test_real_documents_are_kept(shared_folder: Callable[[str], Path], subset: str, name: str):
    ask = judge(name)
    assert [reason for text in real(shared_folder, subset, 400) if (reason := ask(document(text)))] == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("int x;\n" * 50 + "y" * 1001, "code_long_line"),
        (("a" * 120 + "\n") * 20, "code_mean_line"),
        ("{}[]();;\n" * 50, "code_few_letters"),
        ("# AUTO-GENERATED by a tool\nx = 1\n" * 3, "code_generated"),
        ("// Code generated by protoc-gen-go. DO NOT EDIT.\npackage x\n" * 3, "code_generated"),
        ('<?xml version="1.0"?>\n<a>text</a>\n' * 3, "code_xml"),
        ("def f(x):\n    return x + 1\n" * 5, None),
        ("x = 1\n" * 6 + "# this says autogenerated, but far down\n", None),
    ],
)
def test_code_is_dropped_with_a_reason(text: str, reason: str | None):
    assert judge("code")(document(text)) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PROSE * 5 + "\ufffd" * 10, "light_replacement_characters"),
        ("=-=-=-=-= " * 40 + "a", "light_few_letters"),
        ("Subscribe to our newsletter today\n" * 30 + PROSE, "light_one_line"),
        ("\n".join(f"verse {number} of the song\nlalala" for number in range(30)), None),
        ("他看见了海。" * 3 + "他回家了", None),
        ("\\begin{equation}\n  x_{i}^{2} + \\alpha = 0\n\\end{equation}\n" * 3, None),
    ],
)
def test_what_no_real_text_looks_like_is_dropped(text: str, reason: str | None):
    assert judge("light")(document(text)) == reason


@given(st.text())
def test_letters_are_counted(text: str):
    assert letters(text) == sum(character.isalnum() for character in text)


def test_filters_are_those_of_the_subset_in_their_order():
    bad = "{ short }\n" * 30
    subsets = {
        "web": SubsetConfig(quality=("c4", "gopher_repetition")),
        "other": SubsetConfig(quality=("gopher_repetition",)),
    }
    documents = [document(bad, source) for source in ("web", "other", "free")]
    documents.append(Document(bad, "d", [], {"source": "web", "raw": bad.encode(), "dropped": "binary"}))
    found = [one.metadata.get("dropped") for one in Quality(subsets).run(iter(documents))]
    assert found == ["c4_too_few_sentences", "gopher_repetition_dup_line_frac", None, "binary"]


@pytest.mark.parametrize("unit", ["a", "a ", "a. ", ".", "[1]", "\n", "a.\n", "{", "海"])
@pytest.mark.parametrize("name", [*ORACLES, "light", "code"])
def test_a_million_characters_of_anything_take_seconds_at_most(name: str, unit: str):
    text = unit * (1_000_000 // len(unit))
    start = time.perf_counter()
    judge(name)(document(text))
    split_into_parts.cache_clear()
    assert time.perf_counter() - start < 20
