"""The ids at which a model folder says that a text ends, from `config.json` and `generation_config.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobillama.errors import InputError
from mobillama.manifest import read_object
from mobillama.model import config_file

GENERATION_FILE = "generation_config.json"
KEY = "eos_token_id"


def read_end_ids(folder: Path, vocab_size: int) -> tuple[int, ...]:
    """Every id that either file gives as `eos_token_id`, a number or a list, in the files' order, each once.

    transformers stops at those of generation_config.json where there is one; here any of both ends a text, so that
    none is run over. vocab_size: rows of the model's embedding.
    Errors: InputError for what is no id of this model; DamagedFileError for a file that is no JSON object.
    """
    paths = [path for name in (config_file.FILE, GENERATION_FILE) if (path := folder / name).is_file()]
    return tuple(dict.fromkeys(id_ for path in paths for id_ in _ids_in(path, vocab_size)))


def _ids_in(path: Path, vocab_size: int) -> list[int]:
    given = read_object(path).get(KEY)
    ids: list[Any] = given if isinstance(given, list) else [] if given is None else [given]
    for id_ in ids:
        if type(id_) is not int or not 0 <= id_ < vocab_size:  # True is no id
            raise InputError(
                f"{path}: {KEY}={given!r}; expected an id from 0 to {vocab_size - 1}, or a list of such ids: correct "
                "the file, or get the one that belongs to these weights"
            )
    return ids
