"""What is said of a run: curves over its checkpoints, perplexity of its rows, memory, benchmark text in its data."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.data.samples import make_documents, make_recipe, write_jsonl
from tests.eval.rooms import cut_data
from tests.train.tiny import recipe as train_recipe

from mobillama import manifest
from mobillama.data.benchmarks import NAMES, items
from mobillama.data.build import build_shards
from mobillama.data.lookup import show
from mobillama.data.reading import open_reading
from mobillama.data.shards import read_shards, write_shards
from mobillama.errors import InputError
from mobillama.eval import memorisation, perplexity
from mobillama.eval.checkpoints import CURVES, Stand, due, evaluate_run, stands
from mobillama.eval.contamination import find_shards, known_overlap
from mobillama.eval.scoring import Request
from mobillama.eval.subject import Subject, open_subject
from mobillama.eval.suite import read_suite
from mobillama.export.gguf_file import quantize_model
from mobillama.model.hub import find_folder
from mobillama.model.weights import load_model
from mobillama.tokenizer.tokenizer import train as train_tokenizer
from mobillama.train.loop import train

pytestmark = pytest.mark.usefixtures("one_thread")
SEQ_LEN, STEPS = 160, 12
SUITE = """
about = "One benchmark."
[[benchmarks]]
name = "piqa"
tasks = ["piqa"]
folder = "piqa"
shots = 0
metric = "acc_norm"
"""


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory, shared_folder: Callable[[str], Path]) -> Path:
    """A folder with `data`, `shards` (two documents hold text of piqa, one of them held out or not), and a `run`."""
    folder = tmp_path_factory.mktemp("room")
    cut_data(shared_folder("MOBILLAMA_BENCHMARKS"), folder / "data", 6, NAMES)
    documents = make_documents("web", 24)
    (longest, *_) = sorted(items(folder / "data", "piqa"), key=lambda texts: -len(texts[0]))
    for number in (3, 5):
        documents[number]["text"] += " " + longest[0]
    write_jsonl(folder / "corpora" / "web.jsonl", documents)
    tokenizer = train_tokenizer((one["text"] for one in documents), 512)
    build_shards(
        make_recipe(folder / "corpora", seq_len=SEQ_LEN, chunks=2, overlap="mark", benchmarks=str(folder / "data")),
        folder / "shards",
        workers=1,
        tokenizer=tokenizer,
        on_progress=lambda progress: None,
    )
    shape = {"vocab_size": 512, "max_position_embeddings": SEQ_LEN}
    train(train_recipe(model=shape, steps=STEPS, keep_last=3), folder / "shards", folder / "run")
    (folder / "suite.toml").write_text(SUITE)
    return folder


@pytest.fixture(scope="module")
def subject(room: Path) -> Subject:
    return open_subject(str(room / "run"), device="cpu", dtype="float32", threads=1)


def test_perplexity_of_rows_is_that_of_the_plain_model(room: Path, subject: Subject) -> None:
    shards = read_shards(room / "shards")
    found = perplexity.score_rows(subject.scorer, shards, "validation", 0)
    model = load_model(room / "run" / "model")
    ids = torch.from_numpy(shards.validation_rows(np.arange(shards.num_validation_rows)))
    with torch.inference_mode():
        nats = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").item()
    assert found["loss"] == pytest.approx(nats / (len(ids) * SEQ_LEN), abs=1e-4)
    size = int(shards.row_bytes(np.arange(len(ids)), "validation").sum())
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-4)
    assert found["sources"]["web"]["rows"] == len(ids)
    few = perplexity.score_rows(subject.scorer, shards, "train", 2)
    assert few["tokens"] == 2 * SEQ_LEN
    assert "web" in perplexity.table(found)


def test_padding_is_neither_read_nor_counted(room: Path, subject: Subject, tmp_path: Path) -> None:
    from mobillama.tokenizer.tokenizer import Tokenizer

    build_shards(
        make_recipe(room / "corpora", seq_len=SEQ_LEN, chunks=1, method="best_fit"),
        tmp_path / "padded",
        workers=1,
        tokenizer=Tokenizer.load(room / "shards" / "tokenizer"),
        on_progress=lambda progress: None,
    )
    shards = read_shards(tmp_path / "padded")
    assert shards.padded
    found = perplexity.score_rows(subject.scorer, shards, "train", 0)
    text = sum(int((shards.segments([row]) >= 0).sum()) for row in range(shards.num_rows))
    assert found["tokens"] == text - shards.num_rows < shards.num_rows * SEQ_LEN


def test_perplexity_of_a_text_counts_each_token_once(room: Path, subject: Subject) -> None:
    from mobillama.eval.adapter import Adapter

    adapter = Adapter(subject.scorer, subject.encoder, bos=False)
    text = "the sea was calm and two ships sailed past. " * 40
    found = perplexity.score_text(adapter, text)
    assert found["tokens"] == len(subject.encoder.encode(text))
    assert found["windows"] == -(-found["tokens"] // SEQ_LEN)
    assert found["bytes"] == len(text)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    with pytest.raises(InputError, match="the text is empty"):
        perplexity.score_text(adapter, "")


def test_samples_lead_to_their_documents_and_the_steps_that_read_them(
    room: Path, subject: Subject, tmp_path: Path
) -> None:
    reading = open_reading(room / "run")
    found = memorisation.measure(subject.scorer, reading, [0, 1], 6)
    assert set(found["groups"]) == {"chunk 0", "chunk 1", "held out"}
    assert found["steps_taken"] == STEPS
    checked = 0
    for line in found["samples"]:
        if line["group"] == "held out":
            assert line["steps"] == []
            continue
        for step in line["steps"]:
            rows = show(room / "run", step)
            (row,) = (row for row in rows if row["row_id"] == line["row"])
            assert line["document_id"] in [document["document_id"] for document in row["documents"]]
            checked += 1
    assert checked
    early = memorisation.measure(subject.scorer, reading, [0], 6, step=1)
    assert early["groups"]["chunk 0"]["read"] < found["groups"]["chunk 0"]["read"]
    with pytest.raises(InputError, match="has chunks 0 to 1"):
        memorisation.measure(subject.scorer, reading, [2], 6)
    bare = write_shards(
        tmp_path / "bare", reading.shards.train_rows([0, 1]), reading.shards.train_rows([2]), vocab_size=512
    )
    assert bare.counts["documents"] == 0
    with pytest.raises(InputError, match="no document spans"):
        memorisation.measure(subject.scorer, open_reading(tmp_path / "bare"), [0], 6)


def test_a_model_that_knows_its_rows_is_seen_to(room: Path, subject: Subject) -> None:
    """A scorer that says by heart what chunk 0 holds, and nothing else."""
    reading = open_reading(room / "run")
    shards = reading.shards
    known = {}
    for row in shards.train_rows(np.arange(shards.chunk_rows[0])).tolist():
        for at in range(len(row) - 63):
            known[tuple(row[at : at + 32])] = row[at + 32 : at + 64]

    class Parrot:
        context_length, vocab_size = SEQ_LEN, 512

        def continue_ids(self, prompts: Any, settings: Any, stopped: Any) -> list[list[int]]:
            return [known.get(tuple(prompt), [0] * settings.max_new_tokens) for prompt in prompts]

    found = memorisation.measure(Parrot(), reading, [0, 1], 5)["groups"]  # type: ignore[arg-type]
    assert found["chunk 0"]["exact"]["value"] == found["chunk 0"]["tokens"]["value"] == 100
    assert found["held out"]["exact"]["value"] == found["chunk 1"]["exact"]["value"] == 0
    assert "held out" in memorisation.table({"groups": found})


def test_benchmark_text_in_the_training_data_is_counted_where_lineage_is_known(room: Path, subject: Subject) -> None:
    from mobillama.eval.data import check_folders

    suite = read_suite("paper9")
    hashes = check_folders(room / "data", [one.data or one.name for one in suite.benchmarks]).hashes
    found = known_overlap(subject.folder, suite, hashes)
    assert sum(found["documents"]["piqa"].values()) == 2
    assert found["documents"]["siqa"] == found["documents"]["social_iqa"] == {"training": 0, "held_out": 0}
    assert found["compared_with_other_files"] == []
    other = {**hashes, "piqa/validation.jsonl.gz": "0" * 64}
    assert known_overlap(subject.folder, suite, other)["compared_with_other_files"] == ["piqa"]
    assert "neither in a run" in known_overlap(room, suite, hashes)["unknown"]


def test_a_gguf_file_leads_to_its_model_and_its_training_data(room: Path, subject: Subject) -> None:
    from mobillama.eval.data import check_folders

    file = room / "run.gguf"
    quantize_model(find_folder(str(room / "run")), file, "q8_0")
    suite = read_suite("paper9")
    hashes = check_folders(room / "data", [one.data or one.name for one in suite.benchmarks]).hashes
    opened = open_subject(str(file), threads=1)
    assert opened.folder == file
    assert {entry["kind"]: entry["digest"] for entry in opened.made_from} == {
        "source file": manifest.sha256_file(file),
        "model": subject.made_from[0]["digest"],
    }
    assert known_overlap(file, suite, hashes) == known_overlap(subject.folder, suite, hashes)
    elsewhere = room / "elsewhere"
    elsewhere.mkdir()
    moved = file.rename(elsewhere / "run.gguf")
    assert find_shards(moved).digest == read_shards(room / "shards").digest
    deeper = elsewhere / "deeper"
    deeper.mkdir()
    assert "not at hand" in known_overlap(moved.rename(deeper / "run.gguf"), suite, hashes)["unknown"]


def test_checkpoints_are_evaluated_with_curves_and_a_page(room: Path, tmp_path: Path, capsys: Any) -> None:
    from mobillama.cli.eval import evaluate as command

    given: dict[str, Any] = {"suite": str(room / "suite.toml"), "data": room / "data", "limit": 4, "device": "cpu"}
    given |= {"bos": None, "empty": None, "backend": "auto", "dtype": "float32", "threads": 1, "share": ""}
    assert [stand.step for stand in stands(room / "run")] == [5, 10, STEPS]
    command(str(room / "run"), tmp_path / "out", every=1, follow=False, as_json=True, **given)
    curves = json.loads(capsys.readouterr().out)
    assert [point["step"] for point in curves["points"]] == [5, 10, STEPS]
    tokens = [manifest.read(stand.folder).counts["tokens"] for stand in stands(room / "run")]
    assert [point["tokens"] for point in curves["points"]] == tokens
    kinds = [point["model"]["kind"] for point in curves["points"]]
    assert kinds == ["checkpoint", "checkpoint", "model"]
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<svg") == 2
    assert (tmp_path / "out" / "curves" / "piqa.svg").read_text().startswith("<svg")
    before = (tmp_path / "out" / CURVES).read_bytes()
    command(str(room / "run"), tmp_path / "out", every=1, follow=True, as_json=False, **given)  # all is there
    assert (tmp_path / "out" / CURVES).read_bytes() == before
    assert "average" in capsys.readouterr().out
    known = json.loads((tmp_path / "out" / "step_000005" / "scores.json").read_text())["training_text"]
    assert sum(known["documents"]["piqa"].values()) == 2  # through the run of the checkpoint
    for wrong in ({"share": "1/2"}, {"backend": "engine"}):
        with pytest.raises(InputError, match="leave --share"):
            command(str(room / "run"), tmp_path / "no", every=1, follow=False, as_json=False, **{**given, **wrong})
    with pytest.raises(InputError, match="is no run"):
        command(str(room / "shards"), tmp_path / "no", every=1, follow=False, as_json=False, **given)


def test_following_takes_what_comes_until_the_run_ends(tmp_path: Path) -> None:
    run, seen = tmp_path / "run", []

    def stand(name: str, step: int) -> None:
        with manifest.building(run / name) as partial:
            manifest.seal(partial, run / name, "checkpoint", counts={"step": step, "tokens": step})

    run.mkdir()
    (run / "run.json").write_text("{}")
    stand("checkpoints/step_000010", 10)
    coming = [("checkpoints/step_000015", 15), ("published/ckpt_000", 20), ("model", 23)]

    def evaluate_one(one: Stand, folder: Path) -> dict[str, Any]:
        seen.append((one.step, one.folder.name))
        if coming:
            stand(*coming.pop(0))
        if one.step == 20:
            manifest.remove(one.folder)  # pruned before it was read
            raise InputError("it is gone")
        return {}

    def collected(_run: Path, _out: Path) -> dict[str, Any]:
        return {"points": [1]}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mobillama.eval.checkpoints.collect", collected)
        said: list[str] = []
        # Step 15 is not due: what is to come after it comes while nothing is evaluated.
        patch.setattr("time.sleep", lambda seconds: coming and stand(*coming.pop(0)))
        evaluate_run(run, tmp_path / "out", 10, evaluate_one, follow=True, say=said.append)
    assert seen == [(10, "step_000010"), (20, "ckpt_000"), (23, "model")]
    assert any("was removed" in words for words in said)


def test_every_takes_the_first_at_or_after_each_multiple() -> None:
    there = [Stand(step, step, Path(), False, step == 99) for step in (5, 10, 11, 29, 30, 31, 99)]
    assert [one.step for one in due(10, there)] == [10, 29, 30, 99]
    assert [one.step for one in due(1, there)] == [5, 10, 11, 29, 30, 31, 99]


def test_the_commands_say_what_they_found_and_what_they_cannot_do(room: Path, tmp_path: Path, capsys: Any) -> None:
    from mobillama.cli.eval import memorisation as heart
    from mobillama.cli.eval import perplexity as command

    how: dict[str, Any] = {"backend": "auto", "device": "cpu", "dtype": "float32", "threads": 1, "as_json": True}
    command(str(room / "run"), room / "shards", rows=1, split="train", bos=None, **how)
    assert json.loads(capsys.readouterr().out)["rows"] == 1
    (tmp_path / "text").write_text("calm sea")
    command(str(room / "run"), tmp_path / "text", rows=0, split="validation", bos=None, **how)
    assert json.loads(capsys.readouterr().out)["bytes"] == 8
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for of, changes, match in (
        (tmp_path / "bytes", {}, "not UTF-8"),
        (tmp_path / "none", {}, "is not there"),
        (tmp_path / "text", {"rows": 3}, "no effect"),
        (room / "shards", {"split": "test"}, "--split test"),
        (room / "shards", {"bos": True}, "without <s>"),
    ):
        with pytest.raises(InputError, match=match):
            command(str(room / "run"), of, **{"rows": 0, "split": "validation", "bos": None, **how, **changes})
    heart(room / "run", chunks="0", samples=3, model="", step=0, out=tmp_path / "samples.json", **how)
    assert json.loads(capsys.readouterr().out)["groups"]["chunk 0"]["samples"] == 3
    assert len(json.loads((tmp_path / "samples.json").read_text())["samples"]) == 6
    for changes, match in (({"chunks": "x"}, "--chunks x"), ({"step": 3}, "give --model")):
        with pytest.raises(InputError, match=match):
            heart(room / "run", **{"chunks": "0", "samples": 3, "model": "", "step": 0, "out": None, **how, **changes})


def test_a_run_whose_shards_were_moved_is_evaluated_where_they_are(room: Path, tmp_path: Path, capsys: Any) -> None:
    from mobillama.cli.eval import evaluate
    from mobillama.cli.eval import memorisation as heart

    run, there = tmp_path / "run", tmp_path / "elsewhere" / "moved"
    shutil.copytree(room / "run", run)
    shutil.copytree(room / "shards", there)
    told = json.loads((run / "run.json").read_text())
    told["shards"]["path"] = str(tmp_path / "gone" / "shards")
    (run / "run.json").write_text(json.dumps(told))

    how: dict[str, Any] = {"device": "cpu", "dtype": "float32", "threads": 1, "as_json": True}
    asked = {"suite": str(room / "suite.toml"), "data": room / "data", "every": 1, **how}
    with pytest.raises(InputError, match=r"not at .*gone.*--shards SHARDS"):
        evaluate(str(run), tmp_path / "curves", **asked)
    evaluate(str(run), tmp_path / "curves", shards=there, **asked)
    assert len(json.loads(capsys.readouterr().out)["points"]) > 1
    assert (tmp_path / "curves" / f"step_{STEPS:06d}" / manifest.FILE).is_file()
    with pytest.raises(InputError, match=r"--shards SHARDS"):
        evaluate(str(run), tmp_path / "others", shards=tmp_path, **asked)

    said: dict[str, Any] = {"chunks": "0", "samples": 2, "backend": "auto", **how}
    with pytest.raises(InputError, match="--data SHARDS"):
        heart(run, **said)
    heart(run, data=there, **said)
    assert json.loads(capsys.readouterr().out)["groups"]["chunk 0"]["samples"] == 2


def test_rows_longer_than_the_context_are_refused(room: Path, subject: Subject) -> None:
    class Short:
        context_length = SEQ_LEN - 1

        def score(self, requests: list[Request]) -> Any:
            raise AssertionError("never asked")

    with pytest.raises(InputError, match=f"have {SEQ_LEN} tokens; the model's context holds {SEQ_LEN - 1}"):
        perplexity.score_rows(Short(), read_shards(room / "shards"), "train", 0)  # type: ignore[arg-type]
