"""Where a run computes: device, compute type, threads and the determinism switches, asked once and passed on.

Reads the machine, never a recipe file; whoever has a recipe hands its `train` table (or a device name) to `place`.
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from mobillama.cores import cores as usable_cores
from mobillama.errors import RecipeError

FAST_BF16 = ("avx512_bf16", "amx_bf16")  # CPU features with which bfloat16 is faster than float32


class Wanted(Protocol):
    """The fields of a recipe's `train` table that say where to compute."""

    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def threads(self) -> int: ...


@dataclass(frozen=True)
class Place:
    """One device and how to compute on it."""

    device: torch.device
    dtype: torch.dtype  # of the compute; weights and optimizer are float32 all the same
    threads: int  # CPU threads
    name: str  # the device in words
    why_dtype: str  # why this compute type, in words

    def words(self) -> str:
        """One line for people."""
        threads = f", {self.threads} thread{'s' * (self.threads != 1)}" if self.device.type == "cpu" else ""
        return f"{self.name} ({self.device.type}{threads}), compute in {dtype_name(self.dtype)}: {self.why_dtype}"

    def environment(self) -> dict[str, Any]:
        """What the bits of a result can depend on besides its inputs: plain JSON types for a ledger's circumstance."""
        return {
            "device": self.device.type,
            "device_name": self.name,
            "dtype": dtype_name(self.dtype),
            "threads": self.threads,
            "machine": platform.machine(),
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "python": platform.python_version(),
            "torch": str(torch.__version__),
        }


def place(wanted: Wanted | str = "auto", dtype: str = "auto", threads: int = 0) -> Place:
    """The place for a recipe's `train` table, or for a device name with `dtype` and `threads`.

    `auto` takes CUDA, then MPS, then CPU; dtype `auto` takes bfloat16 where the device is fast at it; 0 threads are
    all cores.
    Errors: RecipeError if the device is not on this machine.
    """
    if isinstance(wanted, str):
        name = wanted
    else:
        name, dtype, threads = wanted.device, wanted.dtype, wanted.threads
    device = _pick_device(name)
    chosen, why = _pick_dtype(device, dtype)
    return Place(device=device, dtype=chosen, threads=threads or cores(), name=_device_name(device), why_dtype=why)


def cores() -> int:
    """CPU cores to compute with: all that this process may use, or as OMP_NUM_THREADS says."""
    if (limit := os.environ.get("OMP_NUM_THREADS", "")).isdigit() and int(limit) > 0:
        return int(limit)
    return usable_cores()


@contextlib.contextmanager
def computing(here: Place, *, deterministic: bool) -> Iterator[None]:
    """Set threads and determinism for a block of work, and put back what was set before.

    Deterministic: same machine kind, same number of threads -> same bits. Memory that a kernel will overwrite anyway is
    not filled first: that would cost time and change no result.
    """
    threads = torch.get_num_threads()
    was = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    benchmark = torch.backends.cudnn.benchmark
    if deterministic:
        # cuBLAS repeats its sums only with a fixed workspace; it reads this when CUDA starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(here.threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = benchmark and not deterministic
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(was)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = benchmark


def peak_memory(here: Place) -> dict[str, int]:
    """Largest memory in bytes so far: resident memory of the process, and of the accelerator where there is one."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts KiB on Linux, bytes on macOS
    peak = {"resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if here.device.type == "cuda":
        peak["device_bytes"] = torch.cuda.max_memory_allocated(here.device)
    return peak


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16` for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def _pick_device(name: str) -> torch.device:
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    found = [kind for kind, is_there in there.items() if is_there]
    if name == "auto":
        return torch.device(found[0])
    if name.partition(":")[0] not in found:
        raise RecipeError(
            f"device={name!r} is not on this machine; found {', '.join(found)}: use one of these or 'auto'"
        )
    return torch.device(name)


def _pick_dtype(device: torch.device, name: str) -> tuple[torch.dtype, str]:
    if name in ("bfloat16", "float32"):
        return (torch.bfloat16 if name == "bfloat16" else torch.float32), "as the recipe says"
    if name != "auto":
        raise RecipeError(f"dtype={name!r} is not known; use 'auto', 'bfloat16' or 'float32'")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "this GPU is fast at it"
        return torch.float32, "this GPU has no bfloat16 units"
    if device.type == "mps":
        return torch.float32, "bfloat16 on MPS is not fast on every chip"
    if fast := [feature for feature in FAST_BF16 if _cpu_capabilities().get(feature, False)]:
        return torch.bfloat16, f"this CPU is fast at it ({fast[0]})"
    return torch.float32, f"this CPU has no fast bfloat16 ({' or '.join(FAST_BF16)})"


def _cpu_capabilities() -> dict[str, Any]:
    """What torch knows of the CPU; torch 2.11 has a question for each feature in place of the table."""
    if hasattr(torch.cpu, "get_capabilities"):
        return dict(torch.cpu.get_capabilities())
    return {"avx512_bf16": torch.cpu._is_avx512_bf16_supported(), "amx_bf16": torch.cpu._is_amx_tile_supported()}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return str(_cpu_capabilities().get("cpu_name") or platform.processor() or platform.machine())
    return "Apple GPU"
