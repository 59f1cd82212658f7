"""Facts: suites and local rows are checked before anything runs, and the errors say what is wrong."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mobillama.errors import DamagedFileError, InputError, RecipeError
from mobillama.eval.data import check_folders, stay_offline
from mobillama.eval.suite import Suite, find_suite, read_suite, suites_folder, task_files
from mobillama.eval.tasks import load_tasks

ROW = json.dumps({"goal": "a", "sol1": "b", "sol2": "c", "label": 0}).encode() + b"\n"


def folder_with(tmp_path: Path, data: bytes, name: str = "validation.jsonl.gz") -> Path:
    (tmp_path / "piqa").mkdir()
    (tmp_path / "piqa" / "README.md").write_text("x")
    (tmp_path / "piqa" / name).write_bytes(data)
    return tmp_path


def test_every_suite_reads_and_its_own_tasks_are_there() -> None:
    names = {path.stem for path in suites_folder().glob("*.toml")}
    assert {"paper9", "table5", "quick"} <= names
    for name in names:
        suite = read_suite(name)
        assert suite.name == name
        for one in suite.benchmarks:
            if not one.folder:
                assert all((task_files(find_suite(name)) / f"{task}.yaml").is_file() for task in one.tasks)


def test_quick_asks_what_paper9_asks_of_fewer_items() -> None:
    whole, quick = read_suite("paper9"), read_suite("quick")
    assert all(one.sample for one in quick.benchmarks)
    same = [one.model_copy(update={"sample": 0}) for one in quick.benchmarks]
    assert same == list(whole.benchmarks)
    assert [one for one in read_suite("table5").benchmarks if one not in whole.benchmarks] == []
    assert sum(one.in_average for one in whole.benchmarks) == 9


def test_a_suite_that_is_not_there_or_wrong_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="one of paper9, quick, table5"):
        read_suite("paper10")
    for text, words in [
        ("about = ", "not valid TOML"),
        ('about = "x"', "benchmarks"),
        ('about = "x"\n[[benchmarks]]\nname="a"\ntasks=["a"]\nshot=0\nmetric="acc"', "'benchmarks.0.shot'.*'shots'"),
        ('about = "x"\nspeed = 1\n[[benchmarks]]\nname="a"\ntasks=["a"]\nshots=0\nmetric="acc"', "speed"),
    ]:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        with pytest.raises(RecipeError, match=words):
            read_suite(path)
    one = {"name": "a", "tasks": ["a"], "shots": 0, "metric": "acc"}
    with pytest.raises(ValueError, match="two benchmarks are called 'a'"):
        Suite(name="x", about="y", benchmarks=[one, one])  # type: ignore[arg-type]


def test_rows_are_read_to_their_end_and_hashed(tmp_path: Path) -> None:
    data = folder_with(tmp_path, gzip.compress(ROW * 3))
    assert set(check_folders(data, ["piqa"]).hashes) == {"piqa/validation.jsonl.gz", "piqa/README.md"}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (gzip.compress(ROW * 500)[:-20], "cut or damaged after row"),
        (gzip.compress(ROW * 3 + ROW[:20]), "row 4"),
        (gzip.compress(ROW + b"[1]\n"), "row 2: no JSON object"),
        (gzip.compress(b""), "holds no rows"),
    ],
    ids=["cut", "cut row", "list", "empty"],  # ids of the bytes would hold the time
)
def test_a_damaged_file_is_named(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(DamagedFileError, match=rf"validation.jsonl.gz.*{words}"):
        check_folders(folder_with(tmp_path, data), ["piqa"])


def test_sound_rows_under_a_wrong_name_are_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"validation\.jsonl\.gz is not compressed.*rename it to validation\.jsonl,"):
        check_folders(folder_with(tmp_path, ROW * 3), ["piqa"])


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        check_folders(tmp_path / "none", ["piqa"])
    with pytest.raises(InputError, match="has no folder piqa"):
        check_folders(tmp_path, ["piqa"])
    folder_with(tmp_path, b"", "rows.csv")
    with pytest.raises(InputError, match="holds no"):
        check_folders(tmp_path, ["piqa"])
    (tmp_path / "piqa" / "README.md").unlink()
    (tmp_path / "piqa" / "rows.jsonl").write_bytes(ROW)
    with pytest.raises(InputError, match=r"no README.md"):
        check_folders(tmp_path, ["piqa"])


def test_the_papers_suite_loads_in_full(shared_folder: Callable[[str], Path]) -> None:
    """Every benchmark, MMLU's 57 subjects through the harness's group among them."""
    stay_offline()
    suite = read_suite("paper9")
    data = check_folders(shared_folder("MOBILLAMA_BENCHMARKS"), [one.data or one.name for one in suite.benchmarks])
    found = {one.name: load_tasks(one, task_files(find_suite("paper9")), data) for one in suite.benchmarks}
    counts = {name: (len(tasks), sum(len(one.task.eval_docs) for one in tasks)) for name, (tasks, _) in found.items()}
    assert counts == {
        "hellaswag": (1, 10042),
        "arc_challenge": (1, 1172),
        "winogrande": (1, 1267),
        "mmlu": (57, 14042),
        "truthfulqa": (1, 817),
        "crows_pairs": (9, 1508),
        "piqa": (1, 1838),
        "race": (1, 1045),
        "siqa": (1, 1954),
        "social_iqa": (1, 1954),
    }
    assert found["crows_pairs"][1] == ["crows_pairs_english_autre"]
    subjects = found["mmlu"][0]
    assert len({one.name for one in subjects}) == len({one.fingerprint for one in subjects}) == 57
    assert {one.task.config.num_fewshot for one in subjects} == {5}


@pytest.mark.parametrize("name", ["quick", "table5"])
def test_other_suites_ask_what_the_papers_does(name: str) -> None:
    """Their tasks, shots and metrics are those of paper9, of which the test above shows that they load."""
    papers = {one.name: one for one in read_suite("paper9").benchmarks}
    for one in read_suite(name).benchmarks:
        same = papers[one.name]
        assert (one.tasks, one.folder, one.shots, one.metric) == (same.tasks, same.folder, same.shots, same.metric)
