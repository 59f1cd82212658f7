"""`mobillama bench decode`: tokens per second of the engine beside its peers, and what else makes it usable.

Sections are measured one after another, each with processes of its own; one that finds no clean rounds is named in
`failed` with the reason and gives no row.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mobillama.bench import footprint, machine, speed
from mobillama.bench.notes import notes
from mobillama.bench.process import ProcessEndedError
from mobillama.bench.rounds import Placement
from mobillama.bench.setting import FOLDER, Setting, new_file, save
from mobillama.bench.speed import Section
from mobillama.errors import InputError, MeasurementError

# In the order of the rows. Against transformers only the first stands: the others are about the fast peer or ourselves.
SECTIONS: dict[str, Callable[[Setting], Section]] = {
    "decode-0.5b": speed.decode_half,
    "memory": footprint.memory,
    "first-token": footprint.first_token,
    "context": speed.context,
    "busy": speed.busy,
    "avx2": speed.avx2,
    "idle": footprint.idle,
    "decode-0.8b": speed.decode_eight,
    "decode-0.8b-q3_k": speed.decode_eight_low,
    "decode-1.2b": speed.decode_base,
    "energy": footprint.energy,
}
# For docs/engine.md; they take minutes of their own.
ONLY_IF_ASKED = {"decode-0.8b-q3_k-same": speed.decode_eight_same, "ffn-curve": speed.ffn_curve}
# Row -> the ratio it must reach, and the goal; of the reference machine: 2 cores, AVX-512, 32 MB of L3.
TARGETS = {
    "decode-0.5b-q4_0": (2.5, 3.5),
    "decode-0.5b-q4_0-copies": (1.5, 2.0),
    "floor-0.5b-q4_0": (0.55, 0.80),
    "memory-0.5b-q4_0": (1 / 1.15, 1 / 1.05),
    "memory-0.5b-q4_0-llama.cpp-smallest": (1 / 0.70, 1 / 0.62),
    "context-0.5b-q4_0-f16": (1 / 1.5, 1 / 1.2),
    "context-0.5b-q4_0-int8": (1 / 1.5, 1 / 1.2),
    "busy-0.5b-q4_0": (2.0, 3.0),
    "busy-0.5b-q4_0-quiet": (0.45, 0.60),
    "avx2-0.5b-q4_0": (0.6, 0.8),
    "decode-0.8b-q4_0": (1.8, 2.5),
    "decode-0.8b-q4_0-copies": (1.25, 1.5),
    "decode-0.8b-q4_0-ffn-q3_k": (1.8, 2.5),
    "decode-0.8b-q4_0-ffn-q3_k-copies": (1.25, 1.5),
    "decode-1.2b-q4_0": (1.2, 1.5),
}
LIMITS = {"first-token-0.5b-q4_0": (0.6, 0.3), "idle-0.5b-q4_0": (1.0, 1.0)}  # rows whose own figure must stay below


def measure(
    against: str = "llama.cpp",
    rows: Sequence[str] = (),
    rounds: int = 5,
    folder: Path = FOLDER,
    placement: Placement = "any",
) -> dict[str, Any]:
    """The chosen sections (default: all that the peer has), their result saved in `folder`.

    `rows` as every bench has them; `targets` and `limits` of those rows; `about` what each section says besides;
    `failed` sections with their reasons; `machine`, `models`, `peer`; `notes`: all of that as lines to read.
    Errors: InputError for an unknown peer or section, or a peer that is not built.
    """
    chosen = choose(against, rows)
    setting = Setting(against, rounds, folder, placement)
    return run(
        "decode",
        setting,
        {name: found for name, found in {**SECTIONS, **ONLY_IF_ASKED}.items() if name in chosen},
        TARGETS,
    )


def choose(against: str, rows: Sequence[str]) -> list[str]:
    """The sections to measure, in order. Error: InputError for one that there is not."""
    known = [*SECTIONS, *ONLY_IF_ASKED] if against != "transformers" else ["decode-0.5b"]
    if unknown := [name for name in rows if name not in known]:
        raise InputError(f"--rows {','.join(unknown)}: not measured against {against}; choose from: {', '.join(known)}")
    return [name for name in known if (name in rows if rows else name not in ONLY_IF_ASKED)]


def run(
    name: str,
    setting: Setting,
    sections: dict[str, Callable[[Setting], Section]],
    targets: dict[str, tuple[float, float]],
) -> dict[str, Any]:
    """Measure sections one after another; what was found is saved after each."""
    started = time.monotonic()
    path = new_file(name, setting.folder)
    rows: list[dict[str, Any]] = []
    about: dict[str, Any] = {}
    failed: dict[str, str] = {}
    described = machine.describe()
    for number, (section, measured) in enumerate(sections.items(), 1):
        print(f"{section} ({number} of {len(sections)}), {time.monotonic() - started:.0f} s", file=sys.stderr)
        try:
            found, about[section] = with_or_without_peer(section, measured, setting, failed)
            rows += found
        except MeasurementError as error:
            failed[section] = str(error)
            print(f"{section} failed: {error}", file=sys.stderr)
        names = [row["name"] for row in rows]
        result: dict[str, Any] = {
            "rows": rows,
            "targets": {name: targets[name] for name in names if name in targets},
            "limits": {name: LIMITS[name] for name in names if name in LIMITS},
            "failed": failed,
            "about": about,
            "fed": "the same ids on both sides, whatever each would have chosen; the likeliest next id is looked up",
            "threads": setting.threads,
            "machine": described,
            "models": setting.models,
            "peer": {
                "name": setting.against,
                "chosen": setting.chosen,
                "built": setting.built,
            },
            "seconds": round(time.monotonic() - started),
            "saved": str(path),
        }
        result["notes"] = notes(result)
        # After every section: a run that is cut keeps what it has.
        save(path, result)
    return result


def with_or_without_peer(
    section: str, measured: Callable[[Setting], Section], setting: Setting, failed: dict[str, str]
) -> Section:
    """A section; where the peer's process ends in it, our own side alone, and `failed` says how the peer ended."""
    try:
        return measured(setting)
    except ProcessEndedError as error:
        if error.name != setting.against:
            raise
        failed[section] = f"{error}; our own side was measured alone"
        print(f"{section}: {failed[section]}", file=sys.stderr)
        return measured(setting.alone())
