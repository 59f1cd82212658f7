"""Following a token: from step, row and position to the bytes of a cleaned document, and from there to the raw text."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
from samples import make_documents, make_recipe, write_jsonl

from mobillama.data import find, lookup
from mobillama.data.build import build_shards
from mobillama.data.documents import DocumentTable
from mobillama.data.edits import apply_edits
from mobillama.data.mask import EMAIL
from mobillama.data.shards import read_shards
from mobillama.data.span import Place
from mobillama.data.stream import row_ids
from mobillama.tokenizer.pieces import Pieces
from mobillama.tokenizer.tokenizer import Tokenizer

SPACE = "\u2581".encode()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """Shards of documents that cleaning changed in every way it has, with emoji, Chinese and U+2581."""
    root = tmp_path_factory.mktemp("lookup")
    records = make_documents("web", 40, seed=4)
    for number, record in enumerate(records):
        if number % 2:
            mail = f"write to someone{number}@mail.net, 海🙂 or {number}\r\n"
            record["text"] = "\ufeff" + mail + record["text"] + "\0\r" + mail
    write_jsonl(root / "web.jsonl", records)
    build_shards(
        make_recipe(root, mask=True), root / "shards", workers=1, tokenizer=tokenizer, on_progress=lambda progress: None
    )
    return root / "shards"


def follow(shards: Path, count: int, seed: int, rows_per_step: int) -> set[bytes]:
    """Random (step, row, position): the token's bytes are those of its document at the range that is stated."""
    print(f"seed {seed}")
    draw = random.Random(seed)
    opened = read_shards(shards)
    tokenizer = Tokenizer.load(shards / "tokenizer")
    pieces = lookup.load_pieces(opened.folder, opened.tokenizer_digest)
    texts = DocumentTable(find.find_corpus(opened) / "documents", ("text", "id"))
    text_of = lru_cache(256)(lambda number: texts.lines([number])[0]["text"].encode())
    seen = set()
    for number in range(count + 200):
        step = draw.randrange(1, 3 * opened.num_rows // rows_per_step)
        row = int(row_ids(11111, step, rows_per_step, opened.chunk_rows)[draw.randrange(rows_per_step)])
        position = draw.randrange(opened.row_len)
        ids = opened.train_rows([row])[0]
        if number >= count:  # and 200 at the seams, where documents and rows begin
            position = draw.choice(opened.spans(row)).token_start
        (span,) = [s for s in opened.spans(row) if s.token_start <= position < s.token_start + s.token_count]
        assert span.document_id == texts.lines([span.document])[0]["id"]
        tokens = ids[span.token_start : span.token_start + span.token_count].tolist()
        text = text_of(span.document)
        edges = find.token_edges(span, tokens, pieces, text)
        assert (edges[0], edges[-1]) == (span.byte_start, span.byte_end)
        inside = position - span.token_start
        stated = text[edges[inside] : edges[inside + 1]]
        token = pieces.parts([tokens[inside]])[0]
        assert len(token) == int(tokenizer.token_bytes[tokens[inside]])
        first = inside == 0 and lookup.begins_document(span, tokens, pieces)  # its leading space counts as empty
        assert stated.replace(SPACE, b" ") == (token[1:] if first else token)
        seen |= {word for word in (SPACE, "海".encode(), "🙂".encode(), EMAIL.encode()) if word in text}
        seen |= {b"first"} if first else set()
    return seen


def raw_texts(root: Path, name: str) -> list[str]:
    data = (root / name).read_bytes()
    lines = (gzip.decompress(data) if name.endswith(".gz") else data).split(b"\n")
    return [json.loads(line)["text"] for line in lines if line]


def check_edits(corpus: Path, root: Path) -> tuple[int, int]:
    """The edits of every document turn its raw text, found by file and record, into its text; documents and edits."""
    raw = lru_cache(8)(lambda name: raw_texts(root, name))
    documents = edits = 0
    for line in _lines(corpus):
        before = raw(line["file"])[line["record"] - 1].encode()
        assert apply_edits(before, line["edits"]).decode() == line["text"], line["id"]
        documents, edits = documents + 1, edits + len(line["edits"])
    return documents, edits


def _lines(corpus: Path) -> Iterator[dict[str, Any]]:
    for path in sorted((corpus / "documents").glob("*.parquet")):
        yield from parquet.read_table(path, columns=["id", "text", "file", "record", "edits"]).to_pylist()


def test_random_tokens_lead_back_to_the_bytes_of_their_document(shards: Path):
    seen = follow(shards, 1000, random.randrange(2**32), 8)
    assert seen == {SPACE, "海".encode(), "🙂".encode(), EMAIL.encode(), b"first"}


def test_the_edits_of_every_document_turn_its_raw_text_into_its_text(shards: Path):
    documents, edits = check_edits(find.find_corpus(read_shards(shards)), shards.parent)
    assert documents == 40
    assert edits >= 20 * 4


@pytest.mark.slow
def test_random_tokens_of_mini_amber_lead_back_to_the_bytes_of_their_document(mini_amber: Path):
    assert follow(mini_amber, 1000, random.randrange(2**32), 40) >= {b"first", EMAIL.encode()}


@pytest.mark.slow
def test_the_edits_of_all_of_mini_amber_turn_raw_into_cleaned(mini_amber: Path, shared_folder: Any):
    documents, edits = check_edits(find.find_corpus(read_shards(mini_amber)), shared_folder("MOBILLAMA_CORPORA"))
    assert documents > 5000
    assert edits > 100


def test_a_row_that_begins_behind_the_leading_space_of_its_document_loses_no_space(
    tmp_path: Path, tokenizer: Tokenizer
):
    """The space before a document can be a token of its own, and a row can end behind it."""
    text = "\n two \n words"  # its first token is the leading space alone
    ids = tokenizer.encode(text)
    pieces = Pieces.of(tokenizer)
    assert pieces.parts(ids[:1]) == [b" "]
    sizes = np.cumsum([0, *tokenizer.byte_lengths(text, ids)])
    for cut in range(len(ids) + 1):
        first = Place(0, 0, 0, 0, cut, 0, int(sizes[cut]))
        rest = Place(0, 0, 1, 0, len(ids) - cut, int(sizes[cut]), int(sizes[-1]))
        parts = [
            pieces.text(some, begins=lookup.begins_document(place, some, pieces))
            for place, some in ((first, ids[:cut]), (rest, ids[cut:]))
            if some
        ]
        assert "".join(parts) == text


def test_pieces_are_those_of_the_tokenizer_and_of_no_other_file(tmp_path: Path, tokenizer: Tokenizer):
    tokenizer.save(tmp_path)
    pieces = Pieces.load(tmp_path, tokenizer.digest)
    assert pieces is not None
    assert pieces.pieces == tokenizer.vocabulary.pieces
    assert pieces.dummy_prefix == tokenizer.vocabulary.dummy_prefix
    for record in make_documents("pieces", 20):
        ids = tokenizer.encode(record["text"])
        assert pieces.text(ids, begins=True) == tokenizer.decode(ids) == record["text"].replace("\u2581", " ")
    assert Pieces.load(tmp_path, "0" * 64) is None
    assert Pieces.load(tmp_path / "nowhere", tokenizer.digest) is None


def test_a_look_up_imports_neither_torch_nor_pandas_nor_datatrove(shards: Path):
    code = (
        "import sys; from pathlib import Path; from mobillama.data import find, lookup\n"
        "lookup.show(Path(sys.argv[1]), 1, 0); find.find_document(Path(sys.argv[1]), 'web/3')\n"
        "find.find_text(Path(sys.argv[1]), 'the sea')\n"
        "print([name for name in ('torch', 'pandas', 'datatrove') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(shards)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
