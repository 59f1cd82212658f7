"""The form in which every reader hands on a document: datatrove's, with its raw text and where that came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datatrove.data import Document

from mobillama.data.sources import Task


def raw_document(
    task: Task,
    name: str,
    number: int,
    text: str | None,
    record: Mapping[str, Any] | None = None,
    *,
    size: int = 0,
    dropped: str = "invalid_utf8",
) -> Document:
    """Document `number` (from 1) of file `name`. Without a text it is dropped: `size` are its raw bytes, `dropped` why.

    `record` may hold `id`, `url` and `license`; without an id the document is named by its place.
    """
    record = record or {}
    metadata = {
        "source": task.subset,
        "url": str(record.get("url") or task.url),
        "license": str(record.get("license") or task.license),
        "file": name,
        "record": number,
    }
    raw = b""
    try:
        raw = (text or "").encode("utf-8")
    except UnicodeEncodeError:
        size, text, dropped = len((text or "").encode("utf-8", "surrogatepass")), None, "invalid_utf8"
    if text is None:
        metadata["dropped"] = dropped
    metadata["raw"], metadata["raw_bytes"] = raw, size if text is None else len(raw)
    key = record.get("id")
    return Document(text or "", str(key) if key not in (None, "") else f"{task.subset}/{name}#{number}", [], metadata)
