"""Facts: a damaged row of a benchmark is told in one line, with its task and the number of its item."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.eval.small_suites import ROWS, TASK, load, write_suite

from mobillama.errors import InputError
from mobillama.eval.tasks import build_items, right_choice

DAMAGED: list[tuple[dict[str, Any], str]] = [
    ({"c": []}, "has no choices"),
    ({"c": ["black", ""]}, "has the choices ['black', '']"),
    ({"c": [1, 2]}, "has the choices [1, 2]"),
    ({"a": 2}, "has the right choice 2; expected 0 to 1"),
    ({"a": -1}, "has the right choice '-1'"),
    ({"a": "white or so"}, "has the right choice 'white or so'"),
    ({"q": 5}, "its request cannot be made"),
    ({"c": "ab"}, "its list of choices cannot be made"),
    ({"q": None}, "its text cannot be made"),
    ({"a": None}, "its answer cannot be made"),
    ({"c": None}, "its list of choices cannot be made"),
]


def ask(suite: Path) -> None:
    loaded = load(suite)
    for item in build_items(loaded, 1234):
        right_choice(loaded, item)


@pytest.mark.parametrize(("change", "words"), DAMAGED)
@pytest.mark.parametrize("at", [1, 2])
def test_a_damaged_row_names_task_and_item(tmp_path: Path, change: dict[str, Any], words: str, at: int) -> None:
    rows: list[dict[str, Any]] = [dict(row) for row in ROWS]
    rows[at] |= change
    with pytest.raises(InputError) as error:
        ask(write_suite(tmp_path, rows=rows))
    assert str(error.value).startswith(f"tiny, item {at} of tiny")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", ["q", "c", "a"])
def test_a_row_without_a_field_names_task_and_item(tmp_path: Path, field: str) -> None:
    rows: list[dict[str, Any]] = [dict(row) for row in ROWS]
    del rows[2][field]
    with pytest.raises(InputError, match=r"^tiny, item 2 of tiny: .*a field of the row is missing or null"):
        ask(write_suite(tmp_path, rows=rows))


@pytest.mark.parametrize(("change", "words"), DAMAGED)
def test_the_first_row_is_no_exception(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    """The harness tries it when it loads a task, before there are items."""
    rows: list[dict[str, Any]] = [dict(row) for row in ROWS]
    rows[0] |= change
    with pytest.raises(InputError, match=r"tiny.*item 0") as error:
        ask(write_suite(tmp_path, rows=rows))
    assert "\n" not in str(error.value)


def test_an_example_that_cannot_be_shown_is_named(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [dict(row) for row in ROWS]
    suite = write_suite(tmp_path, TASK.replace("test_split: test", "test_split: test\nfewshot_split: train"), rows=rows)
    folder = suite.parent / "data" / "tiny"
    (folder / "train.jsonl").write_text('{"q": "x", "c": ["a", "b"], "a": 0}\n{"q": "y", "c": ["a", "b"], "a": 7}\n')
    readme = (folder / "README.md").read_text()
    train = "  - split: train\n    path: train.jsonl\n"
    (folder / "README.md").write_text(readme.replace("  - split: test\n", f"{train}  - split: test\n"))
    suite.write_text(suite.read_text().replace("shots = 0", "shots = 2"))
    with pytest.raises(InputError, match=r"^tiny, example 1 of tiny"):
        ask(suite)


def test_nothing_of_a_sound_row_is_in_the_way(tmp_path: Path) -> None:
    """Fields that no template shows may be null, and an answer may be told by its text."""
    rows = [{**row, "a": row["c"][row["a"]], "note": None} for row in ROWS]  # type: ignore[call-overload]
    loaded = load(write_suite(tmp_path, rows=rows))
    assert [right_choice(loaded, item) for item in build_items(loaded, 1234)] == [0, 1, 0]
