"""Sections of `mobillama bench decode` that measure tokens per second: pairs, the floor, a busy machine, AVX2."""

from __future__ import annotations

import statistics
import subprocess
import sys
from contextlib import ExitStack
from typing import Any

from mobillama.bench import setting as at
from mobillama.bench.process import Process
from mobillama.bench.rounds import Turn
from mobillama.bench.setting import PROMPT, Setting, decoding, kv_bytes, reading_memory, row, spelled
from mobillama.errors import MeasurementError

HALF, EIGHT, BASE = "mobillama-0.5b", "mobillama-0.8b", "large-base-1.2b"
SHORT = {HALF: "0.5b", EIGHT: "0.8b", BASE: "1.2b"}
# What our engine with 22 copies must reach for its row to count: it has to be a strong opponent itself.
COPIES_OF_LLAMA, COPIES_OF_BANDWIDTH = 1.3, 0.75
LONG, NEAR, STEPS = 1536, 64, 32  # tokens of context, compared; tokens decoded after each
BUSY_TOKENS = 64
FFN_MEGABYTES = (8, 16, 24, 32, 48, 64)
Section = tuple[list[dict[str, Any]], dict[str, Any]]  # rows, and what else is to be said


def name_of(preset: str, types: str = at.TYPES) -> str:
    """The model's part of a row's name."""
    return f"{SHORT.get(preset, at.plain(preset))}-{spelled(types)}"


def decode_half(setting: Setting) -> Section:
    """The headline: 0.5B against the peer, our own 22 copies and the floor, and with int8 KV."""
    return decode(setting, HALF, int8=True, copies=True)


def decode_eight(setting: Setting) -> Section:
    """0.8B, whose FFN does not fit the cache."""
    return decode(setting, EIGHT, copies=True)


def decode_eight_low(setting: Setting) -> Section:
    """0.8B with its FFN in fewer bits, so that more of it stays in the cache; the peer's file as always."""
    return decode(setting, EIGHT, copies=True, types=at.LOW)


def decode_eight_same(setting: Setting) -> Section:
    """The same with the peer's FFN in so few bits too."""
    return decode(setting, EIGHT, types=at.LOW, peer_types=at.LOW)


def decode_base(setting: Setting) -> Section:
    """The dense 1.2B: nothing to share."""
    return decode(setting, BASE)


def decode(
    setting: Setting,
    preset: str,
    *,
    int8: bool = False,
    copies: bool = False,
    types: str = at.TYPES,
    peer_types: str = at.TYPES,
) -> Section:
    """One model: ours against the peer and what else is asked for, all in the same rounds."""
    ids = setting.ids(preset, PROMPT + at.DECODED)
    own = setting.against != "transformers"  # rows about our engine itself do not stand beside the slow peer
    with ExitStack() as stack:
        ours = stack.enter_context(setting.ours(preset, types=types))
        sides: dict[str, Process] = {"ours": ours}
        if setting.against:
            sides["peer"] = stack.enter_context(setting.peer(preset, types=peer_types))
        if own and int8:
            sides["int8"] = stack.enter_context(setting.ours(preset, kv="int8", types=types))
        if own and copies:
            resident = best_of_copies(setting, preset, types)
            copy = setting.ours(preset, share_ffn=False, resident_bytes=resident, types=types)
            sides["copies"] = stack.enter_context(copy)
        turns: dict[str, tuple[Process, Turn]] = {}
        for name, process in sides.items():
            process.ask("prefill", ids=ids[:PROMPT])
            turns[name] = (process, decoding(process, ids[PROMPT:], PROMPT, parts=at.PARTS))
        if own:
            turns[at.MEMORY] = (ours, reading_memory(ours, setting.threads))
        measured = setting.measure(f"decode {preset}", turns, parts=at.PARTS)
        info = ours.about
        copied = sides["copies"].about if own and copies else {}
    speeds = {name: measured.speeds(name) for name in turns}
    model = name_of(preset, types)
    peer_name = setting.peer_name if types == at.TYPES else f"{setting.peer_name}, {peer_types}"
    same = "-same" if peer_types != at.TYPES else ""
    theirs = speeds.get("peer", [])
    rows = [row(f"decode-{model}{same}", speeds["ours"], theirs, peer_name, "tokens/s")]
    about: dict[str, Any] = {"rounds": measured.tree(), "cores_kept_busy": measured.cores("ours")}
    if theirs:
        about["peer_cores_kept_busy"] = measured.cores("peer")
    if not own:
        return rows, about
    bandwidth = speeds[at.MEMORY]
    floor = info["unique_bytes_per_token"] + kv_bytes(info, "f16") * (PROMPT + at.DECODED / 2)
    if copies:
        rows.append(row(f"decode-{model}-copies", speeds["ours"], speeds["copies"], "ours, 22 copies", "tokens/s"))
        about["copies"] = {"resident_bytes": resident} | judge_copies(copied, speeds["copies"], theirs, bandwidth)
    if int8:
        rows.append(row(f"decode-{model}-kv-int8", speeds["int8"], theirs, f"{setting.peer_name}, f16 KV", "tokens/s"))
    at_floor = [each / floor for each in bandwidth]
    rows.append(row(f"floor-{model}{same}", speeds["ours"], at_floor, "memory bandwidth", "tokens/s"))
    about |= {"memory_bytes_per_second": statistics.median(bandwidth), "floor_bytes_per_token": floor}
    about["cache_bytes"] = info["cache_bytes"]
    return rows, about


def best_of_copies(setting: Setting, preset: str, types: str) -> int:
    """How our engine streams 22 copies best: resident_bytes of 0 (as it thinks best) or -1 (nothing kept in cache)."""
    ids = setting.ids(preset, PROMPT)
    seconds = {}
    for resident in (0, -1):
        with setting.ours(preset, share_ffn=False, resident_bytes=resident, types=types) as process:
            process.ask("prefill", ids=ids)
            turn = decoding(process, ids[:STEPS], PROMPT)
            seconds[resident] = min(statistics.median(turn()) for _ in range(3))
    return min(seconds, key=lambda each: seconds[each])


def judge_copies(
    info: dict[str, Any], copies: list[float], peer: list[float], bandwidth: list[float]
) -> dict[str, Any]:
    """Whether our engine on 22 copies is fast enough for its row to count; without a peer it does not."""
    of_peer = statistics.median(mine / theirs for mine, theirs in zip(copies, peer, strict=True)) if peer else None
    read = info["bytes_per_token"]
    of_bandwidth = statistics.median(each * read / speed for each, speed in zip(copies, bandwidth, strict=True))
    return {
        "of_llama.cpp": of_peer,
        "of_bandwidth": of_bandwidth,
        "row_counts": of_peer is not None and of_peer >= COPIES_OF_LLAMA and of_bandwidth >= COPIES_OF_BANDWIDTH,
    }


def context(setting: Setting) -> Section:
    """Extra time per token at 1,536 tokens of context over 64, against the extra keys and values to be read."""
    ids = setting.ids(HALF, LONG + STEPS)
    rows, about = [], {}
    for kv in ("f16", "int8"):
        with setting.ours(HALF, kv=kv, tokens=LONG + STEPS, sequences=2) as ours:
            for sequence, length in enumerate((NEAR, LONG)):
                ours.ask("prefill", ids=ids[:length], sequence=sequence)
            turns = {
                "near": (ours, decoding(ours, ids[-STEPS:], NEAR, 0)),
                "long": (ours, decoding(ours, ids[-STEPS:], LONG, 1)),
                at.MEMORY: (ours, reading_memory(ours, setting.threads)),
            }
            measured = setting.measure(f"context {kv}", turns)
            extra_bytes = kv_bytes(ours.about, kv) * (LONG - NEAR)
        near, long, bandwidth = (measured.speeds(name) for name in turns)
        extra = [1e3 / slow - 1e3 / fast for slow, fast in zip(long, near, strict=True)]
        needed = [1e3 * extra_bytes / each for each in bandwidth]
        name = f"context-{name_of(HALF)}-{kv}"
        rows.append(row(name, extra, needed, "memory bandwidth", "ms more per token", smaller_is_better=True))
        about[kv] = {"rounds": measured.tree(), "extra_bytes": extra_bytes, "tokens_per_second": [near, long]}
    return rows, about


def busy(setting: Setting) -> Section:
    """One other process that computes without end: ours against the peer in the same state, and against quiet."""
    ids = setting.ids(HALF, PROMPT + BUSY_TOKENS)
    with ExitStack() as stack:
        sides = {"ours": stack.enter_context(setting.ours(HALF))}
        if setting.against:
            sides["peer"] = stack.enter_context(setting.peer(HALF))
        for process in sides.values():
            process.ask("prefill", ids=ids[:PROMPT])
        turns = {name: (process, decoding(process, ids[PROMPT:], PROMPT)) for name, process in sides.items()}
        quiet = setting.measure("quiet", {"ours": turns["ours"]})
        spinner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            # How the scheduler shares two cores among three differs from round to round: that is the state measured.
            disturbed = setting.measure("busy", turns, of_best=0.0, beside=(spinner.pid,))
        finally:
            spinner.kill()
            spinner.wait()
    model = name_of(HALF)
    mine = disturbed.speeds_with_stumbles("ours")
    theirs = disturbed.speeds_with_stumbles("peer") if setting.against else []
    alone = quiet.speeds_with_stumbles("ours")
    rows = [
        row(f"busy-{model}", mine, theirs, setting.peer_name, "tokens/s"),
        row(f"busy-{model}-quiet", mine, alone, "ours, quiet", "tokens/s"),
    ]
    return rows, {"quiet": quiet.tree(), "busy": disturbed.tree()}


def avx2(setting: Setting) -> Section:
    """Ours forced to AVX2 against AVX-512."""
    ids = setting.ids(HALF, PROMPT + at.DECODED)
    with setting.ours(HALF) as best, setting.ours(HALF, isa="avx2") as forced:
        found = best.about["isa"]
        if found != "avx512":
            raise MeasurementError(f"the row avx2 compares with AVX-512; found {found!r} as this machine's best")
        turns = {}
        for name, process in (("avx2", forced), ("avx512", best)):
            process.ask("prefill", ids=ids[:PROMPT])
            turns[name] = (process, decoding(process, ids[PROMPT:], PROMPT, parts=at.PARTS))
        measured = setting.measure("avx2", turns, parts=at.PARTS)
    speeds = measured.speeds("avx2"), measured.speeds("avx512")
    return [row(f"avx2-{name_of(HALF)}", *speeds, "ours, avx512", "tokens/s")], {"rounds": measured.tree()}


def ffn_curve(setting: Setting) -> Section:
    """Tokens per second of the 0.5B's shape with one FFN of 8 to 64 MB: what leaving the cache costs.

    The peer's column is what reading every weight once from memory would allow.
    """
    base = setting.config(HALF)
    rows, about = [], {}
    for megabytes in FFN_MEGABYTES:
        # Three matrices of 4.5 bits a weight; whole blocks of 256 in every row.
        intermediate = round(megabytes * 1e6 * 8 / 4.5 / 3 / base.hidden_size / 256) * 256
        shape = base.model_copy(update={"name": f"ffn-{megabytes}-mb", "intermediate_size": intermediate})
        preset = setting.write_preset(shape)
        ids = setting.ids(preset, PROMPT + at.DECODED)
        with setting.ours(preset) as ours:
            ours.ask("prefill", ids=ids[:PROMPT])
            turns = {
                "ours": (ours, decoding(ours, ids[PROMPT:], PROMPT, parts=at.PARTS)),
                at.MEMORY: (ours, reading_memory(ours, setting.threads)),
            }
            measured = setting.measure(f"FFN of {megabytes} MB", turns, parts=at.PARTS)
        read = ours.about["unique_bytes_per_token"] + kv_bytes(ours.about, "f16") * (PROMPT + at.DECODED / 2)
        floor = [each / read for each in measured.speeds(at.MEMORY)]
        rows.append(
            row(f"ffn-{megabytes}-mb-{at.TYPES}", measured.speeds("ours"), floor, "memory bandwidth", "tokens/s")
        )
        about[shape.name] = {"rounds": measured.tree(), "intermediate_size": intermediate}
    return rows, about
