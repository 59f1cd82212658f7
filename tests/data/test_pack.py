"""The packer: every token once, no document cut that fits a row, rows full or padded; the same for any worker count."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections import deque
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobillama import manifest
from mobillama.data import best_fit
from mobillama.data.best_fit import fit, fit_documents
from mobillama.data.chunk import open_chunk, write_chunk
from mobillama.data.encode import BASE
from mobillama.data.header import SPAN_ARRAYS, Header
from mobillama.data.pack import Cut, Method, Plan, Stream, plan_stream
from mobillama.data.segments import counted_targets
from mobillama.data.shards import read_shards

END = 2
METHODS: tuple[Method, ...] = ("concatenate", "best_fit")


def spec_fit(sizes: list[int], capacity: int) -> list[int]:
    """The rule of docs/formats.md, one piece after the other."""
    free: dict[int, deque[int]] = {}
    rows = [-1] * len(sizes)
    opened = 0
    for piece in sorted(range(len(sizes)), key=lambda piece: -sizes[piece]):
        room = min((room for room, queue in free.items() if queue and room >= sizes[piece]), default=0)
        if room:
            row = free[room].popleft()
        else:
            row, room, opened = opened, capacity, opened + 1
        rows[piece] = row
        free.setdefault(room - sizes[piece], deque()).append(row)
    return rows


@given(st.integers(1, 40).flatmap(lambda top: st.tuples(st.just(top), st.lists(st.integers(1, top), max_size=120))))
@settings(max_examples=300, deadline=None)
def test_rows_are_those_of_the_rule_applied_piece_by_piece(case):
    capacity, sizes = case
    assert fit(np.array(sizes, np.int64), capacity).tolist() == spec_fit(sizes, capacity)


@given(st.lists(st.integers(1, 70), max_size=60), st.integers(2, 33), st.integers(1, 50), st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_documents_are_cut_only_where_they_are_longer_than_a_row(sizes, row_len, window, documents):
    """For windows of any size."""
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    before = best_fit.WINDOW, best_fit.DOCUMENTS
    best_fit.WINDOW, best_fit.DOCUMENTS = window, documents
    try:
        with tempfile.TemporaryDirectory() as folder:
            laid = fit_documents(starts, row_len, Path(folder), "x")
            count, start, tokens = laid.find(np.arange(laid.rows))
            every = sorted(zip(start.tolist(), tokens.tolist(), strict=True))
            some = np.arange(laid.rows)[::-2]
            assert laid.find(some)[0].tolist() == count[some].tolist()
            assert laid.find(some)[1].tolist() == [
                each for row in some for each in np.split(start, np.cumsum(count)[:-1])[row].tolist()
            ]
    finally:
        best_fit.WINDOW, best_fit.DOCUMENTS = before
    expected = []
    for first, size in zip(starts[:-1].tolist(), sizes, strict=True):
        expected += [(first + cut, min(row_len, size - cut)) for cut in range(0, size, row_len)]
    assert every == expected
    filled = np.bincount(np.repeat(np.arange(laid.rows), count), weights=tokens, minlength=laid.rows)
    assert (filled <= row_len).all()
    assert (count > 0).all()
    assert laid.padding == laid.rows * row_len - sum(sizes)
    if len(expected) <= window:  # two rows half empty would have been one
        assert sum(filled <= row_len // 2) <= 1


def make_stream(folder: Path, documents: list[list[int]], cuts: list[int], method: Method, row_len: int) -> Stream:
    """A stream of encoded parts: each token covers id % 5 bytes."""
    stems = []
    for number, (first, last) in enumerate(zip([0, *cuts], [*cuts, len(documents)], strict=True)):
        stem = folder / f"{number}.train"
        ids = np.array([id_ for document in documents[first:last] for id_ in document], np.uint16)
        lengths = (ids % 5).astype(np.uint16)
        sizes = [(place, len(doc), sum(i % 5 for i in doc)) for place, doc in enumerate(documents)][first:last]
        before = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])[:-1:BASE] if len(lengths) else np.empty(0)
        for name, array in {"ids": ids, "lengths": lengths, "bases": before.astype(np.int64)}.items():
            array.tofile(f"{stem}.{name}")
        np.array(sizes, np.int64).reshape(-1, 3).tofile(f"{stem}.records")
        stems.append(stem)
    return plan_stream(stems, folder / "train-0.table", method, row_len)


@st.composite
def drawn_corpora(draw):
    """Documents that end in 5, which covers no bytes as every multiple of 5, and where the parts end."""
    sizes = draw(st.lists(st.integers(1, 60), min_size=1, max_size=40))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    documents = [
        [*(random.integers(0, 99, size - 1) * 5 + random.integers(6, 10, size - 1)).tolist(), 5] for size in sizes
    ]
    cuts = sorted(draw(st.lists(st.integers(0, len(documents)), max_size=3)))
    return documents, cuts


@pytest.mark.parametrize("method", METHODS)
@given(drawn_corpora(), st.integers(2, 40), st.integers(1, 3))
@settings(max_examples=120, deadline=None)
def test_every_token_of_every_document_is_in_one_row_and_followed_to_its_bytes(method, corpus, row_len, chunks):
    documents, cuts = corpus
    with tempfile.TemporaryDirectory() as name:
        stream = make_stream(Path(name), documents, cuts, method, row_len)
        plan = Plan(Header(500, row_len - 1, "", ("a",), method), END, 7, chunks, (stream,), ())
        seen: list[tuple[int, int]] = []  # document, token of it
        padding = 0
        for number in range(chunks):
            _, streams, chosen = plan.chunk(number)
            cut = Cut(plan, streams, chosen)
            path = Path(name) / f"{number}.safetensors"
            write_chunk(path, plan.header, len(chosen), len(cut.document), cut.fill)
            arrays, header = open_chunk(path)
            assert header == plan.header
            for row in range(len(chosen)):
                ids, end = arrays["ids"][row].tolist(), 0
                spans = range(*arrays["span_offsets"][row : row + 2].astype(int).tolist())
                for span in spans:
                    told = {key: int(arrays[key][span]) for key in SPAN_ARRAYS}
                    document, start, count = (told[f"span_{key}"] for key in ("document", "token", "tokens"))
                    assert start == end
                    end += count
                    first = place_of(documents[document], told["span_byte_start"])
                    assert ids[start:end] == documents[document][first : first + count]
                    assert told["span_byte_end"] == sum(id_ % 5 for id_ in documents[document][: first + count])
                    assert told["span_first_bytes"] == ids[start] % 5
                    seen += [(document, first + place) for place in range(count)]
                    if method == "best_fit" and len(documents[document]) <= row_len:
                        assert count == len(documents[document])
                assert int(arrays["row_bytes"][row]) == sum(id_ % 5 for id_ in ids[1:end])
                assert ids[end:] == [END] * (row_len - end)
                padding += row_len - end
        every = [(number, place) for number, document in enumerate(documents) for place in range(len(document))]
        tail = len(every) % row_len if method == "concatenate" else 0
        assert sorted(seen) == every[: len(every) - tail]
        assert padding == stream.layout.padding
        assert method == "best_fit" or padding == 0


def place_of(document: list[int], byte: int) -> int:
    """The token of a document that begins at a byte: every one but the last covers some."""
    return [0, *np.cumsum([id_ % 5 for id_ in document[:-1]]).tolist()].index(byte)


@given(drawn_corpora(), st.integers(2, 40))
@settings(max_examples=60, deadline=None)
def test_rows_do_not_depend_on_how_the_documents_lie_in_parts(corpus, row_len):
    documents, cuts = corpus
    found = []
    for parts in (cuts, []):
        with tempfile.TemporaryDirectory() as name:
            stream = make_stream(Path(name), documents, parts, "best_fit", row_len)
            found.append([each.tolist() for each in stream.layout.find(np.arange(stream.layout.rows))])
    assert found[0] == found[1]


def test_a_million_documents_are_packed_in_seconds_and_almost_nothing_is_wasted(tmp_path: Path):
    print("seed", seed := 4)
    sizes = np.clip(np.random.default_rng(seed).lognormal(6, 1.2, 1_000_000), 2, 100_000).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    begun = time.process_time()
    laid = fit_documents(starts, 2049, tmp_path, "x")
    seconds = time.process_time() - begun
    print(f"{seconds:.1f} s, waste {laid.padding / laid.rows / 2049:.6f}")
    assert laid.padding / laid.rows / 2049 < 0.001
    assert seconds < 20


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


def test_best_fit_shards_have_the_same_bytes_on_any_number_of_workers(corpora: Path, build):
    one = build(corpora, "one", workers=1, method="best_fit")
    three = build(corpora, "three", workers=3, method="best_fit")
    assert digests(one) == digests(three)
    assert manifest.read(one).counts == manifest.read(three).counts


def test_best_fit_shards_tell_their_waste_and_never_train_on_it(corpora: Path, build):
    out = build(corpora, method="best_fit")
    shards, counts = read_shards(out), manifest.read(out).counts
    for split, rows in (("train", shards.num_rows), ("validation", shards.num_validation_rows)):
        told = counts[split]
        assert told["rows"] == rows
        assert told["tokens"] + told["padding_tokens"] == rows * shards.row_len
        assert told["tail_tokens"] == 0
        assert told["waste"] == round(told["padding_tokens"] / (rows * shards.row_len), 6)
        segments = shards.segments(range(rows), split)
        assert (segments == -1).sum() == told["padding_tokens"]
        ids = shards.train_rows(range(rows)) if split == "train" else shards.validation_rows(range(rows))
        assert (ids[segments == -1] == 2).all()
        counted = counted_targets(segments, document_mask=False)
        first = (segments[:, 0] >= 0).sum()
        assert counted.sum() == told["tokens"] - first
        assert shards.row_bytes(range(rows), split).sum() <= told["bytes"]


def test_concatenated_shards_tell_what_their_tails_waste(corpora: Path, build):
    out = build(corpora)
    told = manifest.read(out).counts["train"]
    assert told["padding_tokens"] == 0
    assert told["waste"] == round(told["tail_tokens"] / told["tokens"], 6)
    assert (read_shards(out).segments(range(told["rows"])) >= 0).all()
