"""A GGUF file in the engine, and sequences to compute with: the C door as two classes, numpy in and out.

`Engine` holds weights and serves any number of contexts; a `Context` holds sequences and threads, and only one thread
at a time may be inside it. Same file, ids and settings give the same bits, whatever the threads and the batch.

Any thread may close anything at any time: a call that is inside ends within one layer and says that it was closed.
Memory goes when nobody holds it any more: no call that is inside, no array that looks at it. Nothing here takes a lock.
After os.fork() a child has to open the file again: the threads that compute are in its parent only.
"""

from __future__ import annotations

import atexit
import ctypes
import os
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
from mobillama.runtime.library import ContextOptions, InfoStruct, OpenOptions, Progress, Status, check, library
from mobillama.runtime.sample import sample

# T ids of one call, V vocab_size

Ids = Sequence[int] | npt.NDArray[np.integer[Any]]
KV = Literal["f16", "int8", "f32"]
KV_TYPES = {"f16": 0, "int8": 1, "f32": 2}
MAX_VERIFY = 64  # ids of one `verify`
FLOAT32 = np.dtype(np.float32).str
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
    ignored_keys: tuple[str, ...] = ()  # without which the file was opened: these are not its maker's answers


class Engine:
    """An open GGUF file. Closing it (or leaving its `with`) frees its contexts too."""

    def __init__(self, path: Path, pointer: ctypes.c_void_p, ignored_keys: Sequence[str] = ()) -> None:
        """Take over an open model; use `open`."""
        self.path = path
        self._handle: _Handle | None = _Handle(pointer, library().mobillama_close)
        self._contexts: set[weakref.ref[Context]] = set()
        found = InfoStruct()
        check(library().mobillama_describe(pointer, ctypes.byref(found)))
        values = {name: getattr(found, name) for name, *_ in InfoStruct._fields_}
        self.info = Info(**{**values, "isa": found.isa.decode(), "ignored_keys": tuple(ignored_keys)})

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        threads: int = 0,
        share_ffn: bool = True,
        resident_bytes: int = 0,
        ignore_keys: Sequence[str] = (),
        progress: Callable[[float], None] | None = None,
    ) -> Engine:
        """Read a GGUF file of architecture mobillama or llama and lay out its weights for this machine.

        threads: 0 = one per core. share_ffn=False: a copy of the FFN per layer, for measuring. resident_bytes of the
        FFN to keep in cache: 0 = by the cache's size, -1 = none. ignore_keys: whole names of keys in the file that the
        engine does not know, or that ask for arithmetic it has not got, to compute without (docs/formats.md).
        progress: called with a share from 0 to 1.
        Errors: InputError if there is no such file, the engine does not know its kind or one of its keys, or a name in
        ignore_keys stands in nobody's way; DamagedFileError, OutOfMemoryError, MissingLibraryError.
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
        pointer, done = ctypes.c_void_p(), threading.Event()
        keys = (ctypes.c_char_p * len(ignore_keys))(*(key.encode(errors="surrogateescape") for key in ignore_keys))
        if progress:
            options.progress = Progress(report)
            _reporting.add(done)
        try:
            status = library().mobillama_open_ignoring(
                bytes(path), ctypes.byref(options), keys, len(ignore_keys), ctypes.byref(pointer)
            )
            check(status)
        finally:
            _reporting.discard(done)
            done.set()
        engine = cls(path, pointer, ignore_keys)
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
        model = _usable(self._handle, "model", self.path)
        check(library().mobillama_context_new(model.pointer, ctypes.byref(options), ctypes.byref(pointer)))
        context = Context(self, pointer)
        self._contexts.add(weakref.ref(context, self._contexts.discard))
        if self._handle is None:  # closed meanwhile, perhaps before this context was among those to be closed
            context.close()
        return context

    def close(self) -> None:
        """Free the model and its contexts; calls that are inside end within one layer. May be called twice."""
        self._handle = None
        for reference in self._contexts.copy():
            if context := reference():
                context.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        size = f"{self.info.weight_bytes / 1e6:,.0f} MB of weights"
        return f"Engine({str(self.path)!r}: {size}, {self.info.isa})"


class Context:
    """Sequences 0 to max_sequences - 1, all empty at first.

    Errors of every method: InputError for ids, sequences or rows that there are not, if a sequence is full, or if the
    context was closed, before the call or while it ran; EngineError if it was cancelled or another thread is inside.
    """

    def __init__(self, engine: Engine, pointer: ctypes.c_void_p) -> None:
        """Take over a context; use `Engine.context`."""
        self.engine = engine
        self._handle: _Handle | None = _Handle(pointer, library().mobillama_context_free)

    def prefill(self, ids: Ids, sequence: int = 0) -> None:
        """Append ids to a sequence; the logits after the last one are row 0."""
        table = _as_ids(ids)
        self._run("prefill", len(table), sequence, table, len(table))

    def decode(self, ids: Ids, sequences: Ids | None = None) -> None:
        """Append ids[i] to sequences[i] (all different; default 0, 1, ...); the logits after it are row i."""
        table = _as_ids(ids)
        which = np.arange(len(table), dtype=np.int32) if sequences is None else _as_ids(sequences)
        if len(which) != len(table):
            raise InputError(f"{len(table)} ids for {len(which)} sequences; expected one id for each")
        self._run("decode", 1, which, table, len(table))

    def verify(self, ids: Ids, sequence: int = 0) -> None:
        """Append up to 64 ids to a sequence; the logits after ids[i] are row i."""
        table = _as_ids(ids)
        self._run("verify", len(table), sequence, table, len(table))

    def logits(self, row: int = 0, *, copy: bool = True) -> npt.NDArray[np.float32]:
        """Logits (V,) of a row of the last call.

        copy=False: the context's own memory. It holds them until the context's next call, and stays as long as the
        array does, even if the context is closed.
        """
        handle = self._open()
        address = library().mobillama_logits(handle.pointer, row)
        if not address:
            raise InputError(f"row {row} does not exist; the last call left fewer rows of logits")
        return np.array(_Row(handle, address, self.engine.info.vocab_size), copy=copy)

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
        self._run("log_probs", len(table), sequence, table, len(table), at, wanted, len(at), out)
        return out

    def length(self, sequence: int = 0) -> int:
        """Tokens in a sequence."""
        handle = self._open()
        found = library().mobillama_length(handle.pointer, sequence)
        if found < 0:
            raise InputError(f"sequence {sequence} does not exist; make the context with a larger max_sequences")
        return int(found)

    def fork(self, source: int, to: int, n: int | None = None) -> None:
        """Make sequence `to` equal the first n tokens of `source` (default all), without computing them again."""
        n = self.length(source) if n is None else n
        self._run("fork", 1, source, to, n)

    def rewind(self, n: int, sequence: int = 0) -> None:
        """Forget all but the first n tokens of a sequence."""
        self._run("rewind", 1, sequence, n)

    def cancel(self) -> None:
        """From another thread: let the call that runs end within one layer, with EngineError."""
        if handle := self._handle:
            library().mobillama_cancel(handle.pointer)

    def close(self) -> None:
        """Free sequences and threads; a call that is inside ends within one layer. May be called twice."""
        handle, self._handle = self._handle, None
        if handle:
            library().mobillama_stop(handle.pointer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> _Handle:
        """What a call holds on to as long as it is inside."""
        return _usable(self._handle, "context", self.engine.path)

    def _run(self, name: str, size: int, *arguments: int | npt.NDArray[Any]) -> None:
        """Call a function of the library over `size` ids; Ctrl-C ends it within one layer. Arrays go as addresses."""
        function, handle = getattr(library(), f"mobillama_{name}"), self._open()

        def call() -> None:
            # Called in another thread, this alone keeps handle and arrays, should the main thread have gone on.
            plain = (each.ctypes.data if isinstance(each, np.ndarray) else each for each in arguments)
            status = function(handle.pointer, *plain)
            if status == Status.CANCELLED:
                self._open()  # an error if it was by `close`
            check(status)  # in the thread of the call: the library keeps the words of a failure per thread

        if size < LONG or threading.current_thread() is not threading.main_thread():
            call()
            return
        # Python handles Ctrl-C in the main thread, between its own steps: so the long call runs in another one.
        raised: list[BaseException] = []
        done = threading.Event()

        def work() -> None:
            try:
                call()
            except BaseException as error:
                raised.append(error)
            done.set()

        try:
            threading.Thread(target=work, daemon=True).start()
        except RuntimeError:  # there are no more threads, as at the interpreter's end: then without Ctrl-C
            call()
            return
        try:
            done.wait()
        except BaseException:  # Ctrl-C, or whatever a signal's handler raises
            while not done.wait(0.01):  # again, should the call not have begun yet
                library().mobillama_cancel(handle.pointer)
            raise
        if raised:
            raise raised[0]


class _Handle:
    """A pointer of the library, freed when nobody holds this any more: no owner, no call that is inside, no array.

    At the interpreter's end it is not freed: threads may be inside still, and the system takes all back.
    """

    def __init__(self, pointer: ctypes.c_void_p, release: Callable[[ctypes.c_void_p], None]) -> None:
        self.pointer = pointer
        self.process = os.getpid()
        weakref.finalize(self, release, pointer).atexit = False


class _Row:
    """Logits in a context's memory, as numpy reads them: an array made of this holds on to it, and so to the memory."""

    def __init__(self, handle: _Handle, address: int, size: int) -> None:
        self._handle = handle
        self.__array_interface__ = {"version": 3, "typestr": FLOAT32, "shape": (size,), "data": (address, False)}


def _usable(handle: _Handle | None, what: str, path: Path) -> _Handle:
    """The handle, to hold on to. Error: InputError if it was closed, or is of the process before os.fork()."""
    if handle is None:
        raise InputError(f"the {what} of {path} is closed; open the file again")
    if handle.process != os.getpid():
        raise InputError(f"the {what} of {path} was opened before os.fork(); open the file again in the child")
    return handle


# Opens that report progress. The interpreter's end waits for them: a thread that came back to Python after it would be
# ended in the middle of the library's own functions. A child of os.fork() has none of its parent's.
_reporting: set[threading.Event] = set()
os.register_at_fork(after_in_child=_reporting.clear)


@atexit.register
def _await_reporting() -> None:
    while _reporting:
        for done in _reporting.copy():
            done.wait()


def _as_ids(ids: Ids) -> npt.NDArray[np.int32]:
    """Ids or numbers of sequences (T,) as the library reads them. Error: InputError if they are no whole numbers."""
    table = np.asarray(ids)
    if table.ndim != 1 or (table.size and not np.issubdtype(table.dtype, np.integer)):
        raise InputError(f"found ids of shape {table.shape} and type {table.dtype}; expected a row of whole numbers")
    if table.size and (int(table.min()) < -(2**31) or int(table.max()) >= 2**31):
        raise InputError(f"ids run from {table.min()} to {table.max()}; expected numbers below 2**31")
    return np.ascontiguousarray(table, dtype=np.int32)
