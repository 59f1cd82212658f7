"""A property: whatever stands in a suite or a task file, an evaluation is made or refused in words of one line."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval.config.task import TaskConfig
from tests.eval.rooms import model_with_llamas_vocabulary, save_folder
from tests.eval.small_suites import SUITE, TASK, write_suite
from tests.model.twins import new_seed

from mobillama.errors import MobillamaError, RecipeError
from mobillama.eval.evaluation import Choices, evaluate
from mobillama.eval.subject import Subject, open_subject
from mobillama.tokenizer.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
KEYS = sorted(
    {one.name for one in fields(TaskConfig)} | {"class", "group", "include", "tag", "task_list", "hf_evaluate"}
)
KINDS = ["multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until"]
ODD: list[Any] = [
    None, "", "x", "q", "c", "tiny", 0, -1, 3, 1.5, True, False, [], {}, [None], [[]], ["x", 3], {"a": 1},
    "{{", "{% for %}", "{{q.x.y}}", "{{missing}}", "{{q[0]}}", "{{c|first}}", "{{a + 'x'}}", "{{[q, q]}}", "[1, 2",
    "{{a // 0}}", "{{none}}", "\x00", "\u2028", "../x.yaml", "/etc/passwd", "é" * 300, *KINDS,
    [{"metric": "acc"}], [{"metric": "x"}], [{"metric": None}], [{"aggregation": "mean"}], [3], "acc",
    [{"metric": "acc", "aggregation": "none such"}], [{"metric": "acc", "aggregation": 3}], [{"metric": "f1"}],
    [{"metric": "bits_per_byte"}, {"metric": "acc"}], [{"metric": "brier_score"}], [{"metric": "likelihood"}],
    [{"name": "x", "filter": [{"function": "take_first"}]}], [{"name": "x", "filter": [{"function": "no such"}]}],
    [{"name": "x", "filter": [{"function": "regex", "regex_pattern": "("}]}], [{"name": "x"}],
    {"until": 3}, {"until": []}, {"q": "{{q}}"}, {"split": "none"},
    {"max_gen_toks": "x"}, {"max_gen_toks": 4, "do_sample": "x"}, {"sampler": "no such"}, {"samples": 3},
]  # fmt: skip
TOML = [
    '""',
    '"x"',
    "0",
    "-1",
    "1.5",
    "true",
    "[]",
    "[0]",
    '["x"]',
    '["tiny", "tiny"]',
    "{}",
    "inf",
    '"../x"',
    "1979-05-27",
    "[[",
]


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory, shared_folder: Callable[[str], Path]) -> Subject:
    folder = tmp_path_factory.mktemp("mutated")
    tokenizer = Tokenizer.load(shared_folder("MOBILLAMA_TOKENIZER"))
    save_folder(folder / "model", model_with_llamas_vocabulary(7, 128), tokenizer)
    return open_subject(str(folder / "model"), device="cpu", dtype="float32", threads=1)


def mutate_task(generator: random.Random) -> str:
    """The task file with one to three keys changed, taken out or added; now and then with a byte changed."""
    tree = yaml.safe_load(TASK)
    if generator.random() < 0.3:
        tree |= {"output_type": generator.choice(KINDS), "metric_list": None}
        tree["generation_kwargs"] = {"max_gen_toks": 2, "until": ["."]}
    for _ in range(generator.randint(1, 3)):
        key = generator.choice([*tree, *KEYS])
        if generator.random() < 0.2:
            tree.pop(key, None)
        else:
            tree[key] = generator.choice(ODD)
    text = yaml.safe_dump(tree, allow_unicode=True)
    return change_letter(generator, text) if generator.random() < 0.2 else text


def mutate_suite(generator: random.Random) -> str:
    """The suite with one line changed, or one letter."""
    lines = [*SUITE.splitlines(), 'folder = ""', 'data = "tiny"', "sample = 0", "unbiased_at = 50.0"]
    if generator.random() < 0.3:
        return change_letter(generator, "\n".join(lines))
    at = generator.randrange(len(lines))
    lines[at] = f"{lines[at].partition(' = ')[0]} = {generator.choice(TOML)}"
    return "\n".join(lines)


def change_letter(generator: random.Random, text: str) -> str:
    at = generator.randrange(len(text))
    return text[:at] + generator.choice("\"'[]{}:,!&*#|>%@`\t\n x0") + text[at + 1 :]


def evaluated(folder: Path, subject: Subject, task: str, suite: str) -> bool:
    """Whether an evaluation was made; False where it was refused in words."""
    path = write_suite(folder, task, suite)
    try:
        evaluate(lambda: subject, path, folder / "out", Choices(data=folder / "data"))
    except RecipeError as error:  # a line for each fault
        assert str(error).strip()
        return False
    except MobillamaError as error:
        assert "\n" not in str(error), error
        return False
    return True


def walk(folder: Path, subject: Subject, count: int) -> list[bool]:
    seed = new_seed()
    made = []
    for number in range(count):
        generator = random.Random(f"{seed}/{number}")
        files = [TASK, mutate_suite(generator)] if number % 3 == 0 else [mutate_task(generator), SUITE]
        try:
            made.append(evaluated(folder / str(number), subject, *files))
        except BaseException:
            print(f"seed {seed}, mutation {number}:\n{files[0]}\n{files[1]}")
            raise
    return made


def test_whatever_stands_in_a_suite_or_a_task_file_there_is_no_traceback(tmp_path: Path, subject: Subject) -> None:
    assert evaluated(tmp_path / "sound", subject, TASK, SUITE)
    assert not all(walk(tmp_path, subject, 24))


@pytest.mark.slow
def test_of_many_mutated_suites_none_ends_in_a_traceback(tmp_path: Path, subject: Subject) -> None:
    made = walk(tmp_path, subject, 400)
    assert 20 < sum(made) < 380
