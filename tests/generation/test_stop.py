"""Stop strings in text that comes in pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobillama.errors import InputError
from mobillama.generation.stop import StopFilter


def before_stop(text: str, stops: list[str]) -> str:
    """The text before the stop string that is complete first, found by looking at every beginning of the text."""
    for end in range(len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            return text[: end - max(map(len, ended))]
    return text


@given(
    st.lists(st.text("ab\n", max_size=5), max_size=12),
    st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
)
def test_shown_text_ends_before_the_first_stop_string_however_it_is_cut(pieces: list[str], stops: list[str]) -> None:
    found = StopFilter(stops)
    expected = before_stop("".join(pieces), stops)
    shown = ""
    for piece in pieces:
        shown += found.push(piece)
        assert expected.startswith(shown)  # nothing of a stop string was let through, at any time
    assert found.stopped == (expected != "".join(pieces))
    assert shown + found.flush() == expected


def test_text_that_cannot_become_a_stop_string_is_shown_at_once() -> None:
    found = StopFilter(["\n\n", "User:"])
    assert [found.push(piece) for piece in ("One", " two\n", "three", " Us", "ers", " User", ": hi")] == [
        "One",
        " two",
        "\nthree",
        " ",
        "Users",
        " ",
        "",
    ]
    assert found.stopped


def test_an_empty_stop_string_is_an_error() -> None:
    with pytest.raises(InputError, match="stop string is empty"):
        StopFilter(["a", ""])


def test_one_stop_string_may_be_given_bare() -> None:
    found = StopFilter("END")
    assert found.push("the END") == "the "
