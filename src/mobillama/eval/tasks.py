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
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from mobillama import manifest
from mobillama.errors import InputError
from mobillama.eval.data import LocalData
from mobillama.eval.suite import Benchmark

VERSION = str(lm_eval.__version__) if hasattr(lm_eval, "__version__") else "unknown"
TEMPLATES = 4096  # compiled templates kept: MMLU alone has a description a subject


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


@dataclass(frozen=True)
class LoadedTask:
    """A task with its rows, and where they came from."""

    name: str
    task: Task
    origin: str  # folder of the data set below --data, or its name on the hub
    fingerprint: str  # of the rows that are scored


def load_tasks(benchmark: Benchmark, own: Path, data: LocalData | None) -> tuple[list[LoadedTask], list[str]]:
    """The tasks of a benchmark with their rows, and the names of those without any (may_lack_tasks).

    own: folder of the suite's own task files. data: local rows, None = the hub.
    Errors: InputError for a task there is not, or rows that cannot be had.
    """
    manager = _manager(_folder(benchmark, own))
    loaded, lacking = [], []
    for name in [leaf for wanted in benchmark.tasks for leaf in _leaves(benchmark, manager, wanted, own)]:
        changes: dict[str, Any] = {"num_fewshot": benchmark.shots}
        if data is not None:
            folder = benchmark.data or benchmark.name
            changes["dataset_path"] = str((data.folder / folder).resolve())
            changes["dataset_kwargs"] = {"cache_dir": str(data.cache_folder(folder))}
        try:
            with quiet():
                found = manager.load([{"group": benchmark.name, "task": [{"task": name, **changes}]}])
        except IndexError as error:
            if benchmark.may_lack_tasks and "size 0" in str(error):
                lacking.append(name)
                continue
            raise
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{benchmark.name}: the rows of task {name!r} cannot be had ({_first_line(error)}); give"
                " --data DIR with the benchmark's folder, or connect to the network"
            ) from None
        loaded += [_loaded(task_name, task, benchmark, data) for task_name, task in found["tasks"].items()]
    for one in loaded:
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
    """All items of a task, in its order, as the harness builds them with this seed."""
    task = loaded.task
    with quiet(), compiled_once():
        task.set_fewshot_seed(seed)
        task.build_all_requests()
    found: dict[int, list[Instance]] = {}
    for instance in task.instances:
        found.setdefault(int(instance.doc_id), []).append(instance)
    items = []
    for number, instances in found.items():
        instances.sort(key=lambda instance: instance.idx)
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
    """The metrics of one item, `metric,filter` -> value, as the harness computes them from the model's responses."""
    task = loaded.task
    for instance, response in zip(item.instances, responses, strict=True):
        instance.resps = list(response) if isinstance(response, list) else [response]
        instance.filtered_resps = {}
    task._instances = item.instances
    task.apply_filters()
    metrics: dict[str, Any] = {}
    for name in item.instances[0].filtered_resps:
        values = task.process_results(item.doc, [instance.filtered_resps[name] for instance in item.instances])
        metrics |= {f"{metric},{name}": value for metric, value in values.items()}
    return metrics


@contextlib.contextmanager
def compiled_once() -> Iterator[None]:
    """Compile each template of the harness once: it would do so for every shot of every item, for most of its time."""
    compile_anew = utils.env.from_string
    utils.env.from_string = lru_cache(TEMPLATES)(compile_anew)
    try:
        yield
    finally:
        utils.env.from_string = compile_anew


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
    folder = Path(lm_eval.__file__).parent / "tasks" / benchmark.folder if benchmark.folder else own
    if not folder.is_dir():
        raise InputError(
            f"{benchmark.name}: {folder} is no folder; expected one of the harness's folders of task files"
        )
    return folder


def _leaves(benchmark: Benchmark, manager: TaskManager, name: str, own: Path) -> list[str]:
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
    members = (entry.cfg or {}).get("task", [])
    if not all(isinstance(member, str) for member in members):
        raise InputError(f"{benchmark.name}: the group {name!r} changes its tasks; name them one by one instead")
    return [leaf for member in members for leaf in _leaves(benchmark, manager, member, own)]


def _loaded(name: str, task: Task, benchmark: Benchmark, data: LocalData | None) -> LoadedTask:
    origin = (benchmark.data or benchmark.name) if data is not None else str(task.DATASET_PATH)
    fingerprint = hashlib.sha256()
    for doc in task.eval_docs:
        fingerprint.update(manifest.canonical(_plain(doc)))
    return LoadedTask(name, task, origin, fingerprint.hexdigest())


def _plain(value: Any) -> Any:
    """A row as JSON takes it."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
