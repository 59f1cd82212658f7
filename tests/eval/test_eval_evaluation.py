"""Law: what is asked of an item, and what comes out, is the same however many items are run, in how many pieces."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.eval.rooms import cut_data, model_with_llamas_vocabulary, save_folder
from tests.eval.small_suites import TASK, write_suite

from mobillama import manifest
from mobillama.errors import DamagedFileError, InputError
from mobillama.eval import evaluation
from mobillama.eval.data import stay_offline
from mobillama.eval.evaluation import Choices, evaluate
from mobillama.eval.results import read_items, read_results
from mobillama.eval.suite import Suite
from mobillama.tokenizer.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

SUITE = """
about = "Tasks whose shots are drawn from one running generator, and one without some of its items."
[[benchmarks]]
name = "winogrande"
tasks = ["winogrande"]
folder = "winogrande"
shots = 5
metric = "acc"
{sample}
[[benchmarks]]
name = "crows_pairs"
tasks = ["crows_pairs_english_gender", "crows_pairs_english_race_color", "crows_pairs_english_autre"]
folder = "crows_pairs"
shots = 0
metric = "pct_stereotype"
may_lack_tasks = true
unbiased_at = 50.0
{sample}
[[benchmarks]]
name = "piqa"
tasks = ["piqa"]
folder = "piqa"
shots = 3
metric = "acc_norm"
in_average = false
{sample}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, shared_folder: Callable[[str], Path]) -> Path:
    """A folder with `model`, `data`, `whole.toml` and `few.toml`."""
    stay_offline()
    folder = tmp_path_factory.mktemp("evaluation")
    tokenizer = Tokenizer.load(shared_folder("MOBILLAMA_TOKENIZER"))
    save_folder(folder / "model", model_with_llamas_vocabulary(7), tokenizer)
    names = ["winogrande", "crows_pairs", "piqa"]
    cut_data(shared_folder("MOBILLAMA_BENCHMARKS"), folder / "data", 10, names)
    (folder / "whole.toml").write_text(SUITE.format(sample=""))
    (folder / "few.toml").write_text(SUITE.format(sample="sample = 3"))
    return folder


@pytest.fixture(scope="module")
def whole(place: Path) -> dict[str, Any]:
    return run(place, "whole", "results-whole")


def run(place: Path, suite: str, out: str, progress: Any = None, **choices: Any) -> dict[str, Any]:
    from mobillama.eval.subject import open_subject

    def opened() -> Any:
        return open_subject(str(place / "model"), device="cpu", dtype="float32", threads=1)

    chosen = Choices(**{"data": place / "data", **choices})
    return evaluate(opened, place / f"{suite}.toml", place / out, chosen, progress)


def contexts(folder: Path) -> dict[tuple[str, int], str]:
    return {key: line["context"] for key, line in read_items(folder / "items.jsonl").items()}


def test_a_sample_and_the_whole_ask_the_same_of_an_item(place: Path, whole: dict[str, Any]) -> None:
    all_of = contexts(place / "results-whole")
    run(place, "few", "results-few")
    few = contexts(place / "results-few")
    assert 0 < len(few) < len(all_of)
    assert few.items() <= all_of.items()


@pytest.mark.slow
def test_a_smaller_sample_and_four_shares_ask_the_same_of_an_item(place: Path, whole: dict[str, Any]) -> None:
    all_of = contexts(place / "results-whole")
    run(place, "few", "results-fewer", limit=2)
    assert contexts(place / "results-fewer").items() < all_of.items()
    shares: dict[tuple[str, int], str] = {}
    for rank in range(4):
        run(place, "whole", f"results-{rank}", share=(rank, 4))
        mine = contexts(place / f"results-{rank}")
        assert not mine.keys() & shares.keys()
        shares |= mine
    assert shares == all_of
    merged = {key: line for rank in range(4) for key, line in read_items(place / f"results-{rank}/items.jsonl").items()}
    for key, line in read_items(place / "results-whole" / "items.jsonl").items():
        assert line["metrics"] == pytest.approx(merged[key]["metrics"], abs=1e-3)


def test_shares_become_what_one_process_would_have_made(place: Path, tmp_path: Path, capsys: Any) -> None:
    from mobillama.cli.eval import evaluate as command

    def share(text: str, out: Path, **changes: Any) -> Any:
        given = {"suite": str(place / "few.toml"), "data": place / "data", "limit": 0, "device": "cpu", "bos": None}
        rest = {"empty": None, "backend": "auto", "dtype": "float32", "threads": 1, "every": 0, "follow": False}
        command(str(place / "model"), out, share=text, as_json=True, **{**given, **rest, **changes})
        return json.loads(capsys.readouterr().out)

    if not (place / "results-few").exists():
        run(place, "few", "results-few")
    assert share("2/2", tmp_path / "parts")["waits_for"] == ["parts.share-1-of-2"]
    assert share("2/2", tmp_path / "parts")["waits_for"] == ["parts.share-1-of-2"]  # what is done stays
    with pytest.raises(InputError, match="results with another bos"):
        share("2/2", tmp_path / "parts", bos=True)
    merged = share("1/2", tmp_path / "parts")
    one, other = (read_results(folder) for folder in (place / "results-few", tmp_path / "parts"))
    assert other.manifest.recipe == one.manifest.recipe
    assert other.manifest.made_from == one.manifest.made_from
    assert other.manifest.counts == one.manifest.counts
    assert [*other.items()] == [*one.items()]
    assert all(other.items()[key]["context"] == line["context"] for key, line in one.items().items())
    for mine, theirs in zip(merged["benchmarks"], one.scores["benchmarks"], strict=True):
        assert mine == {**theirs, "value": pytest.approx(theirs["value"]), "tasks": mine["tasks"]}
    assert merged["average"] == pytest.approx(one.scores["average"])
    assert not list(tmp_path.glob("parts.*"))
    with pytest.raises(InputError, match="exists already"):
        share("1/2", tmp_path / "parts")


@pytest.mark.slow
def test_shares_of_two_evaluations_are_not_put_together(place: Path, tmp_path: Path) -> None:
    from mobillama.eval.ranks import merge

    run(place, "few", str(tmp_path / "a"), share=(0, 2))
    run(place, "few", str(tmp_path / "b"), share=(1, 2), limit=2)
    with pytest.raises(InputError, match="evaluated with another limit"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    with pytest.raises(InputError, match="expected each of 2 once"):
        merge([tmp_path / "a", tmp_path / "a"], tmp_path / "out")


@pytest.mark.slow
def test_processes_of_torchrun_share_the_items_and_one_merges(place: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    command += ["-m", "mobillama.cli", "eval", str(place / "model"), "--suite", str(place / "few.toml")]
    command += ["--data", str(place / "data"), "--out", str(tmp_path / "out"), "--dtype", "float32", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (printed,) = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert printed["out"] == str(tmp_path / "out")
    if not (place / "results-few").exists():
        run(place, "few", "results-few")
    assert contexts(tmp_path / "out") == contexts(place / "results-few")


def test_an_interrupted_evaluation_goes_on(place: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "CHUNK_ITEMS", 3)
    steps: list[int] = []

    def kill(benchmark: str, done: int, total: int) -> None:
        steps.append(done)
        if len(steps) == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(place, "whole", "results-again", kill)
    lines = place / "results-again.partial" / "items.jsonl"
    before = lines.read_bytes()
    assert before.count(b"\n") > 12
    lines.write_bytes(before + b'{"benchmark": "pi')  # a kill in the middle of a line
    with pytest.raises(InputError, match="unfinished evaluation with another bos"):
        run(place, "whole", "results-again", bos=True)
    settings = place / "results-again.partial" / "evaluation.json"
    tree = json.loads(settings.read_text())
    older = Suite.model_validate(tree["suite"]).model_dump(mode="json", exclude_defaults=True)
    assert older != tree["suite"]
    del tree["decided_by"]
    settings.write_text(json.dumps({**tree, "suite": older}))  # as a version that knew fewer keys began it
    again = run(place, "whole", "results-again")
    assert (place / "results-again" / "items.jsonl").read_bytes().startswith(before)
    assert contexts(place / "results-again") == contexts(place / "results-whole")
    for one, other in zip(again["benchmarks"], whole["benchmarks"], strict=True):
        assert one["value"] == pytest.approx(other["value"])
        assert one["items"] == other["items"]


def test_results_are_an_artefact_with_lineage(place: Path, whole: dict[str, Any]) -> None:
    folder = place / "results-whole"
    found = manifest.read(folder, "results")
    assert manifest.differences(folder) == []
    named = {entry["name"]: entry["digest"] for entry in found.made_from}
    assert named["model.safetensors"] == manifest.sha256_file(place / "model" / "model.safetensors")
    rows = "piqa/validation.jsonl.gz"
    assert named[rows] == found.recipe["data"][rows] == manifest.sha256_file(place / "data" / rows)
    assert found.recipe["harness"] == "lm_eval 0.4.13"
    assert (found.recipe["bos"], found.recipe["empty_context"]) == (False, "bos")
    assert found.counts == {"items": sum(row["items"] for row in whole["benchmarks"]), "cut": 0}
    assert json.loads((folder / "scores.json").read_text())["benchmarks"] == whole["benchmarks"]


def test_lines_hold_what_the_choice_came_from(place: Path, whole: dict[str, Any]) -> None:
    lines = list(read_items(place / "results-whole" / "items.jsonl").values())
    for line in lines:
        totals = [request["log_likelihood"] for request in line["requests"]]
        assert line["choice"] == totals.index(max(totals))
        assert all(request["continuation_tokens"] > 0 for request in line["requests"])
        if line["task"] == "winogrande":
            assert line["metrics"]["acc,none"] == (line["choice"] == line["gold"])
    (row,) = (row for row in whole["benchmarks"] if row["benchmark"] == "winogrande")
    right = [line["metrics"]["acc,none"] for line in lines if line["task"] == "winogrande"]
    share = sum(right) / len(right)
    assert row["value"] == pytest.approx(100 * share)
    assert row["stderr"] == pytest.approx(100 * (share * (1 - share) / (len(right) - 1)) ** 0.5)


def test_tasks_weigh_the_same_and_bias_is_read_as_a_distance(place: Path, whole: dict[str, Any]) -> None:
    from mobillama.eval.scores import table

    (row,) = (row for row in whole["benchmarks"] if row["benchmark"] == "crows_pairs")
    values = [task["value"] for task in row["tasks"].values()]
    sizes = [task["items"] for task in row["tasks"].values()]
    assert len(values) == 2
    assert sizes[0] != sizes[1]
    assert row["value"] == pytest.approx(50 * sum(values))
    assert row["from_unbiased"] == pytest.approx(abs(row["value"] - 50))
    assert row["lacking"] == ["crows_pairs_english_autre"]
    (winogrande, _, _) = whole["benchmarks"]
    assert whole["average"]["value"] == pytest.approx((row["value"] + winogrande["value"]) / 2)
    assert whole["average_without_bias"]["value"] == pytest.approx(winogrande["value"])
    assert "no item of crows_pairs_english_autre" in table(whole)


def test_bad_data_and_tasks_are_told_before_anything_runs(place: Path, tmp_path: Path) -> None:
    def never() -> Any:
        raise AssertionError("the model was opened")

    choices = Choices(data=place / "data")
    suite = (place / "whole.toml").read_text()
    (tmp_path / "suite.toml").write_text(suite.replace('"piqa"', '"hellaswag"'))
    with pytest.raises(InputError, match="no folder hellaswag"):
        evaluate(never, tmp_path / "suite.toml", tmp_path / "out", choices)
    cut = cut_data(place / "data", tmp_path / "data", 10, ["winogrande", "crows_pairs", "piqa"])
    rows = cut / "piqa" / "validation.jsonl.gz"
    rows.write_bytes(rows.read_bytes()[:-30])
    with pytest.raises(DamagedFileError, match=r"piqa/validation\.jsonl\.gz is cut"):
        evaluate(never, place / "whole.toml", tmp_path / "out", Choices(data=cut))
    (tmp_path / "suite.toml").write_text(suite.replace('["piqa"]', '["piqqa"]'))
    with pytest.raises(InputError, match=r"no task 'piqqa'.*piqa"):
        evaluate(never, tmp_path / "suite.toml", tmp_path / "out", choices)
    (tmp_path / "suite.toml").write_text(suite.replace("shots = 3", "shots = 3\nmin_items = 31"))
    with pytest.raises(InputError, match="found 10 items; expected 31"):
        evaluate(never, tmp_path / "suite.toml", tmp_path / "out", choices)
    (tmp_path / "suite.toml").write_text(suite.replace("acc_norm", "f1"))
    with pytest.raises(InputError, match="gives no metric 'f1'"):
        evaluate(never, tmp_path / "suite.toml", tmp_path / "out", choices)
    assert not (tmp_path / "out.partial").exists()


def test_a_continuation_beyond_the_context_is_named(place: Path, tmp_path: Path) -> None:
    from mobillama.eval.subject import open_subject

    model = save_folder(tmp_path / "short", model_with_llamas_vocabulary(7, 8), Tokenizer.load(place / "model"))
    with pytest.raises(InputError, match=r"^winogrande, items 0 to 9: a continuation has .* holds 8"):
        evaluate(
            lambda: open_subject(str(model), device="cpu", dtype="float32", threads=1),
            str(place / "whole.toml"),
            tmp_path / "out",
            Choices(place / "data"),
            None,
        )


@pytest.mark.slow
def test_the_command_prints_a_table_and_json(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mobillama.cli.eval import evaluate as command

    given: dict[str, Any] = {"suite": str(place / "few.toml"), "data": place / "data", "limit": 2, "device": "cpu"}
    defaults: dict[str, Any] = {"bos": None, "empty": None, "backend": "auto", "dtype": "float32", "threads": 1}
    common = {**given, **defaults, "share": "", "every": 0, "follow": False}
    command(str(place / "model"), place / "printed", as_json=False, **common)
    shown = capsys.readouterr()
    assert "winogrande" in shown.out
    assert "average" in shown.out
    assert "winogrande: 2 items" in shown.err
    command(str(place / "model"), place / "printed-2", as_json=True, **{**common, "bos": True})
    assert json.loads(capsys.readouterr().out)["benchmarks"][0]["items"] == 2
    assert manifest.read(place / "printed-2").recipe["bos"] is True
    for wrong in ({"share": "3/2"}, {"empty": "none"}, {"backend": "gpu"}, {"backend": "engine"}):
        with pytest.raises(InputError):
            command(str(place / "model"), place / "never", as_json=False, **{**common, **wrong})


def test_rows_are_those_of_the_folder_given_whatever_was_loaded_before(place: Path, tmp_path: Path) -> None:
    from mobillama.eval.data import check_folders
    from mobillama.eval.suite import read_suite, task_files
    from mobillama.eval.tasks import load_tasks

    piqa = read_suite(place / "whole.toml").benchmarks[2]
    for rows in (4, 6):
        data = cut_data(place / "data", tmp_path / str(rows), rows, ["piqa"])
        (loaded,), _ = load_tasks(piqa, task_files(place / "whole.toml"), check_folders(data, ["piqa"]))
        assert len(loaded.task.eval_docs) == rows


def test_allowed_code_stands_in_the_results(place: Path, tmp_path: Path) -> None:
    task = TASK.replace('"{{q}}"', "!function mine.text")
    suite = write_suite(tmp_path / "suite", task, mine_py="def text(doc): return doc['q']\n")
    given = {"data": suite.parent / "data", "suite": str(suite.with_suffix(""))}
    with pytest.raises(InputError, match="--allow-code"):
        run(place, given["suite"], str(tmp_path / "out"), data=given["data"])
    assert not (tmp_path / "out.partial").exists()
    run(place, given["suite"], str(tmp_path / "out"), data=given["data"], allow_code=True)
    recipe = read_results(tmp_path / "out").manifest.recipe
    assert recipe["allowed_code"] == ["!function mine.text of tasks/tiny.yaml"]
    assert set(recipe["decided_by"]) == {"lm_eval", "tasks/tiny.yaml", "tasks/mine.py"}
    assert recipe["task_files"] == {"tiny.yaml": manifest.sha256_file(suite.parent / "tasks" / "tiny.yaml")}
    run(place, "few", str(tmp_path / "usual"), allow_code=True)
    assert "allowed_code" not in read_results(tmp_path / "usual").manifest.recipe
