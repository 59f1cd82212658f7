"""`mobillama bench table6`: the columns of the paper's Table 6 for three of its models on this machine.

The paper does not say how it measured; here a row is greedy decoding of 128 tokens after 128 of prompt, batch 1, Q4_0
in every matrix, f16 KV, and the peak memory of the stand-alone program over the whole answer.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from mobillama.bench import decode, energy, program
from mobillama.bench.setting import CONTEXT, DECODED, FOLDER, PARTS, PROMPT, Setting, decoding, row
from mobillama.bench.speed import BASE, EIGHT, HALF, Section, name_of

MODELS = (HALF, EIGHT, BASE)


def measure(against: str = "", rounds: int = 3, folder: Path = FOLDER) -> dict[str, Any]:
    """Tokens per second of each model (beside a peer if one is named); `table`: the paper's columns as text."""
    setting = Setting(against, rounds, folder)
    sections: dict[str, Callable[[Setting], Section]] = {name: partial(column, preset=name) for name in MODELS}
    result = decode.run("table6", setting, sections, {})
    result["table"] = table(result["about"])
    return result


def column(setting: Setting, preset: str) -> Section:
    """One model of the table."""
    ids = setting.ids(preset, PROMPT + DECODED)
    with ExitStack() as stack:
        ours = stack.enter_context(setting.ours(preset))
        sides = {"ours": ours}
        if setting.against:
            sides["peer"] = stack.enter_context(setting.peer(preset))
        turns = {}
        for name, process in sides.items():
            process.ask("prefill", ids=ids[:PROMPT])
            turns[name] = (process, decoding(process, ids[PROMPT:], PROMPT, parts=PARTS))
        measured = setting.measure(f"table6 {preset}", turns, parts=PARTS)
        joules = energy.measure(lambda: sum(len(turns["ours"][1]()) for _ in range(2 * PARTS)))
    answer = program.run(setting.file(preset), ids[:PROMPT], setting.threads, new=DECODED, context=CONTEXT)
    speeds = {name: measured.speeds(name) for name in sides}
    about = {
        "rounds": measured.tree(),
        "tokens_per_second": statistics.median(speeds["ours"]),
        "file_bytes": answer["file_bytes"],
        "peak_memory_bytes": answer["peak_memory_bytes"],
        "cpu_percent": 100 * measured.cores("ours") / setting.threads,
        "energy": joules,
    }
    peer = speeds.get("peer", [])
    return [row(f"table6-{name_of(preset)}", speeds["ours"], peer, setting.peer_name, "tokens/s")], about


def table(about: dict[str, Any]) -> str:
    """The models as lines: speed, file, memory, CPU, energy of 1,000 tokens."""
    lines = [f"{'model':16} {'tokens/s':>9} {'file MB':>9} {'peak MB':>9} {'CPU %':>6}  energy of 1,000 tokens"]
    for name, found in about.items():
        lines.append(
            f"{name:16} {found['tokens_per_second']:9.1f} {found['file_bytes'] / 1e6:9.1f} "
            f"{found['peak_memory_bytes'] / 1e6:9.1f} {found['cpu_percent']:6.0f}  {_energy(found['energy'])}"
        )
    return "\n".join(lines)


def _energy(found: dict[str, Any]) -> str:
    if not found["sensors"]:
        return "no sensor: " + "; ".join(found["looked_for"])
    told = []
    for name, each in found["sensors"].items():
        battery = f" = {each['mah_per_1000_tokens']:.2f} mAh at {each['volts']:.2f} V" if "volts" in each else ""
        told.append(f"{name} {each['joules_per_1000_tokens']:.1f} J{battery}")
    return ", ".join(told)
