"""Templates of tasks: compiled once, and a suite's own without a way to the interpreter."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from jinja2 import BaseLoader, Environment, StrictUndefined, UndefinedError
from jinja2.sandbox import SandboxedEnvironment
from lm_eval import utils

TEMPLATES = 4096  # compiled templates kept: MMLU alone has a description a subject


def _complete(value: Any) -> Any:
    """What is put into a text. Error: UndefinedError for None, which is what a row without the field gives."""
    if value is None:
        raise UndefinedError("a field of the row is missing or null, and its template has no word for that")
    return value


def _environment(own: bool) -> Environment:
    """As the harness makes its environment; own: in Jinja's sandbox, and every field that is shown must be there."""
    kind: Any = SandboxedEnvironment if own else Environment
    more: dict[str, Any] = {"finalize": _complete} if own else {}
    made: Environment = kind(loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True, **more)
    made.filters |= utils.env.filters
    once: Any = lru_cache(TEMPLATES)(made.from_string)
    made.from_string = once  # type: ignore[method-assign]
    return made


OF_HARNESS, OF_SUITE = _environment(own=False), _environment(own=True)


@contextlib.contextmanager
def rendering(*, own: bool) -> Iterator[None]:
    """Let the harness render the templates of a task, a suite's own or one of its own, in the block.

    Each is compiled once: the harness would do so for every shot of every item, for most of its time.
    """
    before = utils.env
    utils.env = OF_SUITE if own else OF_HARNESS
    try:
        yield
    finally:
        utils.env = before
