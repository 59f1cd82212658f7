"""Task files of a benchmark: which YAML and Python decide its prompts and scores, told before any of it runs.

A suite may be a stranger's. Its task files lie in the folder `tasks` beside it or in the installed harness, symbolic
links resolved; they are read here with all they include, and `!function` is taken as a name, where the harness would
import it. What would run code from outside the harness is refused unless it is allowed.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lm_eval
import yaml
from lm_eval.api import metrics as _  # noqa: F401 - registers the metrics
from lm_eval.api.registry import metric_registry

from mobillama import manifest
from mobillama.errors import InputError

PACKAGE = Path(lm_eval.__file__).resolve().parent
HARNESS = PACKAGE / "tasks"
CORE = ("*.py", "api/**/*.py", "config/**/*.py", "filters/**/*.py", "prompts/**/*.py", "tasks/*.py")
OF_THE_HUB = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # a data set's name there
HUB_SETTINGS = {"revision", "trust_remote_code"}  # of dataset_kwargs: the harness drops the second


class Function(str):
    """What `!function` names: a function of a module."""


@dataclass
class TaskFiles:
    """What decides the prompts and scores of some tasks."""

    hashes: dict[str, str] = field(default_factory=dict)  # name -> sha256
    code: set[str] = field(default_factory=set)  # what runs that is neither ours nor the harness's, in words


@dataclass(frozen=True)
class TaskFile:
    """A YAML file with all it includes."""

    tree: dict[str, Any]
    files: tuple[Path, ...]  # this one first
    functions: tuple[tuple[Path, str], ...]  # what `!function` names, with the file that names it


def own_folder(folder: Path) -> Path:
    """The folder of a suite's own task files, with every YAML file in it looked at.

    Errors: InputError for one that is not there, or that leads out of the suite's folder in any way.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; expected the suite's own task files there")
    if folder.resolve() != folder.parent.resolve() / folder.name:
        raise InputError(f"{folder} is a link to {folder.resolve()}; put the suite's task files beside the suite")
    for path in sorted(folder.glob("**/*.yaml")):
        tree = read_task_file(path, folder).tree
        key = "group" if "group" in tree and "class" not in tree else "task"
        if not isinstance(tree.get(key, ""), str):
            raise InputError(f"{path}: {key} is {str(tree[key])[:100]!r}; expected a name")
        tags = tree.get("tag") or []
        if not isinstance(tags, (str, list)) or not all(isinstance(tag, str) for tag in tags):
            raise InputError(f"{path}: tag is {str(tags)[:100]!r}; expected a name, or a list of names")
    return folder


def harness_folder(name: str, benchmark: str) -> Path:
    """One of the harness's folders of task files. Error: InputError for what is none, or lies elsewhere."""
    folder = _resolve(HARNESS / name)
    if not folder.is_relative_to(HARNESS) or not folder.is_dir():
        raise InputError(
            f"{benchmark}: folder = {name!r}; expected one of the harness's folders of task files, such as"
            f" {', '.join(sorted(path.name for path in HARNESS.glob('[a-z]*') if path.is_dir())[:3])}"
        )
    return folder


def read_task_file(path: Path, own: Path | None) -> TaskFile:
    """A YAML file with what it includes, put together as the harness does; nothing of it runs.

    own: the suite's folder of task files, beside the harness the only place where such a file may be.
    Errors: InputError for a file outside, one that is none, or whose YAML is no mapping.
    """
    try:
        return _read(path, own, (), set())
    except RecursionError:
        raise InputError(f"{path} includes a chain of files that is too long; include fewer") from None


def decide(path: Path, own: Path | None, found: TaskFiles, *, allow_code: bool, local: bool, where: str) -> None:
    """Add to `found` what decides the task of the file `path`.

    local: its rows come from a folder, not from the hub. where: names benchmark and task in errors.
    Errors: InputError for code that is not allowed, for files outside, and for rows that would come from elsewhere.
    """
    task = read_task_file(path, own)
    code, modules, installed = set(_code_by_name(task.tree)), [], set()
    for origin, name in task.functions:
        module = _module_file(origin, name, own, where)
        if module is None or not module.is_relative_to(PACKAGE if _is_harness(origin) else HARNESS):
            code.add(f"!function {name} of {_label(origin, own)}")
        if module is None:
            installed.add(name.rpartition(".")[0])
        else:
            modules.append(module)
    if code and not allow_code:
        raise InputError(
            f"{where}: {_label(path, own)} runs code that does not come with the harness ({'; '.join(sorted(code))});"
            " read it, then allow it with --allow-code, or leave the task out"
        )
    _check_rows_place(task, own, where, local)
    found.code |= code
    found.hashes |= {_label(file, own): manifest.sha256_file(file) for file in {*task.files, *_closure(modules, own)}}
    for name in installed:  # allowed by now: to find a module imports what it lies in
        file = _installed_file(name, where)
        found.hashes |= {name: "no file"} if file is None else {name: manifest.sha256_file(file)}


def core_digest() -> str:
    """sha256 over the harness's own Python files but its tasks: metrics, samplers, filters, how a prompt is built."""
    files = sorted({path for pattern in CORE for path in PACKAGE.glob(pattern)})
    lines = [f"{path.relative_to(PACKAGE).as_posix()} {manifest.sha256_file(path)}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _read(path: Path, own: Path | None, above: Sequence[Path], seen: set[Path]) -> TaskFile:
    place = _resolve(path)
    if not (place.is_relative_to(HARNESS) or (own is not None and place.is_relative_to(own.resolve()))):
        leads = f", which leads to {place}" if place != path.absolute() else ""
        named = f" (included by {above[-1]})" if above else ""
        raise InputError(
            f"{path}{leads}{named}: task files come from the suite's folder {'tasks' if own is None else own} or from"
            " the harness; put a copy of it there"
        )
    if not os.path.isfile(place):  # noqa: PTH113 - no error for a name that is too long
        named = f", which {above[-1]} includes," if above else ""
        raise InputError(f"{path}{named} is no file; expected a task file in YAML")
    if place in seen:
        raise InputError(f"{path} is included twice, or by itself; take one `include` out")
    seen.add(place)
    functions: list[tuple[Path, str]] = []
    tree = _load(place, functions)
    files = [place]
    merged: dict[str, Any] = {}
    includes = tree.pop("include", [])
    for name in includes if isinstance(includes, list) else [includes]:
        if not isinstance(name, str):
            raise InputError(f"{path}: include is {name!r}; expected the name of a file")
        inner = _read(place.parent / name, own, (*above, place), seen)
        merged |= {key: value for key, value in inner.tree.items() if key != "task_list"}
        files += inner.files
        functions += inner.functions
    return TaskFile(merged | tree, tuple(files), tuple(functions))


def _load(path: Path, functions: list[tuple[Path, str]]) -> dict[str, Any]:
    """The mapping of one YAML file; what `!function` names is added to `functions`."""

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        pass

    def name(loader: Any, node: Any) -> Function:
        functions.append((path, str(loader.construct_scalar(node))))
        return Function(functions[-1][1])

    Loader.add_constructor("!function", name)
    try:
        tree = yaml.load(path.read_bytes(), Loader=Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} is not YAML that a task can have: {words[:300]}") from None
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise InputError(f"{path} holds no mapping of names to values; expected a task file such as the harness's")
    return tree


def _code_by_name(tree: dict[str, Any]) -> Iterable[str]:
    """Code that a task has run without `!function`: the model's own, and metrics that are scripts from the hub."""
    if tree.get("unsafe_code", False) is not False:
        yield "unsafe_code: what the model writes is run"
    metrics = tree.get("metric_list")
    if tree.get("process_results") is not None or not isinstance(metrics, list):
        return
    for metric in metrics:
        name = metric.get("metric") if isinstance(metric, dict) else None
        if not isinstance(name, str) or isinstance(name, Function):
            continue
        if metric.get("hf_evaluate") is True or name not in metric_registry:
            yield f"metric {name}: a script that the library evaluate takes from the hub or a folder of this name"


def _module_file(origin: Path, name: str, own: Path | None, where: str) -> Path | None:
    """The file in which the harness would look for a function; None for a module that is installed elsewhere."""
    module = name.rpartition(".")[0]
    if not module:
        raise InputError(f"{where}: !function {name} of {origin} names no module; expected MODULE.FUNCTION")
    beside = _resolve(origin.parent / f"{module.replace('.', '/')}.py")
    if beside.exists():
        if not (beside.is_relative_to(HARNESS) or (own is not None and beside.is_relative_to(own.resolve()))):
            raise InputError(
                f"{where}: !function {name} of {origin} leads to {beside}; put a copy of it beside the task file"
            )
        return beside
    parts = module.split(".")
    if parts[0] != PACKAGE.name:
        return None
    place = PACKAGE.joinpath(*parts[1:])
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def _installed_file(module: str, where: str) -> Path | None:
    try:
        spec = find_spec(module)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"{where}: module {module} cannot be found ({error}); install it, or correct its name"
        ) from None
    file = None if spec is None or spec.origin is None else Path(spec.origin)
    return file if file is not None and file.is_file() else None


def _closure(modules: Sequence[Path], own: Path | None) -> set[Path]:
    """Modules with those of the harness's tasks that they import; of a suite's own folder all there are."""
    found: set[Path] = set()
    left = list(modules)
    while left:
        file = left.pop()
        if file in found:
            continue
        found.add(file)
        if own is not None and file.is_relative_to(own.resolve()):
            left += [path.resolve() for path in own.rglob("*.py") if path.resolve().is_file()]
        left += _imports(file)
    return found


def _imports(file: Path) -> list[Path]:
    """The files of the harness's tasks that a module imports, in any of its functions too."""
    try:
        parsed = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError):  # the harness will say so when it is run
        return []
    names: list[list[str]] = []
    for node in ast.walk(parsed):
        if isinstance(node, ast.Import):
            names += [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = (node.module or "").split(".") if node.module else []
            if node.level and file.is_relative_to(PACKAGE):
                above = file.relative_to(PACKAGE).parts[: -node.level]
                base = [PACKAGE.name, *above, *base]
            names += [base, *([*base, alias.name] for alias in node.names)]
    found = []
    for parts in names:
        if parts[:2] == [PACKAGE.name, HARNESS.name] and len(parts) > 2:
            place = HARNESS.joinpath(*parts[2:])
            found += [path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()]
    return found


def _check_rows_place(task: TaskFile, own: Path | None, where: str, local: bool) -> None:
    """Raise InputError where a task's rows or prompts would come from elsewhere than a suite may take them from."""
    tree, name = task.tree, _label(task.files[0], own)
    prompt = tree.get("use_prompt")
    if prompt is not None and (not isinstance(prompt, str) or ".yaml" in prompt or prompt.startswith("promptsource")):
        raise InputError(f"{where}: {name} takes its prompt from {prompt!r}; write it into doc_to_text")
    if local:
        if tree.get("custom_dataset") is not None:
            raise InputError(f"{where}: {name} makes its rows with code, not from a folder; leave --data out")
        return
    path = tree.get("dataset_path")
    if isinstance(path, str) and os.path.exists(path):  # noqa: PTH110 - no error for a name that no file can have
        raise InputError(f"{where}: {path!r} is here, but without --data rows come from the hub; give --data DIR")
    if _is_harness(task.files[0]) or path is None:
        return
    settings = tree.get("dataset_kwargs") or {}
    strange = sorted(map(str, {*settings} - HUB_SETTINGS)) if isinstance(settings, dict) else ["dataset_kwargs"]
    from datasets.load import _PACKAGED_DATASETS_MODULES as READERS

    if not isinstance(path, str) or not OF_THE_HUB.fullmatch(path) or path in READERS or strange:
        said = f"dataset_kwargs with {', '.join(strange)}" if strange else f"dataset_path {path!r}"
        raise InputError(f"{where}: {name} has {said}; expected the name of a data set of the hub, or give --data DIR")


def _resolve(path: Path) -> Path:
    """Where a path leads. Error: InputError for a name that no file can have, or links without an end."""
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{str(path)!r} leads nowhere ({error}); expected the name of a file") from None


def _is_harness(path: Path) -> bool:
    return path.is_relative_to(PACKAGE)


def _label(path: Path, own: Path | None) -> str:
    """What a file is called in errors and results, wherever suite and harness are installed."""
    place = path.resolve()
    if place.is_relative_to(PACKAGE):
        return f"{PACKAGE.name}/{place.relative_to(PACKAGE).as_posix()}"
    return f"tasks/{place.relative_to(own.resolve()).as_posix()}" if own is not None else str(path)
