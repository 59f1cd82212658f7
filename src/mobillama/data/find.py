"""Which steps read a document or a piece of text: the way of `lookup`, backwards.

Text is searched in the corpus that the shards were made from; its bytes lead to rows by the spans of the shards, rows
to steps by the inverse of the order function. Nothing is searched for in the order itself, so that all passes of a run
cost no more than their results.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobillama import manifest
from mobillama.cores import cores
from mobillama.data.documents import DocumentTable
from mobillama.data.lookup import begins_document, load_pieces
from mobillama.data.reading import Reading, open_reading
from mobillama.data.run_folder import steps_taken
from mobillama.data.shards import Shards
from mobillama.data.span import Place, Span
from mobillama.data.stream import positions
from mobillama.errors import InputError
from mobillama.tokenizer.pieces import Pieces
from mobillama.tokenizer.vocabulary import SPACE

Reader = Callable[[], Iterator[tuple[int, Any, Any]]]
COLUMNS = ("id", "source", "license", "url", "bytes", "tokens", "split")
WORDS = {
    "held_out": "held out: its rows are read by validation alone",
    "dropped_tail": "the end of its source's tokens, less than a row: dropped",
    "not_reached": "not reached",
}


@dataclass(frozen=True)
class Match:
    """Bytes of a document that are asked for; `whole` = the document itself, its </s> included."""

    document: int
    start: int
    end: int
    whole: bool


def find_document(run_or_shards: Path, document_id: str, *, data: Path | None = None) -> dict[str, Any]:
    """Every step that read the document with this id (documents, where several have it): see `_answer`.

    data: where the run's shards are now, if not where they were. Errors: InputError if no document has the id, or for a
    run or shards that cannot be used.
    """
    reading = open_reading(run_or_shards, data)
    table = DocumentTable(reading.shards.folder / "documents", COLUMNS)
    numbers = table.numbers_where("id", document_id)
    if not numbers:
        like = f"; ids look like {table.lines([0])[0]['id']!r}" if len(table) else ""
        raise InputError(
            f"no document of {reading.shards.folder} has the id {document_id!r}{like}. It may have been dropped in "
            "cleaning: see the corpus's funnel"
        )
    matches = [
        Match(number, 0, line["bytes"], True) for number, line in zip(numbers, table.lines(numbers), strict=True)
    ]
    return _answer(reading, table, matches, len(matches), len(numbers), None)


def find_text(
    run_or_shards: Path, text: str, *, limit: int = 20, corpus: Path | None = None, data: Path | None = None
) -> dict[str, Any]:
    r"""Every step that read this text, wherever in a document it begins and ends: see `_answer`.

    Line ends are compared as \n. The first `limit` occurrences in the order of documents are followed, all are counted;
    they may overlap. `corpus`: the corpus of the shards, if it does not lie beside them; data: where the run's
    shards are now, if not where they were. Errors: InputError for empty text, or a corpus that is not there or not the
    one that the shards were made from.
    """
    needle = text.replace("\r\n", "\n").replace("\r", "\n").encode("utf-8", "surrogatepass")
    if not needle:
        raise InputError("the text to find is empty; give a piece of a document, best of 20 or more characters")
    reading = open_reading(run_or_shards, data)
    found = find_corpus(reading.shards, corpus)
    texts = DocumentTable(found / "documents", ("text",))
    matches, occurrences, documents = search(texts, needle, limit)
    table = DocumentTable(reading.shards.folder / "documents", COLUMNS)
    return _answer(reading, table, matches, occurrences, documents, texts)


def find_corpus(shards: Shards, given: Path | None = None) -> Path:
    """The corpus that shards were made from, told by its root digest: `given`, else beside them.

    Error: InputError if it is not there, or if another is.
    """
    origin = next((entry for entry in shards.manifest.made_from if entry["kind"] == "corpus"), None)
    if origin is None:
        raise InputError(
            f"{shards.folder} was not made from a corpus (its manifest names none), so there is no text to search; "
            "look for a document with --document ID"
        )
    beside = shards.folder.resolve()
    folders = [given] if given else [beside.with_name(origin["name"]), beside.with_name(f"{beside.name}-corpus")]
    others = []
    for folder in dict.fromkeys(folders):
        if (folder / manifest.FILE).is_file():
            if (digest := manifest.read(folder, "corpus").digest()) == origin["digest"]:
                return folder
            others.append(f"{folder} has root digest {digest}")
    raise InputError(
        f"text is searched in the corpus {origin['name']} with root digest {origin['digest']}, from which "
        f"{shards.folder} was made: {'; '.join(others) or f'it is not at {folders[0]}'}. Put it there, or name its "
        "folder with --corpus"
    )


def search(texts: DocumentTable, needle: bytes, limit: int) -> tuple[list[Match], int, int]:
    """The first `limit` places where bytes occur inside a document, overlapping ones too; how many there are in all,
    and in how many documents.
    """

    def in_part(reader: Reader) -> tuple[list[Match], int, int]:
        matches: list[Match] = []
        occurrences, documents, last = 0, 0, -1
        for first, offsets, data in reader():
            begin, end = int(offsets[0]), int(offsets[-1])
            at = data.find(needle, begin, end)
            while at >= 0:
                inside = int(np.searchsorted(offsets, at, side="right")) - 1
                stop = int(offsets[inside + 1])
                if at + len(needle) <= stop:  # else it runs over the end of the document
                    occurrences += 1
                    documents += first + inside != last
                    last = first + inside
                    if len(matches) < limit:
                        start = at - int(offsets[inside])
                        matches.append(Match(last, start, start + len(needle), False))
                at = data.find(needle, at + 1, end)
        return matches, occurrences, documents

    with ThreadPoolExecutor(min(8, cores())) as pool:
        parts = list(pool.map(in_part, (reader for _, reader in texts.texts())))
    matches = list(itertools.chain.from_iterable(part[0] for part in parts))[:limit]
    return matches, sum(part[1] for part in parts), sum(part[2] for part in parts)


def _answer(
    reading: Reading,
    table: DocumentTable,
    matches: list[Match],
    occurrences: int,
    documents: int,
    texts: DocumentTable | None,
) -> dict[str, Any]:
    """What is known of the matches, as plain JSON types.

    Per match: the document and the bytes asked for; `reads`, one entry a step (and row of it, from 0) that read some of
    them; `planned`, the same for steps that the run has not taken yet; `never_read`, the bytes that no step taken read,
    each with `why`: held_out, dropped_tail or not_reached. A plain folder of shards is taken as one pass of a run with
    the default seed and rows per step.
    """
    shards = reading.shards
    taken = steps_taken(reading.run) if reading.run else None
    pieces = load_pieces(shards.folder, shards.tokenizer_digest) if texts else None
    numbers = sorted({match.document for match in matches})
    lines = dict(zip(numbers, table.lines(numbers), strict=True))
    places: dict[int, list[Place]] = {number: [] for number in numbers}
    for place in shards.places(numbers):
        places[place.document].append(place)
    found = []
    for match in matches:
        line = lines[match.document]
        told: dict[str, Any] = {"document_id": line["id"], "document": match.document}
        told |= {name: line[name] for name in ("source", "license", "url")}
        told |= {"byte_start": match.start, "byte_end": match.end}
        touched = [cut for place in places[match.document] if (cut := _cut(place, match))]
        if texts and pieces:
            text = texts.lines([match.document])[0]["text"].encode()
            touched = [_narrow(place, match, shards, pieces, text) for place in touched]
        told |= _follow(reading, touched, taken)
        told["never_read"] += _dropped(match, touched, line["tokens"])
        found.append(told)
    return {
        "shards": str(shards.folder),
        "run": str(reading.run) if reading.run else None,
        "parent": reading.parent,
        "seed": reading.seed,
        "rows_per_step": reading.rows_per_step,
        "steps": reading.steps or None,
        "steps_taken": taken,
        "occurrences": occurrences,
        "documents": documents,
        "found": found,
    }


def _cut(place: Place, match: Match) -> Place | None:
    """The part of a place that lies in a match; None if there is none."""
    if match.whole:
        return place
    start, end = max(place.byte_start, match.start), min(place.byte_end, match.end)
    return place if start < end else None


def _narrow(place: Place, match: Match, shards: Shards, pieces: Pieces, text: bytes) -> Place:
    """A place cut down to the tokens and bytes that lie in a match; `text` is the document's UTF-8."""
    rows = shards.validation_rows if place.chunk is None else shards.train_rows
    tokens = rows([place.row])[0, place.token_start : place.token_start + place.token_count].tolist()
    edges = token_edges(place, tokens, pieces, text)
    start, end = max(place.byte_start, match.start), min(place.byte_end, match.end)
    first = int(np.searchsorted(edges[1:], start, side="right"))
    last = int(np.searchsorted(edges[:-1], end, side="left"))
    return Place(place.document, place.chunk, place.row, place.token_start + first, last - first, start, end)


def token_edges(place: Place | Span, tokens: list[int], pieces: Pieces, text: bytes) -> NDArray[np.int64]:
    """The byte of a document's text at which each token of a place begins, and where the last ends: (tokens + 1,).

    `text` is the cleaned document's UTF-8. The space before a document and </s> cover no bytes.
    """
    lengths = np.array([len(part) for part in pieces.parts(tokens)], np.int64)
    if begins_document(place, tokens, pieces):
        lengths[0] -= 1
    spaced = np.concatenate([[0], np.cumsum(lengths)])
    covered = text[place.byte_start : place.byte_end]
    wide = SPACE.encode()  # 3 bytes of text that the tokens spell as one space
    parts = covered.split(wide)
    if len(parts) == 1:
        return place.byte_start + spaced
    ends = np.cumsum([len(part) + 1 for part in parts[:-1]])  # spaced bytes up to and with each such space
    return place.byte_start + spaced + (len(wide) - 1) * np.searchsorted(ends, spaced, side="right")


def _follow(reading: Reading, places: list[Place], taken: int | None) -> dict[str, Any]:
    """The steps that read some places, and the places that no step reads."""
    shards, order = reading.shards, reading.order
    training = [place for place in places if place.chunk is not None]
    rows = [place.row for place in training]
    begin = order.first_row // shards.num_rows  # the pass that the first step reads in
    passes = -(-order.first_position(reading.steps + 1) // shards.num_rows) if reading.steps else 1
    last = reading.steps if reading.steps else None
    reads: list[dict[str, Any]] = []
    planned: list[dict[str, Any]] = []
    first: dict[int, int] = {}  # place in the list -> first step that reads it, taken or not
    read: set[int] = set()
    # A branch may begin behind a row in its first pass: the pass after its last tells when it would be read.
    for epoch in range(begin, max(begin + 1, passes) + (begin < passes and order.first_row > 0)) if rows else ():
        for index, position in enumerate(positions(reading.seed, rows, epoch, shards.chunk_rows).tolist()):
            if (place := order.place_of(position)) is None:
                continue
            step, row = place
            first.setdefault(index, step)
            if last is not None and step > last:
                continue
            entry = {"step": step, "row": row, "pass": epoch + 1, **_where(training[index])}
            if taken is None or step <= taken:
                reads.append(entry)
                read.add(index)
            else:
                planned.append(entry)
    never: list[dict[str, Any]] = [
        {"why": "not_reached", "step": first[index], **_where(place)}
        for index, place in enumerate(training)
        if index not in read
    ]
    never += [{"why": "held_out", **_where(place)} for place in places if place.chunk is None]
    reads.sort(key=_order)
    planned.sort(key=_order)
    return {"reads": reads, "planned": planned, "never_read": never}


def _order(entry: dict[str, Any]) -> tuple[int, int, int]:
    return entry["step"], entry["row"], entry["token_start"]


def _where(place: Place) -> dict[str, Any]:
    """The row and positions of a place; `row_id` is global in the training rows, or in the held-out ones."""
    return {
        "chunk": place.chunk,
        "row_id": place.row,
        "token_start": place.token_start,
        "token_count": place.token_count,
        "byte_start": place.byte_start,
        "byte_end": place.byte_end,
    }


def _dropped(match: Match, places: Iterable[Place], tokens: int) -> list[dict[str, Any]]:
    """The bytes of a match that lie in no row at all; of a whole document also a </s> that does not."""
    gaps, at, kept = [], match.start, 0
    for place in places:
        if place.byte_start > at:
            gaps.append((at, place.byte_start))
        at, kept = max(at, place.byte_end), kept + place.token_count
    if at < match.end or (match.whole and kept < tokens and not gaps):
        gaps.append((at, match.end))
    return [{"why": "dropped_tail", "byte_start": start, "byte_end": end} for start, end in gaps]


def describe(found: dict[str, Any]) -> str:
    """The answer as text for a terminal."""
    shown, lines = found["found"], []
    count = f"{found['occurrences']:,} in {found['documents']:,} documents"
    lines.append(f"{count}, shown: {len(shown):,}" if found["occurrences"] else "no document holds this text")
    if found["run"] is None:
        lines.append(
            f"steps of one pass with the default seed {found['seed']} and {found['rows_per_step']} rows a step; "
            "name a run to see what it read"
        )
    else:
        lines.append(f"{found['run']}: {found['steps_taken']} of {found['steps']} steps taken")
        if found["parent"]:
            lines.append(f"branched off {found['parent']}, which tells what the steps before were reading")
    for match in shown:
        about = f"{match['license'] or 'licence unknown'}  {match['url']}".rstrip()
        lines.append(f"== {match['document_id']}  bytes {match['byte_start']:,} to {match['byte_end']:,}  {about}")
        lines += [f"step {_words(entry)}" for entry in match["reads"]]
        lines += [f"not taken yet: step {_words(entry)}" for entry in match["planned"]]
        for entry in match["never_read"]:
            why = WORDS[entry["why"]]
            if entry["why"] == "not_reached":
                late = found["steps"] is not None and entry["step"] > found["steps"]
                why += f": it would be read in step {entry['step']}" if late else f" yet: step {entry['step']} reads it"
            lines.append(f"never read: bytes {entry['byte_start']:,} to {entry['byte_end']:,} ({why})")
    return "\n".join(lines)


def _words(entry: dict[str, Any]) -> str:
    end = entry["token_start"] + entry["token_count"] - 1
    return (
        f"{entry['step']}, row {entry['row']} (pass {entry['pass']}): chunk {entry['chunk']}, row {entry['row_id']} of "
        f"the shards, positions {entry['token_start']} to {end}, bytes {entry['byte_start']:,} to {entry['byte_end']:,}"
    )
