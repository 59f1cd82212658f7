"""Reading: files of records, text files and this Python installation become datatrove documents.

A document carries in its metadata `source` (the subset), `url`, `license`, `file` and `record` (its raw locator), `raw`
(the UTF-8 of the text as it was read) and `raw_bytes`; `dropped` names the reason if it is not to be kept. Dropped
documents travel on to the writer, which counts them.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from mobillama import manifest
from mobillama.data.compressed import BUFFER, DAMAGE, Opened, opened
from mobillama.data.installation import installed_distributions
from mobillama.data.latex import read_latex
from mobillama.data.raw_document import raw_document
from mobillama.data.sources import Task
from mobillama.data.stackexchange import read_posts
from mobillama.data.warc import read_warc
from mobillama.errors import DamagedFileError, InputError

BATCH_ROWS = 256


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
                raise InputError(f"{file} vanished while it was read ({error}); put it back and go on") from None


def _json_lines(task: Task, source: Opened, name: str) -> Iterator[Document]:
    number = 0
    try:
        lines = source.bytes()
        while line := lines.readline():
            number += 1
            if line.isspace():
                continue
            document = _json_record(task, source.where, name, number, line)
            del line  # of 200 MB, perhaps: not to be held while the document is worked on
            yield document
    except DAMAGE as error:
        raise DamagedFileError(
            f"{source.where}: after line {number} it cannot be decompressed ({error}); it is cut short or damaged: "
            "fetch the file again"
        ) from None


def _json_record(task: Task, where: str, name: str, number: int, line: bytes) -> Document:
    try:
        record = orjson.loads(line)
    except ValueError:
        try:
            record = json.loads(line.decode("utf-8-sig"))  # also takes \ud800 alone, which is no text
        except UnicodeDecodeError:
            return raw_document(task, name, number, None, size=len(line))
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{where}, line {number}: not a JSON object ({error}); correct or remove that line"
            ) from None
    if not isinstance(record, dict):
        raise InputError(f"{where}, line {number}: found JSON of type {type(record).__name__}; expected an object")
    return _from_record(task, where, name, number, record)


def _from_record(task: Task, where: str, name: str, number: int, record: dict[str, Any]) -> Document:
    field = task.text_field
    text = record.get(field)
    if not isinstance(text, str):
        kind = f"{field!r} of type {type(text).__name__}"
        found = kind if field in record else f"fields {', '.join(record) or 'none'}"
        raise InputError(f"{where}, record {number}: found {found}; expected a field {field!r} that is a string")
    about = {"id": record.get(task.id_field) if task.id_field else None, "license": record.get("license")}
    meta = record.get("meta")  # RedPajama keeps the address there
    about["url"] = record.get("url") or (meta.get("url") if isinstance(meta, dict) else None)
    return raw_document(task, name, number, text, about)


def _parquet(task: Task, source: Opened, name: str) -> Iterator[Document]:
    """Rows of a Parquet file. A remote one is fetched whole to a temporary file first: its columns lie apart in it."""
    import pyarrow
    import pyarrow.parquet as parquet

    with tempfile.NamedTemporaryFile(prefix="mobillama-", suffix=".parquet") as spool:
        if source.path is None:
            shutil.copyfileobj(source.raw, spool, BUFFER)
            spool.flush()
        try:
            file = parquet.ParquetFile(source.path or spool.name)
            wanted = (task.text_field, task.id_field, "url", "license")
            columns = [column for column in dict.fromkeys(wanted) if column in file.schema_arrow.names]
            number = 0
            for batch in file.iter_batches(BATCH_ROWS, columns=columns):
                values = {column: batch.column(column) for column in columns}
                for row in range(batch.num_rows):
                    number += 1
                    try:
                        record = {column: array[row].as_py() for column, array in values.items()}
                    except UnicodeDecodeError:
                        size = len(values[task.text_field][row].as_buffer() or b"")
                        yield raw_document(task, name, number, None, size=size)
                        continue
                    yield _from_record(task, source.where, name, number, record)
        except pyarrow.ArrowException as error:
            raise DamagedFileError(
                f"{source.where} cannot be read as Parquet ({error}); fetch the file again"
            ) from None


def _text_file(task: Task, source: Opened, name: str) -> Iterator[Document]:
    raw = source.raw.read()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = None
    url = task.url + name if task.url else ""
    yield raw_document(task, name, 1, text, {"id": f"{task.subset}/{name}", "url": url}, size=len(raw))


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
    "parquet": _parquet,
    "file": _text_file,
    "warc": read_warc,
    "latex": read_latex,
    "stackexchange": read_posts,
}
