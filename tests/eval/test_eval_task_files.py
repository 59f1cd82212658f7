"""Facts: a suite that someone sent runs no code and reads nothing from outside, whichever way its files try."""

from __future__ import annotations

import os
from pathlib import Path

import lm_eval
import pytest
from tests.eval.small_suites import README, SUITE, TASK, load, read_rows, write_suite

from mobillama.errors import InputError
from mobillama.eval.suite import read_suite, task_files
from mobillama.eval.task_files import TaskFiles, core_digest
from mobillama.eval.tasks import build_items, find_files, load_tasks

HARNESS = Path(lm_eval.__file__).parent / "tasks"
PAYLOAD = "open({mark!r}, 'w').write('ran')\ndef text(doc): return doc['q']\ndef rows(**_): return {{}}\n"


def payload(tmp_path: Path) -> str:
    """A module that leaves a mark when it is run."""
    return PAYLOAD.format(mark=str(tmp_path / "ran"))


def decided(suite: Path, *, allow_code: bool = False, local: bool = True) -> TaskFiles:
    found = TaskFiles()
    for one in read_suite(suite).benchmarks:
        find_files(one, task_files(suite), found, allow_code=allow_code, local=local)
    return found


def test_a_sound_suite_of_ones_own_is_loaded(tmp_path: Path) -> None:
    items = build_items(load(write_suite(tmp_path)), 1234)
    assert [item.instances[0].args[0] for item in items] == ["The sky is", "Snow is", "Grass is"]


WAYS_TO_RUN = {
    "a function beside the task": TASK.replace('"{{q}}"', "!function payload.text"),
    "a function of an included file": "include: other.yaml\n" + TASK,
    "a function that a later key hides": "doc_to_text: !function payload.text\n" + TASK,
    "a function that makes the rows": TASK + "process_docs: !function payload.rows\n",
    "a function inside a list": TASK + "filter_list: [{name: x, filter: [{function: !function payload.text}]}]\n",
    "a class": TASK + "class: !function payload.text\n",
    "a function of Python's own": TASK.replace('"{{q}}"', "!function os.system"),
    "a function of the harness that is no task's": TASK.replace('"{{q}}"', "!function lm_eval.utils.make_table"),
    "what the model writes": TASK + "unsafe_code: true\n",
    "a script of the library evaluate": TASK.replace("metric: acc", "metric: rouge"),
    "a script under a name that is known": TASK.replace("metric: acc", "metric: acc\n    hf_evaluate: true"),
}


@pytest.mark.parametrize("way", WAYS_TO_RUN)
def test_code_is_refused_before_any_of_it_runs(tmp_path: Path, way: str) -> None:
    other = "process_docs: !function payload.rows\n"
    suite = write_suite(tmp_path, WAYS_TO_RUN[way], payload_py=payload(tmp_path), other_yaml=other)
    with pytest.raises(InputError, match=r"tiny.*--allow-code") as error:
        load(suite)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()
    assert decided(suite, allow_code=True).code


@pytest.mark.parametrize("tag", ["object/apply:os.system [x]", "name:os.system ''", "module:os ''", "object/new:x []"])
def test_tags_that_would_make_objects_of_python_are_no_yaml_of_a_task(tmp_path: Path, tag: str) -> None:
    with pytest.raises(InputError, match=r"tiny\.yaml is not YAML that a task can have"):
        load(write_suite(tmp_path, TASK + f"metadata: !!python/{tag}\n"))


@pytest.mark.parametrize(
    "template",
    [
        "{{ cycler.__init__.__globals__.os.system('touch ' ~ q) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(q) }}",
        "{{ ().__class__ }}",
        "{% include '/etc/hostname' %}",
    ],
)
@pytest.mark.parametrize("key", ["doc_to_text", "doc_to_choice", "doc_to_target"])
def test_templates_have_no_way_to_the_interpreter(tmp_path: Path, key: str, template: str) -> None:
    (line,) = (line for line in TASK.splitlines() if line.startswith(key))
    with pytest.raises(InputError, match=r"task 'tiny' .*item 0 cannot be asked"):
        load(write_suite(tmp_path, TASK.replace(line, f'{key}: "{template}"')))


def test_allowed_code_runs_and_is_told(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, WAYS_TO_RUN["a function beside the task"], payload_py=payload(tmp_path))
    found = decided(suite, allow_code=True)
    assert not (tmp_path / "ran").exists()
    assert found.code == {"!function payload.text of tasks/tiny.yaml"}
    assert set(found.hashes) == {"tasks/tiny.yaml", "tasks/payload.py"}
    assert build_items(load(suite, allow_code=True), 1234)[1].instances[0].args[0] == "Snow is"
    assert (tmp_path / "ran").exists()


def test_code_of_an_unasked_task_beside_it_is_not_in_the_way(tmp_path: Path) -> None:
    other = WAYS_TO_RUN["a function beside the task"].replace("task: tiny", "task: other")
    suite = write_suite(tmp_path, other_yaml=other, payload_py=payload(tmp_path))
    assert load(suite).name == "tiny"
    assert not (tmp_path / "ran").exists()


def outside(tmp_path: Path) -> Path:
    """A task file outside the suite's folder."""
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "elsewhere" / "tiny.yaml"
    path.write_text(TASK)
    return path


@pytest.mark.parametrize("way", ["absolute", "upwards", "link", "chain"])
def test_includes_that_lead_outside_are_refused(tmp_path: Path, way: str) -> None:
    there = outside(tmp_path)
    name = {"absolute": str(there), "upwards": "../../elsewhere/tiny.yaml"}.get(way, "inner.yaml")
    suite = write_suite(tmp_path / "suite", f"include: {name}\n{TASK}")
    if way == "link":
        (suite.parent / "tasks" / "inner.yaml").symlink_to(there)
    elif way == "chain":
        (suite.parent / "tasks" / "inner.yaml").write_text(f"include: {there}\n")
    with pytest.raises(InputError, match=r"task files come from the suite's folder .* or from the harness"):
        load(suite)


@pytest.mark.parametrize("way", ["file", "folder"])
def test_task_files_that_are_links_to_elsewhere_are_refused(tmp_path: Path, way: str) -> None:
    there = outside(tmp_path)
    suite = write_suite(tmp_path / "suite")
    own = suite.parent / "tasks"
    (own / "tiny.yaml").unlink()
    if way == "file":
        (own / "tiny.yaml").symlink_to(there)
    else:
        own.rmdir()
        own.symlink_to(there.parent)
    with pytest.raises(InputError, match=r"tasks.*(leads to|is a link to)"):
        load(suite)


def test_a_module_that_is_a_link_to_elsewhere_is_refused_even_where_code_is_allowed(tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "suite", WAYS_TO_RUN["a function beside the task"])
    (tmp_path / "payload.py").write_text(payload(tmp_path))
    (suite.parent / "tasks" / "payload.py").symlink_to(tmp_path / "payload.py")
    with pytest.raises(InputError, match=r"payload\.text .*leads to"):
        load(suite, allow_code=True)
    assert not (tmp_path / "ran").exists()


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    suite = write_suite(tmp_path)
    os.mkfifo(tmp_path / "tasks" / "other.yaml")
    with pytest.raises(InputError, match=r"other\.yaml is no file"):
        load(suite)


@pytest.mark.parametrize("folder", ["/etc", "..", "../../..", "arc/../../..", "no-such-folder"])
def test_a_folder_that_is_none_of_the_harness_is_refused(tmp_path: Path, folder: str) -> None:
    suite = write_suite(tmp_path, suite=SUITE + f'folder = "{folder}"\n')
    with pytest.raises(InputError, match=r"tiny: folder = .*expected one of the harness's"):
        load(suite)


def test_a_task_may_include_a_file_of_the_harness(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, f"include: {HARNESS / 'piqa' / 'piqa.yaml'}\n{TASK}")
    assert set(decided(suite).hashes) == {"tasks/tiny.yaml", "lm_eval/tasks/piqa/piqa.yaml"}


@pytest.mark.parametrize("name", ["..", "../elsewhere", "/etc"])
def test_rows_outside_data_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    suite = write_suite(tmp_path, suite=SUITE + f'data = "{name}"\n')
    with pytest.raises(InputError, match=r"leads out of --data"):
        read_rows(suite)


@pytest.mark.parametrize("way", ["rows", "readme", "folder", "inner folder"])
def test_links_out_of_data_are_refused(tmp_path: Path, way: str) -> None:
    suite = write_suite(tmp_path / "suite")
    folder = suite.parent / "data" / "tiny"
    names = {"rows": "test.jsonl", "readme": "README.md"}
    if way in names:
        (folder / names[way]).rename(tmp_path / "there")
        (folder / names[way]).symlink_to(tmp_path / "there")
    elif way == "folder":
        folder.rename(tmp_path / "there")
        folder.symlink_to(tmp_path / "there")
    else:
        (tmp_path / "there").mkdir()
        (folder / "more").symlink_to(tmp_path / "there")
    with pytest.raises(InputError, match=r"leads"):
        read_rows(suite)


@pytest.mark.parametrize(
    ("readme", "words"),
    [
        (README.replace("test.jsonl", "../../secret.jsonl"), "expected files in its folder"),
        (README.replace("test.jsonl", "/etc/secret.jsonl"), "expected files in its folder"),
        (README.replace("test.jsonl", "https://example.org/x.jsonl"), "expected files in its folder"),
        (README.replace("test.jsonl", "gzip://x.jsonl::/etc/x.gz"), "expected files in its folder"),
        (README.replace("  data_files", "  data_dir: ../..\n  data_files"), "expected files in its folder"),
        (README.replace("test.jsonl", "test.*"), "test.csv is not"),
        ("rows of mine", "test.csv is not"),
        ("---\nconfigs: 3\n---\n", "expected `configs`"),
        ("---\nconfigs: [\n---\n", "no YAML at its head"),
    ],
)
def test_a_readme_names_rows_of_its_folder_alone(tmp_path: Path, readme: str, words: str) -> None:
    suite = write_suite(tmp_path)
    (tmp_path / "data" / "tiny" / "README.md").write_text(readme)
    (tmp_path / "data" / "tiny" / "test.csv").write_text("q,c,a\n")
    with pytest.raises(InputError, match=words):
        read_rows(suite)


def test_files_that_would_stand_above_the_readme_are_refused(tmp_path: Path) -> None:
    suite = write_suite(tmp_path)
    (tmp_path / "data" / "tiny" / ".huggingface.yaml").write_text("configs: []\n")
    with pytest.raises(InputError, match=r"\.huggingface\.yaml would stand above README\.md"):
        read_rows(suite)


def test_with_data_no_row_comes_from_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="makes its rows with code"):
        load(write_suite(tmp_path, TASK + "custom_dataset: 1\n"))
    assert str(load(write_suite(tmp_path / "b")).task.DATASET_PATH) == str(tmp_path / "b" / "data" / "tiny")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("dataset_path: .", "is here, but"),
        ("dataset_path: json", "expected the name of a data set of the hub"),
        ("dataset_path: ../name", "expected the name of a data set of the hub"),
        ("dataset_path: s3://bucket/x", "expected the name of a data set of the hub"),
        ("dataset_path: x/y\ndataset_kwargs: {data_files: /etc/hostname}", "dataset_kwargs with data_files"),
        ("dataset_path: x/y\ndataset_kwargs: 1", "dataset_kwargs with dataset_kwargs"),
        ("dataset_path: x/y\nuse_prompt: '/etc/x.yaml:y'", "takes its prompt from"),
    ],
)
def test_without_data_rows_come_from_the_hub_alone(tmp_path: Path, change: str, words: str) -> None:
    suite = write_suite(tmp_path, TASK.replace("dataset_path: owner/name", change))
    with pytest.raises(InputError, match=words):
        decided(suite, local=False)


def test_all_that_decides_a_score_is_hashed(tmp_path: Path) -> None:
    """A byte more in any of the files, included ones and modules that a module imports among them, shows."""
    task = "include: other.yaml\n" + WAYS_TO_RUN["a function beside the task"]
    more = {"other_yaml": "description: x\n", "payload_py": payload(tmp_path), "helper_py": "x = 1\n"}
    suite = write_suite(tmp_path, task, **more)
    before = decided(suite, allow_code=True).hashes
    assert set(before) == {f"tasks/{name}" for name in ("tiny.yaml", "other.yaml", "payload.py", "helper.py")}
    for name in before:
        path = tmp_path / name
        path.write_bytes(path.read_bytes() + b"\n")
        now = decided(suite, allow_code=True).hashes
        assert {one for one in before if before[one] != now[one]} == {name}
        before = now


def test_the_harnesss_own_task_files_are_hashed() -> None:
    """One task with an include and a module that imports another's, and the files every task goes through."""
    found = TaskFiles()
    for one in read_suite("paper9").benchmarks:
        find_files(one, task_files(Path("recipes/eval/paper9.toml").resolve()), found, allow_code=False, local=True)
    assert not found.code
    assert len([name for name in found.hashes if name.startswith("lm_eval/tasks/mmlu/default/mmlu_")]) >= 57
    for name in ("mmlu/default/_default_template_yaml", "hellaswag/utils.py", "winogrande/preprocess_winogrande.py"):
        assert f"lm_eval/tasks/{name}" in found.hashes
    assert "tasks/siqa_paper.yaml" in found.hashes
    assert len(core_digest()) == 64


def test_a_group_that_holds_itself_and_one_that_is_text_are_refused(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, suite=SUITE.replace('["tiny"]', '["loop"]'), loop_yaml="group: loop\ntask: [loop]\n")
    with pytest.raises(InputError, match="'loop' holds itself"):
        load(suite)
    suite = write_suite(
        tmp_path / "b", suite=SUITE.replace('["tiny"]', '["text"]'), text_yaml="group: text\ntask: tiny\n"
    )
    with pytest.raises(InputError, match="'text' changes its tasks, or names none"):
        load(suite)


def test_a_class_that_takes_its_rows_from_elsewhere_is_refused_with_data(tmp_path: Path) -> None:
    module = f"""
from lm_eval.api.task import ConfigurableTask
class Mine(ConfigurableTask):
    def __init__(self, config=None):
        kept = {{key: value for key, value in config.items() if key != "class"}}
        super().__init__(config={{**kept, "dataset_path": {str(tmp_path / "elsewhere")!r}}})
"""
    suite = write_suite(tmp_path, TASK + "class: !function payload.Mine\n", payload_py=module)
    (tmp_path / "data" / "tiny").rename(tmp_path / "elsewhere")
    write_suite(tmp_path / "again")
    (tmp_path / "again" / "data" / "tiny").rename(tmp_path / "data" / "tiny")
    one = read_suite(suite).benchmarks[0]
    with pytest.raises(InputError, match="from a place that its code names"):
        load_tasks(one, task_files(suite), read_rows(suite), allow_code=True)
