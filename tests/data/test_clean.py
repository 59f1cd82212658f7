"""What normalising changes, and why a document is dropped."""

from __future__ import annotations

import time

import pytest
from datatrove.data import Document
from hypothesis import given
from hypothesis import strategies as st

from mobillama.config import CleanConfig
from mobillama.data.clean import Filter, Normalise, reason_to_drop
from mobillama.data.edits import apply_edits

CLEAN = CleanConfig(min_characters=5, max_characters=1000)
MIXED = st.text(st.one_of(st.sampled_from("\r\n\0\ufeff"), st.characters(exclude_categories=["Cs"])))


def cleaned(text: str, clean: CleanConfig = CLEAN) -> Document:
    """The document after both steps of this file."""
    raw = text.encode()
    document = Document(text, "d", [], {"raw": raw, "raw_bytes": len(raw)})
    return next(Filter(clean).run(Normalise(clean).run(iter([document]))))


def normalise(text: str) -> str:
    return cleaned(text).text


def reason(text: str) -> str | None:
    return cleaned(text).metadata.get("dropped")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "empty"),
        (" \n\t\r\n", "empty"),
        ("\ufeff", "empty"),
        ("four", "too_short"),
        ("a" * 1001, "too_long"),
        ("ELF\x00\x01\x02\x03 text text", "binary"),
        ("\x00" * 50, "binary"),
        ("plain text", None),
        ("a form feed\f and a tab\t are text" * 3, None),
        ("他看见了海🙂", None),
    ],
)
def test_documents_are_dropped_with_a_reason(text: str, expected: str | None):
    assert reason(text) == expected


def test_a_stray_control_character_is_no_reason_to_drop():
    assert reason("text " * 100 + "\x07") is None
    assert reason("text " * 10 + "\x07\x07") == "binary"


@given(MIXED)
def test_normalising_is_this_and_nothing_more(text: str):
    expected = text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff").replace("\0", "")
    document = cleaned(text, CleanConfig(max_control_share=1))
    assert document.text == expected
    assert apply_edits(text.encode(), document.metadata.get("edits", ())) == expected.encode()


@given(st.text())
def test_normalising_twice_changes_nothing_more(text: str):
    once = normalise(text)
    assert "\r" not in once
    assert "\0" not in once
    assert normalise(once) == once or once.startswith("\ufeff")


def test_a_document_of_200_megabytes_is_dropped_uncopied():
    document = Document("a line\r\n" * 25_000_000, "d", [], {"raw": b"a line\r\n", "raw_bytes": 8})
    text, start = document.text, time.perf_counter()
    clean = CleanConfig()
    found = next(Filter(clean).run(Normalise(clean).run(iter([document]))))
    assert found.metadata["dropped"] == "too_long"
    assert found.text is text
    assert time.perf_counter() - start < 5


def test_the_raw_text_alone_decides_what_is_binary():
    clean = CleanConfig(min_characters=1)
    assert reason_to_drop("text", b"text", clean) is None
    assert reason_to_drop("text", b"text" + b"\0" * 9, clean) == "binary"
