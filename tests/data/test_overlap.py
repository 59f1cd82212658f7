"""Planted benchmark items are found, whatever their case, signs and line breaks; nothing else is."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datatrove.data import Document
from samples import make_text

from mobillama.config import CleanConfig
from mobillama.data import overlap, words
from mobillama.data.benchmarks import BENCHMARKS, NAMES, benchmarks_folder, describe_benchmarks, items
from mobillama.data.overlap import FEWEST_WORDS, RUN_WORDS, Index, Overlap, write_index
from mobillama.data.words import alphanumeric
from mobillama.errors import DamagedFileError, InputError

SIGNS = "!,.;:?'\"()-–’“"
RECORDS = 30


def write(folder: Path, name: str, lines: list[str]) -> None:
    path = folder / name / ("a_subject" if name == "mmlu" else "") / f"{BENCHMARKS[name][0]}.jsonl.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(lines)


@pytest.fixture(scope="module")
def small(shared_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first records of each benchmark."""
    whole, folder = shared_folder("MOBILLAMA_BENCHMARKS"), tmp_path_factory.mktemp("benchmarks")
    for name, (split, _) in BENCHMARKS.items():
        path = whole / name / ("anatomy" if name == "mmlu" else "") / f"{split}.jsonl.gz"
        with gzip.open(path, "rt", encoding="utf-8") as file:
            write(folder, name, [line for _, line in zip(range(RECORDS), file, strict=False)])
    return folder


@pytest.fixture(scope="module")
def index(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    path = tmp_path_factory.mktemp("index") / "overlap"
    write_index(small, path)
    return Index(path)


def disguised(chosen: random.Random, text: str) -> str:
    """The same words in other case, with other signs and breaks."""
    changed = "".join(
        chosen.choice(SIGNS)
        if char in SIGNS
        else chosen.choice((char.upper(), char.lower()))
        if char.isascii()
        else char
        for char in text
    )
    return "".join(part + chosen.choice((" ", "  ", "\n", "\n\n", ", ", " – ")) for part in changed.split())


def planted(chosen: random.Random, text: str) -> str:
    before, after = (make_text(chosen, chosen.randrange(300)) for _ in range(2))
    return f"{before}. {disguised(chosen, text)}. {after}"


def searchable(folder: Path, name: str) -> list[str]:
    """Texts with a run of words, and those of items that have none and are looked for as a whole."""
    found = []
    for item in items(folder, name):
        sizes = [len(alphanumeric(text).split()) for text in item]
        fewest = RUN_WORDS if max(sizes) >= RUN_WORDS else FEWEST_WORDS
        found += [text for text, size in zip(item, sizes, strict=True) if size >= fewest]
    return found


def check_planted(folder: Path, index: Index, count: int) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    for name in NAMES:
        texts = searchable(folder, name)
        for text in chosen.sample(texts, min(count, len(texts))):
            assert name in index.benchmarks(planted(chosen, text)), (name, text)


def test_items_of_each_benchmark_are_found_inside_documents(small: Path, index: Index):
    check_planted(small, index, 20)


@pytest.mark.slow
def test_items_of_the_whole_benchmarks_are_found(shared_folder: Callable[[str], Path], tmp_path: Path):
    folder = shared_folder("MOBILLAMA_BENCHMARKS")
    write_index(folder, tmp_path / "index")
    check_planted(folder, Index(tmp_path / "index"), 200)


def test_documents_without_items_are_not_marked(index: Index):
    chosen = random.Random(5)
    assert all(index.benchmarks(make_text(chosen, 500)) == [] for _ in range(50))
    assert index.benchmarks("") == []


def test_marks_are_those_of_a_plain_scan(small: Path, index: Index, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(words, "PIECE_CHARACTERS", 300)  # so that runs reach over pieces
    monkeypatch.setattr(overlap, "BLOCK_BYTES", 50)
    runs: dict[tuple[bytes, ...], set[str]] = {}
    for name in NAMES:
        for item in items(small, name):
            split = [alphanumeric(text).split() for text in item]
            longest = max(map(len, split))
            for text in split:
                size = RUN_WORDS if longest >= RUN_WORDS else len(text)
                for start in range(len(text) - size + 1 if size >= FEWEST_WORDS else 0):
                    runs.setdefault(tuple(text[start : start + size]), set()).add(name)
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    known = [text for name in NAMES for item in items(small, name) for text in item]
    marked = 0
    for _ in range(300):
        cuts = (alphanumeric(chosen.choice(known)).decode().split() for _ in range(20))
        parts = [
            chosen.choice((cut[: chosen.randrange(15)], cut[chosen.randrange(len(cut) or 1) :][:14])) for cut in cuts
        ]
        text = " ".join(chosen.choice((" ".join(part), make_text(chosen, 5))) for part in parts)
        plain = alphanumeric(text).split()
        expected = {
            name
            for size in range(FEWEST_WORDS, RUN_WORDS + 1)
            for start in range(len(plain) - size + 1)
            for name in runs.get(tuple(plain[start : start + size]), ())
        }
        assert index.benchmarks(text) == sorted(expected), text
        marked += bool(expected)
    assert 30 < marked < 300


def texts_of(count: int) -> str:
    return " ".join(f"word{number}" for number in range(count))


def nine(folder: Path, *sentences: str) -> None:
    """Nine benchmarks of which only CrowS-Pairs has items: these sentences."""
    for name in NAMES:
        write(folder, name, [])
    write(folder, "crows_pairs", [json.dumps({"sent_more": text, "sent_less": text}) + "\n" for text in sentences])


def test_items_too_short_are_counted(tmp_path: Path):
    nine(tmp_path, texts_of(7), "other " + texts_of(8), "third " + texts_of(20))
    write_index(tmp_path, tmp_path / "index")
    index = Index(tmp_path / "index")
    assert index.counts["crows_pairs"] == {"items": 3, "whole": 1, "left_out": 1}
    assert index.benchmarks(texts_of(7)) == []
    assert index.benchmarks("other " + texts_of(7)) == []
    assert index.benchmarks("before other " + texts_of(9)) == ["crows_pairs"]
    assert index.benchmarks("third " + texts_of(11)) == []
    assert index.benchmarks("third " + texts_of(12)) == ["crows_pairs"]


def test_an_equal_hash_of_other_words_marks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(overlap, "NUMBERS", np.zeros_like(overlap.NUMBERS))
    nine(tmp_path, texts_of(14), "other " + texts_of(20))
    write_index(tmp_path, tmp_path / "index")
    index = Index(tmp_path / "index")
    assert len(index.hash) == 11
    assert index.benchmarks(make_text(random.Random(1), 100)) == []
    assert index.benchmarks("so " + texts_of(13) + " it is") == ["crows_pairs"]


def run(index: Path, mode: Any, *texts: str) -> list[dict[str, Any]]:
    step = Overlap(CleanConfig(overlap=mode), index)
    given = (Document(text, "", [], {} if text else {"dropped": "empty"}) for text in texts)
    return [document.metadata for document in step.run(given)]


def test_documents_are_marked_or_dropped(tmp_path: Path):
    nine(tmp_path, texts_of(14))
    write_index(tmp_path, tmp_path / "index")
    texts = (texts_of(20), "nothing of the kind", "")
    clean, empty = {"overlap": []}, {"dropped": "empty"}
    assert run(tmp_path / "index", "mark", *texts) == [{"overlap": ["crows_pairs"]}, clean, empty]
    dropped = {"overlap": ["crows_pairs"], "dropped": "benchmark_overlap"}
    assert run(tmp_path / "index", "drop", *texts) == [dropped, clean, empty]


def test_the_index_follows_from_the_benchmarks_alone(small: Path, tmp_path: Path):
    write_index(small, tmp_path / "one")
    write_index(small, tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_benchmarks_are_named_by_their_bytes(tmp_path: Path):
    nine(tmp_path, texts_of(14))
    before = describe_benchmarks(tmp_path)
    assert [entry["name"] for entry in before] == list(NAMES)
    write(tmp_path, "crows_pairs", [])
    assert [a["name"] for a, b in zip(before, describe_benchmarks(tmp_path), strict=True) if a != b] == ["crows_pairs"]


def test_benchmarks_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    nine(tmp_path)
    write(tmp_path, "piqa", ['{"goal": "a"}\n'])
    with pytest.raises(
        InputError, match=r"piqa/validation\.jsonl\.gz, line 1: found .*goal.* expected an item of piqa"
    ):
        write_index(tmp_path, tmp_path / "index")
    path = tmp_path / "piqa/validation.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises((DamagedFileError, InputError)):
        write_index(tmp_path, tmp_path / "index")
    path.unlink()
    with pytest.raises(InputError, match=r"has no piqa/validation\.jsonl\.gz; put that benchmark there, or set"):
        write_index(tmp_path, tmp_path / "index")
    assert not (tmp_path / "index").exists()
    monkeypatch.delenv("MOBILLAMA_BENCHMARKS", raising=False)
    with pytest.raises(InputError, match=r"clean\.benchmarks is empty"):
        benchmarks_folder(CleanConfig())
