"""What becomes of records that cannot be read and of damaged files: dropped and counted, or the end of a build.

Reasons: bad_json, no_text, invalid_utf8, undecodable (not of `source.encoding`), record_too_long, damaged (a record
that cannot be unpacked), trailing_bytes (behind the end of compressed data) and damaged_file (what of a file could not
be read). A document with one of them carries in `why` what was found; `WriteParts` counts those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datatrove.data import Document

from mobillama.config import DataRecipe, SourceConfig
from mobillama.data.raw_document import raw_document
from mobillama.data.sources import Task
from mobillama.errors import DamagedFileError, InputError, MobillamaError

# Keys of a source that decide whether a build goes on, and no byte of what it makes: changed, they throw no work away.
POLICY = ("bad_records", "max_bad_share", "damaged_files")
MOST_CHARACTERS = 300  # of what was found, in a message
EARLY_SHARE = 0.05  # of a source's tasks, when so many are read and
EARLY_RECORDS = 1000  # so many are bad, a share that is too large ends the build before all is read


def bad_record(
    task: Task,
    where: str,
    name: str,
    number: int,
    reason: str,
    found: str,
    *,
    size: int,
    text: str | None = None,
    about: Mapping[str, Any] | None = None,
) -> Document:
    """Record `number` (from 1) of file `name`, dropped: `found` says why in words, `size` are its bytes.

    `text` is kept as its raw text, where it has one that is none of a document; `about` may hold id, url and license.
    Error: InputError by the policy "stop".
    """
    found = _in_short(found)
    if task.source.bad_records == "stop":
        raise InputError(
            f"{where}, {'line' if task.how == 'jsonl' else 'record'} {number}: {found}; correct or remove it, or set "
            "source.bad_records=drop"
        )
    document = raw_document(task, name, number, None, about, size=size, dropped=reason)
    if text is not None:
        document.text = text
        document.metadata["raw"] = text.encode("utf-8")
    document.metadata["why"] = f"{name}, record {number}: {found}"
    return document


def _in_short(found: str) -> str:
    """Words that may hold a file's own, fit to be printed: no control characters, no half surrogates, not for long."""
    short = found if len(found) <= MOST_CHARACTERS else f"{found[:MOST_CHARACTERS]} ..."
    return short if short.isprintable() else short.encode("unicode_escape").decode("ascii")


def damaged_file(
    task: Task, where: str, name: str, number: int, found: str, error: type[MobillamaError] = DamagedFileError
) -> Document:
    """What of a file cannot be read, as one dropped document behind its record `number`. Error: `error` by default."""
    if task.source.damaged_files == "stop":
        raise error(f"{where}{found}, or set source.damaged_files=drop to keep what can be read")
    document = raw_document(task, name, number + 1, None, dropped="damaged_file")
    document.metadata["why"] = f"{name}{found}"
    return document


def check_share(recipe: DataRecipe, tasks: Sequence[Task], told: Mapping[int, Mapping[str, Any]]) -> None:
    """Judge what `WriteParts` told of tasks, by their numbers: all, or those done so far.

    Error: InputError by the policy of a source.
    """
    own = {name: subset.source for name, subset in recipe.subset.items() if subset.source is not None}
    groups: dict[str, list[int]] = {}
    for number, task in enumerate(tasks):
        groups.setdefault(task.subset if task.subset in own else "", []).append(number)
    for subset, numbers in groups.items():
        counts = [told[number] for number in numbers if number in told]
        bad = sum(told["records"] for told in add_bad(counts).values())
        if len(counts) == len(numbers) or (len(counts) >= EARLY_SHARE * len(numbers) and bad >= EARLY_RECORDS):
            _check_source(subset, own.get(subset) or recipe.source, counts)


def describe_bad(bad: Mapping[str, Mapping[str, Any]]) -> str:
    """Bad records in words: by reason, each with the first that was found."""
    return "; ".join(f"{reason} {told['records']:,} (first: {told['first']})" for reason, told in sorted(bad.items()))


def add_bad(counts: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The bad records of several tasks together: reason -> {"records", "first"}."""
    found: dict[str, dict[str, Any]] = {}
    for task in counts:
        for reason, told in task.get("bad", {}).items():
            sums = found.setdefault(reason, {"records": 0, "first": told["first"]})
            sums["records"] += told["records"]
    return found


def _check_source(subset: str, source: SourceConfig, counts: Sequence[Mapping[str, Any]]) -> None:
    bad, read = add_bad(counts), sum(task["read"][0] for task in counts)
    number = sum(told["records"] for told in bad.values())
    key = f"subset.{subset}.source" if subset else "source"
    stops = source.bad_records == "stop" or (source.damaged_files == "stop" and "damaged_file" in bad)
    if stops and number:
        raise InputError(f"{key} stops at bad records, and {number:,} were found: {describe_bad(bad)}")
    if number > source.max_bad_share * read:
        raise InputError(
            f"{number:,} of {read:,} records are bad, more than {key}.max_bad_share={source.max_bad_share:g}: "
            f"{describe_bad(bad)}; correct the source or its settings, or allow a larger share: the same command goes "
            "on"
        )
