"""One function for every form of a model: a folder, a run or a hub name in torch, a .gguf file in the engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from mobillama.errors import InputError
from mobillama.runtime.gguf_file import is_gguf

if TYPE_CHECKING:
    from mobillama.generation.text import TextModel
    from mobillama.language_model import LanguageModel
    from mobillama.runtime.engine_model import EngineModel


@overload
def load(name: str | Path, *, device: str = ..., dtype: str = ..., revision: str | None = ...) -> LanguageModel: ...
@overload
def load(name: str | Path, *, threads: int = ..., kv: str = ..., ignore_keys: Sequence[str] = ...) -> EngineModel: ...
def load(name: str | Path, **options: Any) -> TextModel:
    """Read a model with its tokenizer: a folder, a run or a hub name (LanguageModel.load), or a .gguf file.

    A .gguf file, whatever its name if it begins with GGUF's magic, is opened in the engine, without torch
    (EngineModel.load, options threads, kv and ignore_keys); of one that was split, name the first part.
    Errors: InputError if the model is not found or an option belongs to the other kind; see the classes for the rest.

    >>> model = load(model_folder, device="cpu")
    >>> isinstance(model.generate("import ", max_new_tokens=3), str)
    True
    """
    in_engine = is_gguf(name)
    mine, others = (ENGINE, TORCH) if in_engine else (TORCH, ENGINE)
    if wrong := sorted(options.keys() & others):
        kind = "a .gguf file, which runs in the engine" if in_engine else "no .gguf file, so it runs in torch"
        raise InputError(
            f"{wrong[0]}={options[wrong[0]]!r} was given, but {name} is {kind}; expected only {', '.join(sorted(mine))}"
        )
    if in_engine:
        from mobillama.runtime.engine_model import EngineModel

        return EngineModel.load(name, **options)
    from mobillama.language_model import LanguageModel

    return LanguageModel.load(name, **options)


TORCH, ENGINE = frozenset(("device", "dtype", "revision")), frozenset(("threads", "kv", "ignore_keys"))
