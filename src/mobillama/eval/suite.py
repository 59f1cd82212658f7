"""Suites of benchmarks: small files `recipes/eval/NAME.toml` that say which tasks of the harness, at how many shots,
which metric, and how the tasks of one benchmark become one figure.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from mobillama.config import Section, check_name, recipes_folder, resolve
from mobillama.errors import RecipeError


class Benchmark(Section):
    """One row of a table: one task of the harness, or several of equal weight."""

    name: str = Field(description="name of the row")
    tasks: tuple[str, ...] = Field(min_length=1, description="names of the harness's tasks, or of a group of them")
    folder: str = Field(
        "",
        description="the harness's folder of task files that holds them, so that its other thousands need not be read;"
        " empty = the folder `tasks` beside the suite",
    )
    shots: int = Field(ge=0, description="examples before the question")
    metric: str = Field(description="the harness's name of the metric, with ',FILTER' where a task has several filters")
    data: str = Field("", description="folder under --data that holds the rows; empty = the benchmark's name")
    sample: int = Field(0, ge=0, description="items of each task, a fixed sample; 0 = all")
    min_items: int = Field(0, ge=0, description="items that all tasks together have at least: fewer are cut data")
    may_lack_tasks: bool = Field(False, description="a task without any item in the data is left out, and named")
    unbiased_at: float | None = Field(None, description="value at which no side is preferred: the distance is shown")
    in_average: bool = Field(True, description="counts in the suite's average")


class Suite(Section):
    """Benchmarks that are run and shown together."""

    name: str
    about: str = Field(description="what it is, in one sentence")
    seed: int = Field(1234, description="of the shots (the harness's default) and of the samples")
    benchmarks: tuple[Benchmark, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = Counter(one.name for one in self.benchmarks)
        if twice := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"two benchmarks are called {twice[0]!r}; every row needs a name of its own")
        return self


def suites_folder() -> Path:
    """Where the suites that come with mobillama lie."""
    return recipes_folder() / "eval"


def task_files(path: Path) -> Path:
    """The folder of a suite's own task files."""
    return path.parent / "tasks"


def find_suite(name: str | Path) -> Path:
    """The file of a suite: a path, or the name of one that comes with mobillama. Error: RecipeError lists the names."""
    if Path(name).suffix == ".toml" and Path(name).is_file():
        return Path(name)
    path = suites_folder() / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in suites_folder().glob("*.toml")))
        raise RecipeError(f"there is no suite {str(name)!r}; expected the path of a .toml file, or one of {known}")
    return path


def read_suite(name: str | Path) -> Suite:
    """A checked suite. Errors: RecipeError for a name there is not, bad TOML, an unknown key or a bad value."""
    path = find_suite(name)
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid TOML: {error}") from None
    suite = resolve(Suite, {"name": path.stem, **tree}, str(path))
    for one, key in ((suite.name, "name"), *((row.name, "benchmarks.name") for row in suite.benchmarks)):
        check_name(one, str(path), key)
    return suite
