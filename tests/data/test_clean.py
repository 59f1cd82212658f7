"""What normalising changes, and why a document is dropped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobillama.config import CleanConfig
from mobillama.data.clean import normalise, reason_to_drop

CLEAN = CleanConfig(min_characters=5, max_characters=1000)


def reason(text: str) -> str | None:
    return reason_to_drop(normalise(text), text.encode(), CLEAN)


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


@given(st.text())
def test_normalising_twice_changes_nothing_more(text: str):
    once = normalise(text)
    assert "\r" not in once
    assert "\0" not in once
    assert normalise(once) == once or once.startswith("\ufeff")
