"""JSON as artefacts hold it, read strictly: a text that two readers could take for two things is refused.

Every problem is a ValueError in plain words, so that a reader names its file and no traceback is left. Which texts are
refused: docs/formats.md, section JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

DEPTH = 64  # levels of objects and lists
INTEGERS = range(-(2**63), 2**64)
WORDS = {dict: "an object", list: "a list", str: "a text", int: "an integer", float: "a number", type(None): "null"}


def parse(data: bytes) -> Any:
    """The value of a JSON text in UTF-8. Error: ValueError saying what is wrong with it.

    >>> parse(b'{"a": [1, 2.5]}')
    {'a': [1, 2.5]}
    >>> parse(b'{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: the key 'a' stands there twice
    """
    try:
        tree = json.loads(data.decode(), object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(f"nested more than {DEPTH} levels deep") from None
    _check(tree, DEPTH)
    return tree


def require(tree: Any, types: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """A value, if it is an object that has these keys with values of these types (true is no integer).

    Other keys are allowed. Error: ValueError naming the first key that does not fit.

    >>> require({"step": True}, {"step": int})
    Traceback (most recent call last):
    ValueError: 'step' is True; expected an integer
    """
    if type(tree) is not dict:
        raise ValueError(f"found {tree!r:.60}; expected an object")
    for key, kind in types.items():
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if key not in tree:
            raise ValueError(f"the key {key!r} is missing")
        if type(tree[key]) not in kinds:
            words = " or ".join(WORDS[kind] for kind in kinds)
            raise ValueError(f"{key!r} is {tree[key]!r:.60}; expected {words}")
    return tree


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return tree


def _check(value: Any, depth: int) -> None:
    """Refuse what is JSON for Python's parser but not a value that every reader takes alike."""
    if isinstance(value, str):
        value.encode()  # a lone half of a surrogate pair: UnicodeEncodeError is a ValueError
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"the number {value} is not finite")
    elif isinstance(value, int):
        if value not in INTEGERS:
            raise ValueError("an integer of more than 64 bits")
    elif isinstance(value, (dict, list)):
        if not depth:
            raise ValueError(f"nested more than {DEPTH} levels deep")
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            _check(part, depth - 1)
