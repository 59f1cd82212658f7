"""The stages joined by the command line alone: documents to shards to a run to text, each step looked up again."""

import json
import os
import random
import subprocess
import sys

import pytest

from mobillama import manifest, read_ledger, read_shards

WORDS = ["the", "a", "cat", "dog", "house", "river", "sees", "finds", "likes", "old", "red", "and", "under"]
MODEL = {
    "vocab_size": 340, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
TRAIN = {
    "steps": 6, "rows_per_step": 2, "micro_batch_rows": 1, "warmup_steps": 2, "compile": "false", "checkpoint_every": 3,
    "validate_every": 3, "threads": 1,
}  # fmt: skip


def run(*arguments, cwd, code=0):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "mobillama.cli", *map(str, arguments)]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A folder in which two small corpora have become shards and a run."""
    folder = tmp_path_factory.mktemp("chain")
    generator = random.Random(3)
    for name in ("stories", "notes"):
        lines = []
        for number in range(120):
            text = " ".join(generator.choice(WORDS) for _ in range(60)) + f" {name} {number}."
            lines.append(json.dumps({"text": text, "id": f"{name}/{number}", "url": "", "license": "CC0-1.0"}))
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    (folder / "data.toml").write_text(
        "[source]\nkind = 'jsonl'\nsubsets = ['stories', 'notes']\n[tokenizer]\ntrain_vocab_size = 340\n"
        "[pack]\nseq_len = 32\nchunks = 2\nvalidation_share = 0.1\n"
    )
    lines = ["[model]", *(f"{key} = {value}" for key, value in MODEL.items())]
    lines += ["[train]", *(f"{key} = {value}" for key, value in TRAIN.items())]
    (folder / "train.toml").write_text("\n".join(lines))
    built = run("data", "build", "data.toml", "--set", f"source.root={folder}", "--out", "shards", "--json", cwd=folder)
    assert json.loads(built.stdout)["digest"] == manifest.read(folder / "shards").digest()
    trained = run("train", "train.toml", "--data", "shards", "--out", "run", "--json", cwd=folder)
    result = json.loads(trained.stdout)
    assert (result["finished"], result["step"], result["tokens"]) == (True, 6, 6 * 2 * 32)
    return folder


def test_each_artefact_names_what_it_was_made_from(chain):
    shards, model = (manifest.read(chain / name) for name in ("shards", "run/model"))
    assert {"kind": "corpus", "name": "shards-corpus", "digest": manifest.read(chain / "shards-corpus").digest()} in (
        shards.made_from
    )
    assert [origin["digest"] for origin in model.made_from] == [shards.digest()]
    for name in ("shards-corpus", "shards", "run/model"):
        assert json.loads(run("verify", name, "--json", cwd=chain).stdout)["ok"]


def test_what_a_step_read_is_in_the_documents(chain):
    rows = json.loads(run("data", "show", "run", "--step", 2, "--json", cwd=chain).stdout)["rows"]
    assert len(rows) == 2
    texts = {}
    for name in ("stories", "notes"):
        for line in (chain / f"{name}.jsonl").read_text().splitlines():
            document = json.loads(line)
            texts[document["id"]] = document["text"].encode()
    spans = [span for row in rows for span in row["documents"]]
    assert spans
    for span in spans:
        (identity,) = [name for name in texts if span["document_id"].endswith(name)]
        assert texts[identity][span["byte_start"] : span["byte_end"]].decode() == span["text"]


def test_the_same_command_leaves_a_finished_run_as_it_is(chain):
    before = (chain / "run" / "ledger.jsonl").read_bytes()
    run("train", "train.toml", "--data", "shards", "--out", "run", cwd=chain)
    assert (chain / "run" / "ledger.jsonl").read_bytes() == before
    assert [line.step for line in read_ledger(chain / "run") if line.kind == "step"] == [1, 2, 3, 4, 5, 6]


def test_the_model_goes_on_from_a_prompt_and_repeats_itself_by_seed(chain):
    first, second = (
        json.loads(
            run(
                "generate", "run/model", "the cat", "the", "--max-new-tokens", 5, "--seed", 4, "--json", cwd=chain
            ).stdout
        )
        for _ in range(2)
    )
    assert first == second
    assert [row["prompt"] for row in first["rows"]] == ["the cat", "the"]
    assert all(row["text"] for row in first["rows"])


def test_baselines_and_the_tokenizer_are_reached_from_the_command_line(chain):
    result = json.loads(run("data", "baseline", "shards", "--json", cwd=chain).stdout)
    assert result["models"]["bigram"]["nats_per_token"] < result["models"]["unigram"]["nats_per_token"]
    assert result["validation_tokens"] == read_shards(chain / "shards").num_validation_rows * 32
    run("tokenizer", "train", "shards-corpus", "--out", "words", "--vocab-size", 330, cwd=chain)
    assert manifest.read(chain / "words", "tokenizer").counts["vocab_size"] == 330


def test_shards_of_another_tokenizer_do_not_fit_the_model(chain):
    done = run("train", "train.toml", "--data", "shards", "--out", "other", "--set", "model.vocab_size=64",
               cwd=chain, code=2)  # fmt: skip
    assert "vocab_size=64" in done.stderr
    assert "340" in done.stderr
    assert not (chain / "other").exists()
