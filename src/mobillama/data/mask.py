"""Masking e-mail addresses and public IP addresses, in time linear in the text.

What stands there instead is reserved for documentation, so it reaches nobody: RFC 2606 (example.com), RFC 5737
(192.0.2.0/24) and RFC 3849 (2001:db8::/32). Masking a masked text changes nothing.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from mobillama.data.edits import Change, edit

EMAIL, IPV4, IPV6 = "name@example.com", "192.0.2.1", "2001:db8::1"
LOCAL = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._%+-"
LOCAL_MOST, DOMAIN_MOST = 64, 255  # RFC 5321, section 4.5.3.1
# Every repetition is bounded or ends at a character that it cannot hold, so no pattern tries a place twice.
DOMAIN = re.compile(r"(?:[A-Za-z0-9-]{1,63}\.){1,20}[A-Za-z]{2,24}(?![A-Za-z0-9])")
RESERVED = re.compile(r"(?:[A-Za-z0-9-]+\.)*example\.(?:com|org|net)", re.IGNORECASE)
DOTTED = re.compile(r"(?<![\w.])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?!\w|\.[0-9])")
HEXADECIMAL = re.compile(r"(?<![\w:.])(?:[0-9a-fA-F]{0,4}:){3,7}[0-9a-fA-F]{0,4}(?![\w:]|\.\w)")


def changes(text: str) -> list[Change]:
    """Where addresses stand in a text and what is to stand there: (start, end, placeholder) in characters, sorted."""
    found = [*_emails(text), *_numbers(text)]
    found.sort()
    kept: list[Change] = []
    for change in found:  # an address such as name@192.0.2.1.example.net holds another
        if not kept or change[0] >= kept[-1][1]:
            kept.append(change)
    return kept


def _emails(text: str) -> Iterator[Change]:
    at = text.find("@")
    while at >= 0:
        window = text[max(0, at - LOCAL_MOST - 1) : at]
        local = window[len(window.rstrip(LOCAL)) :].lstrip(".")
        domain = DOMAIN.match(text, at + 1, at + 1 + DOMAIN_MOST) if local and len(local) <= LOCAL_MOST else None
        # git@host:path names a service, not a person.
        if domain and local != "git" and not RESERVED.fullmatch(domain[0]):
            yield at - len(local), domain.end(), EMAIL
        at = text.find("@", at + 1)


def _numbers(text: str) -> Iterator[Change]:
    for pattern, kind, placeholder in (
        (DOTTED, ipaddress.IPv4Address, IPV4),
        (HEXADECIMAL, ipaddress.IPv6Address, IPV6),
    ):
        if placeholder is IPV6 and "::" not in text and text.count(":") < 7:  # no IPv6 address has fewer
            continue
        for match in pattern.finditer(text):
            try:
                public = kind(match[0]).is_global
            except ValueError:  # 01.02.03.04, 300.1.1.1, 12:30:45:10
                continue
            if public:
                yield match.start(), match.end(), placeholder


class Mask(PipelineStep):  # type: ignore[misc]
    """Masks every document that is kept."""

    name, type = "mask", "format"

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The same documents, addresses in their text replaced."""
        for document in data:
            if "dropped" not in document.metadata:
                edit(document, changes(document.text))
            yield document
