"""Reading: files of records, text files and this Python installation become datatrove documents.

A document carries in its metadata `source` (the subset), `url`, `license`, `file` and `record` (its raw locator) and
`raw_bytes`; `dropped` names the reason if it is not to be kept. Dropped documents travel on to the writer, which
counts them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from mobillama.data.compressed import DAMAGE, open_bytes
from mobillama.data.sources import Task, installed_distributions
from mobillama.errors import DamagedFileError, InputError

BATCH_ROWS = 256


class Read(PipelineStep):  # type: ignore[misc]
    """Yields the documents of task number `rank`."""

    name, type = "read", "reader"

    def __init__(self, tasks: list[Task]) -> None:
        super().__init__()
        self.tasks = tasks

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Read what the task names."""
        if data:
            yield from data
        yield from read_task(self.tasks[rank])


def read_task(task: Task) -> Iterator[Document]:
    """Documents of one task in order, until `max_bytes` are read. Errors name the file and line."""
    read = 0
    for document in _all_documents(task):
        yield document
        read += document.metadata["raw_bytes"]
        if task.max_bytes and read >= task.max_bytes:
            return


def _all_documents(task: Task) -> Iterator[Document]:
    if task.how == "reference":
        return _reference(task)
    if task.how == "packages":
        return _packages(task)
    readers = {"jsonl": _json_lines, "parquet": _parquet, "file": _text_file}
    pairs = zip(task.paths, task.names, strict=True)
    return itertools.chain.from_iterable(readers[task.how](task, path, name) for path, name in pairs)


def _json_lines(task: Task, path: Path, name: str) -> Iterator[Document]:
    number = 0
    try:
        with open_bytes(path) as file:
            for number, line in enumerate(file, 1):
                if not line.isspace():
                    yield _json_record(task, path, name, number, line)
    except DAMAGE as error:
        raise DamagedFileError(
            f"{path}: after line {number} it cannot be decompressed ({error}); it is cut short or damaged: "
            "fetch the file again"
        ) from None


def _json_record(task: Task, path: Path, name: str, number: int, line: bytes) -> Document:
    try:
        record = orjson.loads(line)
    except ValueError:
        try:
            record = json.loads(line)  # also takes \ud800 alone, which is no text
        except UnicodeDecodeError:
            return _document(task, name, number, None, None, len(line))
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}, line {number}: not a JSON object ({error}); correct or remove that line"
            ) from None
    if not isinstance(record, dict):
        raise InputError(f"{path}, line {number}: found JSON of type {type(record).__name__}; expected an object")
    return _from_record(task, path, name, number, record)


def _from_record(task: Task, path: Path, name: str, number: int, record: dict[str, Any]) -> Document:
    text = record.get("text")
    if not isinstance(text, str):
        found = f"'text' of type {type(text).__name__}" if "text" in record else f"fields {', '.join(record) or 'none'}"
        raise InputError(f"{path}, record {number}: found {found}; expected a field 'text' that is a string")
    return _document(task, name, number, text, record, 0)


def _parquet(task: Task, path: Path, name: str) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path)
        columns = [column for column in ("text", "id", "url", "license") if column in file.schema_arrow.names]
        number = 0
        for batch in file.iter_batches(BATCH_ROWS, columns=columns):
            values = {column: batch.column(column) for column in columns}
            for row in range(batch.num_rows):
                number += 1
                try:
                    record = {column: array[row].as_py() for column, array in values.items()}
                except UnicodeDecodeError:
                    yield _document(task, name, number, None, None, len(values["text"][row].as_buffer() or b""))
                    continue
                yield _from_record(task, path, name, number, record)
    except pyarrow.ArrowException as error:
        raise DamagedFileError(f"{path} cannot be read as Parquet ({error}); fetch the file again") from None


def _text_file(task: Task, path: Path, name: str) -> Iterator[Document]:
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = None
    url = task.url + name if task.url else ""
    yield _document(task, name, 1, text, {"id": f"{task.subset}/{name}", "url": url}, len(raw))


def _reference(task: Task) -> Iterator[Document]:
    from pydoc_data.topics import topics

    for number, (topic, text) in enumerate(sorted(topics.items()), 1):
        yield _document(task, "pydoc_data/topics.py", number, text, {"id": f"{task.subset}/{topic}"}, 0)


def _packages(task: Task) -> Iterator[Document]:
    for number, distribution in enumerate(installed_distributions(), 1):
        about = distribution.metadata
        name, text = about["Name"], about.get_payload() or about["Description"] or ""  # type: ignore[attr-defined]
        record = {
            "id": f"{task.subset}/{name}-{about['Version']}",
            "url": f"{task.url}{name.lower()}@{about['Version']}",
            "license": about["License-Expression"] or (about["License"] or "").partition("\n")[0][:80],
        }
        yield _document(task, f"{name}/METADATA", number, str(text), record, 0)


def _document(
    task: Task, name: str, number: int, text: str | None, record: dict[str, Any] | None, size: int
) -> Document:
    """A document; no text means bytes that are not UTF-8. `size` = its raw bytes where the text does not tell."""
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
        size, text = len((text or "").encode("utf-8", "surrogatepass")), None
    if text is None:
        metadata["dropped"] = "invalid_utf8"
    metadata["raw"], metadata["raw_bytes"] = raw, size if text is None else len(raw)
    key = record.get("id")
    return Document(text or "", str(key) if key not in (None, "") else f"{task.subset}/{name}#{number}", [], metadata)
