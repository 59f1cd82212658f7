"""Which steps read a document or a text: the inverse of the order, and every answer against a plain scan."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import make_run, scan
from samples import make_documents, make_recipe, write_jsonl

from mobillama import manifest
from mobillama.data import find
from mobillama.data.build import build_shards
from mobillama.data.corpus import read_texts
from mobillama.data.documents import DocumentTable
from mobillama.data.lookup import show
from mobillama.data.mask import EMAIL, IPV4
from mobillama.data.shards import Shards, read_shards, write_shards
from mobillama.data.span import Span
from mobillama.data.stream import permute, positions, row_ids, rows_from, unpermute
from mobillama.errors import InputError
from mobillama.tokenizer.tokenizer import Tokenizer

Reads = list[tuple[int, int, int, int, int]]
SEED, ROWS = 5, 7
MASKS = (EMAIL, IPV4)
RARE = ("海", "🙂", "\u2581", *MASKS, "\n")  # what cuts must have among them
NAMES = ("step", "row", "row_id", "byte_start", "byte_end")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """Shards of documents with accents, Chinese, emoji, U+2581, masked addresses and a text that repeats."""
    root = tmp_path_factory.mktemp("find")
    book, web = make_documents("book", 40, seed=2), make_documents("web", 30, seed=2)
    for number, record in enumerate(web):
        record["text"] += f"\r\nwrite to someone{number}@mail.net or to 8.8.{number}.8, 海🙂 thanks " * (number % 3)
    book[4]["text"] = "ab" * 200  # overlapping occurrences
    write_jsonl(root / "book.jsonl", book)
    write_jsonl(root / "web.jsonl", web)
    out = root / "shards"
    build_shards(make_recipe(root, mask=True), out, workers=1, tokenizer=tokenizer, on_progress=lambda progress: None)
    return out


def texts_of(shards: Path) -> list[str]:
    return list(read_texts(find.find_corpus(read_shards(shards))))


@given(st.integers(0, 2**64 - 1), st.integers(1, 5000), st.data())
def test_unpermute_inverts_permute(secret: int, size: int, data: st.DataObject):
    places = np.array(data.draw(st.lists(st.integers(0, size - 1), max_size=20)), np.uint64)
    assert unpermute(secret, size, permute(secret, size, places).astype(np.uint64)).tolist() == places.tolist()
    assert permute(secret, size, unpermute(secret, size, places).astype(np.uint64)).tolist() == places.tolist()


@given(st.integers(0, 2**63), st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 4))
def test_positions_are_where_the_order_reads_each_row(seed: int, chunk_rows: list[int], epoch: int):
    total = sum(chunk_rows)
    order = row_ids(seed, 1, (epoch + 1) * total, chunk_rows)[epoch * total :]
    assert positions(seed, order.tolist(), epoch, chunk_rows).tolist() == [*range(epoch * total, (epoch + 1) * total)]
    with pytest.raises(ValueError, match=f"rows 0 to {total - 1}"):
        positions(seed, [total], 0, chunk_rows)


def test_positions_are_right_for_large_numbers():
    chunk_rows = [2**40 + 3, 12345]
    order = row_ids(9, 2**37, 8, chunk_rows)
    assert positions(9, order.tolist(), 0, chunk_rows).tolist() == [*range((2**37 - 1) * 8, 2**37 * 8)]


@pytest.mark.parametrize("passes, taken_share", [(0.4, 1.0), (1.0, 0.5), (3.4, 0.7), (2.0, 1.0), (1.0, 0.0)])
def test_every_document_is_found_in_exactly_the_steps_that_read_it(
    shards: Path, tmp_path: Path, passes: float, taken_share: float
):
    opened = read_shards(shards)
    steps = max(1, int(passes * opened.num_rows / ROWS))
    taken = int(taken_share * steps)
    run = make_run(tmp_path / "run", shards, seed=SEED, rows_per_step=ROWS, steps=steps, taken=taken)
    expected: dict[int, Any] = defaultdict(list)
    for step, place, row, span in scan(shards, SEED, ROWS, steps):
        expected[span.document].append(
            (step, place, row, span.token_start, span.token_count, span.byte_start, span.byte_end)
        )
    seen = set()
    names = ("step", "row", "row_id", "token_start", "token_count", "byte_start", "byte_end")
    for number, line in enumerate(_lines(opened)):
        told = find.find_document(run, line["id"])
        assert (told["steps"], told["steps_taken"], told["occurrences"]) == (steps, taken, 1)
        (match,) = told["found"]
        assert match["document"] == number
        for key, wanted in (
            ("reads", [entry for entry in expected[number] if entry[0] <= taken]),
            ("planned", [entry for entry in expected[number] if entry[0] > taken]),
        ):
            assert [tuple(entry[name] for name in names) for entry in match[key]] == sorted(wanted)
        for entry in match["reads"]:
            assert entry["pass"] == ((entry["step"] - 1) * ROWS + entry["row"]) // opened.num_rows + 1
            assert entry["row_id"] in _rows_of_chunk(opened, entry["chunk"])
        seen |= {entry["why"] for entry in match["never_read"]}
        _check_never_read(match, line, opened, taken)
    assert seen >= {"held_out", "dropped_tail"}
    assert ("not_reached" in seen) == (taken < -(-opened.num_rows // ROWS))


def _check_never_read(match: dict[str, Any], line: dict[str, Any], shards: Shards, taken: int) -> None:
    """Bytes read and bytes never read are all bytes of the document, and each reason is true."""
    covered = np.zeros(line["bytes"], int)
    for entry in {(entry["byte_start"], entry["byte_end"]) for entry in match["reads"]}:
        covered[slice(*entry)] += 1
    for entry in match["never_read"]:
        covered[entry["byte_start"] : entry["byte_end"]] += 1
        if entry["why"] == "held_out":
            assert line["split"] == "validation"
            assert line["id"] in {span.document_id for span in shards.spans(entry["row_id"], "validation")}
        elif entry["why"] == "not_reached":
            assert entry["step"] > taken
            assert entry["row_id"] in row_ids(SEED, entry["step"], ROWS, shards.chunk_rows)
        else:
            assert entry["byte_end"] == line["bytes"]
    assert (covered == 1).all()


def _lines(shards: Shards) -> list[dict[str, Any]]:
    table = DocumentTable(shards.folder / "documents", find.COLUMNS)
    return table.lines(range(len(table)))


def _rows_of_chunk(shards: Shards, chunk: int) -> range:
    start = sum(shards.chunk_rows[:chunk])
    return range(start, start + shards.chunk_rows[chunk])


def check_cuts(run: Path, shards: Path, spans: dict[int, Any], count: int, seed: int, limit: int = 20) -> set[str]:
    """Random cuts of documents, the first around each of RARE, against a plain scan; what answers had among them."""
    print(f"seed {seed}")
    draw = random.Random(seed)
    opened, seen = read_shards(shards), set()
    tokenizer = Tokenizer.load(shards / "tokenizer")
    texts = texts_of(shards)
    whole = [text.encode() for text in texts]
    for turn in range(count):
        length = draw.randrange(20, 120)
        around = [text for text in texts if RARE[turn] in text] if turn < len(RARE) else []
        text = draw.choice(around or texts)
        if around:
            before = draw.randrange(length - len(RARE[turn]) + 1)
            start = max(0, min(text.index(RARE[turn]) - before, len(text) - length))
        else:
            start = draw.randrange(max(1, len(text) - length))
        cut = text[start : start + length]
        told = find.find_text(run, cut, limit=limit)
        places = list(_occurrences(whole, cut.encode()))
        assert told["occurrences"] == len(places) > 0
        assert told["documents"] == len({number for number, _ in places})
        assert len(told["found"]) == min(limit, len(places))
        for match, (number, at) in zip(told["found"], places, strict=False):
            end = at + len(cut.encode())
            assert (match["document"], match["byte_start"], match["byte_end"]) == (number, at, end)
            assert whole[number][at:end].decode() == cut
            assert [tuple(entry[name] for name in NAMES) for entry in match["reads"]] == _touched(
                spans[number], at, end
            )
            for entry in match["reads"]:
                _check_tokens(entry, opened, tokenizer, number, texts[number])
            seen |= {entry["why"] for entry in match["never_read"]}
            seen |= {"across rows"} if len({entry["row_id"] for entry in match["reads"]}) > 1 else set()
            seen |= {name for name in RARE if name in cut}
    return seen


def _occurrences(texts: list[bytes], cut: bytes) -> Any:
    for number, text in enumerate(texts):
        at = text.find(cut)
        while at >= 0:
            yield number, at
            at = text.find(cut, at + 1)


def _touched(spans: list[tuple[int, int, int, Span]], start: int, end: int) -> Reads:
    """What a plain scan says: every step and row whose span of the document shares bytes with start to end."""
    found = []
    for step, place, row, span in spans:
        low, high = max(span.byte_start, start), min(span.byte_end, end)
        if low < high:
            found.append((step, place, row, low, high))
    return found


def _check_tokens(entry: dict[str, Any], shards: Shards, tokenizer: Tokenizer, number: int, text: str) -> None:
    """The positions are those that encoding the whole document gives for the bytes."""
    ids = tokenizer.encode_array(text)
    edges = np.concatenate([[0], np.cumsum(tokenizer.byte_lengths(text, ids))])
    before = 0  # tokens of the document before the row
    for place in shards.places([number]):
        if (place.chunk, place.row) == (entry["chunk"], entry["row_id"]):
            break
        before += place.token_count
    covering = np.nonzero((edges[1:] > entry["byte_start"]) & (edges[:-1] < entry["byte_end"]))[0] - before
    start, count = entry["token_start"] - place.token_start, entry["token_count"]
    assert covering.tolist() == [*range(start, start + count)]
    there = shards.train_rows([entry["row_id"]])[0, entry["token_start"] : entry["token_start"] + count]
    assert there.tolist() == ids[before + start : before + start + count].tolist()


def test_any_cut_of_a_text_is_found_where_a_plain_scan_finds_it(shards: Path, tmp_path: Path):
    steps = int(1.4 * read_shards(shards).num_rows / ROWS)
    run = make_run(tmp_path / "run", shards, seed=SEED, rows_per_step=ROWS, steps=steps, taken=steps)
    spans = defaultdict(list)
    for entry in scan(shards, SEED, ROWS, steps):
        spans[entry[-1].document].append(entry)
    seen = check_cuts(run, shards, spans, 150, random.randrange(2**32))
    assert seen >= {"across rows", "held_out", *RARE}


@pytest.mark.slow
def test_any_cut_of_mini_amber_is_found_where_a_plain_scan_finds_it(mini_amber: Path, tmp_path: Path):
    opened = read_shards(mini_amber)
    steps = opened.num_rows // 40
    run = make_run(tmp_path / "run", mini_amber, seed=SEED, rows_per_step=40, steps=steps, taken=steps)
    spans = defaultdict(list)
    for entry in scan(mini_amber, SEED, 40, steps):
        spans[entry[-1].document].append(entry)
    assert "across rows" in check_cuts(run, mini_amber, spans, 500, random.randrange(2**32))


def test_line_ends_do_not_matter_and_no_text_runs_from_one_document_into_the_next(shards: Path):
    texts = texts_of(shards)
    text = next(text for text in texts if "\n" in text[10:60])[10:60]
    assert find.find_text(shards, text.replace("\n", "\r\n")) == find.find_text(shards, text)
    assert find.find_text(shards, text)["occurrences"] >= 1
    missing = find.find_text(shards, texts[0][-12:] + texts[1][:12])
    assert (missing["occurrences"], missing["found"]) == (0, [])
    assert "no document holds this text" in find.describe(missing)


def test_all_occurrences_are_counted_overlapping_ones_too_and_some_are_shown(shards: Path):
    told = find.find_text(shards, "ab" * 20, limit=3)
    assert (told["occurrences"], told["documents"], len(told["found"])) == (181, 1, 3)
    assert [match["byte_start"] for match in told["found"]] == [0, 2, 4]
    assert "181 in 1 document" in find.describe(told)
    assert find.find_text(shards, "a")["occurrences"] > 1000  # short text is no error


def test_the_words_name_step_row_chunk_positions_and_bytes(shards: Path):
    told = find.find_document(shards, "book/4")
    (match,) = told["found"]
    words = find.describe(told)
    for entry in match["reads"]:
        assert (
            f"step {entry['step']}, row {entry['row']} (pass 1): chunk {entry['chunk']}, row {entry['row_id']}" in words
        )
    assert "CC0-1.0" in words
    assert json.loads(json.dumps(told)) == told
    held_out = next(line["id"] for line in _lines(read_shards(shards)) if line["split"] == "validation")
    assert "held out" in find.describe(find.find_document(shards, held_out))


def test_documents_that_share_an_id_are_all_found(tmp_path: Path, build: Any):
    records = make_documents("book", 6, seed=3)
    records[5]["id"] = records[2]["id"]
    write_jsonl(tmp_path / "in" / "book.jsonl", records)
    told = find.find_document(build(tmp_path / "in", chunks=1, validation_share=0.0), records[2]["id"])
    assert [match["document"] for match in told["found"]] == [2, 5]


def test_what_cannot_be_found_says_what_to_do(shards: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"has the id 'nowhere'; ids look like 'book/0'"):
        find.find_document(shards, "nowhere")
    with pytest.raises(InputError, match="text to find is empty"):
        find.find_text(shards, "")
    shutil.copytree(shards, tmp_path / "alone")
    with pytest.raises(InputError, match=r"root digest [0-9a-f]{64}.*it is not at .*--corpus"):
        find.find_text(tmp_path / "alone", "text")
    corpus = find.find_corpus(read_shards(shards))
    assert find.find_text(tmp_path / "alone", "ab" * 20, corpus=corpus)["occurrences"] == 181
    shutil.copytree(corpus, tmp_path / "alone-corpus")
    path = tmp_path / "alone-corpus" / manifest.FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "counts": {}}))
    with pytest.raises(InputError, match=r"alone-corpus has root digest [0-9a-f]{64}.*--corpus"):
        find.find_text(tmp_path / "alone", "text")
    write_shards(tmp_path / "bare", [[1, 2, 3]], [[4, 5, 6]], vocab_size=16)
    with pytest.raises(InputError, match="was not made from a corpus"):
        find.find_text(tmp_path / "bare", "text")


def test_a_run_whose_shards_moved_beside_it_is_still_followed(shards: Path, tmp_path: Path):
    run = make_run(tmp_path / "run", shards, seed=SEED, rows_per_step=ROWS, steps=3, taken=3)
    expected = find.find_document(run, "book/4")["found"]
    told = json.loads((run / "run.json").read_text())
    told["shards"]["path"] = str(tmp_path / "gone" / "shards")
    (run / "run.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match=r"are not at .*gone/shards nor at .*--data SHARDS"):
        find.find_document(run, "book/4")
    assert find.find_document(run, "book/4", data=shards)["found"] == expected
    shutil.copytree(shards, tmp_path / "shards")
    assert find.find_document(run, "book/4")["found"] == expected


def test_the_command_finds_by_id_or_by_text_and_wants_one_of_them():
    recorded = Path(__file__).parents[1] / "fixtures" / "format_1" / "run"

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mobillama.cli", "data", "find", str(recorded), *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    told = json.loads(call("--document", "book/0", "--json").stdout)
    assert told == json.loads(json.dumps(find.find_document(recorded, "book/0")))
    assert call("--text", "two ships sailed past").stdout.startswith("2 in 2 documents, shown: 2\n")
    assert "shown: 1\n" in call("--text", "two ships sailed past", "--limit", "1").stdout
    for arguments in ((), ("--document", "book/0", "--text", "ships"), ("--document", "book/0", "--corpus", "x")):
        done = call(*arguments)
        assert (done.returncode, "--document" in done.stderr) == (2, True)


def test_a_branch_is_followed_from_where_it_left_its_parent(shards: Path, tmp_path: Path):
    """Every read by its own steps is found at its place; rows that lie before are read in a later pass, or said so."""
    opened = read_shards(shards)
    after, first_row, steps, taken = 4, ROWS + 1, 4 + 2 * opened.num_rows // ROWS, 6
    run = make_run(tmp_path / "run", shards, seed=SEED, rows_per_step=ROWS, steps=steps, taken=taken)
    told = json.loads((run / "run.json").read_text())
    parent = {"run": "parent", "ledger": "0" * 64, "checkpoint": "0" * 64, "step": after, "first_row": first_row}
    (run / "run.json").write_text(json.dumps({**told, "format_version": 3, "parent": parent}))
    expected: dict[str, set[tuple[int, int, int]]] = {}
    for step in range(after + 1, steps + 1):
        first = first_row + (step - after - 1) * ROWS
        for place, row in enumerate(rows_from(SEED, first, ROWS, opened.chunk_rows).tolist()):
            for span in opened.spans(row):
                expected.setdefault(span.document_id, set()).add((step, place, row))
    followed = 0
    for line in _lines(opened):
        (match,) = find.find_document(run, line["id"])["found"]
        for key, wanted in (
            ("reads", {entry for entry in expected.get(line["id"], ()) if entry[0] <= taken}),
            ("planned", {entry for entry in expected.get(line["id"], ()) if entry[0] > taken}),
        ):
            assert {(entry["step"], entry["row"], entry["row_id"]) for entry in match[key]} == wanted
            followed += len(wanted)
        for entry in match["never_read"]:
            if entry["why"] == "not_reached":
                first = first_row + (entry["step"] - after - 1) * ROWS
                assert entry["row_id"] in rows_from(SEED, first, ROWS, opened.chunk_rows)
    assert followed > 0
    assert "branched off parent" in find.describe(find.find_document(run, _lines(opened)[0]["id"]))
    shown = [row["row_id"] for row in show(run, 6)]
    assert shown == rows_from(SEED, first_row + ROWS, ROWS, opened.chunk_rows).tolist()
    with pytest.raises(InputError, match=r"step 4: .* was branched off parent after step 4"):
        show(run, 4)
