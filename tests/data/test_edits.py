"""Edits: any chain of changes is one list of byte edits over the raw text."""

from __future__ import annotations

import time

import pytest
from datatrove.data import Document
from hypothesis import given
from hypothesis import strategies as st

from mobillama.data.edits import Change, apply_edits, compose, edit
from mobillama.errors import InputError

TEXT = st.text(st.sampled_from("ab \n\r\0é海🙂"), max_size=30)


def fresh(text: str) -> Document:
    return Document(text, "d", [], {"raw": text.encode()})


def changed(text: str, changes: list[Change]) -> str:
    for start, end, put in reversed(changes):
        text = text[:start] + put + text[end:]
    return text


@st.composite
def chains(draw: st.DrawFn) -> tuple[str, list[list[Change]]]:
    text = raw = draw(TEXT)
    chain = []
    for _ in range(draw(st.integers(0, 4))):
        cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
        pairs = zip(cuts[::2], cuts[1::2], strict=False)
        changes = [(start, end, draw(st.text("xyé🙂", max_size=3))) for start, end in pairs]
        chain.append(changes)
        text = changed(text, changes)
    return raw, chain


@given(chains())
def test_any_chain_of_changes_composes_to_edits_that_turn_raw_into_text(given: tuple[str, list[list[Change]]]):
    raw, chain = given
    document, text = fresh(raw), raw
    for changes in chain:
        edit(document, changes)
        text = changed(text, changes)
    edits = document.metadata.get("edits", [])
    assert document.text == text
    assert apply_edits(raw.encode(), edits) == text.encode()
    column = [{"start": start, "end": end, "text": put.decode()} for start, end, put in edits]
    assert apply_edits(raw.encode(), column) == text.encode()


@given(chains())
def test_edits_are_sorted_do_not_touch_and_cut_no_character(given: tuple[str, list[list[Change]]]):
    raw, chain = given
    document = fresh(raw)
    for changes in chain:
        edit(document, changes)
    data, last = raw.encode(), -1
    for start, end, put in document.metadata.get("edits", []):
        assert last < start <= end <= len(data)
        assert (data[:start].decode() + data[start:end].decode() + data[end:].decode()).encode() == data
        put.decode()
        last = end


def test_edits_that_touch_become_one():
    assert compose([(3, 5, b"")], [(3, 3, b"x")], b"abcfg") == [(3, 5, b"x")]
    assert compose([(1, 1, b"XY")], [(2, 4, b"")], b"aXYbc") == [(1, 2, b"X")]
    assert compose([], [(0, 1, b"A"), (1, 2, b"B")], b"abc") == [(0, 2, b"AB")]


def test_no_changes_leave_no_edits():
    document = fresh("text")
    edit(document, [])
    assert "edits" not in document.metadata


def test_changes_and_edits_out_of_order_are_refused():
    with pytest.raises(ValueError, match="not within"):
        edit(fresh("abcdef"), [(3, 4, ""), (2, 3, "")])
    with pytest.raises(InputError, match="not the edits of this raw text"):
        apply_edits(b"abc", [(2, 9, b"")])


def test_thousands_of_edits_of_megabytes_take_linear_time():
    text = "a line of words é\r\n" * 200_000
    document = fresh(text)
    start = time.perf_counter()
    edit(document, [(place, place + 1, "") for place in range(17, len(text), 19)])
    edit(document, [(place, place + 4, "verse") for place in range(2, len(document.text), 18 * 4)])
    assert time.perf_counter() - start < 10
    assert apply_edits(document.metadata["raw"], document.metadata["edits"]).decode() == document.text
