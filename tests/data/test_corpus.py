"""The corpus as a whole: the funnel adds up, nothing is lost, edits lead to the cleaned text, bad input is counted."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
from samples import make_documents, make_recipe, write_jsonl

from mobillama import manifest
from mobillama.config import DataRecipe, SubsetConfig
from mobillama.data import parts
from mobillama.data.corpus import build_corpus
from mobillama.data.edits import apply_edits
from mobillama.errors import InputError
from mobillama.tokenizer.tokenizer import Tokenizer, train

VOCABULARY = (
    "the and of to in that was for with his they this from have are were which there been would their "
    "when who will more said what them into than could time other only some these two may then first any "
    "about such made after should very people over before must through years where much your way down "
    "well because each just those long world still here year between both day life being under never "
    "house last night door water great against again morning children street found river window garden "
    "letter friend summer winter mountain village kitchen table music answer question school teacher "
    "market bread horse island captain harbour forest stone fire silver golden quiet heavy gentle broken "
    "narrow distant carried wondered listened followed remembered noticed opened walked turned waited "
    "called looked thought asked "
)
WEB = SubsetConfig(languages=("en",), quality=("gopher_repetition", "c4"))
CLEAN = {"mask": True, "near_duplicates": True, "keep_rejected": True, "min_characters": 20}
Build = Callable[..., Path]


def quiet(progress: Any) -> None:
    """Show no progress."""


def page(number: int) -> str:
    """A page of 30 sentences of its own with a heading, a list item, an address and, in some, carriage returns."""
    chance = random.Random(number)
    lines = [f"Heading {number}\n", f"* item {number}\n"]
    lines.append(f"Write to someone{number}@mail.host.org or 8.8.{number}.8 soon.\n")
    lines += [
        " ".join(chance.choices(VOCABULARY.split(), k=chance.randrange(8, 16))).capitalize() + ".\n" for _ in range(30)
    ]
    text = "".join(lines)
    return text.replace("\n", "\r\n") if number % 3 == 0 else text


def records() -> dict[str, list[dict[str, Any]]]:
    """Two subsets with everything that may happen to a document."""
    web = [{"text": page(number), "id": f"web/{number}", "license": "CC0-1.0"} for number in range(1, 9)]
    web += [
        {"text": "", "id": "web/empty"},
        {"text": "\0" * 40, "id": "web/binary"},
        {"text": "too short", "id": "web/short"},
        {
            "text": "Die Schiffe fuhren am Hafen vorbei, und die Kinder winkten ihnen lange nach." * 3,
            "id": "web/german",
        },
        {"text": "{ a bracket } in a sentence, as in code.\n" + page(77), "id": "web/bracket"},
        {"text": page(2), "id": "web/again"},
        {"text": page(3).replace("\r\n", "\n"), "id": "web/again-but-for-line-ends"},
        {"text": "\ud800 no text", "id": "web/surrogate"},
        {"text": page(5) + "One more line.\n", "id": "web/nearly"},
        {"text": '{"text": {"nested": ["json", 1, null]}}' * 3, "id": "web/json"},
    ]
    book = [*make_documents("book", 12), {"text": page(4), "id": "book/web-4"}, {"text": page(40), "id": "book/1"}]
    return {"book": book, "web": web}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    for name, found in records().items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in found))
    return folder


def recipe(root: Path, **changes: Any) -> DataRecipe:
    return make_recipe(root, **{**CLEAN, **changes}).model_copy(update={"subset": {"web": WEB}})


@pytest.fixture(scope="module")
def corpus(root: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "corpus"
    build_corpus(recipe(root), out, workers=2, tokenizer=tokenizer, on_progress=quiet)
    return out


def lines(corpus: Path, folder: str = "documents") -> list[dict[str, Any]]:
    return list(parquet.read_table(corpus / folder).to_pylist())


def raw_texts(root: Path) -> dict[tuple[str, int], str]:
    return {
        (path.name, number): json.loads(line)["text"]
        for path in root.glob("*.jsonl")
        for number, line in enumerate(path.read_text().splitlines(), 1)
    }


def test_every_document_read_is_kept_or_rejected_with_a_reason(corpus: Path, root: Path):
    found = [*lines(corpus), *lines(corpus, "rejected")]
    assert sorted((line["file"], line["record"]) for line in found) == sorted(raw_texts(root))
    reasons = {line["id"]: line["reason"] for line in lines(corpus, "rejected")}
    assert reasons == {
        "web/empty": "empty",
        "web/binary": "binary",
        "web/short": "too_short",
        "web/german": "language",
        "web/bracket": "c4_curly_bracket",
        "web/again": "duplicate",
        "web/again-but-for-line-ends": "duplicate",
        "web/surrogate": "invalid_utf8",
        "web/nearly": "near_duplicate",
        "web/4": "near_duplicate",  # of a book: across subsets
        "web/json": "language",
    }


def test_rejected_documents_hold_their_raw_text_and_what_they_repeat(corpus: Path, root: Path):
    raw = raw_texts(root)
    repeats = {}
    for line in lines(corpus, "rejected"):
        text = raw[line["file"], line["record"]] if line["reason"] != "invalid_utf8" else ""
        assert line["text"] == text
        assert line["bytes"] == len(text.encode())
        assert line["raw_sha256"] == hashlib.sha256(text.encode()).hexdigest()
        assert line["edits"] == []
        if line["duplicate_of"]:
            repeats[line["id"]] = line["duplicate_of"]
    assert repeats == {
        "web/again": "web/2",
        "web/again-but-for-line-ends": "web/3",
        "web/nearly": "web/5",
        "web/4": "book/web-4",
    }


def test_edits_turn_every_raw_text_into_the_cleaned_one(corpus: Path, root: Path):
    raw = raw_texts(root)
    for line in lines(corpus):
        text = raw[line["file"], line["record"]].encode()
        assert line["raw_sha256"] == hashlib.sha256(text).hexdigest()
        assert apply_edits(text, line["edits"]) == line["text"].encode()
        assert bool(line["edits"]) == (text != line["text"].encode())
    texts = {line["id"]: line["text"] for line in lines(corpus)}
    assert "Write to name@example.com or 192.0.2.1 soon.\n" in texts["web/1"]
    assert "Heading" not in texts["web/1"]
    assert "Heading 40\n* item 40" in texts["book/1"]
    assert "\r" not in "".join(texts.values())


def test_languages_are_told_where_the_subset_asks(corpus: Path):
    languages = {line["id"]: line["language"] for line in [*lines(corpus), *lines(corpus, "rejected")]}
    assert languages["web/1"] == languages["web/nearly"] == "en"
    assert languages["web/german"] == "de"
    assert not any(language for name, language in languages.items() if name.startswith("book/"))


def test_the_funnel_counts_documents_bytes_and_tokens(corpus: Path, root: Path, tokenizer: Tokenizer):
    counts = manifest.read(corpus, "corpus").counts
    kept, rejected, raw = lines(corpus), lines(corpus, "rejected"), raw_texts(root)
    for name, told in counts["funnel"].items():
        texts = [text for (file, _), text in raw.items() if file == f"{name}.jsonl"]
        proper = [text for text in texts if "\ud800" not in text]
        assert told["documents_in"] == len(texts)
        assert told["tokens_in"] == sum(len(tokenizer.encode(text)) for text in proper)
        assert told["bytes_in"] == sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
        here = [line["text"] for line in kept if line["source"] == name]
        assert told["documents_out"] == len(here)
        assert told["bytes_out"] == sum(len(text.encode()) for text in here)
        assert told["tokens_out"] == sum(len(tokenizer.encode(text)) for text in here)
        reasons = Counter(line["reason"] for line in rejected if line["source"] == name)
        assert {reason: dropped["documents"] for reason, dropped in told["dropped"].items()} == reasons
        for reason in ("empty", "too_short", "language", "c4_curly_bracket"):
            dropped = [line["text"] for line in rejected if (line["source"], line["reason"]) == (name, reason)]
            if dropped:
                assert told["dropped"][reason]["bytes"] == sum(len(text.encode()) for text in dropped)
                assert told["dropped"][reason]["tokens"] == sum(len(tokenizer.encode(text)) for text in dropped)
    assert counts["documents"] == len(kept)
    assert counts["tokens"] == sum(told["tokens_out"] for told in counts["funnel"].values())


@pytest.mark.parametrize("workers", [1, 3])
def test_small_parts_and_any_number_of_workers_hold_the_same_documents(
    root: Path, corpus: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
):
    monkeypatch.setattr(parts, "PART_BYTES", 3000)
    monkeypatch.setattr(parts, "GROUP_BYTES", 1000)
    out = tmp_path / "corpus"
    build_corpus(recipe(root), out, workers=workers, tokenizer=tokenizer, on_progress=quiet)
    assert len(list((out / "rejected").glob("*.parquet"))) > 3
    assert len(list((out / "documents").glob("*.parquet"))) > 3
    for folder in ("documents", "rejected"):
        names = [path.name for path in sorted((out / folder).glob("*.parquet"))]
        assert names == [f"part_{number:05d}.parquet" for number in range(len(names))]
    assert lines(out) == lines(corpus)
    by_place = [
        sorted(lines(one, "rejected"), key=lambda line: (line["file"], line["record"])) for one in (out, corpus)
    ]
    assert by_place[0] == by_place[1]
    assert manifest.read(out).counts == manifest.read(corpus).counts


def test_the_same_recipe_gives_the_same_bytes_on_any_number_of_workers(
    root: Path, corpus: Path, tokenizer: Tokenizer, tmp_path: Path
):
    build_corpus(recipe(root), tmp_path / "corpus", workers=1, tokenizer=tokenizer, on_progress=quiet)
    assert manifest.read(tmp_path / "corpus").digest() == manifest.read(corpus).digest()


def test_without_a_tokenizer_no_tokens_are_counted_and_nothing_rejected_is_kept_unasked(root: Path, tmp_path: Path):
    sealed = build_corpus(recipe(root, keep_rejected=False), tmp_path / "c", workers=1, on_progress=quiet)
    assert not any("tokens" in key for told in sealed.counts["funnel"].values() for key in told)
    assert all(set(pair) == {"documents", "bytes"} for pair in sealed.counts["funnel"]["web"]["dropped"].values())
    assert "tokens" not in sealed.counts
    assert not (tmp_path / "c" / "rejected").exists()


def test_a_corpus_whose_tokens_another_tokenizer_counted_is_not_taken_over(
    root: Path, corpus: Path, tokenizer: Tokenizer
):
    assert build_corpus(recipe(root), corpus, workers=1, tokenizer=tokenizer) == manifest.read(corpus)
    other = train((record["text"] for record in make_documents("other", 60)), 512)
    for changed in (other, None):
        with pytest.raises(InputError, match="tokens were counted with another tokenizer"):
            build_corpus(recipe(root), corpus, workers=1, tokenizer=changed)
    with pytest.raises(InputError, match="another source or clean recipe"):
        build_corpus(recipe(root).model_copy(update={"subset": {}}), corpus, workers=1, tokenizer=tokenizer)


def test_a_section_for_a_subset_that_is_not_there_is_an_error(root: Path, tmp_path: Path):
    wrong = recipe(root).model_copy(update={"subset": {"wbe": WEB}})
    with pytest.raises(InputError, match="subset 'wbe', which the source does not have; it has book, web"):
        build_corpus(wrong, tmp_path / "c", workers=1, on_progress=quiet)
    chosen = recipe(root, subsets=("book",))
    assert set(build_corpus(chosen, tmp_path / "c", workers=1, on_progress=quiet).counts["funnel"]) == {"book"}


def test_documents_with_the_same_id_are_kept_and_counted(tmp_path: Path):
    found = make_documents("book", 6)
    for number in (2, 4, 5):
        found[number]["id"] = "book/0"
    found[5]["text"] = found[0]["text"]  # dropped, so it counts as a duplicate alone
    write_jsonl(tmp_path / "raw" / "book.jsonl", found)
    sealed = build_corpus(make_recipe(tmp_path / "raw"), tmp_path / "c", workers=1, on_progress=quiet)
    assert sealed.counts["repeated_ids"] == 2
    assert [line["id"] for line in lines(tmp_path / "c")] == ["book/0", "book/1", "book/0", "book/3", "book/0"]


def test_bad_documents_are_counted_and_the_others_stay(tmp_path: Path):
    good = make_documents("web", 3)
    million = "word " * 200_000
    bad = {
        "too_long": "x" * 2_500_000,
        "empty": "",
        "binary": "\0text" * 30,
        "light_few_letters": "=" * 1_000_000,
        "light_one_line": "the same line again\n" * 50_000,
    }
    everything = [
        *good,
        *({"text": text, "id": reason} for reason, text in bad.items()),
        {"text": million, "id": "million"},
    ]
    write_jsonl(tmp_path / "raw" / "web.jsonl", everything)
    asked = make_recipe(tmp_path / "raw", max_characters=2_000_000, keep_rejected=True, mask=True)
    asked = asked.model_copy(update={"subset": {"web": SubsetConfig(quality=("light",))}})
    sealed = build_corpus(asked, tmp_path / "c", workers=1, on_progress=quiet)
    assert {r: d["documents"] for r, d in sealed.counts["funnel"]["web"]["dropped"].items()} == dict.fromkeys(bad, 1)
    assert {line["reason"]: line["text"] for line in lines(tmp_path / "c", "rejected")} == bad
    assert [line["id"] for line in lines(tmp_path / "c")] == ["web/0", "web/1", "web/2", "million"]


@pytest.mark.slow
def test_a_document_of_200_megabytes_is_dropped_counted_and_kept_beside(tmp_path: Path, tokenizer: Tokenizer):
    good = make_documents("web", 3)
    (tmp_path / "raw").mkdir()
    with gzip.open(tmp_path / "raw" / "web.jsonl.gz", "wt", compresslevel=1) as file:
        for record in (good[0], {"text": "some words in a line\r\n" * 9_100_000, "id": "huge"}, good[1], good[2]):
            file.write(json.dumps(record) + "\n")
    asked = make_recipe(tmp_path / "raw", keep_rejected=True, max_characters=20_000_000, near_duplicates=True)
    sealed = build_corpus(asked, tmp_path / "c", workers=1, tokenizer=tokenizer, on_progress=quiet)
    assert sealed.counts["funnel"]["web"]["dropped"]["too_long"]["bytes"] == 22 * 9_100_000
    assert sealed.counts["documents"] == 3
    assert parquet.read_table(tmp_path / "c" / "rejected", columns=["bytes"])["bytes"].to_pylist() == [22 * 9_100_000]


@pytest.mark.slow
def test_edits_turn_every_raw_text_of_mini_amber_into_the_cleaned_one(
    shared_folder: Callable[[str], Path], tmp_path: Path
):
    from mobillama.config import read_recipe

    source = shared_folder("MOBILLAMA_CORPORA")
    asked = read_recipe(DataRecipe, "mini-amber", [f"source.root={source}", "clean.overlap=off"])
    build_corpus(asked, tmp_path / "c", workers=2, on_progress=quiet)
    kept = {(line["file"], line["record"]): line for line in lines(tmp_path / "c")}
    rejected = {(line["file"], line["record"]): line for line in lines(tmp_path / "c", "rejected")}
    for path in sorted(source.glob("*.jsonl.gz")):
        with gzip.open(path) as file:
            for number, record in enumerate(file, 1):
                raw = json.loads(record)["text"].encode()
                if line := kept.pop((path.name, number), None):
                    assert apply_edits(raw, line["edits"]) == line["text"].encode()
                else:
                    assert rejected.pop((path.name, number))["text"].encode() == raw
    assert not kept
    assert not rejected
