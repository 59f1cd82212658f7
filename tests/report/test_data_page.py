"""The page of shards and their corpus: the manifests' own numbers, reasons in words, nothing that would be fetched."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from test_page import Page, assert_offline

from mobillama import manifest
from mobillama.errors import InputError, MissingExtraError
from mobillama.report.data import describe_mix, meaning_of, page_path, write_data_page

FUNNEL: dict[str, Any] = {
    "web": {
        "documents_in": 100,
        "bytes_in": 40_000,
        "documents_out": 60,
        "bytes_out": 20_000,
        "dropped": {
            "too_short": {"documents": 10, "bytes": 500},
            "gopher_below_alpha_threshold": {"documents": 25, "bytes": 15_000},
            "near_duplicate": {"documents": 5, "bytes": 4_000},
        },
    },
    "code <&>": {"documents_in": 8, "bytes_in": 900, "documents_out": 8, "bytes_out": 900, "dropped": {}},
}


def with_tokens(funnel: dict[str, Any]) -> dict[str, Any]:
    """The same funnel with a token for every four bytes."""
    counted = {}
    for name, found in funnel.items():
        dropped = {why: {**pair, "tokens": pair["bytes"] // 4} for why, pair in found["dropped"].items()}
        tokens = {"tokens_in": found["bytes_in"] // 4, "tokens_out": found["bytes_out"] // 4}
        counted[name] = {**found, **tokens, "dropped": dropped}
    return counted


def make_shards(folder: Path, funnel: dict[str, Any], targets: dict[str, int] | None = None) -> Path:
    """Sealed stand-ins of a corpus and of shards made from it."""
    corpus, shards = folder / "shards-corpus", folder / "shards"
    with manifest.building(corpus) as partial:
        (partial / "data").write_bytes(b"corpus")
        made = manifest.seal(
            partial,
            corpus,
            "corpus",
            made_from=[{"kind": "source file", "name": "web.jsonl.gz", "digest": "f" * 64}],
            counts={"documents": 68, "bytes": 20_900, "funnel": funnel},
            circumstance={"seconds": {"clean": 3.5}, "step_seconds": {"clean": {"read": 1.25, "quality": 4.5}}},
        )
    sources = {
        name: {
            "train": {"documents": found["documents_out"] - 1, "tokens": found["bytes_out"] // 4 - 50},
            "validation": {"documents": 1, "tokens": 50},
        }
        for name, found in funnel.items()
    }
    with manifest.building(shards) as partial:
        (partial / "data").write_bytes(b"shards")
        manifest.seal(
            partial,
            shards,
            "shards",
            made_from=[manifest.origin(corpus, made), {"kind": "tokenizer", "name": "tokenizer", "digest": "a" * 64}],
            recipe={"name": "</script><b>", "subset": {n: {"target_tokens": t} for n, t in (targets or {}).items()}},
            counts={"train_rows": 70, "validation_rows": 3, "chunks": 2, "seq_len": 64, "sources": sources},
            circumstance={"seconds": {"encode": 2.25}},
        )
    return shards


def test_the_page_lies_beside_the_shards_and_leaves_them_as_they_are(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, FUNNEL)
    path = write_data_page(shards)
    assert path == page_path(shards) == tmp_path / "shards.html"
    manifest.check(shards)
    page = Page(path)
    assert_offline(path, page)
    assert {"summary", "funnel", "dropped", "mix", "times", "check"} <= {str(f.get("id")) for _, f in page.tags}


@pytest.mark.parametrize("counted", [False, True], ids=["bytes", "tokens"])
def test_the_page_shows_the_manifests_numbers(tmp_path: Path, counted: bool) -> None:
    shards = make_shards(tmp_path, with_tokens(FUNNEL) if counted else FUNNEL)
    page = Page(write_data_page(shards))
    size = 4 if counted else 1
    web = [100, 60, 40_000 // size, 20_000 // size, 50, 500 // size, 20_000]
    assert page.values["funnel"][: len(web)] == web
    assert page.values["dropped"] == [25, 15_000 // size, 5, 4_000 // size, 10, 500 // size], "the largest loss first"
    assert ("bytes stand in" in page.words["funnel"]) != counted
    assert page.values["times"] == [3.5, 1.25, 4.5, 2.25, 5.75]
    digest = manifest.read(shards).digest()
    assert digest in page.words["summary"] and digest in page.words["check"]
    assert "web.jsonl.gz" in page.words["check"] and "</script><b>" in page.words["check"]


def test_the_bars_of_the_funnel_are_as_long_as_what_became_of_the_documents(tmp_path: Path) -> None:
    page = Page(write_data_page(make_shards(tmp_path, FUNNEL)))
    widths = [float(str(found["width"])) for tag, found in page.tags if tag == "rect" and found.get("class") == "part"]
    whole = 480
    assert widths[:4] == pytest.approx([whole * part for part in (0.6, 0.25, 0.05, 0.1)])
    assert sum(widths[4:9]) == pytest.approx(whole, abs=0.1), "bytes: kept, three reasons, edited away"
    assert widths[9:] == [whole, whole]


def test_the_mix_is_compared_with_the_target(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, FUNNEL, {"web": 300, "code <&>": 100, "book": 100})
    mix = describe_mix(manifest.read(shards))
    tokens = {"web": 5000, "code <&>": 225, "book": 0}
    share = {name: count / 5225 for name, count in tokens.items()}
    assert mix["distance"] == pytest.approx(share["web"] - 0.6)
    assert {row["name"]: row["ratio"] for row in mix["rows"]} == pytest.approx(
        {"web": share["web"] / 0.6, "code <&>": share["code <&>"] / 0.2, "book": 0.0}
    )
    page = Page(write_data_page(shards))
    assert mix["distance"] in page.values["summary"]


def test_shards_whose_corpus_is_not_at_hand_have_a_page_that_says_so(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, FUNNEL)
    manifest.remove(tmp_path / "shards-corpus")
    page = Page(write_data_page(shards))
    assert "does not lie beside" in page.words["funnel"]
    make_shards(tmp_path / "other", with_tokens(FUNNEL))
    (tmp_path / "other" / "shards-corpus").rename(tmp_path / "shards-corpus")
    assert "another one" in Page(write_data_page(shards)).words["funnel"]


def test_a_folder_that_is_no_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        write_data_page(tmp_path)


def test_reasons_are_said_in_words_whatever_filter_they_are_named_after() -> None:
    for reason in ("duplicate", "gopher_repetition_top_2_gram", "gopher_too_many_hashes", "light_few_letters"):
        assert meaning_of(reason)
    assert "7 words" in meaning_of("gopher_repetition_duplicated_7_n_grams")
    assert meaning_of("c4_curly_bracket") == meaning_of("curly_bracket")
    assert meaning_of("no such reason") == ""


def test_missing_jinja2_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = make_shards(tmp_path, FUNNEL)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match="report"):
        write_data_page(shards)
