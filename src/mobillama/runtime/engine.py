"""A GGUF file in the engine, and sequences to compute with: the C door as two classes, numpy in and out.

`Engine` holds weights and serves any number of contexts; a `Context` holds sequences and threads, and only one thread
at a time may be inside it. Same file, ids and settings give the same bits, whatever the threads and the batch.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from mobillama.errors import InputError
from mobillama.generation.sampling import Settings
from mobillama.runtime.library import ContextOptions, InfoStruct, OpenOptions, Progress, check, library
from mobillama.runtime.sample import sample

# T ids of one call, V vocab_size

Ids = Sequence[int] | npt.NDArray[np.integer[Any]]
KV = Literal["f16", "int8", "f32"]
KV_TYPES = {"f16": 0, "int8": 1, "f32": 2}
MAX_VERIFY = 64  # ids of one `verify`
LONG = 16  # ids from which a call may take long enough that Ctrl-C has to reach it


@dataclass(frozen=True)
class Info:
    """Shapes of a model and where its bytes go; the fields of mobillama_info."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_ffn_blocks: int
    context_length: int
    file_bytes: int
    weight_bytes: int  # in memory
    bytes_per_token: int  # weights read for one token, every use counted
    unique_bytes_per_token: int  # each once
    resident_bytes: int  # FFN weights meant to stay in cache
    cache_bytes: int  # last-level cache; 0 = the system does not say
    isa: str


class Engine:
    """An open GGUF file. Closing it (or leaving its `with`) frees its contexts too."""

    def __init__(self, path: Path, pointer: ctypes.c_void_p) -> None:
        """Take over an open model; use `open`."""
        self.path = path
        self._handle = _Handle(pointer, library().mobillama_close)
        self._contexts: weakref.WeakSet[Context] = weakref.WeakSet()
        found = InfoStruct()
        check(library().mobillama_describe(pointer, ctypes.byref(found)))
        values = {name: getattr(found, name) for name, *_ in InfoStruct._fields_}
        self.info = Info(**{**values, "isa": found.isa.decode()})

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        threads: int = 0,
        share_ffn: bool = True,
        resident_bytes: int = 0,
        progress: Callable[[float], None] | None = None,
    ) -> Engine:
        """Read a GGUF file of architecture mobillama or llama and lay out its weights for this machine.

        threads: 0 = one per core. share_ffn=False: a copy of the FFN per layer, for measuring. resident_bytes of the
        FFN to keep in cache: 0 = by the cache's size, -1 = none. progress: called with a share from 0 to 1.
        Errors: InputError if there is no such file or the engine does not know its kind, DamagedFileError,
        OutOfMemoryError, MissingLibraryError.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path} is no file; expected a .gguf file (mobillama quantize MODEL OUT.gguf writes one)")
        raised: list[BaseException] = []

        def report(share: float, _user: int | None) -> None:
            if progress and not raised:
                try:
                    progress(share)
                except BaseException as error:  # cannot pass through C: raised after the call
                    raised.append(error)

        options = OpenOptions(threads=threads, share_ffn=1 if share_ffn else -1, resident_bytes=resident_bytes)
        options.progress = Progress(report)
        pointer = ctypes.c_void_p()
        check(library().mobillama_open(bytes(path), ctypes.byref(options), ctypes.byref(pointer)))
        engine = cls(path, pointer)
        if raised:
            engine.close()
            raise raised[0]
        return engine

    def context(
        self,
        *,
        threads: int = 0,
        max_tokens: int = 0,
        max_sequences: int = 1,
        kv: KV = "f16",
        float_activations: bool = False,
    ) -> Context:
        """Sequences to compute with. threads: 0 = one per core. max_tokens per sequence: 0 = the model's context.

        float_activations: weights times unrounded activations, slow, for checking. Errors: InputError,
        OutOfMemoryError.
        """
        if kv not in KV_TYPES:
            raise InputError(f"kv={kv!r}; expected one of {', '.join(KV_TYPES)}")
        options = ContextOptions(threads, max_tokens, max_sequences, KV_TYPES[kv], float_activations)
        pointer = ctypes.c_void_p()
        model = self._handle.pointer("model", self.path)
        check(library().mobillama_context_new(model, ctypes.byref(options), ctypes.byref(pointer)))
        context = Context(self, pointer)
        self._contexts.add(context)
        return context

    def close(self) -> None:
        """Free the model and its contexts. May be called twice."""
        for context in list(self._contexts):
            context.close()
        self._handle.free()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        size = f"{self.info.weight_bytes / 1e6:,.0f} MB of weights"
        return f"Engine({str(self.path)!r}: {size}, {self.info.isa})"


class Context:
    """Sequences 0 to max_sequences - 1, all empty at first.

    Errors of every method: InputError for ids, sequences or rows that there are not, or if a sequence is full;
    EngineError if it was cancelled or another thread is inside.
    """

    def __init__(self, engine: Engine, pointer: ctypes.c_void_p) -> None:
        """Take over a context; use `Engine.context`."""
        self.engine = engine
        # The model's handle is kept by the context's: whatever is collected first, the context is freed before it.
        self._handle = _Handle(pointer, library().mobillama_context_free, engine._handle)

    def prefill(self, ids: Ids, sequence: int = 0) -> None:
        """Append ids to a sequence; the logits after the last one are row 0."""
        table = _as_ids(ids)
        self._run("prefill", len(table), sequence, table.ctypes.data, len(table))

    def decode(self, ids: Ids, sequences: Ids | None = None) -> None:
        """Append ids[i] to sequences[i] (all different; default 0, 1, ...); the logits after it are row i."""
        table = _as_ids(ids)
        which = np.arange(len(table), dtype=np.int32) if sequences is None else _as_ids(sequences)
        if len(which) != len(table):
            raise InputError(f"{len(table)} ids for {len(which)} sequences; expected one id for each")
        self._run("decode", 1, which.ctypes.data, table.ctypes.data, len(table))

    def verify(self, ids: Ids, sequence: int = 0) -> None:
        """Append up to 64 ids to a sequence; the logits after ids[i] are row i."""
        table = _as_ids(ids)
        self._run("verify", len(table), sequence, table.ctypes.data, len(table))

    def logits(self, row: int = 0, *, copy: bool = True) -> npt.NDArray[np.float32]:
        """Logits (V,) of a row of the last call. copy=False: the context's own memory, good until its next call."""
        found = library().mobillama_logits(self._pointer, row)
        if not found:
            raise InputError(f"row {row} does not exist; the last call left fewer rows of logits")
        view = np.ctypeslib.as_array(found, (self.engine.info.vocab_size,))
        return view.copy() if copy else view

    def sample(self, settings: Settings, position: int, seen: npt.NDArray[np.int32] | None = None, row: int = 0) -> int:
        """Choose the next id from a row of logits of the last call; see mobillama.runtime.sample."""
        return sample(self.logits(row, copy=False), settings, position, seen)

    def log_probs(
        self, ids: Ids, where: Ids | None = None, targets: Ids | None = None, sequence: int = 0
    ) -> npt.NDArray[np.float64]:
        """Append ids; log p(targets[j] | the sequence up to ids[where[j]]), natural, as an array like `where`.

        where must rise. By default every id but the last is asked for the one behind it: shape (T - 1,).
        """
        table = _as_ids(ids)
        if where is None and targets is None:
            at, wanted = np.arange(len(table) - 1, dtype=np.int32), table[1:].copy()
        elif where is not None and targets is not None:
            at, wanted = _as_ids(where), _as_ids(targets)
        else:
            raise InputError("log_probs was given only one of where and targets; expected both or neither")
        if len(at) != len(wanted):
            raise InputError(f"{len(at)} positions for {len(wanted)} targets; expected one for each")
        out = np.empty(len(at), dtype=np.float64)
        arrays = (at.ctypes.data, wanted.ctypes.data, len(at), out.ctypes.data)
        self._run("log_probs", len(table), sequence, table.ctypes.data, len(table), *arrays)
        return out

    def length(self, sequence: int = 0) -> int:
        """Tokens in a sequence."""
        found = library().mobillama_length(self._pointer, sequence)
        if found < 0:
            raise InputError(f"sequence {sequence} does not exist; make the context with a larger max_sequences")
        return int(found)

    def fork(self, source: int, to: int, n: int | None = None) -> None:
        """Make sequence `to` equal the first n tokens of `source` (default all), without computing them again."""
        n = self.length(source) if n is None else n
        check(library().mobillama_fork(self._pointer, source, to, n))

    def rewind(self, n: int, sequence: int = 0) -> None:
        """Forget all but the first n tokens of a sequence."""
        check(library().mobillama_rewind(self._pointer, sequence, n))

    def cancel(self) -> None:
        """From another thread: let the call that runs end within one layer, with EngineError."""
        library().mobillama_cancel(self._pointer)

    def close(self) -> None:
        """Free sequences and threads. May be called twice."""
        self._handle.free()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _pointer(self) -> ctypes.c_void_p:
        return self._handle.pointer("context", self.engine.path)

    def _run(self, name: str, size: int, *arguments: int) -> None:
        """Call a function of the library over `size` ids; Ctrl-C ends it within one layer."""
        function, pointer = getattr(library(), f"mobillama_{name}"), self._pointer
        if size < LONG or threading.current_thread() is not threading.main_thread():
            check(function(pointer, *arguments))
            return
        # Python handles Ctrl-C in the main thread, between its own steps: so the long call runs in another one.
        raised: list[BaseException] = []
        done = threading.Event()

        def work() -> None:
            try:
                check(function(pointer, *arguments))  # the library keeps the words of a failure per thread
            except BaseException as error:
                raised.append(error)
            done.set()

        threading.Thread(target=work, daemon=True).start()
        try:
            done.wait()
        except KeyboardInterrupt:
            while not done.wait(0.01):  # again, should the call not have begun yet
                library().mobillama_cancel(pointer)
            raise
        if raised:
            raise raised[0]


class _Handle:
    """A pointer of the library that is freed once: by `free`, with its owner, or at the interpreter's end."""

    def __init__(self, pointer: ctypes.c_void_p, release: Callable[[ctypes.c_void_p], None], *kept: object) -> None:
        self._pointer = pointer
        self._finalizer = weakref.finalize(self, _release, release, pointer, kept)

    def pointer(self, what: str, path: Path) -> ctypes.c_void_p:
        if not self._finalizer.alive:
            raise InputError(f"the {what} of {path} is closed; open the file again")
        return self._pointer

    def free(self) -> None:
        self._finalizer()


def _release(release: Callable[[ctypes.c_void_p], None], pointer: ctypes.c_void_p, _kept: object) -> None:
    release(pointer)


def _as_ids(ids: Ids) -> npt.NDArray[np.int32]:
    """Ids or numbers of sequences (T,) as the library reads them. Error: InputError if they are no whole numbers."""
    table = np.asarray(ids)
    if table.ndim != 1 or (table.size and not np.issubdtype(table.dtype, np.integer)):
        raise InputError(f"found ids of shape {table.shape} and type {table.dtype}; expected a row of whole numbers")
    if table.size and (int(table.min()) < -(2**31) or int(table.max()) >= 2**31):
        raise InputError(f"ids run from {table.min()} to {table.max()}; expected numbers below 2**31")
    return np.ascontiguousarray(table, dtype=np.int32)
