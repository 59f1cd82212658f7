"""Tasks of lm-evaluation-harness: found, loaded from local rows or the hub, and turned into items.

Some tasks draw the shots of an item from one generator that runs over all documents, so an item's shots depend on
every item before it. Items are therefore always built for the whole task, in the harness's order with its seed;
whoever wants some of them chooses afterwards (`choose`, `share_of`). The context hash of an item is the same then,
however many are run.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import logging
import re
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks import TaskManager

from mobillama import manifest
from mobillama.errors import InputError, MobillamaError
from mobillama.eval.data import LocalData
from mobillama.eval.suite import Benchmark
from mobillama.eval.task_files import TaskFiles, decide, harness_folder, own_folder
from mobillama.eval.templates import rendering

VERSION = str(lm_eval.__version__) if hasattr(lm_eval, "__version__") else "unknown"


@dataclass(frozen=True)
class Item:
    """One document of a task: what the model is asked for it, in the harness's order."""

    number: int  # of the document in its task
    doc: dict[str, Any]
    instances: list[Instance]
    context: str  # hash of all that is asked

    @property
    def kind(self) -> str:
        """The harness's kind of request."""
        return str(self.instances[0].request_type)

    def has_choices(self, task: Task) -> bool:
        """Whether it is a question with choices, one request each."""
        return self.kind == "loglikelihood" and (len(self.instances) > 1 or task.OUTPUT_TYPE == "multiple_choice")


@dataclass(frozen=True)
class LoadedTask:
    """A task with its rows, and where they came from."""

    name: str
    task: Task
    origin: str  # folder of the data set below --data, or its name on the hub
    fingerprint: str  # of the rows that are scored
    is_own: bool  # its files are the suite's, not the harness's


def find_files(benchmark: Benchmark, own: Path, found: TaskFiles, *, allow_code: bool, local: bool) -> None:
    """Add to `found` what decides the tasks of a benchmark; nothing of them runs.

    Errors: InputError for a task there is not, and those of task_files.decide.
    """
    manager = _manager(_folder(benchmark, own))
    for name in _names(benchmark, manager, own):
        path, where = manager.task_index[name].yaml_path, f"{benchmark.name}, task {name!r}"
        if path is None:
            raise InputError(f"{where} has no file of its own; name another")
        decide(path, None if benchmark.folder else own, found, allow_code=allow_code, local=local, where=where)


def load_tasks(
    benchmark: Benchmark, own: Path, data: LocalData | None, *, allow_code: bool = False
) -> tuple[list[LoadedTask], list[str]]:
    """The tasks of a benchmark with their rows, and the names of those without any (may_lack_tasks).

    own: folder of the suite's own task files. data: local rows, None = the hub. allow_code: run what does not come with
    the harness.
    Errors: InputError for a task there is not, that the harness cannot read, or whose rows cannot be had or asked.
    """
    find_files(benchmark, own, TaskFiles(), allow_code=allow_code, local=data is not None)
    manager = _manager(_folder(benchmark, own))
    loaded, lacking = [], []
    for name in _names(benchmark, manager, own):
        changes: dict[str, Any] = {"num_fewshot": benchmark.shots}
        if data is not None:
            folder = benchmark.data or benchmark.name
            changes["dataset_path"] = str((data.folder / folder).resolve())
            changes["dataset_kwargs"] = {"cache_dir": str(data.cache_folder(folder))}
        try:
            with quiet(), rendering(own=not benchmark.folder):
                found = manager.load([{"group": benchmark.name, "task": [{"task": name, **changes}]}])
                loaded += [_loaded(task_name, task, benchmark, data) for task_name, task in found["tasks"].items()]
        except (MobillamaError, MemoryError):
            raise
        except Exception as error:
            if benchmark.may_lack_tasks and isinstance(error, IndexError) and "size 0" in str(error):
                lacking.append(name)
                continue
            raise _not_loaded(benchmark, name, manager, error) from error
    for one in loaded:
        with in_words(f"{benchmark.name}, task {one.name!r}"):
            known = list(one.task.aggregation())
        if benchmark.metric.partition(",")[0] not in known:
            raise InputError(
                f"{benchmark.name}: task {one.name!r} gives no metric {benchmark.metric!r}; expected one of"
                f" {', '.join(known)}"
            )
    if not loaded:
        raise InputError(f"{benchmark.name}: none of {', '.join(benchmark.tasks)} has an item in the data")
    items = sum(len(one.task.eval_docs) for one in loaded)
    if items < benchmark.min_items:
        raise InputError(
            f"{benchmark.name}: found {items} items; expected {benchmark.min_items} or more: the data are cut short"
        )
    return loaded, lacking


def build_items(loaded: LoadedTask, seed: int) -> list[Item]:
    """All items of a task, in its order, as the harness builds them with this seed.

    Error: InputError names the item, or the example, that cannot be asked.
    """
    task = loaded.task
    with quiet(), rendering(own=loaded.is_own):
        try:
            task.set_fewshot_seed(seed)
            task.build_all_requests()
        except (MobillamaError, MemoryError):
            raise
        except Exception as error:
            raise InputError(f"{_what_failed(loaded)} ({_words(error)})") from error
    found: dict[int, list[Instance]] = {}
    for instance in task.instances:
        found.setdefault(int(instance.doc_id), []).append(instance)
    items = []
    for number in range(len(task.eval_docs)):
        if number not in found:
            raise InputError(f"{loaded.name}, item {number} of {loaded.origin} has no choices; correct its row")
        instances = found[number]
        instances.sort(key=lambda instance: instance.idx)
        texts = [
            text
            for one in instances
            for text in (one.args[:2] if one.request_type == "loglikelihood" else one.args[:1])
        ]
        if strange := [text for text in texts if not isinstance(text, str)]:
            raise InputError(
                f"{loaded.name}, item {number} of {loaded.origin} asks for {str(strange[0])[:100]!r}, which is no text;"
                " correct its row, or the task file"
            )
        asked = [[instance.request_type, *instance.args] for instance in instances]
        context = hashlib.sha256(manifest.canonical(asked)).hexdigest()
        items.append(Item(number, instances[0].doc, instances, context))
    return items


def choose(total: int, wanted: int, task: str, seed: int) -> list[int]:
    """The numbers of a fixed sample of a task's items, rising; all if `wanted` is 0. A smaller sample is in a larger.

    >>> set(choose(100, 5, "piqa", 1234)) < set(choose(100, 9, "piqa", 1234))
    True
    """
    if not wanted or wanted >= total:
        return list(range(total))

    def place(number: int) -> bytes:
        return hashlib.sha256(f"{seed}/{task}/{number}".encode()).digest()

    return sorted(sorted(range(total), key=place)[:wanted])


def share_of(numbers: Sequence[int], rank: int, size: int) -> list[int]:
    """What rank `rank` of `size` computes of some items: every size-th."""
    return list(numbers[rank::size])


def process(loaded: LoadedTask, item: Item, responses: Sequence[Any]) -> dict[str, Any]:
    """The metrics of one item, `metric,filter` -> value, as the harness computes them from the model's responses.

    Error: InputError names the item that cannot be scored.
    """
    task = loaded.task
    for instance, response in zip(item.instances, responses, strict=True):
        instance.resps = list(response) if isinstance(response, list) else [response]
        instance.filtered_resps = {}
    task._instances = item.instances
    metrics: dict[str, Any] = {}
    with (
        in_words(f"{loaded.name}, item {item.number} of {loaded.origin} cannot be scored"),
        rendering(own=loaded.is_own),
    ):
        task.apply_filters()
        for name in item.instances[0].filtered_resps:
            values = task.process_results(item.doc, [instance.filtered_resps[name] for instance in item.instances])
            metrics |= {f"{metric},{name}": value for metric, value in values.items()}
    return metrics


def right_choice(loaded: LoadedTask, item: Item) -> Any:
    """The right choice of a question: its number, where the task says so in one of the ways it can.

    Error: InputError names an item without choices, with an empty one, or whose right choice is none of them. A task
    that scores in a way of its own may mean something else by them.
    """
    task, where = loaded.task, f"{loaded.name}, item {item.number} of {loaded.origin}"
    with in_words(where), rendering(own=loaded.is_own):
        target = task.doc_to_text(item.doc) if task.multiple_input else task.doc_to_target(item.doc)
        choices = task.doc_to_choice(item.doc)
        gold = choices.index(target) if isinstance(target, str) and target in choices else target
    if callable(task.config.process_results) or type(task).process_results is not ConfigurableTask.process_results:
        return gold
    if not isinstance(choices, list) or not choices or not all(one and isinstance(one, str) for one in choices):
        raise InputError(f"{where} has the choices {str(choices)[:200]}; expected a list of texts, none of them empty")
    for one in gold if isinstance(gold, list) else [gold]:
        if not isinstance(one, int) or not 0 <= one < len(choices):
            raise InputError(
                f"{where} has the right choice {one!r}; expected 0 to {len(choices) - 1}, or the text of a choice"
            )
    return gold


@contextlib.contextmanager
def in_words(where: str) -> Iterator[None]:
    """Turn what the harness or a task's code raises in the block into an InputError that says where.

    They raise anything: a row or a task file that does not fit shows as an IndexError, an assertion, an error of Jinja.
    """
    try:
        yield
    except (MobillamaError, MemoryError):
        raise
    except Exception as error:
        raise InputError(f"{where}: {_words(error)}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the bars and notes of the harness and of `datasets`: what matters is an error or in the results."""
    import datasets
    from lm_eval.api import task as task_module

    bars, bar = datasets.utils.logging.is_progress_bar_enabled(), task_module.tqdm
    was = logging.root.manager.disable
    datasets.disable_progress_bars()
    task_module.tqdm = lambda rows, **_: rows
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(was)
        task_module.tqdm = bar
        if bars:
            datasets.enable_progress_bars()


@lru_cache(16)
def _manager(folder: Path) -> TaskManager:
    """The harness's index of one folder of task files."""
    with quiet():
        return TaskManager(include_defaults=False, include_path=str(folder))


def _folder(benchmark: Benchmark, own: Path) -> Path:
    return harness_folder(benchmark.folder, benchmark.name) if benchmark.folder else own_folder(own)


def _names(benchmark: Benchmark, manager: TaskManager, own: Path) -> list[str]:
    """The tasks of a benchmark, groups taken apart."""
    return [leaf for wanted in benchmark.tasks for leaf in _leaves(benchmark, manager, wanted, own)]


def _leaves(benchmark: Benchmark, manager: TaskManager, name: str, own: Path, above: tuple[str, ...] = ()) -> list[str]:
    """The tasks that a name of the harness stands for: itself, or those of a group or tag, at any depth.

    One by one, because the harness (0.4.13) gives what is told to a group's tasks their names too.
    """
    if name not in manager.all_tasks:
        near = difflib.get_close_matches(name, manager.all_tasks, 3) or sorted(manager.all_tasks)[:3]
        raise InputError(
            f"{benchmark.name}: the harness has no task {name!r} in {benchmark.folder or own};"
            f" expected a name such as {', '.join(near)}"
        )
    entry = manager.task_index[name]
    if name in manager.all_tags:
        return sorted(entry.tags)
    if name not in manager.all_groups:
        return [name]
    members = (entry.cfg or {}).get("task")
    if not isinstance(members, list) or not all(isinstance(member, str) for member in members):
        raise InputError(
            f"{benchmark.name}: the group {name!r} changes its tasks, or names none; name them one by one instead"
        )
    if name in above:
        raise InputError(f"{benchmark.name}: the group {name!r} holds itself; take it out of {above[-1]!r}")
    return [leaf for member in members for leaf in _leaves(benchmark, manager, member, own, (*above, name))]


def _not_loaded(benchmark: Benchmark, name: str, manager: TaskManager, error: Exception) -> InputError:
    """The error of a task that the harness did not load: its rows, its first item, or its file does not fit."""
    where = f"{benchmark.name}, task {name!r} ({manager.task_index[name].yaml_path})"
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if any(frame.f_code.co_name == "download" for frame in frames):
        return InputError(
            f"{benchmark.name}: the rows of task {name!r} cannot be had ({_words(error)}); give"
            " --data DIR with the benchmark's folder, or connect to the network"
        )
    if any("test_doc" in frame.f_locals for frame in frames):  # the harness tries the first item on loading
        return InputError(f"{where}, item 0 cannot be asked: {_words(error)}; correct its row, or the task file")
    return InputError(f"{where} cannot be read by the harness: {_words(error)}; correct the task file")


def _what_failed(loaded: LoadedTask) -> str:
    """Which item of a task the harness cannot ask, or which example it cannot show, found by asking each alone."""
    task, of = loaded.task, f"of {loaded.origin}"
    for number, doc in enumerate(task.eval_docs):
        if part := _part_that_fails(task, doc):
            return f"{loaded.name}, item {number} {of}: its {part} cannot be made; correct its row, or the task file"
    for number, doc in enumerate(task.fewshot_docs() or ()):
        if part := _part_that_fails(task, doc):
            return f"{loaded.name}, example {number} {of}: its {part} cannot be made; correct its row, or the task file"
    return f"{loaded.name} {of}: the harness cannot ask it; correct the task file"


def _part_that_fails(task: Task, doc: Any) -> str:
    """What the harness cannot make of a row: text, choices, answer or request; "" where it makes all."""
    part = "text"
    try:
        task.doc_to_text(doc)
        choices = None
        if task.config.doc_to_choice is not None:
            part = "list of choices"
            choices = task.doc_to_choice(doc)
            if not all(isinstance(one, str) for one in choices):
                return part
        part = "answer"
        target = task.doc_to_target(doc)
        if choices is not None and isinstance(target, int):
            choices[target]
        part = "request"
        asked = task.fewshot_context(doc, 0, gen_prefix=task.doc_to_prefix(doc))
        task.construct_requests(doc=doc, ctx=asked, metadata=("", 0, 1))
    except Exception:  # the caller has what was raised in the harness's own order
        return part
    return ""


def _loaded(name: str, task: Task, benchmark: Benchmark, data: LocalData | None) -> LoadedTask:
    origin = (benchmark.data or benchmark.name) if data is not None else str(task.DATASET_PATH)
    if data is not None and str(task.config.dataset_path) != str((data.folder / origin).resolve()):
        raise InputError(
            f"{benchmark.name}: task {name!r} takes its rows from a place that its code names; leave --data out"
        )
    fingerprint = hashlib.sha256()
    for doc in task.eval_docs:
        fingerprint.update(manifest.canonical(_plain(doc)))
    return LoadedTask(name, task, origin, fingerprint.hexdigest(), not benchmark.folder)


def _plain(value: Any) -> Any:
    """A row as JSON takes it."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)


def _words(error: BaseException) -> str:
    """An error of the harness in one line, without addresses in memory."""
    said = re.sub(r" at 0x[0-9a-f]+", "", str(error)).splitlines() or ["it says nothing more"]
    return f"{type(error).__name__}: {said[0][:200]}"
