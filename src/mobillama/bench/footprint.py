"""Sections of `mobillama bench decode` about everything but speed: memory, time to the first token, the idle engine."""

from __future__ import annotations

import time
from typing import Any

from mobillama.bench import energy as sensors
from mobillama.bench import program
from mobillama.bench.setting import CONTEXT, DECODED, PROMPT, Setting, decoding, kv_bytes, row
from mobillama.bench.speed import HALF, Section, name_of

TOKENS = 2048  # in use, the answer's included
# llama.cpp's settings: its defaults, and those with which it takes least memory for the same KV type.
DEFAULT: dict[str, Any] = {"mmap": True, "flash": True, "ubatch": 512}
SMALLEST: dict[str, Any] = {"mmap": False, "flash": True, "ubatch": 128}
FIRST_PROMPT = 16
FIRST_STARTS = 3  # of ours in a turn; the median counts
IDLE_SECONDS = 5.0
ENERGY_TURNS = 4


def memory(setting: Setting) -> Section:
    """Peak resident megabytes (10^6 bytes) with 2,048 tokens in use.

    Ours is VmHWM of the stand-alone program, all of it. Of the peer the interpreter and libraries that were there
    before it opened the file are taken off, since its C library could run without them.
    """
    ids = setting.ids(HALF, TOKENS - 1)
    found = program.run(setting.file(HALF), ids, setting.threads, context=TOKENS)
    ours = found["peak_memory_bytes"] / 1e6
    cost = setting.config(HALF)
    shape = {
        "num_hidden_layers": cost.num_hidden_layers,
        "num_key_value_heads": cost.num_key_value_heads,
        "head_dim": cost.head_dim,
    }
    least = (found["file_bytes"] + kv_bytes(shape, "f16") * TOKENS) / 1e6
    model, about = name_of(HALF), {"tokens": TOKENS, "ours": found["peak_memory_bytes"]}

    def smaller(name: str, peer: float, peer_name: str) -> dict[str, Any]:
        return row(name, [ours], [peer], peer_name, "MB peak", smaller_is_better=True)

    rows = [smaller(f"memory-{model}", least, "file + KV")]
    for name, settings in (("smallest", SMALLEST), ("default", DEFAULT)) if setting.against else ():
        with setting.peer(HALF, tokens=TOKENS, **settings) as peer:
            peer.ask("prefill", ids=ids)
            peaks = peer.ask("memory")
        taken = (peaks["peak"] - peaks["before"]) / 1e6
        rows.append(smaller(f"memory-{model}-llama.cpp-{name}", taken, f"{setting.peer_name}, {name}"))
        about[f"llama.cpp {name}"] = {**settings, **peaks}
    return rows, about


def first_token(setting: Setting) -> Section:
    """Seconds from opening the file to the first token after 16 of prompt, the file's pages in the page cache.

    Ours by the stand-alone program, layout of the weights included; of the peer opening, context and prompt, without
    the start of its interpreter. Every time a new process.
    """
    ids = setting.ids(HALF, FIRST_PROMPT)
    file = setting.file(HALF)

    def ours() -> list[float]:
        return [program.run(file, ids, setting.threads)["first_token_s"] for _ in range(FIRST_STARTS)]

    def peer() -> list[float]:
        flash = setting.chosen.get("decode", DEFAULT)["flash"]
        with setting.peer(HALF, flash=flash) as process:
            context = process.ask("context", max_tokens=CONTEXT, threads=setting.threads, flash=flash)
            return [process.about["seconds"] + context["seconds"] + process.ask("prefill", ids=ids)["seconds"][0]]

    ended = program.Ended()
    sides = {"ours": ours, **({"peer": peer} if setting.against else {})}
    measured = setting.measure("first token", {name: (ended, turn) for name, turn in sides.items()})
    seconds = {name: [1.0 / each for each in measured.speeds(name)] for name in sides}
    name, theirs = f"first-token-{name_of(HALF)}", seconds.get("peer", [])
    found = row(name, seconds["ours"], theirs, setting.peer_name, "s", smaller_is_better=True)
    return [found], {"rounds": measured.tree()}


def idle(setting: Setting) -> Section:
    """Percent of one core that the engine uses in 5 s after decoding, its context open."""
    ids = setting.ids(HALF, PROMPT + 8)
    with setting.ours(HALF) as ours:
        ours.ask("prefill", ids=ids[:PROMPT])
        decoding(ours, ids[PROMPT:], PROMPT)()
        before, start = ours.cpu_seconds(), time.perf_counter()
        time.sleep(IDLE_SECONDS)
        used = (ours.cpu_seconds() - before) / (time.perf_counter() - start)
    return [row(f"idle-{name_of(HALF)}", [100 * used], [], "", "% of a core")], {"seconds": IDLE_SECONDS}


def energy(setting: Setting) -> Section:
    """Joules per 1,000 decoded tokens above the idle machine, by every sensor there is."""
    ids = setting.ids(HALF, PROMPT + DECODED)
    with setting.ours(HALF) as ours:
        ours.ask("prefill", ids=ids[:PROMPT])
        turn = decoding(ours, ids[PROMPT:], PROMPT)
        found = sensors.measure(lambda: sum(len(turn()) for _ in range(ENERGY_TURNS)))
    rows = [
        row(f"energy-{name_of(HALF)}", [each["joules_per_1000_tokens"]], [], name, "J per 1,000 tokens")
        for name, each in found["sensors"].items()
    ]
    return rows, found
