"""Reading: files of records, text files and this Python installation become datatrove documents.

A document carries in its metadata `source` (the subset), `url`, `license`, `file` and `record` (its raw locator), `raw`
(the UTF-8 of the text as it was read) and `raw_bytes`; `dropped` names the reason if it is not to be kept. Dropped
documents travel on to the writer, which counts them.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import orjson
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from mobillama import manifest
from mobillama.data.bad_records import bad_record, damaged_file
from mobillama.data.compressed import BUFFER, DAMAGE, Opened, opened, skip_line, trailing
from mobillama.data.installation import installed_distributions
from mobillama.data.latex import read_latex
from mobillama.data.parquet_rows import read_rows
from mobillama.data.raw_document import raw_document
from mobillama.data.record import from_record, too_long
from mobillama.data.sources import Task
from mobillama.data.stackexchange import read_posts
from mobillama.data.warc import read_warc
from mobillama.errors import InputError, MobillamaError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of the temporary folder, not of what is read


class Read(PipelineStep):  # type: ignore[misc]
    """Yields the documents of task number `rank`; keeps the hashes of remote files in `<digests>/<rank>.json`."""

    name, type = "read", "reader"

    def __init__(self, tasks: list[Task], digests: Path | None = None) -> None:
        super().__init__()
        self.tasks, self.digests = tasks, digests

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Read what the task names."""
        if data:
            yield from data
        found: dict[str, str] = {}
        yield from read_task(self.tasks[rank], found)
        if self.digests and found:
            self.digests.mkdir(parents=True, exist_ok=True)
            manifest.write_file(self.digests / f"{rank:05d}.json", json.dumps(found).encode())


def read_task(task: Task, digests: dict[str, str] | None = None) -> Iterator[Document]:
    """Documents of one task in order, until `max_bytes` are read. Errors name the file and line.

    The sha256 of every remote file that was read to its end is put into `digests`, by name.
    """
    read = 0
    for document in _all_documents(task, {} if digests is None else digests):
        yield document
        read += document.metadata["raw_bytes"]
        if task.max_bytes and read >= task.max_bytes:
            return


def _all_documents(task: Task, digests: dict[str, str]) -> Iterator[Document]:
    if task.how == "reference":
        yield from _reference(task)
    elif task.how == "packages":
        yield from _packages(task)
    for file, name in zip(task.paths, task.names, strict=True):
        with opened(file) as source:
            try:
                yield from READERS[task.how](task, source, name)
                if source.reader is not None:
                    digests[name] = source.reader.digest()
            except FileNotFoundError as error:
                raise InputError(
                    f"{source.where} vanished while it was read ({error}); put it back and go on"
                ) from None
            except OSError as error:
                if isinstance(error, MobillamaError) or error.errno in FULL:
                    raise
                raise InputError(
                    f"{source.where} cannot be read ({error.strerror or error}); see to the disk or share it lies on: "
                    "the same command goes on where this one stopped"
                ) from None


def _json_lines(task: Task, source: Opened, name: str) -> Iterator[Document]:
    number, most = 0, task.source.max_record_bytes
    encoding = "" if task.source.encoding == "utf-8" else task.source.encoding
    try:
        lines = source.bytes()
        while line := lines.readline(most + 1):
            number += 1
            if len(line) > most and not line.endswith(b"\n"):
                size = len(line) + skip_line(lines)
                del line
                yield too_long(task, source.where, name, number, size)
                continue
            if line.isspace():
                number += _skip_empty(lines)
                continue
            document = _json_record(task, source.where, name, number, line, encoding)
            del line  # of 200 MB, perhaps: not to be held while the document is worked on
            yield document
        if left := trailing(lines):
            found = f"{left} bytes stand behind the end of the compressed data"
            yield bad_record(task, source.where, name, number + 1, "trailing_bytes", found, size=left)
    except DAMAGE as error:
        found = f": after line {number} it cannot be decompressed ({error}); it is cut short or damaged: fetch it again"
        yield damaged_file(task, source.where, name, number, found)


def _skip_empty(lines: IO[bytes]) -> int:
    """Pass over empty lines, as many as are in memory at once (a small file may become billions); how many."""
    head: bytes = lines.peek()  # type: ignore[attr-defined]
    return len(lines.read(len(head) - len(head.lstrip(b"\n"))))


def _json_record(task: Task, where: str, name: str, number: int, line: bytes, encoding: str = "") -> Document:
    """The document of a line; `encoding` "" is UTF-8."""
    try:
        record = orjson.loads(line.decode(encoding) if encoding else line)
    except ValueError:
        return _lenient_record(task, where, name, number, line, encoding)
    if not isinstance(record, dict):
        found = f"found JSON of type {type(record).__name__}; expected an object"
        return bad_record(
            task, where, name, number, "bad_json", found, size=len(line), text=line.decode(encoding or "utf-8")
        )
    return from_record(task, where, name, number, record, line)


def _lenient_record(task: Task, where: str, name: str, number: int, line: bytes, encoding: str) -> Document:
    """The document of a line that is no strict JSON: what has one meaning all the same is read.

    That is a byte order mark, control characters as they are in a string, NaN, and half a surrogate pair in a field
    that is not asked for.
    """
    try:
        text = line.decode(encoding or "utf-8-sig")
    except UnicodeDecodeError as error:
        reason = "undecodable" if encoding else "invalid_utf8"
        found = f"not of the encoding {task.source.encoding} ({error.reason} at byte {error.start})"
        return bad_record(task, where, name, number, reason, found, size=len(line))
    try:
        record = json.loads(text, strict=False)
    except (ValueError, RecursionError) as error:
        found = f"not a JSON object ({error})"
        return bad_record(task, where, name, number, "bad_json", found, size=len(line), text=text)
    if not isinstance(record, dict):
        found = f"found JSON of type {type(record).__name__}; expected an object"
        return bad_record(task, where, name, number, "bad_json", found, size=len(line), text=text)
    document = from_record(task, where, name, number, record, line)
    about = {"id": document.id, "url": document.metadata["url"], "license": document.metadata["license"]}
    sound = {key: value for key, value in about.items() if _is_utf8(value)}
    if len(sound) == len(about) and document.metadata.get("dropped") != "invalid_utf8":
        return document
    found = "half a surrogate pair stands in its text, id, url or license"
    size = document.metadata["raw_bytes"]
    return bad_record(task, where, name, number, "invalid_utf8", found, size=size, about=sound)


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _text_file(task: Task, source: Opened, name: str) -> Iterator[Document]:
    most = task.source.max_record_bytes
    raw = source.raw.read(most + 1)
    if len(raw) > most:
        size = len(raw)
        del raw
        while piece := source.raw.read(BUFFER):
            size += len(piece)
        yield too_long(task, source.where, name, 1, size)
        return
    try:
        text = raw.decode(task.source.encoding)
    except UnicodeDecodeError:  # most often a picture or a program beside the text: no bad record
        text = None
    url = task.url + name if task.url else ""
    dropped = "invalid_utf8" if task.source.encoding == "utf-8" else "undecodable"
    about = {"id": f"{task.subset}/{name}", "url": url}
    yield raw_document(task, name, 1, text, about, size=len(raw), dropped=dropped)


def _reference(task: Task) -> Iterator[Document]:
    from pydoc_data.topics import topics

    for number, (topic, text) in enumerate(sorted(topics.items()), 1):
        yield raw_document(task, "pydoc_data/topics.py", number, text, {"id": f"{task.subset}/{topic}"})


def _packages(task: Task) -> Iterator[Document]:
    for number, distribution in enumerate(installed_distributions(), 1):
        about = distribution.metadata
        name, text = about["Name"], about.get_payload() or about["Description"] or ""  # type: ignore[attr-defined]
        record = {
            "id": f"{task.subset}/{name}-{about['Version']}",
            "url": f"{task.url}{name.lower()}@{about['Version']}",
            "license": about["License-Expression"] or (about["License"] or "").partition("\n")[0][:80],
        }
        yield raw_document(task, f"{name}/METADATA", number, str(text), record)


READERS: dict[str, Callable[[Task, Opened, str], Iterator[Document]]] = {
    "jsonl": _json_lines,
    "parquet": read_rows,
    "file": _text_file,
    "warc": read_warc,
    "latex": read_latex,
    "stackexchange": read_posts,
}
