"""Normalising text and dropping documents, each with a reason.

Light on purpose: no step here judges content, so that code, mathematics and verse all pass. Reasons: empty, too_short,
too_long, binary (and invalid_utf8 from reading, duplicate from dedup).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from mobillama.config import CleanConfig

# Control characters that text has no use for: all of C0 but tab, newline, vertical tab and form feed, and DEL.
CONTROLS = bytes([*range(9), *range(14, 32), 127])
BYTE_ORDER_MARK, NUL = "\ufeff", "\0"


def normalise(text: str) -> str:
    r"""Text with \n line ends, without byte order mark or NUL; nothing else changes.

    >>> normalise("\ufeffa\r\nb\rc\0")
    'a\nb\nc'
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.removeprefix(BYTE_ORDER_MARK).replace(NUL, "")


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
    """Normalises every document."""

    name, type = "normalise", "format"

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The same documents, their text normalised."""
        for document in data:
            document.text = normalise(document.text)
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
