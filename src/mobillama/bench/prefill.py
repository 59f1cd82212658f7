"""`mobillama bench prefill`: tokens per second of reading a prompt, beside a peer and the dot-product unit's peak."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mobillama.bench import decode
from mobillama.bench.setting import FOLDER, PREFILLED, Setting, prefilling, row
from mobillama.bench.speed import HALF, Section, name_of
from mobillama.model.cost import cost

SECTIONS: dict[str, Callable[[Setting], Section]] = {"prefill-0.5b": lambda setting: prefill(setting, HALF)}
TARGETS = {"prefill-0.5b-q4_0": (1.5, 2.0)}
PEAK = Path(__file__).with_name("dot_peak.cpp")
PEAK_SECONDS = 1.0
# What /proc/cpuinfo calls an extension -> its name here, and how the peak is compiled for it; the first found counts.
PEAK_UNITS = {
    "avx512_vnni": ("AVX-512 VNNI", ("-mavx512f", "-mavx512vnni")),
    "avx2": ("AVX2", ("-mavx2",)),
}


def measure(against: str = "llama.cpp", rounds: int = 5, folder: Path = FOLDER) -> dict[str, Any]:
    """Prefill of 256 tokens of 0.5B; the result as that of `decode.measure`."""
    return decode.run("prefill", Setting(against, rounds, folder), SECTIONS, TARGETS)


def prefill(setting: Setting, preset: str) -> Section:
    """One model: ours against the peer at its best setting for prompts."""
    ids = setting.ids(preset, PREFILLED)
    with ExitStack() as stack:
        sides = {"ours": stack.enter_context(setting.ours(preset))}
        if setting.against:
            sides["peer"] = stack.enter_context(setting.peer(preset))
        if setting.against == "llama.cpp":
            best = setting.best_prefill(preset, sides["peer"])
            sides["peer"].ask("context", max_tokens=PREFILLED, threads=setting.threads, **best)
        turns = {name: (process, prefilling(process, ids)) for name, process in sides.items()}
        measured = setting.measure(f"prefill {preset}", turns)
    speeds = measured.speeds("ours"), measured.speeds("peer") if setting.against else []
    # Every matrix for every token, but the head for the last one alone; attention's own products are not counted.
    config = setting.config(preset)
    head = config.vocab_size * config.hidden_size
    products = cost(config).flops_per_token / 2 - head + head / PREFILLED
    about: dict[str, Any] = {"rounds": measured.tree(), "multiply_adds_per_token": products}
    about |= dot_product_peak(setting.threads)
    if peak := about.get("peak_multiply_adds_per_second"):
        about["share_of_peak"] = statistics.median(speeds[0]) * products / peak
    return [row(f"prefill-{name_of(preset)}", *speeds, setting.peer_name, "tokens/s")], about


def dot_product_peak(threads: int) -> dict[str, Any]:
    """8-bit multiply-adds per second of the vector units on all threads (AVX-512 VNNI, else AVX2), or why not known.

    AMX is not among them, though a processor may have it: the engine does not use it.
    """
    flags = next((line for line in _lines("/proc/cpuinfo") if line.startswith("flags")), "").split()
    compiler = shutil.which("c++") or shutil.which("g++")
    unit = next((unit for flag, unit in PEAK_UNITS.items() if flag in flags), None)
    if unit is None or compiler is None:
        return {"peak_not_measured": "it is measured with a C++ compiler on a CPU with AVX-512 VNNI or AVX2"}
    name, options = unit
    with tempfile.TemporaryDirectory(prefix="mobillama-bench-") as folder:
        built = Path(folder) / "dot_peak"
        subprocess.run([compiler, "-O3", "-std=c++20", *options, "-pthread", str(PEAK), "-o", str(built)], check=True)
        runs = [float(subprocess.check_output([str(built), str(threads), str(PEAK_SECONDS)])) for _ in range(3)]
    return {"peak_multiply_adds_per_second": max(runs), "peak_of": name, "amx_not_counted": "amx_int8" in flags}


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
