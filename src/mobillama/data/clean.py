"""Normalising text and dropping what is no text, each document with a reason.

Light on purpose: no step here judges content, so that code, mathematics and verse all pass (quality.py does, where a
subset asks for it). Reasons: empty, too_short, too_long, binary (and invalid_utf8 from reading).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from mobillama.config import CleanConfig
from mobillama.data.edits import Change, edit

# Control characters that text has no use for: all of C0 but tab, newline, vertical tab and form feed, and DEL.
CONTROLS = bytes([*range(9), *range(14, 32), 127])
BYTE_ORDER_MARK, NUL = "\ufeff", "\0"
OTHER = re.compile("\r\n?|\0")  # line ends other than \n, and NUL


def normalising(text: str) -> list[Change]:
    r"""What normalising changes: line ends become \n, a byte order mark at the beginning and NULs go. Nothing else.

    >>> normalising("\ufeffa\r\nb\rc\0")
    [(0, 1, ''), (2, 4, '\n'), (5, 6, '\n'), (7, 8, '')]
    """
    changes: list[Change] = [(0, 1, "")] if text.startswith(BYTE_ORDER_MARK) else []
    if "\r" in text or NUL in text:
        found = OTHER.finditer(text)
        changes += [(match.start(), match.end(), "" if match[0] == NUL else "\n") for match in found]
    return changes


def reason_to_drop(text: str, raw: bytes, clean: CleanConfig) -> str | None:
    """Why a document is dropped, or None. `text` is normalised, `raw` the UTF-8 of the text as it was read."""
    controls = len(raw) - len(raw.translate(None, CONTROLS))
    if controls > clean.max_control_share * len(raw):
        return "binary"
    if not text or text.isspace():
        return "empty"
    if len(text) < clean.min_characters:
        return "too_short"
    if len(text) > clean.max_characters:
        return "too_long"
    return None


class Normalise(PipelineStep):  # type: ignore[misc]
    """Normalises every document that is not dropped yet and not too long."""

    name, type = "normalise", "format"

    def __init__(self, clean: CleanConfig) -> None:
        super().__init__()
        self.most = clean.max_characters

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The same documents, their text normalised and the edits noted."""
        for document in data:
            # A text that is far too long is dropped as it is: nothing of it has to be copied.
            if "dropped" not in document.metadata and len(document.text) <= 2 * self.most:
                edit(document, normalising(document.text))
            yield document


class Filter(PipelineStep):  # type: ignore[misc]
    """Marks the documents to drop with the reason."""

    name, type = "filter", "filter"

    def __init__(self, clean: CleanConfig) -> None:
        super().__init__()
        self.clean = clean

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The same documents; `dropped` is added to the metadata of some."""
        for document in data:
            metadata = document.metadata
            if "dropped" not in metadata and (reason := reason_to_drop(document.text, metadata["raw"], self.clean)):
                metadata["dropped"] = reason
            yield document
