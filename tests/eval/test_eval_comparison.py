"""Facts: comparing is paired, corrected and refused where items differ; published rows are true and told apart."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.model.twins import new_seed

from mobillama import manifest
from mobillama.errors import DamagedFileError, InputError
from mobillama.eval.comparison import bootstrap, compare, correct
from mobillama.eval.published import FILE, published_rows
from mobillama.eval.results import ITEMS, seal_results
from mobillama.eval.suite import Benchmark, Suite

SUITE = Suite(
    name="small",
    about="Three rows.",
    benchmarks=(
        Benchmark(name="piqa", tasks=("piqa",), shots=0, metric="acc"),
        Benchmark(name="mmlu", tasks=("a", "b"), shots=5, metric="acc"),
        Benchmark(name="crows_pairs", tasks=("c",), shots=0, metric="pct_stereotype", unbiased_at=50.0),
    ),
)
OF_TASK = {"piqa": "piqa", "a": "mmlu", "b": "mmlu", "c": "crows_pairs"}


def results(folder: Path, right: dict[str, list[int]], **recipe: Any) -> Path:
    """Results in which an item of a task is right (1) or wrong (0)."""
    from mobillama.eval.scores import average, score_benchmark, score_task

    lines = [
        {
            "benchmark": OF_TASK[task],
            "task": task,
            "item": number,
            "context": f"{task}{number}",
            "requests": [],
            "metrics": {("pct_stereotype,none" if task == "c" else "acc,none"): float(value)},
        }
        for task, values in right.items()
        for number, value in enumerate(values)
    ]
    rows = []
    for one in SUITE.benchmarks:
        tasks = {
            task: score_task(one.metric, [line for line in lines if line["task"] == task], {}) for task in one.tasks
        }
        rows.append(score_benchmark(one, tasks, []))
    with manifest.building(folder) as partial:
        (partial / ITEMS).write_text("".join(json.dumps(line) + "\n" for line in lines))
        settings = {"suite": SUITE.tree(), "share": [0, 1], "bos": False, "dtype": "float32", **recipe}
        scores = {"model": folder.name, "suite": "small", "benchmarks": rows, **average(SUITE, rows), "rows": {}}
        seal_results(partial, folder, scores, settings, [], {})
    return folder


def draw(seed: int, better: float = 0.0) -> dict[str, list[int]]:
    generator = np.random.default_rng(seed)
    sizes = {"piqa": 400, "a": 60, "b": 90, "c": 200}
    return {task: (generator.random(size) < 0.5 + better).astype(int).tolist() for task, size in sizes.items()}


def test_a_difference_is_judged_on_the_same_items(tmp_path: Path) -> None:
    base = draw(1)
    other = {task: [*values] for task, values in base.items()}
    changed = [at for at, value in enumerate(other["piqa"]) if not value][:30]
    for at in changed:  # better on 30 of 400 items, equal on all others: certain when paired, lost when not
        other["piqa"][at] = 1
    found = compare([results(tmp_path / "a", other), results(tmp_path / "b", base)])
    (pair,) = found["pairs"]
    piqa = pair["differences"]["piqa"]
    assert piqa["difference"] == pytest.approx(100 * 30 / 400)
    assert piqa["low"] > 4
    assert piqa["significant"]
    unpaired = found["models"][0]["scores"]["piqa"]["stderr"] * 2**0.5
    assert piqa["difference"] < 2.5 * unpaired < 2.5 * 4
    for name in ("mmlu", "crows_pairs"):
        assert pair["differences"][name] == {
            **dict.fromkeys(("difference", "low", "high"), 0.0),
            "p": 1.0,
            "p_holm": 1.0,
            "significant": False,
        }
    assert pair["differences"]["average"]["difference"] == pytest.approx(piqa["difference"] / 3)
    assert pair["differences"]["average_without_bias"]["difference"] == pytest.approx(piqa["difference"] / 2)


def test_the_bootstraps_spread_is_the_standard_error() -> None:
    seed = new_seed()
    generator = np.random.default_rng(seed)
    tasks = [generator.normal(size=size) for size in (5, 40)]
    drawn = bootstrap(tasks, generator, 40_000)
    errors = [values.std(ddof=1) / len(values) ** 0.5 for values in tasks]
    assert drawn.std() == pytest.approx(np.hypot(*errors) / 2, rel=0.03)
    assert drawn.mean() == pytest.approx(np.mean([values.mean() for values in tasks]), abs=0.02)
    single = bootstrap([np.array([value]) for value in (0.0, 0.0, 3.0, 3.0)], generator, 40_000)
    assert single.std() == pytest.approx(np.std([0, 0, 3, 3], ddof=1) / 2, rel=0.03)


def test_equal_models_are_seldom_told_apart(tmp_path: Path) -> None:
    seed = new_seed()
    p = []
    generator = np.random.default_rng(seed)
    for _ in range(200):
        values = (generator.random(300) < 0.5).astype(float) - (generator.random(300) < 0.5)
        drawn = bootstrap([values], generator, 500)
        p.append((np.abs(drawn - values.mean()) >= abs(values.mean()) - 1e-12).mean())
    assert 0.005 < np.mean(np.array(p) < 0.05) < 0.13


def test_holm_is_the_textbooks() -> None:
    found = [{"p": value} for value in (0.01, 0.04, 0.03, 0.005)]
    correct([{"differences": dict(enumerate(found))}])
    assert [one["p_holm"] for one in found] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [one["significant"] for one in found] == [True, False, False, True]


def test_other_items_or_contexts_are_named_and_refused(tmp_path: Path) -> None:
    base = results(tmp_path / "base", draw(1))
    fewer = results(tmp_path / "fewer", {**draw(2), "a": draw(2)["a"][:-2]})
    with pytest.raises(InputError, match=r"2 items are in one of them only \(a 58, a 59\)"):
        compare([base, fewer])
    changed = results(tmp_path / "changed", draw(3))
    text = (changed / ITEMS).read_text().replace('"context": "piqa7"', '"context": "other"')
    (changed / ITEMS).write_text(text)
    with pytest.raises(DamagedFileError, match=r"items.jsonl"):
        compare([base, changed])
    tree = json.loads((changed / manifest.FILE).read_text())
    tree["files"][ITEMS] = {"bytes": len(text), "sha256": manifest.sha256_file(changed / ITEMS)}
    (changed / manifest.FILE).write_text(json.dumps(tree))
    with pytest.raises(InputError, match=r"1 items were asked in another way \(piqa 7\)"):
        compare([base, changed])
    part = results(tmp_path / "part", draw(1), share=[0, 2])
    with pytest.raises(InputError, match="a share"):
        compare([base, part])
    with pytest.raises(InputError, match="1 names for 2"):
        compare([base, base], ["one"])


def test_three_models_make_three_pairs_in_every_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mobillama.cli.compare import compare as command

    folders = [results(tmp_path / f"m_{n}", draw(n, n / 8), dtype=f"t{n}") for n in range(3)]
    common: dict[str, Any] = {"names": "", "published": [4], "html": tmp_path / "page" / "index.html"}
    command(folders, form="markdown", as_json=False, **common)
    shown = capsys.readouterr().out
    assert "| MobiLlama 0.5B (published, not measured here: Table 4) |" in shown
    assert shown.count("minus") == 3
    assert "not evaluated alike: dtype is m_0: t0, m_1: t1, m_2: t2" in shown
    assert "arXiv:2402.16840" in shown
    assert " ± " in shown
    command(folders, form="latex", as_json=False, **{**common, "html": None, "published": None})
    shown = capsys.readouterr().out
    assert r"m\_0 &" in shown
    assert shown.count(r"\begin{tabular}") == shown.count(r"\end{tabular}") == 4
    page = (tmp_path / "page" / "index.html").read_text()
    assert page.count("data-published") == len(published_rows([4]))
    command(folders, form="markdown", as_json=True, **{**common, "html": None})
    found = json.loads(capsys.readouterr().out)
    assert found["tests"] == 3 * 5
    with pytest.raises(InputError, match="--format word"):
        command(folders, form="word", as_json=False, **common)


def test_published_averages_are_those_of_their_rows() -> None:
    numbers = [table["number"] for table in tomllib.loads(FILE.read_text())["tables"]]
    assert {4, 9} <= set(numbers)
    for row in published_rows(numbers):
        assert sum(row["values"].values()) / len(row["values"]) == pytest.approx(row["average"], abs=0.011), row[
            "model"
        ]
    rows = {row["model"]: row["average"] for row in published_rows([4])}
    assert rows["MobiLlama 0.5B"] - rows["pythia-410m 0.51B"] == pytest.approx(2.43)
    with pytest.raises(InputError, match="--published 6"):
        published_rows([6])


def test_files_that_decide_prompts_and_differ_are_named_and_older_results_are_still_taken(tmp_path: Path) -> None:
    files = {"lm_eval": "0", "lm_eval/tasks/piqa/piqa.yaml": "1"}
    older = results(tmp_path / "older", draw(1))  # as a version before the key wrote them
    one, same = (results(tmp_path / name, draw(1), decided_by=files) for name in ("one", "same"))
    other = results(tmp_path / "other", draw(1), decided_by={**files, "lm_eval/tasks/piqa/piqa.yaml": "2", "x": "3"})
    assert not [note for note in compare([one, same])["notes"] if "decides" in note or "hashes" in note]
    (note,) = (note for note in compare([one, other])["notes"] if "decides" in note)
    assert note.endswith("differs in lm_eval/tasks/piqa/piqa.yaml, x")
    assert "older: an older version kept no hashes of the harness's task files" in compare([older, one])["notes"]
    assert not [note for note in compare([older, older])["notes"] if "hashes" in note]


@pytest.mark.parametrize("change", [{"suite": 3}, {"suite": {"name": "x"}}, {"share": []}, {"share": None}])
def test_results_whose_settings_were_damaged_are_refused_in_words(tmp_path: Path, change: dict[str, Any]) -> None:
    base, other = (results(tmp_path / name, draw(1)) for name in ("base", "other"))
    tree = json.loads((other / manifest.FILE).read_text())
    tree["recipe"] |= change
    (other / manifest.FILE).write_text(json.dumps(tree))
    with pytest.raises(DamagedFileError, match="other says of no suite") as error:
        compare([base, other])
    assert "\n" not in str(error.value)
