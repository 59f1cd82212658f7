"""Fields of a record, of a line or a row, become a document."""

from __future__ import annotations

from typing import Any

from datatrove.data import Document

from mobillama.data.bad_records import bad_record
from mobillama.data.raw_document import raw_document
from mobillama.data.sources import Task


def from_record(task: Task, where: str, name: str, number: int, record: dict[str, Any], line: bytes = b"") -> Document:
    """The document of a record's fields; `line` are the bytes it was read from, kept if it is bad."""
    source = task.source
    text = find_field(record, source.text_field)
    about = {
        "id": _as_text(find_field(record, source.id_field)),
        "url": _as_text(find_field(record, source.url_field)),
        "license": _as_text(find_field(record, source.license_field)),
    }
    if not about["url"] and isinstance(meta := record.get("meta"), dict):  # RedPajama keeps the address there
        about["url"] = meta.get("url")
    if isinstance(text, bytes):
        try:
            text = text.decode(source.encoding)
        except UnicodeDecodeError:
            reason = "invalid_utf8" if source.encoding == "utf-8" else "undecodable"
            found = f"a text that is not of the encoding {source.encoding}"
            return bad_record(task, where, name, number, reason, found, size=len(text), about=about)
    if not isinstance(text, str):
        kind = f"{source.text_field!r} of type {type(text).__name__}"
        found = kind if source.text_field in record else f"fields {', '.join(record) or 'none'}"
        found = f"found {found}; expected a field {source.text_field!r} that is a string"
        kept = line.decode(source.encoding, "replace") if line else None
        return bad_record(task, where, name, number, "no_text", found, size=len(line), text=kept, about=about)
    return raw_document(task, name, number, text, about)


def find_field(record: dict[str, Any], name: str) -> Any:
    """A field by its name, or, where there is none of that name, `b` inside `a` for a.b; None if it is not there."""
    value = record.get(name)
    if value is not None or "." not in name or name in record:
        return value
    inner: Any = record
    for part in name.split("."):
        inner = inner.get(part) if isinstance(inner, dict) else None
    return inner


def _as_text(value: Any) -> Any:
    """The value; one of a binary column as UTF-8 where it is that, else in hexadecimal digits."""
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.hex()


def too_long(task: Task, where: str, name: str, number: int, size: int) -> Document:
    """A record of `size` bytes that is longer than its source allows, dropped."""
    found = f"{size} bytes are more than source.max_record_bytes={task.source.max_record_bytes}"
    return bad_record(task, where, name, number, "record_too_long", found, size=size)
