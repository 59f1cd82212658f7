"""Suites of one small task with its rows, written by a test: `suite.toml`, `tasks/`, `data/`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobillama.eval.data import LocalData, check_folders, stay_offline
from mobillama.eval.suite import Benchmark, read_suite, task_files

ROWS = [
    {"q": "The sky is", "c": ["blue", "green"], "a": 0},
    {"q": "Snow is", "c": ["black", "white"], "a": 1},
    {"q": "Grass is", "c": ["green", "red"], "a": 0},
]
SUITE = """about = "One task."
[[benchmarks]]
name = "tiny"
tasks = ["tiny"]
shots = 0
metric = "acc"
"""
TASK = """task: tiny
dataset_path: owner/name
output_type: multiple_choice
test_split: test
target_delimiter: " "
doc_to_text: "{{q}}"
doc_to_choice: "{{c}}"
doc_to_target: "{{a}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
README = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: test.jsonl\n---\n"


def write_suite(
    folder: Path, task: str = TASK, suite: str = SUITE, rows: Sequence[dict[str, Any]] = ROWS, **files: str
) -> Path:
    """Write the suite with more `files` beside its task; gives the path of the suite."""
    (folder / "tasks").mkdir(parents=True)
    (folder / "data" / "tiny").mkdir(parents=True)
    (folder / "suite.toml").write_text(suite)
    (folder / "tasks" / "tiny.yaml").write_text(task)
    for name, text in files.items():
        (folder / "tasks" / name.replace("_py", ".py").replace("_yaml", ".yaml")).write_text(text)
    (folder / "data" / "tiny" / "README.md").write_text(README)
    (folder / "data" / "tiny" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "suite.toml"


def read_rows(suite: Path) -> LocalData:
    stay_offline()
    return check_folders(suite.parent / "data", [one.data or one.name for one in read_suite(suite).benchmarks])


def load(suite: Path, *, allow_code: bool = False) -> Any:
    """The one task of a suite, loaded with its rows."""
    from mobillama.eval.tasks import load_tasks

    one: Benchmark = read_suite(suite).benchmarks[0]
    (loaded,), _ = load_tasks(one, task_files(suite), read_rows(suite), allow_code=allow_code)
    return loaded
