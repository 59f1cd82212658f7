"""Amber's own form of shards: train_000.jsonl, ..., each line `{"token_ids": [...], "source": "arxiv"}`.

As LLM360 releases them (AmberDatasets) and as its splitter writes them (train_7.jsonl); plain, .gz or .zst. Format:
docs/formats.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from mobillama.data.compressed import DAMAGE, open_bytes
from mobillama.errors import DamagedFileError, InputError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
MOST_BYTES = 64 << 20  # of a line: millions of ids
NAME = re.compile(r"train_(\d+)\.jsonl(\.gz|\.zst)?")
SOURCE = re.compile(rb'"source"\s*:\s*"([^"\\]*)"')


def train_name(number: int, compress: str = "") -> str:
    """File name of chunk `number`: at least three digits. `compress`: gz, zst or nothing."""
    return f"train_{number:03d}.jsonl" + (f".{compress}" if compress else "")


def list_files(given: Sequence[Path]) -> list[Path]:
    """Training files in the order of their numbers, from files and folders. Error: InputError."""
    found: dict[int, Path] = {}
    for path in given:
        if not path.exists():
            raise InputError(
                f"{path} does not exist; give files named train_000.jsonl, ... or a folder that holds them"
            )
        inside = sorted(file for file in path.iterdir() if NAME.fullmatch(file.name)) if path.is_dir() else [path]
        if not inside:
            raise InputError(f"{path} holds no file named train_000.jsonl, ... (or .jsonl.gz, .jsonl.zst)")
        for file in inside:
            match = NAME.fullmatch(file.name)
            if match is None:
                raise InputError(f"{file}: the order of chunks is that of the numbers in names such as train_000.jsonl")
            number = int(match[1])
            if number in found:
                raise InputError(f"{found[number]} and {file} are both chunk {number}; give one of them")
            found[number] = file
    return [found[number] for number in sorted(found)]


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines of a file with their numbers, from 1.

    Errors: DamagedFileError for a file that is cut short, InputError for a line of more than MOST_BYTES.
    """
    number = 0
    try:
        with open_bytes(path) as file:
            while line := file.readline(MOST_BYTES):
                number += 1
                if len(line) == MOST_BYTES and not line.endswith(b"\n"):
                    raise InputError(
                        f"{path} line {number}: longer than {MOST_BYTES} bytes, which no row of ids is; give Amber's "
                        "files, with a row a line"
                    )
                yield number, line
    except DAMAGE as error:
        raise DamagedFileError(
            f"{path}: after line {number} it cannot be decompressed ({error}); it is cut short or damaged: "
            "fetch the file again"
        ) from None


def read_source(line: bytes, where: str) -> str:
    """The label of a line. Its ids are not read, where the label can be told without."""
    found = SOURCE.findall(line)
    if len(found) == 1 and line.count(b'"') == 6:  # two keys and one value
        try:
            return str(found[0], "utf-8")
        except UnicodeDecodeError:
            pass
    return _record(line, where)[1]


def read_row(line: bytes, row_len: int, vocab_size: int, where: str) -> tuple[NDArray[np.int64], str]:
    """Ids (row_len,) and label of a line. Error: InputError that begins with `where` and says what is wrong."""
    ids, source = _record(line, where)
    if len(ids) != row_len:
        raise InputError(
            f"{where}: token_ids holds {len(ids)} ids; expected {row_len}, seq_len + 1: give the --seq-len of the files"
        )
    try:
        row = np.array(ids)
    except (ValueError, OverflowError):  # lists among the ids
        row = np.empty(0, object)
    if row.dtype != np.int64 or ((b"true" in line or b"false" in line) and any(type(id_) is bool for id_ in ids)):
        place = next(place for place, id_ in enumerate(ids) if type(id_) is not int or not -(2**63) <= id_ < 2**63)
        raise InputError(f"{where}: token_ids[{place}] is {ids[place]!r}; expected a whole number")
    if row.min() < 0 or row.max() >= vocab_size:
        place = int(np.nonzero((row < 0) | (row >= vocab_size))[0][0])
        raise InputError(
            f"{where}: token_ids[{place}] is {row[place]}; expected 0 to {vocab_size - 1}: give the --vocab-size of "
            "the tokenizer the files were made with"
        )
    return row, source


def write_row(ids: NDArray[Any], source: str) -> bytes:
    """One line: ids (row_len,) and label."""
    return orjson.dumps(
        {"token_ids": ids, "source": source}, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    )


def _record(line: bytes, where: str) -> tuple[list[Any], str]:
    try:
        record = orjson.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: it is not JSON ({error}); fetch the file again") from None
    if not isinstance(record, dict):
        raise InputError(f"{where}: found {type(record).__name__}; expected an object with token_ids and source")
    ids, source = record.get("token_ids"), record.get("source")
    if not isinstance(ids, list) or not isinstance(source, str):
        wrong = "token_ids, a list of ids" if not isinstance(ids, list) else "source, a text"
        raise InputError(f"{where}: it has no {wrong}; found the keys {', '.join(map(str, record)) or 'none'}")
    return ids, source
