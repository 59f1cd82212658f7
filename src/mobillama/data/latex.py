"""Sources of papers as arXiv ships them: a .tar of many papers, or one paper as .tar.gz, .tar, .gz or .tex.

Of a paper the main file is taken (the one with \\documentclass), the files it puts in with \\input, \\include and
\\subfile stand in their places, and comments are removed. That is the document's raw text. What stands in the archive
is looked up by name in memory, so that no path leads out of it.
"""

from __future__ import annotations

import io
import posixpath
import re
import tarfile
from collections.abc import Iterator, Mapping
from typing import IO

from datatrove.data import Document

from mobillama.data.bad_records import bad_record, damaged_file
from mobillama.data.compressed import DAMAGE, Opened, decompressed, printable
from mobillama.data.raw_document import raw_document
from mobillama.data.sources import Task

# More text than this in one paper is no paper (a bomb, or data): the rest of its files is not taken.
MOST_BYTES = 64 << 20
DEEPEST = 20
# Files that put each other in many times over grow exponentially: what is put in may be this many times all files.
MOST_GROWTH = 8
TEX = (".tex", ".ltx", ".latex", ".bbl")
USUAL = ("main.tex", "ms.tex", "paper.tex", "article.tex")
PDF = b"%PDF"
SUFFIXES = (".gz", ".zst", ".bz2", ".xz", ".tgz", ".tar", ".pdf", ".tex")  # in the order in which they come off
MAIN = re.compile(r"^[^%\n]*\\document(?:class|style)", re.M)
# White space and words follow each other by turns and give nothing back: linear where no brace ever closes.
PUT_IN = re.compile(
    r"\\(?:input|include|subfile)\s*+\{\s*+([^\s{}]++(?:[^\S\n]++[^\s{}]++)*+)\s*+\}|\\input\s++([^\s{}\\%]++)"
)
VERBATIM = re.compile(r"\\(begin|end)\{(verbatim\*?|Verbatim|lstlisting|minted|alltt)\}")
COMMENT = re.compile(r"(?<!\\)((?:\\\\)*)%.*")
OLD_ID = re.compile(r"([a-z-]+)(\d{7}(?:v\d+)?)$")
NEW_ID = re.compile(r"\d{4}\.\d{4,5}(?:v\d+)?$")


def read_latex(task: Task, source: Opened, name: str) -> Iterator[Document]:
    """Documents of one file; `record` counts its papers from 1.

    A paper that cannot be unpacked is dropped (`damaged`), one that is longer than a record may be (`record_too_long`;
    of an archive, the files that still fit are taken) and one without TeX source (`no_source`) too. Error:
    DamagedFileError where the file itself is cut short.
    """
    number = 0
    try:
        for number, (path, data) in enumerate(_papers(source, name, _most(task)), 1):
            yield _document(task, source.where, name, number, path, data)
    except (tarfile.TarError, *DAMAGE) as error:
        found = (
            f": after paper {number} it cannot be unpacked ({error}); it is cut short or damaged: fetch the file again"
        )
        yield damaged_file(task, source.where, name, number, found)


def main_text(files: Mapping[str, str]) -> str | None:
    """The text of a paper from its TeX files by name: the main one, put together, without comments; None without one.

    >>> main_text({"ms.tex": "\\\\documentclass{a} % a comment\\n\\\\input{body}", "body.tex": "Words."})
    '\\\\documentclass{a}\\nWords.'
    """
    clean = {name: without_comments(text) for name, text in files.items()}
    mains = [name for name, text in clean.items() if MAIN.search(text)]
    if not mains:
        mains = [name for name in clean if name.endswith(".tex")] if len(clean) == 1 else []
    if not mains:
        return None
    used = {found for name, text in clean.items() for found in _put_in(text, name, clean)}

    def order(name: str) -> tuple[bool, bool, bool, int, str]:
        usual = posixpath.basename(name) in USUAL
        return "\\begin{document}" not in clean[name], name in used, not usual, -len(clean[name]), name

    room = min(MOST_BYTES, MOST_GROWTH * sum(map(len, clean.values())))
    return _put_together(min(mains, key=order), clean, (), [room])


def without_comments(text: str) -> str:
    """TeX without comments: lines of nothing else are gone, `%` and what follows it are cut; verbatim text stays."""
    lines, verbatim = [], False
    for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        if not verbatim:
            cut = COMMENT.sub(r"\1", line)
            if cut != line:
                if not cut.strip():
                    continue
                line = cut.rstrip()
        for kind, _ in VERBATIM.findall(line):
            verbatim = kind == "begin"
        lines.append(line)
    return "\n".join(lines)


def _most(task: Task) -> int:
    """Bytes of text of one paper."""
    return min(MOST_BYTES, task.source.max_record_bytes)


def _papers(source: Opened, name: str, most: int) -> Iterator[tuple[str, bytes | dict[str, bytes]]]:
    """Each paper's name and its bytes as shipped, or its TeX files where the file is one paper's archive."""
    if not name.lower().endswith(".tar"):
        yield name, source.raw.read(most + 1)
        return
    files: dict[str, bytes] = {}
    room = most
    with tarfile.open(fileobj=source.raw, mode="r|") as archive:
        for member in archive:
            if not member.isfile():
                continue
            stream = archive.extractfile(member)
            if member.name.lower().endswith((".gz", ".pdf")) and not files and stream is not None:
                yield member.name, stream.read(most + 1)
            elif stream is not None:
                room -= _take(files, member.name, stream, room)
    if files:
        yield name, files


def _document(task: Task, where: str, name: str, number: int, path: str, data: bytes | dict[str, bytes]) -> Document:
    about, most = _about(path), _most(task)
    size = len(data) if isinstance(data, bytes) else sum(map(len, data.values()))
    try:
        files = _unpacked(path, data, most) if isinstance(data, bytes) else data
    except _TooLongError:
        found = f"{printable(path)} is a paper of more than {most} bytes"
        return bad_record(task, where, name, number, "record_too_long", found, size=size, about=about)
    except (tarfile.TarError, *DAMAGE) as error:
        found = f"{printable(path)} cannot be unpacked ({error})"
        return bad_record(task, where, name, number, "damaged", found, size=size, about=about)
    text = main_text({key: _decoded(raw) for key, raw in sorted(files.items())})
    return raw_document(task, name, number, text, about, size=size, dropped="no_source")


class _TooLongError(Exception):
    """A paper that is longer than a record may be."""


def _unpacked(path: str, data: bytes, most: int) -> dict[str, bytes]:
    """The TeX files of one paper, which may be an archive or a single file, compressed or not. Error: _TooLongError."""
    files: dict[str, bytes] = {}
    if len(data) <= most:
        data = decompressed(io.BufferedReader(io.BytesIO(data)), path).read(most + 1)
    if data.startswith(PDF):
        return files
    if len(data) > most:
        raise _TooLongError
    if data[257:262] == b"ustar":
        room = most
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.isfile() else None
                if stream is not None:
                    room -= _take(files, member.name, stream, room)
        return files
    return {_stem(path) + ".tex": data}


def _take(files: dict[str, bytes], name: str, stream: IO[bytes], room: int) -> int:
    """Keep a TeX file of a paper, as long as there is room; the bytes that it takes more than the one of its name."""
    if not name.lower().endswith(TEX) or room <= 0:
        return 0
    key = posixpath.normpath(name)
    before = len(files.get(key, b""))
    files[key] = stream.read(room)
    return len(files[key]) - before


def _put_together(name: str, files: Mapping[str, str], above: tuple[str, ...], room: list[int]) -> str:
    """A file with the others in their places; one that is not there, or would hold itself, is left as it is named.

    `room`: one number, the characters that may still be put in; what finds none left stays as it is named too.
    """

    def put(match: re.Match[str]) -> str:
        found = _find(match[1] or match[2], name, files)
        inside = (*above, name)
        if found is None or found in inside or len(inside) > DEEPEST or room[0] < 0:
            return match[0]
        room[0] -= len(files[found])
        return _put_together(found, files, inside, room)

    return PUT_IN.sub(put, files[name])


def _put_in(text: str, name: str, files: Mapping[str, str]) -> Iterator[str]:
    for match in PUT_IN.finditer(text):
        if found := _find(match[1] or match[2], name, files):
            yield found


def _find(wanted: str, user: str, files: Mapping[str, str]) -> str | None:
    """The file that `wanted` names in file `user`: from the top of the archive or from the user's folder."""
    for base in (posixpath.dirname(user), ""):
        path = posixpath.normpath(posixpath.join(base, wanted))
        for candidate in (path, path + ".tex"):
            if candidate in files:
                return candidate
    return None


def _decoded(raw: bytes) -> str:
    """UTF-8, else Latin-1, in which every byte has a meaning: what papers before about 2010 are written in."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _stem(path: str) -> str:
    """The last part of a path without what says how it is packed."""
    stem = posixpath.basename(path)
    for suffix in SUFFIXES:
        if stem.lower().endswith(suffix):
            stem = stem[: -len(suffix)]
    return stem


def _about(path: str) -> dict[str, str]:
    """Id and address of a paper, where its file is named after its arXiv number."""
    stem = _stem(path)
    if NEW_ID.fullmatch(stem):
        return {"id": f"arxiv/{stem}", "url": f"https://arxiv.org/abs/{stem}"}
    if old := OLD_ID.fullmatch(stem):
        return {"id": f"arxiv/{old[1]}/{old[2]}", "url": f"https://arxiv.org/abs/{old[1]}/{old[2]}"}
    return {}
