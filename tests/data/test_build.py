"""From documents to rows: nothing lost, every byte accounted for, the same bytes for any number of workers."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from samples import make_documents, make_recipe, write_jsonl

from mobillama import manifest
from mobillama.config import DataRecipe, PackConfig, TokenizerConfig, presets, read_recipe
from mobillama.data import dedup, lookup, parts, sources
from mobillama.data.build import build_shards
from mobillama.data.corpus import read_texts
from mobillama.data.encode import is_held_out
from mobillama.data.order import DEALING, key
from mobillama.data.plain_rows import PlainRows
from mobillama.data.shards import read_shards
from mobillama.data.stream import permute
from mobillama.errors import InputError
from mobillama.tokenizer.tokenizer import Tokenizer, train


def quiet(progress: object) -> None:
    """Progress that nobody watches."""


def corpus_texts(shards: Path) -> dict[str, bytes]:
    """UTF-8 of every cleaned document by id."""
    found = {}
    for part in sorted((shards.with_name(shards.name + "-corpus") / "documents").glob("*.parquet")):
        table = parquet.read_table(part, columns=["id", "text"])
        found.update(
            (name, text.encode()) for name, text in zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)
        )
    return found


Token = tuple[int, str, int, int]  # id, document, first and last byte of the document's text


@pytest.fixture(scope="module")
def expected(corpora: Path, tokenizer: Tokenizer) -> dict[str, dict[str, list[list[Token]]]]:
    """The rows of each split and source, again, in a few plain lines."""
    streams: dict[str, dict[str, list[Token]]] = {split: {"book": [], "web": []} for split in ("train", "validation")}
    seen = set()
    for source in ("book", "web"):
        for record in map(json.loads, (corpora / f"{source}.jsonl").open()):
            text, name = record["text"], record["id"]
            if text not in seen:
                seen.add(text)
                ids = tokenizer.encode(text)
                ends = [0, *itertools.accumulate(tokenizer.byte_lengths(text, ids).tolist())]
                stream = streams["validation" if is_held_out(name, 0.2) else "train"][source]
                stream += [(id_, name, *pair) for id_, pair in zip(ids, itertools.pairwise(ends), strict=True)]
                stream.append((tokenizer.eos_id, name, ends[-1], ends[-1]))
    return {split: {name: cut(stream) for name, stream in per.items()} for split, per in streams.items()}


def cut(stream: list[Token]) -> list[list[Token]]:
    return [stream[start : start + 33] for start in range(0, len(stream), 33)]


def whole(rows: dict[str, list[list[Token]]]) -> list[list[Token]]:
    return [row for source in rows.values() for row in source if len(row) == 33]


def test_rows_are_the_streams_of_the_documents_dealt_by_the_keyed_permutation(built: Path, expected, corpora: Path):
    shards, rows = read_shards(built), whole(expected["train"])
    total = len(rows)
    dealt = permute(key(DEALING, make_recipe(corpora).seed), total, np.arange(total, dtype=np.uint64))
    assert shards.train_rows(range(total)).tolist() == [[token[0] for token in rows[row]] for row in dealt.tolist()]
    held = whole(expected["validation"])
    assert shards.validation_rows(range(len(held))).tolist() == [[token[0] for token in row] for row in held]
    assert (shards.num_rows, shards.num_validation_rows) == (total, len(held))
    assert shards.chunk_rows == tuple((c + 1) * total // 3 - c * total // 3 for c in range(3))


def test_tokens_are_counted_and_the_tail_of_each_stream_is_told(built: Path, expected):
    for split, per in expected.items():
        for source, rows in per.items():
            told = manifest.read(built).counts["sources"][source][split]
            tail = len(rows[-1]) % 33
            assert told["tokens"] == sum(map(len, rows))
            assert (told["rows"], told["tail_tokens"]) == (len(rows) - (tail > 0), tail)
            assert told["documents"] == len({token[1] for row in rows for token in row})


def test_every_token_is_followed_to_the_bytes_of_its_document(built: Path, expected, corpora: Path):
    shards, rows = read_shards(built), whole(expected["train"])
    dealt = permute(key(DEALING, make_recipe(corpora).seed), len(rows), np.arange(len(rows), dtype=np.uint64))
    splits = {"train": [rows[row] for row in dealt.tolist()], "validation": whole(expected["validation"])}
    for split, wanted in splits.items():
        sizes = shards.row_bytes(range(len(wanted)), split).tolist()
        labels = shards.row_sources(range(len(wanted)), split).tolist()
        for number, row in enumerate(wanted):
            found = [
                (span.document_id, span.token_start, span.token_count, span.byte_start, span.byte_end)
                for span in shards.spans(number, split)
            ]
            spans = [list(group) for _, group in itertools.groupby(enumerate(row), lambda pair: pair[1][1])]
            assert found == [(s[0][1][1], s[0][0], len(s), s[0][1][2], s[-1][1][3]) for s in spans]
            assert sizes[number] == sum(end - start for _, _, start, end in row[1:])
            assert {shards.sources[labels[number]]} == {token[1].split("/")[0] for token in row}


def test_lookup_shows_the_very_text_that_a_step_read(built: Path):
    texts = corpus_texts(built)
    shown = lookup.show(built, 1)
    assert [row["row"] for row in shown] == list(range(800))
    for row in shown[:60]:
        for document in row["documents"]:
            text = texts[document["document_id"]][document["byte_start"] : document["byte_end"]]
            assert document["text"] == text.decode("utf-8", "replace").replace("▁", " ") or "\ufffd" in document["text"]
            assert document["license"] == "CC0-1.0"
            assert document["url"].endswith(document["document_id"])
    assert lookup.show(built, 1, 7) == [shown[7]]
    assert shown[7]["documents"][0]["document_id"] in lookup.describe(shown[7:8])
    with pytest.raises(InputError, match="rows 0 to 799"):
        lookup.show(built, 1, 800)


def test_lookup_follows_a_run_to_its_shards(built: Path, tmp_path: Path):
    run = {
        "recipe": {"train": {"seed": 4, "rows_per_step": 2}},
        "steps": 9,
        "shards": {"path": str(built), "digest": read_shards(built).digest},
    }
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert len(lookup.show(tmp_path, 9)) == 2
    with pytest.raises(InputError, match="steps 1 to 9"):
        lookup.show(tmp_path, 10)
    run["shards"]["digest"] = "0" * 64
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(InputError, match="was trained on 0000"):
        lookup.show(tmp_path, 1)


def test_lookup_refuses_another_tokenizer(built: Path, tmp_path: Path, tokenizer: Tokenizer):
    shutil.copytree(built, tmp_path / "s")
    other = Tokenizer.load(built / "tokenizer")
    shutil.rmtree(tmp_path / "s" / "tokenizer")
    train((record["text"] for record in make_documents("other", 60)), 512).save(tmp_path / "s" / "tokenizer")
    assert other.digest == tokenizer.digest
    with pytest.raises(InputError, match="were encoded with"):
        lookup.show(tmp_path / "s", 1, 0)


def test_corpus_keeps_the_first_of_equal_documents_and_its_raw_hash(built: Path, corpora: Path):
    corpus = built.with_name(built.name + "-corpus")
    told = manifest.read(corpus, "corpus").counts
    assert told["funnel"]["web"]["dropped"]["duplicate"]["documents"] == 1
    assert told["funnel"]["book"]["dropped"] == {}
    assert told["documents"] == 69
    table = parquet.read_table(corpus / "documents")
    assert "web/3" not in table["id"].to_pylist()
    assert "book/1" in table["id"].to_pylist()
    raw = {r["id"]: r["text"] for f in ("book", "web") for r in map(json.loads, (corpora / f"{f}.jsonl").open())}
    for line in table.to_pylist():
        assert line["raw_sha256"] == hashlib.sha256(raw[line["id"]].encode()).hexdigest()
        assert json.loads((corpora / line["file"]).read_text().splitlines()[line["record"] - 1])["id"] == line["id"]
    assert list(read_texts(corpus)) == table["text"].to_pylist()


def test_artefacts_name_what_they_were_made_from(built: Path, tokenizer: Tokenizer, corpora: Path):
    corpus = built.with_name(built.name + "-corpus")
    made_from = {origin["kind"]: origin for origin in manifest.read(built).made_from}
    assert made_from["corpus"]["digest"] == manifest.read(corpus).digest()
    assert made_from["tokenizer"]["digest"] == tokenizer.digest == read_shards(built).tokenizer_digest
    files = {origin["name"]: origin["digest"] for origin in manifest.read(corpus).made_from}
    assert files == {name: manifest.sha256_file(corpora / name) for name in ("book.jsonl", "web.jsonl")}
    for folder in (built, corpus):
        manifest.check(folder)
        assert not list(folder.rglob(".*"))
    assert not [path for path in built.parent.iterdir() if path.name.endswith((".work", ".partial"))]


def test_one_and_two_workers_give_the_same_bytes(built: Path, corpora: Path, build: Callable[..., Path]):
    again = build(corpora, "shards", workers=1)
    assert manifest.read(again).digest() == manifest.read(built).digest()
    assert manifest.read(again).files == manifest.read(built).files


@pytest.mark.parametrize("workers", [1, 3])
def test_many_parts_tasks_and_buckets_give_the_same_rows_as_few(
    corpora: Path, built: Path, build: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, workers: int
):
    monkeypatch.setattr(parts, "PART_BYTES", 5000)
    monkeypatch.setattr(parts, "GROUP_BYTES", 1500)
    monkeypatch.setattr(dedup, "BUCKET_DOCUMENTS", 9)
    many, few = read_shards(build(corpora, workers=workers)), read_shards(built)
    assert len(list((many.folder / "documents").glob("*.parquet"))) > 6
    assert many.chunk_rows == few.chunk_rows
    assert (many.train_rows(range(many.num_rows)) == few.train_rows(range(few.num_rows))).all()
    for row in range(0, few.num_rows, 7):
        assert many.spans(row) == few.spans(row)


def test_validation_is_decided_by_the_document_id_alone(corpora: Path, built: Path, build: Callable[..., Path]):
    fewer = read_shards(build(corpora, subsets=("web",)))
    held = {span.document_id for row in range(fewer.num_validation_rows) for span in fewer.spans(row, "validation")}
    both = read_shards(built)
    same = {span.document_id for row in range(both.num_validation_rows) for span in both.spans(row, "validation")}
    assert held
    assert held - {"web/3"} <= same
    share = np.mean([is_held_out(f"book/{number}", 0.01) for number in range(20_000)])
    assert 0.007 < share < 0.013
    assert not any(is_held_out(str(number), 0.0) for number in range(1000))


def test_no_validation_share_means_no_validation_rows(corpora: Path, build: Callable[..., Path]):
    assert read_shards(build(corpora, validation_share=0.0)).num_validation_rows == 0


def test_more_chunks_than_rows_are_refused(corpora: Path, build: Callable[..., Path]):
    with pytest.raises(InputError, match=r"fills \d+ rows of 33 ids; pack.chunks=100000"):
        build(corpora, chunks=100_000)


def test_a_tokenizer_is_trained_on_the_corpus_where_the_recipe_says_so(corpora: Path, tmp_path: Path):
    recipe = make_recipe(corpora).model_copy(
        update={"tokenizer": TokenizerConfig(train_vocab_size=512, train_bytes=20_000)}
    )
    digests = set()
    for name in ("a", "b"):
        build_shards(recipe, tmp_path / name, workers=1, on_progress=quiet)
        shards = read_shards(tmp_path / name)
        assert shards.vocab_size == 512
        assert Tokenizer.load(tmp_path / name / "tokenizer").digest == shards.tokenizer_digest
        digests.add(shards.digest)
    assert len({manifest.read(tmp_path / name).files["tokenizer/tokenizer.json"]["sha256"] for name in "ab"}) == 1
    both = recipe.model_copy(update={"tokenizer": TokenizerConfig(train_vocab_size=512, root="there")})
    with pytest.raises(InputError, match="exclude each other"):
        build_shards(both, tmp_path / "c", workers=1, on_progress=quiet)


def test_what_is_there_is_not_built_over(corpora: Path, built: Path, build: Callable[..., Path], tmp_path: Path):
    out = build(corpora)
    sealed, work = manifest.read(out), out.with_name(out.name + ".work")
    work.mkdir()  # as a kill after sealing leaves it
    assert build(corpora) == out
    assert manifest.read(out) == sealed
    assert not work.exists()
    with pytest.raises(InputError, match="exists already, built from another recipe"):
        build(corpora, seq_len=16)
    shutil.rmtree(out)
    with pytest.raises(InputError, match="another source or clean recipe"):
        build(corpora, min_characters=60)
    before = (tmp_path / "shards-corpus" / "manifest.json").stat().st_mtime_ns
    assert manifest.read(build(corpora, seq_len=16)).recipe["pack"]["seq_len"] == 16
    assert (tmp_path / "shards-corpus" / "manifest.json").stat().st_mtime_ns == before


def test_two_builds_of_one_folder_exclude_each_other(corpora: Path, tmp_path: Path, build: Callable[..., Path]):
    with (
        manifest.building(tmp_path / "shards-corpus"),
        pytest.raises(InputError, match="being built by another process"),
    ):
        build(corpora)


def test_inputs_that_changed_since_a_broken_build_start_it_anew(
    tmp_path: Path, build: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    root = tmp_path / "raw"
    write_jsonl(root / "a.jsonl", make_documents("a", 20))
    (root / "b.jsonl").write_text("no json\n")
    with pytest.raises(InputError, match="not a JSON object"):
        build(root, "broken", bad_records="stop")
    write_jsonl(root / "a.jsonl", make_documents("a", 20, seed=1))
    write_jsonl(root / "b.jsonl", make_documents("b", 20))
    again, fresh = build(root, "broken"), build(root, "fresh")
    assert manifest.read(again).files == manifest.read(fresh).files


def test_a_build_runs_from_a_script_without_a_main_guard(corpora: Path, built: Path, tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\nfrom mobillama.config import *\nfrom mobillama.data.build import build_shards\n"
        f"recipe = DataRecipe.model_validate({make_recipe(corpora).tree()!r})\n"
        f"recipe = recipe.model_copy(update={{'tokenizer': TokenizerConfig(root={str(built / 'tokenizer')!r})}})\n"
        f"build_shards(recipe, Path({str(tmp_path / 'out')!r}), workers=2)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert manifest.read(tmp_path / "out").files == manifest.read(built).files
    assert "encode: 2/2 tasks" in done.stderr
    assert "datatrove" not in done.stderr


def test_a_worker_that_is_killed_is_an_error_and_the_build_goes_on_after(
    corpora: Path, built: Path, build: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    from mobillama.data.encode import Encode

    monkeypatch.setattr(Encode, "run", lambda *_: os.kill(os.getpid(), 9))
    with pytest.raises(InputError, match="was killed from outside"):
        build(corpora)
    monkeypatch.undo()
    assert manifest.read(build(corpora)).files == manifest.read(built).files


def test_shipped_data_recipes_resolve():
    assert set(presets("data")) >= {"mini-amber", "python-installation"}
    amber = read_recipe(DataRecipe, "mini-amber")
    assert amber.source.subsets == (
        "arxiv", "book", "c4", "refinedweb", "starcoder", "stackexchange", "wikipedia"
    )  # fmt: skip
    assert amber.pack.seq_len == PackConfig().seq_len == 2048
    python = read_recipe(DataRecipe, "python-installation")
    assert python.source.kind == "python-installation"
    sizes = {task.subset: sum(p.stat().st_size for p in task.paths) for task in sources.list_tasks(python.source)}
    assert sum(sizes.values()) > 10_000_000


def test_more_sources_than_a_byte_can_name_are_refused(tmp_path: Path, build: Callable[..., Path]):
    for number in range(257):
        write_jsonl(tmp_path / "raw" / f"{number:03d}.jsonl", [{"text": f"document {number}"}])
    with pytest.raises(InputError, match="257 subsets; shards can name 256"):
        build(tmp_path / "raw")


def test_real_documents_are_packed_as_sentencepiece_encodes_them(shared_folder: Callable[[str], Path], tmp_path: Path):
    """Oracle: the first documents of every subset, through sentencepiece itself."""
    sentencepiece = pytest.importorskip("sentencepiece")
    corpora, folder = shared_folder("MOBILLAMA_CORPORA"), shared_folder("MOBILLAMA_TOKENIZER")
    settings = [f"source.root={corpora}", f"tokenizer.root={folder}", "source.max_bytes=60000", "pack.chunks=2"]
    settings.append("clean.overlap=off")
    recipe = read_recipe(DataRecipe, "mini-amber", [*settings, "pack.seq_len=255"])
    build_shards(recipe, tmp_path / "shards", workers=2, on_progress=quiet)
    shards, texts = read_shards(tmp_path / "shards"), corpus_texts(tmp_path / "shards")
    assert len({name.split("/")[0] for name in texts}) == 7
    model = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    encoded = {name: [*model.encode(text.decode()), model.eos_id()] for name, text in texts.items()}
    streams: dict[str, list[int]] = {}
    for name, ids in encoded.items():
        if not is_held_out(name, recipe.pack.validation_share):
            streams.setdefault(name.split("/")[0], []).extend(ids)
    rows = {tuple(ids[start : start + 256]) for ids in streams.values() for start in range(0, len(ids) - 255, 256)}
    assert {tuple(row) for row in shards.train_rows(range(shards.num_rows)).tolist()} == rows
    pieces = lookup.load_pieces(shards.folder, shards.tokenizer_digest)
    for row in range(0, shards.num_rows, 40):
        for document in lookup.show_row(PlainRows(shards.folder), pieces, row)["documents"]:
            text = texts[document["document_id"]][document["byte_start"] : document["byte_end"]]
            assert document["text"] == text.decode("utf-8", "replace") or "\ufffd" in document["text"]
