"""Stack Exchange dumps: each question of a Posts.xml with its answers becomes one document.

Form: `Q: title`, the question, then `A:` and an answer each, the accepted one first, then by score, HTML as light text.
Questions below score 0 or without an answer are dropped (`low_score`, `unanswered`). Answers stand anywhere behind
their question, so all posts go to a temporary SQLite file and come back question by question: memory has a bound, and
the temporary folder needs about the size of Posts.xml.
"""

from __future__ import annotations

import re
import sqlite3
import tempfile
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from datatrove.data import Document

from mobillama.data.bad_records import bad_record, damaged_file
from mobillama.data.compressed import DAMAGE, Opened, skip_line, trailing
from mobillama.data.raw_document import raw_document
from mobillama.data.record import too_long
from mobillama.data.sources import Task

QUESTION, ANSWER = "1", "2"
COLUMNS = (
    "question INTEGER, rank INTEGER, score INTEGER, id INTEGER, record INTEGER, title TEXT, body TEXT, license TEXT"
)
# From these days on what is posted is under that version (https://stackoverflow.com/help/licensing).
VERSIONS = (("2018-05-02", "4.0"), ("2011-04-08", "3.0"), ("", "2.5"))
INSERT_ROWS = 1000
LARGEST = 2**63 - 1  # of SQLite's whole numbers


def read_posts(task: Task, source: Opened, name: str) -> Iterator[Document]:
    """Documents of one Posts.xml in the order of the questions' ids; `record` is the question's row, from 1.

    Ids are `<subset>/<site>/<question>`; the site is the folder of the file, and the address is known where it is a
    host name. Error: DamagedFileError for XML that is cut short or broken.
    """
    folder = name.rpartition("/")[0].rpartition("/")[2]
    with tempfile.TemporaryDirectory(prefix="mobillama-") as spool:
        posts = sqlite3.connect(Path(spool) / "posts.sqlite")
        try:
            posts.execute("PRAGMA synchronous = OFF")
            posts.execute("PRAGMA journal_mode = OFF")
            posts.execute(f"CREATE TABLE post ({COLUMNS})")
            yield from _spill(task, source, name, posts)
            posts.execute("CREATE INDEX thread ON post (question, rank, score DESC, id)")
            for thread in _threads(posts):
                yield _document(task, name, folder, thread)
        finally:
            posts.close()


Post = tuple[int, int, int, int, int, str, str, str]


def _spill(task: Task, source: Opened, name: str, posts: sqlite3.Connection) -> Iterator[Document]:
    """Put every question and answer of the dump into the table; yields what is bad.

    A row stands in a line: one that is longer than a record may be is passed over. Rows over several lines are read
    too, as long as they are not longer than that.
    """
    most = task.source.max_record_bytes
    rows: list[Post] = []
    accepted: list[tuple[int]] = []
    number, waiting = 0, 0  # bytes since the last row
    root: Any = None
    try:
        parser: Any = ElementTree.XMLPullParser(("start", "end"))
        lines = source.bytes()
        while line := lines.readline(most + 1):
            if len(line) > most and not line.endswith(b"\n"):
                size = len(line) + skip_line(lines)
                number += 1
                yield too_long(task, source.where, name, number, size)
                continue
            parser.feed(line)
            waiting += len(line)
            for event, row in parser.read_events():
                root = row if root is None else root
                if event == "start" or row.tag != "row":
                    continue
                waiting = 0
                number += 1
                try:
                    post, best = _post(row, number)
                except ValueError as error:
                    yield bad_record(task, source.where, name, number, "bad_xml", f"a row with {error}", size=0)
                    continue
                if post:
                    rows.append(post)
                if best:
                    accepted.append((best,))
                root.clear()
            if waiting > 2 * most:
                raise ElementTree.ParseError(f"a row of more than source.max_record_bytes={most} in several lines")
            if len(rows) >= INSERT_ROWS:
                posts.executemany("INSERT INTO post VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
                rows.clear()
        parser.close()
        if left := trailing(lines):
            found = f"{left} bytes stand behind the end of the compressed data"
            yield bad_record(task, source.where, name, number + 1, "trailing_bytes", found, size=left)
    except (ElementTree.ParseError, LookupError, ValueError, *DAMAGE) as error:  # the second and third of an encoding
        found = f": after row {number} it is not the XML of a dump ({error}); unpack or fetch the file again"
        yield damaged_file(task, source.where, name, number, found)
    posts.executemany("INSERT INTO post VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    posts.execute("CREATE INDEX answer ON post (id)")
    posts.executemany("UPDATE post SET rank = 1 WHERE id = ? AND rank = 2", accepted)


def _post(row: ElementTree.Element, number: int) -> tuple[Post | None, int]:
    """A question or answer (None: another kind of row) and the answer that it accepts (0: none). Error: ValueError."""
    kind, key = row.get("PostTypeId"), int(row.get("Id", 0))
    if kind not in (QUESTION, ANSWER):
        return None, 0
    question = key if kind == QUESTION else int(row.get("ParentId", 0))
    about = (row.get("Title", ""), row.get("Body", ""), _license(row))
    post = (question, 0 if kind == QUESTION else 2, int(row.get("Score", 0)), key, number, *about)
    best = int(row.get("AcceptedAnswerId") or 0)
    if any(abs(value) > LARGEST for value in (question, key, post[2], best)):
        raise ValueError(f"a number larger than {LARGEST}")
    return post, best


def _threads(posts: sqlite3.Connection) -> Iterator[list[Post]]:
    """Each question with its answers; answers to nothing are left out."""
    thread: list[Post] = []
    for post in posts.execute("SELECT * FROM post ORDER BY question, rank, score DESC, id"):
        if thread and post[0] != thread[0][0]:
            if thread[0][1] == 0:
                yield thread
            thread = []
        thread.append(post)
    if thread and thread[0][1] == 0:
        yield thread


def _document(task: Task, name: str, folder: str, thread: list[Post]) -> Document:
    key, _, score, _, number, title, body, _ = thread[0]
    about = {
        "id": f"{task.subset}/{folder or task.subset}/{key}",
        "url": f"https://{folder}/questions/{key}" if "." in folder else "",
        "license": f"CC-BY-SA-{max(post[7] for post in thread)}",
    }
    texts = [f"Q: {light_text(title)}\n\n{light_text(body)}", *(f"A: {light_text(post[6])}" for post in thread[1:])]
    text = "\n\n".join(texts)
    document = raw_document(task, name, number, text, about)
    if score < 0 or len(thread) == 1:
        document.metadata.setdefault("dropped", "low_score" if score < 0 else "unanswered")
    return document


def _license(row: ElementTree.Element) -> str:
    """The version of CC BY-SA that a post is under: as the dump says, else by its latest edit."""
    named = row.get("ContentLicense", "").rpartition(" ")[2]
    day = max(row.get("LastEditDate", ""), row.get("CreationDate", ""))
    return named or next(version for start, version in VERSIONS if day >= start)


def light_text(html: str) -> str:
    """HTML of a post as plain text with the lightest of marks: code, lists, quotes, emphasis; no link targets.

    Time and output grow with the post. Python's own HTMLParser reads on to the end for every tag that never closes.
    """
    light = _LightText()
    at, comments = 0, True
    while (start := html.find("<", at)) >= 0:
        if comments and html.startswith("<!--", start):
            end = html.find("-->", start + 4)
            if comments := end >= 0:
                light.data(html[at:start])
                at = end + 3
                continue
        tag = TAG.match(html, start)
        light.data(html[at:start])
        if tag is None:
            light.data("<")
            at = start + 1
            continue
        at = tag.end()
        if tag[2] and not tag[1]:
            light.start(tag[2].lower())
        if tag[2] and (tag[1] or tag[0].endswith("/>")):
            light.end(tag[2].lower())
    light.data(html[at:])
    return light.text()


# A tag, or a declaration. No "<" stands in one, not even in a value, so that each ends its scan at the next.
TAG = re.compile(r"""<(?:(/?)([A-Za-z][^\s/<>]*+)(?:[^<>"']|"[^"<]*+"|'[^'<]*+'|["'])*+|[!?/][^<>]*+)>""")
BLOCKS = ("p", "div", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "ul", "ol", "blockquote", "hr", "table", "tr")
MARKS = {"em": "_", "i": "_", "strong": "**", "b": "**", "code": "`"}
DEEPEST_QUOTE = 32  # marks before a line: quotes in quotes would make the text longer with every line
# A reference to a character by a number so long that Python does not read it; there is no such character.
LONG_NUMBER = re.compile(r"&#(?:[0-9]{64,}|[xX][0-9a-fA-F]{64,});?")


class _LightText:
    """The text of a post, from its tags and what stands between them in order."""

    def __init__(self) -> None:
        self._blocks: list[str] = []
        self._part: list[str] = []
        self._quotes = 0
        self._lists: list[int] = []
        self._code = 0

    def text(self) -> str:
        """What was told so far."""
        self._end_block()
        return "\n\n".join(self._blocks)

    def start(self, tag: str) -> None:
        """A tag that opens, or stands alone."""
        if tag in BLOCKS:
            self._end_block()
        if tag == "pre":
            self._code += 1
        elif tag == "blockquote":
            self._quotes += 1
        elif tag in ("ul", "ol"):
            self._lists.append(0 if tag == "ol" else -1)
        elif tag == "li":
            self._end_block()
            if self._lists and self._lists[-1] >= 0:
                self._lists[-1] += 1
            self._part = [f"{self._lists[-1]}. " if self._lists and self._lists[-1] > 0 else "- "]
        elif tag == "br":
            self._part.append("\n")
        elif tag in MARKS and not self._code:
            self._part.append(MARKS[tag])

    def end(self, tag: str) -> None:
        """A tag that closes."""
        if tag in BLOCKS or tag == "li":
            self._end_block()
        if tag == "pre":
            self._code = max(0, self._code - 1)
        elif tag == "blockquote":
            self._quotes = max(0, self._quotes - 1)
        elif tag in ("ul", "ol") and self._lists:
            self._lists.pop()
        elif tag in MARKS and not self._code:
            self._part.append(MARKS[tag])

    def data(self, data: str) -> None:
        """HTML between tags."""
        data = unescape(LONG_NUMBER.sub("\ufffd", data) if "&#" in data else data)
        self._part.append(data if self._code else data.replace("\n", " ") if data.strip() else " " * bool(data))

    def _end_block(self) -> None:
        part = "".join(self._part)
        part = part.strip("\n") if self._code else part.strip()
        self._part = []
        if not part.strip():
            return
        lines = ["    " + line for line in part.split("\n")] if self._code else part.split("\n")
        prefix = "> " * min(self._quotes, DEEPEST_QUOTE)
        block = "\n".join(prefix + line.rstrip() for line in lines)
        self._blocks.append(block)
