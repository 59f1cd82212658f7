"""What a bench of the engine says beside its rows, as lines to read: rounds thrown away, settings, files, bandwidth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def notes(result: dict[str, Any]) -> list[str]:
    """Lines about a result of `decode.run`."""
    lines = [line for section, said in result["about"].items() for line in _section(section, said)]
    chosen = result["peer"]["chosen"]
    for what in ("decode", "prefill"):
        if what in chosen:
            tried = ", ".join(f"{name}: {speed}" for name, speed in chosen[f"{what}_tried"].items())
            lines.append(f"{result['peer']['name']}'s best setting for {what}: {chosen[what]} (tried: {tried})")
    if built := result["peer"]["built"]:
        flags = " ".join(f"{key}={value!r}" for key, value in built["build"]["flags"].items())
        versions = [each for each in built["packages"] if each.startswith("llama")]
        line = f"{result['peer']['name']}: {' '.join(versions)}, {built['build']['name']}, built with {flags}"
        lines.append(f"{line} by {built['compiler']}")
        lines += [f"{result['peer']['name']}, {tried['build']}: not used, {tried['end']}" for tried in built["tried"]]
    lines += [f"{name}: {_model(said)}" for name, said in result["models"].items()]
    return [*lines, f"fed: {result['fed']}"]


def _section(section: str, said: dict[str, Any]) -> Iterator[str]:
    for name, rounds in _rounds(said):
        where, thrown = f"{section} ({name})" if name else section, rounds["discarded"]
        line = f"{where}: {rounds['clean']} clean rounds, others took {rounds['others']:.1%} of the CPU"
        yield f"{line}; {len(thrown)} thrown away" + (f": {'; '.join(thrown)}" if thrown else "")
        if trip := rounds.get("round_trip_ns"):
            line = f"{where}: a word took {trip} ns from core to core and back"
            if other := rounds.get("elsewhere"):
                speeds = ", ".join(f"{name} {speed:.4g}" for name, speed in other["speeds"].items())
                line += f"; in {other['clean']} more clean rounds {other['round_trip_ns']} ns: {speeds} a second"
            yield line
    if "memory_bytes_per_second" in said:
        floor = f"{said['floor_bytes_per_token'] / 1e6:.1f} MB of weights and KV, each once"
        speed = f"{said['memory_bytes_per_second'] / 1e9:.1f} GB/s"
        cache = f"a cache of {said['cache_bytes'] / 1e6:.0f} MB, which other machines may share"
        yield f"{section}: memory gives {speed} beside {cache}; a token needs {floor}"
    if "cores_kept_busy" in said:
        line = f"{section}: cores kept busy {said['cores_kept_busy']:.2f}"
        yield f"{line}, by the peer {theirs:.2f}" if (theirs := said.get("peer_cores_kept_busy")) else line
    if copies := said.get("copies"):
        counts = "counts" if copies["row_counts"] else "DOES NOT COUNT"
        peer = "no peer" if copies["of_llama.cpp"] is None else f"{copies['of_llama.cpp']:.2f} x llama.cpp"
        yield (
            f"{section}: our 22 copies reach {peer} and "
            f"{copies['of_bandwidth']:.0%} of the bandwidth (resident_bytes {copies['resident_bytes']}): "
            f"their row {counts}"
        )
    if "peak_multiply_adds_per_second" in said:
        peak = f"{said['peak_multiply_adds_per_second'] / 1e9:.0f} billion multiply-adds a second"
        amx = "; AMX, which the engine does not use, is not counted" if said["amx_not_counted"] else ""
        yield f"{section}: {said['share_of_peak']:.1%} of the measured peak of {said['peak_of']}, {peak}{amx}"
    if "peak_not_measured" in said:
        yield f"{section}: no share of the vector units' peak: {said['peak_not_measured']}"
    if "looked_for" in said and not said["sensors"]:
        yield f"{section}: no sensor, so no figure; looked for {'; '.join(said['looked_for'])}"
    for name in (each for each in said if each.startswith("llama.cpp ")):
        yield f"{section}: {name}: {said[name]} (peak and before in bytes)"


def _rounds(said: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rounds of a section, or of its parts by their names."""
    for name, value in said.items():
        if isinstance(value, dict):
            if "discarded" in value:
                yield "" if name == "rounds" else name, value
            elif "rounds" in value:
                yield name, value["rounds"]


def _model(said: dict[str, Any]) -> str:
    if "sha256" in said:
        return f"{said['file']}, {said['bytes']:,} bytes, sha256 {said['sha256']}"
    opened = f"opened in {said['seconds']:.2f} s"
    if "isa" not in said:
        return f"{opened}; {said.get('system', said.get('dtype', ''))}"
    return (
        f"{opened}, {said['isa']}, {said['weight_bytes'] / 1e6:.1f} MB of weights; read per token "
        f"{said['bytes_per_token'] / 1e6:.1f} MB, each once {said['unique_bytes_per_token'] / 1e6:.1f} MB; of the FFN "
        f"{said['resident_bytes'] / 1e6:.1f} MB meant to stay in a cache of {said['cache_bytes'] / 1e6:.1f} MB"
    )
