"""WARC and WET archives: the text of every web page, extracted with trafilatura.

Read with warcio alone: datatrove's own reader wants libmagic and a charset detector, and its extractor two settings by
which a page's text depends on the pages before it (`deduplicate`) or on the speed of the machine (`timeout`). The raw
text of a document is the extracted text. Pages are responses with status 2xx that are HTML, and `conversion` records;
one without text becomes an empty document, so that it is counted. Extra: `warc`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from datatrove.data import Document

from mobillama.data.compressed import DAMAGE, Opened
from mobillama.data.raw_document import raw_document
from mobillama.data.sources import Task
from mobillama.errors import DamagedFileError, missing_extra

HTML = ("text/html", "application/xhtml+xml")


def read_warc(task: Task, source: Opened, name: str) -> Iterator[Document]:
    """Documents of one archive; `record` counts its records of every type. Error: DamagedFileError for a cut file."""
    try:
        from warcio.archiveiterator import ArchiveIterator
        from warcio.exceptions import ArchiveLoadFailed
    except ImportError as error:
        raise missing_extra("warc", error) from None
    number = 0
    try:
        records = ArchiveIterator(_Whole(source))
        for number in itertools.count(1):
            record = next(records, None)
            if record is None:
                return
            if _is_page(record):
                content = record.content_stream().read()
                length = int(record.rec_headers.get_header("Content-Length") or 0)
                if record.raw_stream.limit > 0:
                    raise _CutError(
                        f"record {number} promises {length} bytes and has {length - record.raw_stream.limit}"
                    )
                text = content.decode("utf-8", "replace") if record.rec_type == "conversion" else _text(record, content)
                key = (record.rec_headers.get_header("WARC-Record-ID") or "").strip("<>")
                url = record.rec_headers.get_header("WARC-Target-URI")
                yield raw_document(task, name, number, text, {"id": key, "url": url})
    except (_CutError, ArchiveLoadFailed) as error:
        raise DamagedFileError(
            f"{source.where}: after record {number - 1} it cannot be read ({error}); it is cut short or damaged: fetch "
            "the file again"
        ) from None


class _CutError(Exception):
    """The bytes end where they should not."""


class _Whole:
    """An archive's bytes, decompressed here, since warcio takes the EOFError of a file cut short for its end."""

    def __init__(self, source: Opened) -> None:
        try:
            self._stream = source.bytes()
        except DAMAGE as error:
            raise _CutError(str(error)) from None

    def read(self, count: int = -1) -> bytes:
        """The next bytes. Error: _CutError."""
        try:
            return self._stream.read(count)
        except DAMAGE as error:
            raise _CutError(str(error)) from None


def _is_page(record: Any) -> bool:
    if record.rec_type == "conversion":
        return True
    if record.rec_type != "response" or record.http_headers is None:
        return False
    kind = record.rec_headers.get_header("WARC-Identified-Payload-Type") or record.http_headers.get_header(
        "Content-Type"
    )
    return record.http_headers.get_statuscode().startswith("2") and (kind or "").split(";")[0].strip().lower() in HTML


def _text(record: Any, content: bytes) -> str:
    """What a reader of the page would read; empty if there is nothing."""
    try:
        from trafilatura import extract
        from trafilatura.utils import decode_file
    except ImportError as error:
        raise missing_extra("warc", error) from None
    kind = record.http_headers.get_header("Content-Type") or ""
    named = kind.lower().partition("charset=")[2].split(";")[0].strip(" \"'")
    for charset in (named, "utf-8"):
        try:
            html = content.decode(charset or "utf-8")
            break
        except (UnicodeDecodeError, LookupError):
            continue
    else:
        html = decode_file(content)
    return extract(html, favor_precision=True, include_comments=False, deduplicate=False) or ""
