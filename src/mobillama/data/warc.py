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

from mobillama.data.bad_records import bad_record, damaged_file
from mobillama.data.compressed import BUFFER, DAMAGE, Opened, trailing
from mobillama.data.raw_document import raw_document
from mobillama.data.record import too_long
from mobillama.data.sources import Task
from mobillama.errors import MobillamaError, missing_extra

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
        archive = _Whole(source)
        records = ArchiveIterator(archive)
        for number in itertools.count(1):
            record = _next(records)
            if record is None:
                break
            if _is_page(record):
                yield _document(task, source.where, name, number, record)
        if left := archive.trailing():
            found = f"{left} bytes stand behind the end of the compressed data"
            yield bad_record(task, source.where, name, number, "trailing_bytes", found, size=left)
    except (_CutError, ArchiveLoadFailed) as error:
        found = (
            f": after record {number - 1} it cannot be read ({error}); it is cut short or damaged: fetch the file again"
        )
        yield damaged_file(task, source.where, name, number - 1, found)


def _next(records: Iterator[Any]) -> Any:
    """The next record, None behind the last. Error: _CutError, also where warcio stumbles: it goes no further."""
    try:
        return next(records, None)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise _CutError(f"a record that warcio cannot read: {error}") from None


def _document(task: Task, where: str, name: str, number: int, record: Any) -> Document:
    """The document of a page. Error: _CutError where the archive ends inside it."""
    most = task.source.max_record_bytes
    if not hasattr(record.raw_stream, "limit"):
        raise _CutError(f"record {number} does not say how many bytes it has")
    stream = record.content_stream()
    try:
        pieces: list[bytes] = []
        size = 0
        while piece := stream.read(BUFFER):
            size += len(piece)
            if size <= most:
                pieces.append(piece)
            else:
                pieces.clear()
    except _CutError:
        raise
    except Exception as error:  # what unpacks a page (gzip, deflate, brotli, chunks) has errors of its own
        found = f"a page that cannot be unpacked ({error})"
        return bad_record(task, where, name, number, "damaged", found, size=0)
    if record.raw_stream.limit > 0:
        length = record.rec_headers.get_header("Content-Length")
        raise _CutError(f"record {number} promises {length} bytes, of which {record.raw_stream.limit} are not there")
    if size > most:
        return too_long(task, where, name, number, size)
    content = b"".join(pieces)
    try:
        text = content.decode("utf-8", "replace") if record.rec_type == "conversion" else _text(record, content)
    except MobillamaError:
        raise
    except Exception as error:  # so have a page's parsers
        found = f"a page of which no text can be extracted ({type(error).__name__}: {error})"
        return bad_record(task, where, name, number, "damaged", found, size=size)
    key = (record.rec_headers.get_header("WARC-Record-ID") or "").strip("<>")
    url = record.rec_headers.get_header("WARC-Target-URI")
    return raw_document(task, name, number, text, {"id": key, "url": url})


class _CutError(Exception):
    """The bytes end where they should not."""


class _Whole:
    """An archive's bytes, decompressed here, since warcio takes the EOFError of a file cut short for its end."""

    def __init__(self, source: Opened) -> None:
        try:
            self._stream = source.bytes()
        except DAMAGE as error:
            raise _CutError(str(error)) from None

    def trailing(self) -> int:
        """Bytes behind the end of the compressed data."""
        return trailing(self._stream)

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
