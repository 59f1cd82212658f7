"""The plan of a data recipe: what it says is what a build then does, and what it cannot know it does not say."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from samples import make_documents, make_recipe, write_jsonl
from typer.testing import CliRunner

from mobillama import manifest
from mobillama.cli.commands import app
from mobillama.config import DataRecipe, SourceConfig, SubsetConfig, TokenizerConfig
from mobillama.data import compressed, sample
from mobillama.data.build import build_shards
from mobillama.data.plan import plan_data
from mobillama.data.sources import list_tasks
from mobillama.errors import InputError
from mobillama.tokenizer.tokenizer import Tokenizer


@pytest.fixture
def recipe(corpora: Path, tokenizer: Tokenizer, tmp_path: Path) -> DataRecipe:
    """The recipe of the `built` shards, with its tokenizer in a folder and targets for its subsets."""
    tokenizer.save(tmp_path / "tokenizer")
    subset = {"book": SubsetConfig(target_tokens=300), "web": SubsetConfig(target_tokens=100)}
    update = {"tokenizer": TokenizerConfig(root=str(tmp_path / "tokenizer")), "subset": subset}
    return make_recipe(corpora).model_copy(update=update)


def test_a_plan_that_saw_everything_says_what_the_build_does(recipe: DataRecipe, built: Path) -> None:
    found = plan_data(recipe, workers=4)
    corpus, shards = (manifest.read(built.with_name(name)) for name in ("shards-corpus", "shards"))
    for name, told in found["subsets"].items():
        funnel, counts = corpus.counts["funnel"][name], shards.counts["sources"][name]
        assert told["basis"] == "counted" and told["tokens_plus_minus"] == 0.0
        assert told["documents"] == funnel["documents_in"] and told["text_bytes"] == funnel["bytes_in"]
        assert told["tokens"] == sum(counts[split]["tokens"] for split in counts)
        assert told["dropped"] == {why: pair["documents"] for why, pair in funnel["dropped"].items()}
    tokens = {name: told["tokens"] for name, told in found["subsets"].items()}
    share = tokens["book"] / sum(tokens.values())
    assert found["mix_distance"] == pytest.approx(abs(share - 0.75))
    assert found["subsets"]["book"]["ratio"] == pytest.approx(share / 0.75)
    assert found["disk"]["ids"] == 2 * found["total"]["tokens"] < found["disk"]["shards"]
    speed = found["speed"]["bytes_per_second_and_worker"]
    assert found["hours"] == pytest.approx(found["total"]["text_bytes"] / speed / 4 / 3600)


def test_a_sample_tells_tokens_within_the_doubt_it_states(tmp_path: Path, recipe: DataRecipe) -> None:
    root = tmp_path / "many"
    write_jsonl(root / "book.jsonl", make_documents("many", 400))
    write_jsonl(root / "web.jsonl", make_documents("few", 3))
    many = recipe.model_copy(update={"source": SourceConfig(root=str(root))})
    guess, truth = (plan_data(many, sample_bytes=size) for size in (120_000, 10**9))
    for name in ("book", "web"):
        assert guess["subsets"][name]["documents"] == truth["subsets"][name]["documents"]
        assert guess["subsets"][name]["text_bytes"] == truth["subsets"][name]["text_bytes"]
    told, really = guess["subsets"]["book"], truth["subsets"]["book"]["tokens"]
    assert told["basis"] == "extrapolated" and 0 < told["tokens_plus_minus"] < 0.1 * really
    assert abs(told["tokens"] - really) <= 1.5 * told["tokens_plus_minus"]
    assert guess["subsets"]["web"]["basis"] == "counted", "smaller than the sample"
    again = plan_data(many, sample_bytes=120_000)
    assert {name: again["subsets"][name]["tokens"] for name in again["subsets"]} == {
        name: guess["subsets"][name]["tokens"] for name in guess["subsets"]
    }


def test_a_remote_source_that_cannot_be_reached_stands_with_its_target(recipe: DataRecipe) -> None:
    away = SubsetConfig(target_tokens=5000, source=SourceConfig(root="http://127.0.0.1:9/data/away.jsonl"))
    source = recipe.source.model_copy(update={"subsets": ("book",)})
    both = recipe.model_copy(update={"source": source, "subset": {"away": away, "gone": away}})
    found = plan_data(both)
    for name in ("away", "gone"):
        told = found["subsets"][name]
        assert (told["basis"], told["tokens"], told["documents"]) == ("target", 5000, None)
        assert "127.0.0.1:9 could not be read" in told["why"]
        assert told["text_bytes"] > 5000, "as many bytes a token as in the subset that could be read"
    assert found["subsets"]["book"]["basis"] == "counted"
    assert found["total"]["tokens"] == 10_000 + found["subsets"]["book"]["tokens"]
    alone = plan_data(both.model_copy(update={"source": SourceConfig()}))
    assert alone["hours"] is None and alone["mix_distance"] is None and "no source" in alone["hours_why"]
    assert alone["disk"]["ids"] == 20_000 and alone["disk"]["shards"] is None


def test_a_local_source_that_is_not_there_is_an_error(recipe: DataRecipe, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        plan_data(recipe.model_copy(update={"source": SourceConfig(root=str(tmp_path / "none"))}))


@pytest.mark.parametrize("files", [1, 12])
def test_a_source_too_large_to_count_is_told_from_a_part_of_its_bytes(
    files: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = make_documents("large", 600)
    folder = tmp_path / "in" / "large"
    folder.mkdir(parents=True)
    for number in range(files):
        lines = "".join(json.dumps(document) + "\n" for document in documents[number::files])
        (folder / f"{number:02d}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    size = sum(path.stat().st_size for path in folder.iterdir())
    monkeypatch.setattr(sample, "COUNT_BYTES", size // 3)
    monkeypatch.setattr(compressed, "BUFFER", 1 << 12)  # what a file that is cut may lose of its part
    tasks = list_tasks(SourceConfig(root=str(tmp_path / "in")))
    found = sample.take_sample("large", tasks, tmp_path / "sample", 50_000)
    assert found.scale == pytest.approx(3, rel=0.1) and not found.whole
    text = sum(len(document["text"].encode()) for document in documents)
    assert found.documents * found.scale == pytest.approx(600, rel=0.1)
    assert found.text_bytes * found.scale == pytest.approx(text, rel=0.1)
    assert sum(found.sizes.values()) == pytest.approx(50_000, rel=0.2)
    assert not list((tmp_path / "sample").glob(".cut*"))


def test_documents_that_are_no_utf8_count_as_dropped(tmp_path: Path, recipe: DataRecipe) -> None:
    good: list[dict[str, Any]] = make_documents("book", 20)
    path = write_jsonl(tmp_path / "in" / "book.jsonl", good)
    with path.open("ab") as file:
        file.write(b'{"text": "bad \xff bytes"}\n')
    update = {"source": SourceConfig(root=str(tmp_path / "in")), "subset": {}}
    found = plan_data(recipe.model_copy(update=update))
    assert found["subsets"]["book"]["documents"] == 21
    assert found["subsets"]["book"]["dropped"] == {"invalid_utf8": 1}
    build_shards(recipe.model_copy(update=update), tmp_path / "shards", on_progress=lambda _: None)
    counts = manifest.read(tmp_path / "shards").counts["sources"]["book"]
    assert found["subsets"]["book"]["tokens"] == sum(counts[split]["tokens"] for split in counts)


def test_the_command_tells_which_recipe_is_meant(recipe: DataRecipe, tmp_path: Path) -> None:
    run = CliRunner().invoke
    unclear = run(app, ["plan", "mini-amber"])
    assert "data/mini-amber or train/mini-amber" in str(unclear.exception)
    wrong = run(app, ["plan", "data/mini-amber", "--tokens-per-second", "5"])
    assert "for train recipes" in str(wrong.exception)
    path = tmp_path / "mine.toml"
    path.write_text(
        f'[source]\nroot = "{recipe.source.root}"\n[clean]\nmin_characters = 1\n'
        f'[tokenizer]\nroot = "{recipe.tokenizer.root}"\n[pack]\nseq_len = 32\n'
    )
    done = run(app, ["plan", str(path), "--json"])
    assert done.exit_code == 0, done.output
    assert set(json.loads(done.stdout)["subsets"]) == {"book", "web"}
    words = run(app, ["plan", str(path), "--workers", "3"]).stdout
    assert "on 3 workers" in words and "bytes a token" in words


@pytest.mark.parametrize("packed", [False, True])
def test_what_a_sample_cuts_off_itself_is_no_bad_record(packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = b"".join(b'{"text": "document %d of many"}\n' % number for number in range(2000)) + b"\n"
    data = b'{"text": null}\n' + data
    path = tmp_path / ("a.jsonl.gz" if packed else "a.jsonl")
    path.write_bytes(gzip.compress(data) if packed else data)
    monkeypatch.setattr(sample, "COUNT_BYTES", path.stat().st_size // 2 + 7)
    tasks = list_tasks(SourceConfig(root=str(tmp_path), damaged_files="drop"))
    found = sample.take_sample("a", tasks, tmp_path / "sample", 1 << 20)
    assert found.reasons == {"no_text": 1} and 500 < found.documents < 1600
