"""A model in a .gguf file with its tokenizer, computed by the engine: text in, text out, without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from mobillama.errors import InputError
from mobillama.generation.sampling import Settings
from mobillama.generation.text import TextModel
from mobillama.runtime.engine import KV, MAX_VERIFY, Engine, Ids, Info
from mobillama.runtime.generate import Generation
from mobillama.tokenizer.gguf_vocabulary import read_tokenizer
from mobillama.tokenizer.tokenizer import Tokenizer

# T time, V vocab_size


class EngineModel(TextModel):
    """An open .gguf file; generates as mobillama.LanguageModel does, and takes `lookup` besides.

    Closing it, or leaving its `with`, frees its weights.
    """

    OWN_CHOICES: ClassVar[frozenset[str]] = frozenset(("lookup",))

    def __init__(self, engine: Engine, *, threads: int = 0, kv: KV = "f16") -> None:
        """Use an open engine. threads: 0 = one per core. kv: f16, int8 or f32, the type of keys and values."""
        self.engine = engine
        self.threads, self.kv = threads, kv

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        threads: int = 0,
        kv: KV = "f16",
        ignore_keys: Sequence[str] = (),
        progress: Callable[[float], None] | None = None,
    ) -> EngineModel:
        """Open a .gguf file. ignore_keys, progress, errors: as Engine.open."""
        engine = Engine.open(path, threads=threads, ignore_keys=ignore_keys, progress=progress)
        return cls(engine, threads=threads, kv=kv)

    @property
    def info(self) -> Info:
        """Shapes and bytes."""
        return self.engine.info

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer in the file. Error: InputError if it has none, or one that is not the model's."""
        found = read_tokenizer(self.engine.path)
        if found.vocab_size > self.info.vocab_size:
            raise InputError(
                f"the tokenizer in {self.engine.path} has {found.vocab_size} pieces, the model an embedding of"
                f" {self.info.vocab_size} rows: this is not the tokenizer the model was trained with"
            )
        return found

    def __call__(self, ids: Ids) -> npt.NDArray[np.float32]:
        """Logits of the next token after each of ids (T,): (T, V). Errors: InputError, as Context."""
        rows = []
        with self.engine.context(threads=self.threads, kv=self.kv) as context:
            for start in range(0, len(ids), MAX_VERIFY):
                part = ids[start : start + MAX_VERIFY]
                context.verify(part)
                rows += [context.logits(row) for row in range(len(part))]
        return np.stack(rows) if rows else np.zeros((0, self.info.vocab_size), np.float32)

    def __repr__(self) -> str:
        return f"EngineModel({self.engine!r}, {self.kv} keys and values)"

    def close(self) -> None:
        """Free the weights. May be called twice."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _continue(self, prompts: Sequence[Sequence[int]], settings: Settings, own: Mapping[str, Any]) -> Generation:
        return Generation(self.engine, prompts, settings, threads=self.threads, kv=self.kv, **own)
