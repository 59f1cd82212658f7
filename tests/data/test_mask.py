"""Masking: which addresses go, what stays, and that no text makes it slow."""

from __future__ import annotations

import time

import pytest
from datatrove.data import Document
from hypothesis import given
from hypothesis import strategies as st

from mobillama.data.edits import apply_edits
from mobillama.data.mask import Mask, changes


def masked(text: str) -> Document:
    document = Document(text, "d", [], {"raw": text.encode()})
    return next(Mask().run(iter([document])))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to bob.smith+x@mail.host.org.", "write to name@example.com."),
        ("<BOB@HOST.DE>, (eve@host.co.uk)", "<name@example.com>, (name@example.com)"),
        ("é.bob@host.fr 海bob@host.cn", "é.name@example.com 海name@example.com"),
        ("from 8.8.8.8, 1.1.1.1:53", "from 192.0.2.1, 192.0.2.1:53"),
        ("at 2606:4700:4700::1111.", "at 2001:db8::1."),
        ("a@b.org@c.org", "name@example.com@c.org"),
    ],
)
def test_addresses_become_placeholders(text: str, expected: str):
    document = masked(text)
    assert document.text == expected
    assert apply_edits(text.encode(), document.metadata["edits"]) == expected.encode()


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.1 192.168.1.1 127.0.0.1 172.16.0.1 ::1 fe80::1 2001:db8::7",
        "version v1.2.3.4, 1.2.3.4.5, 300.1.1.1, 01.02.03.04",
        "12:30:45 std::vector<a::b> 00:1a:2b:3c:4d:5e",
        "git@github.com:owner/name name@example.com you@mail.example.org",
        "@decorator user@localhost a @ b @@ @",
        "x" * 80 + "@host.org",
    ],
)
def test_what_is_no_public_address_stays(text: str):
    assert changes(text) == []


@given(st.text(st.sampled_from("a1.:@-fé \n")))
def test_masking_twice_changes_nothing_more(text: str):
    once = masked(text).text
    assert masked(once).text == once


@pytest.mark.parametrize(
    "unit", ["a", "@", "a@", "1.", "a.b@c.", ":", "ab:", "1.1.1.", "a@a-", "::1", "é@", "1.1.1.1 ", "a@b.cc "]
)
def test_a_line_of_a_million_characters_takes_seconds_at_most(unit: str):
    line = unit * (1_000_000 // len(unit))
    start = time.perf_counter()
    masked(line)
    masked("x@" + line)
    assert time.perf_counter() - start < 20


def test_dropped_documents_are_left_as_they_are():
    document = Document("bob@host.org", "d", [], {"raw": b"bob@host.org", "dropped": "too_short"})
    assert next(Mask().run(iter([document]))).text == "bob@host.org"
