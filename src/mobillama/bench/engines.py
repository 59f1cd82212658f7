"""The processes of the decode and prefill benches: our engine, llama.cpp and transformers behind the same verbs.

Run as `python -P engines.py KIND` by an interpreter that has KIND's library (so nothing of this package is imported
before it is known that ours is meant). Each line of standard input is an object {"do": verb, ...}, each line of
standard output its answer. Between lines the process is blocked on its pipe.

Both sides of a pair are fed the same ids, whatever they would have chosen; the likeliest next id is looked up after
every step all the same, as greedy decoding does.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Answer = dict[str, Any]
Logits = npt.NDArray[np.float32]  # (V,), V vocab_size
GGML_TYPES = {"f32": 0, "f16": 1, "int8": 8}  # of llama.cpp's KV cache: F32, F16, Q8_0


class Engine(Protocol):
    """What an engine must be able to do to be measured."""

    def open(self, *arguments: Any, **options: Any) -> Answer:
        """Load a file; what is known about the model."""

    def context(self, *arguments: Any, **options: Any) -> Answer:
        """Make sequences for max_tokens on so many threads; those made before are given back first."""

    def feed(self, ids: list[int], sequence: int) -> None:
        """Append ids."""

    def rewind(self, n: int, sequence: int) -> None:
        """Forget all but the first n ids."""

    def logits(self) -> Logits:
        """Logits (V,) after the last id, good until the next call."""


class Ours:
    """The engine of this package, through its C door."""

    made: Any = None

    def open(self, file: str, **options: Any) -> Answer:
        from mobillama.runtime.engine import Engine as Opened

        self.engine = Opened.open(file, **options)
        return dict(vars(self.engine.info))

    def context(self, max_tokens: int, threads: int, **options: Any) -> Answer:
        if self.made:
            self.made.close()
        self.made = self.engine.context(max_tokens=max_tokens, threads=threads, **options)
        return {}

    def feed(self, ids: list[int], sequence: int) -> None:
        if len(ids) == 1:
            self.made.decode(ids, [sequence])
        else:
            self.made.prefill(ids, sequence)

    def rewind(self, n: int, sequence: int) -> None:
        self.made.rewind(n, sequence)

    def logits(self) -> Logits:
        found: Logits = self.made.logits(copy=False)
        return found


class LlamaCpp:
    """llama.cpp through llama_decode; its class Llama would take half the cores."""

    def __init__(self) -> None:
        import llama_cpp  # type: ignore[import-not-found]

        self.lib: Any = llama_cpp
        self.log = llama_cpp.llama_log_callback(self._only_errors)  # kept: the library holds no reference
        llama_cpp.llama_log_set(self.log, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
        self.made: Any = None

    @staticmethod
    def _only_errors(level: int, text: bytes, _user: Any) -> None:
        if level == 4:  # GGML_LOG_LEVEL_ERROR
            print(text.decode(errors="replace"), end="", file=sys.stderr)

    def open(self, file: str, mmap: bool = True, repack: bool = True) -> Answer:
        lib = self.lib
        params = lib.llama_model_default_params()
        params.load_mode = lib.LLAMA_LOAD_MODE_MMAP if mmap else lib.LLAMA_LOAD_MODE_NONE
        params.use_extra_bufts = repack
        self.model = lib.llama_model_load_from_file(file.encode(), params)
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load {file}")
        self.vocab_size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        system = lib.llama_print_system_info().decode()
        return {"file_bytes": Path(file).stat().st_size, "vocab_size": self.vocab_size, "system": system}

    def context(self, max_tokens: int, threads: int, kv: str = "f16", flash: bool = True, ubatch: int = 512) -> Answer:
        lib = self.lib
        if self.made:
            lib.llama_free(self.made)
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_ubatch, params.n_seq_max = max_tokens, ubatch, 1
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = GGML_TYPES[kv]
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.made = lib.llama_init_from_model(self.model, params)
        if not self.made:
            raise RuntimeError(f"llama.cpp makes no context of {max_tokens} tokens, kv {kv}, flash attention {flash}")
        return {"batch": params.n_batch, "ubatch": ubatch, "flash": flash, "kv": kv, "threads": threads}

    def feed(self, ids: list[int], sequence: int) -> None:
        assert sequence == 0, "llama.cpp is measured with one sequence"
        array = (self.lib.llama_token * len(ids))(*ids)
        status = self.lib.llama_decode(self.made, self.lib.llama_batch_get_one(array, len(ids)))
        if status:
            raise RuntimeError(f"llama_decode gave {status} for {len(ids)} ids")

    def rewind(self, n: int, sequence: int) -> None:
        memory = self.lib.llama_get_memory(self.made)
        if not self.lib.llama_memory_seq_rm(memory, sequence, n, -1):
            raise RuntimeError(f"llama.cpp cannot rewind sequence {sequence} to {n} tokens")

    def logits(self) -> Logits:
        found = self.lib.llama_get_logits_ith(self.made, -1)
        return np.ctypeslib.as_array(found, (self.vocab_size,))


class Transformers:
    """transformers' LlamaForCausalLM in bfloat16, random weights, its layers using one MLP where the shape says so."""

    def open(self, file: str, **shape: Any) -> Answer:
        """file: unused name of the model; shape: fields of ModelConfig."""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        shape = {key: value for key, value in shape.items() if key not in ("name", "rope_theta")}
        blocks = shape.pop("num_ffn_blocks")
        model: Any = LlamaForCausalLM(LlamaConfig(**shape))  # type: ignore[no-untyped-call]
        model.to(torch.bfloat16).eval()
        layers = model.model.layers
        for index, layer in enumerate(layers):
            block = index * blocks // len(layers)
            layer.mlp = layers[-(-block * len(layers) // blocks)].mlp  # of the first layer that uses the block
        self.model = model
        return {"parameters": sum(each.numel() for each in model.parameters()), "dtype": "bfloat16"}

    def context(self, max_tokens: int, threads: int) -> Answer:
        import torch
        from transformers import DynamicCache

        torch.set_num_threads(threads)
        self.cache: Any = DynamicCache()
        return {"threads": threads, "dtype": "bfloat16"}

    def feed(self, ids: list[int], sequence: int) -> None:
        import torch

        with torch.inference_mode():
            found = self.model(torch.tensor([ids]), past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.last = found.logits[0, -1].float().numpy()

    def rewind(self, n: int, sequence: int) -> None:
        if n:
            self.cache.crop(n)
        else:
            self.cache = type(self.cache)()

    def logits(self) -> Logits:
        return self.last  # type: ignore[no-any-return]


ENGINES: dict[str, type[Engine]] = {"ours": Ours, "llama.cpp": LlamaCpp, "transformers": Transformers}


class Side:
    """The verbs of a side: what is timed is written once, for every engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.before = status_bytes("VmRSS")  # interpreter and libraries

    def open(self, file: str, **options: Any) -> Answer:
        start = time.perf_counter()
        found = self.engine.open(file, **options)
        return {"seconds": time.perf_counter() - start, **found}

    def context(self, max_tokens: int, threads: int, **options: Any) -> Answer:
        start = time.perf_counter()
        found = self.engine.context(max_tokens, threads, **options)
        return {"seconds": time.perf_counter() - start, **found}

    def prefill(self, ids: list[int], sequence: int = 0) -> Answer:
        """Begin a sequence anew with `ids`; seconds until the likeliest next id is known."""
        self.engine.rewind(0, sequence)
        start = time.perf_counter()
        self.engine.feed(ids, sequence)
        chosen = int(self.engine.logits().argmax())
        return {"seconds": [time.perf_counter() - start], "chosen": [chosen]}

    def decode(self, ids: list[int], after: int, sequence: int = 0) -> Answer:
        """Forget all but `after` ids, append `ids` one by one; seconds of each, its likeliest successor looked up."""
        self.engine.rewind(after, sequence)
        seconds, chosen = [], []
        for each in ids:
            start = time.perf_counter()
            self.engine.feed([each], sequence)
            chosen.append(int(self.engine.logits().argmax()))
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds, "chosen": chosen}

    def greedy(self, prompt: list[int], count: int) -> Answer:
        """The `count` likeliest ids after `prompt`, each fed on; `gaps`: how far its logit is above the second's."""
        self.engine.rewind(0, 0)
        self.engine.feed(prompt, 0)
        ids: list[int] = []
        gaps: list[float] = []
        while True:
            logits = self.engine.logits()
            first = int(logits.argmax())
            ids.append(first)
            gaps.append(float(logits[first] - np.delete(logits, first).max()))
            if len(ids) == count:
                return {"ids": ids, "gaps": gaps}
            self.engine.feed([first], 0)

    def memory(self) -> Answer:
        """Bytes: the peak so far, and what interpreter and libraries took before a file was opened."""
        return {"peak": status_bytes("VmHWM"), "before": self.before}

    def bandwidth(self, bytes: int, threads: int, seconds: float) -> Answer:
        """Bytes per second of reading memory, by our library."""
        from mobillama.runtime.library import library

        return {"bytes_per_second": float(library().mobillama_bandwidth(bytes, threads, seconds))}


VERBS = ("open", "context", "prefill", "decode", "greedy", "memory", "bandwidth")


def command(kind: str, python: str | Path = sys.executable) -> list[str]:
    """The command line of a side. -P: the folder of this file is not where modules are looked for."""
    return [str(python), "-P", __file__, kind]


def status_bytes(key: str) -> int:
    """A line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))


def main(kind: str) -> None:
    """Answer questions until standard input ends."""
    # Whatever a library prints to descriptor 1 goes to standard error; answers have the pipe to themselves.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    side = Side(ENGINES[kind]())
    for line in sys.stdin:
        told = json.loads(line)
        verb = told.pop("do")
        assert verb in VERBS, verb
        print(json.dumps(getattr(side, verb)(**told)), file=replies, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
