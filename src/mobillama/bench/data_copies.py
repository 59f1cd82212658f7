"""A corpus N times as large as another one: real documents repeated with their words in another order.

Copy 0 is the documents as they are. In every other copy the words have changed places within runs of WINDOW words, by a
permutation that the copy's number and the document's id decide; white space and the last word of a line stay. So
lengths, vocabulary and the ends of lines stay as they were, while five words in a row are hardly ever those of another
copy: near-deduplication keeps it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
import zstandard

from mobillama.data.compressed import opened
from mobillama.errors import InputError

WINDOW = 64
WORD = re.compile(r"\S+")


def write_copies(corpora: Path, out: Path, copies: int) -> None:
    """Write `<out>/<subset>/copy_NN.jsonl.zst`, N of each `<corpora>/<subset>.jsonl.gz` (or .jsonl, .jsonl.zst).

    One line is in memory at a time. Error: InputError if `corpora` holds no such file.
    """
    files = sorted(path for path in corpora.iterdir() if ".jsonl" in path.suffixes)
    if not files:
        raise InputError(f"{corpora} holds no .jsonl files; give the folder of the corpora")
    for path in files:
        folder = out / path.name.partition(".")[0]
        folder.mkdir(parents=True, exist_ok=True)
        for copy in range(copies):
            with (
                (folder / f"copy_{copy:02d}.jsonl.zst").open("wb") as file,
                zstandard.ZstdCompressor(level=1).stream_writer(file) as writer,
            ):
                for line in _lines(path, copy):
                    writer.write(line)


def _lines(path: Path, copy: int) -> Iterator[bytes]:
    with opened(path) as file:
        for line in file.bytes():
            if not copy:
                yield line
            elif not line.isspace():
                record = orjson.loads(line)
                record["id"] = f"{record['id']}~{copy}"
                record["text"] = shuffle_words(record["text"], f"{copy} {record['id']}")
                yield orjson.dumps(record) + b"\n"


def shuffle_words(text: str, key: str) -> str:
    """The text with its words in another order, decided by `key`; the same characters, the same white space.

    >>> sorted(shuffle_words("a bc d ef g", "1")) == sorted("a bc d ef g")
    True
    """
    spans = [match.span() for match in WORD.finditer(text)]
    if not spans:
        return text
    words = [text[start:end] for start, end in spans]
    gaps = [text[end:start] for (_, end), (start, _) in zip(spans, [*spans[1:], (len(text), 0)], strict=True)]
    moving = np.array([place for place, gap in enumerate(gaps[:-1]) if "\n" not in gap], np.int64)
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    chance = np.random.default_rng(seed).random(len(moving))
    run = np.arange(len(moving)) // WINDOW
    places = moving[np.lexsort((chance, run))]
    moved = list(words)
    for to, place in zip(moving.tolist(), places.tolist(), strict=True):
        moved[to] = words[place]
    return text[: spans[0][0]] + "".join(word + gap for word, gap in zip(moved, gaps, strict=True))
