"""The decode, prefill and table6 benches: what a run chooses, says and saves; no figure without clean rounds."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from mobillama.bench import decode, footprint, prefill, program, rounds, setting, speed, table6
from mobillama.bench.notes import notes
from mobillama.bench.process import ProcessEndedError
from mobillama.bench.setting import Setting, kv_bytes, row
from mobillama.errors import InputError, MeasurementError

KEYS = {"name", "ours", "peer", "peer_name", "ratio", "unit", "pairs", "spread"}
BUILT = {
    "peer": "llama.cpp",
    "build": {"name": "native", "flags": {}, "options": {}},
    "tried": [],
    "packages": [],
    "compiler": "",
}
SHAPE = """
vocab_size = 97
hidden_size = 64
intermediate_size = 96
num_hidden_layers = 4
num_attention_heads = 4
num_ffn_blocks = 1
max_position_embeddings = 256
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny preset in place of the 0.5B, few tokens, and rounds that all count."""
    path = tmp_path / "tiny.toml"
    path.write_text(SHAPE)
    for module in (speed, footprint, prefill, table6):
        for name, value in {"HALF": str(path), "PROMPT": 8, "DECODED": 4, "CONTEXT": 64, "PREFILLED": 16}.items():
            monkeypatch.setattr(module, name, value, raising=False)
    for name, value in {"DECODED": 4, "BANDWIDTH_BYTES": 1 << 22, "BANDWIDTH_SECONDS": 0.01}.items():
        monkeypatch.setattr(setting, name, value)
    monkeypatch.setattr(rounds, "judge", lambda taken, *_: [""] * len(taken))
    monkeypatch.setattr(rounds, "placements", lambda taken, *_: [False] * len(taken))
    return str(path)


def test_a_row_is_the_median_of_the_pairs_and_of_their_ratios() -> None:
    found = row("decode", [10.0, 30.0, 20.0], [10.0, 10.0, 40.0], "llama.cpp", "tokens/s")
    assert set(found) == KEYS
    assert (found["ours"], found["peer"], found["ratio"]) == (20.0, 10.0, 1.0)
    assert found["pairs"] == [[10.0, 10.0], [30.0, 10.0], [20.0, 40.0]] and found["spread"] == [10.0, 30.0]


def test_a_ratio_above_one_is_always_ours_being_better() -> None:
    assert row("memory", [500.0], [1000.0], "llama.cpp", "MB", smaller_is_better=True)["ratio"] == 2.0
    assert row("decode", [500.0], [1000.0], "llama.cpp", "tokens/s")["ratio"] == 0.5
    alone = row("idle", [0.5], [], "", "% of a core")
    assert (alone["peer"], alone["ratio"], alone["pairs"]) == (None, None, [])


def test_every_section_can_be_chosen_and_an_unknown_one_is_named_with_those_that_exist() -> None:
    assert decode.choose("llama.cpp", ()) == list(decode.SECTIONS)
    assert decode.choose("llama.cpp", ("ffn-curve",)) == ["ffn-curve"]
    assert decode.choose("llama.cpp", ("idle", "decode-0.5b")) == ["decode-0.5b", "idle"]
    assert decode.choose("transformers", ()) == ["decode-0.5b"]
    with pytest.raises(InputError, match=r"--rows speed.*decode-0\.5b.*busy"):
        decode.choose("llama.cpp", ("speed",))
    with pytest.raises(InputError, match="--rows busy: not measured against transformers"):
        decode.choose("transformers", ("busy",))


def test_a_peer_that_is_unknown_or_not_built_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'ollama'.*llama\.cpp, transformers"):
        Setting("ollama")
    with pytest.raises(InputError, match=r"mobillama bench peers llama\.cpp"):
        Setting("llama.cpp", peers_folder=tmp_path)


def test_a_section_without_clean_rounds_gives_no_row_and_the_others_stand(tmp_path: Path) -> None:
    def noisy(_: Setting) -> speed.Section:
        raise MeasurementError("0 clean rounds of 15, expected 5")

    def clean(_: Setting) -> speed.Section:
        return [row("busy-0.5b-q4_0", [3.0], [1.0], "llama.cpp", "tokens/s")], {"said": 1}

    sections = {"decode-0.5b": noisy, "busy": clean}
    found = decode.run("decode", Setting("", folder=tmp_path), sections, decode.TARGETS)
    assert [each["name"] for each in found["rows"]] == ["busy-0.5b-q4_0"]
    assert found["failed"] == {"decode-0.5b": "0 clean rounds of 15, expected 5"}
    assert found["targets"] == {"busy-0.5b-q4_0": (2.0, 3.0)} and found["about"] == {"busy": {"said": 1}}
    saved = json.loads(Path(found["saved"]).read_text())
    assert [path.name for path in tmp_path.iterdir()] == [Path(found["saved"]).name]
    assert saved["rows"] == found["rows"] and saved["machine"]["cores"] >= 1


def test_what_is_measured_is_kept_when_a_later_section_is_cut(tmp_path: Path) -> None:
    def cut(_: Setting) -> speed.Section:
        raise KeyboardInterrupt

    sections = {"busy": lambda _: ([row("busy", [3.0], [1.0], "llama.cpp", "tokens/s")], {}), "idle": cut}
    with pytest.raises(KeyboardInterrupt):
        decode.run("decode", Setting("", folder=tmp_path), sections, {})
    (saved,) = tmp_path.glob("decode-*.json")
    assert [each["name"] for each in json.loads(saved.read_text())["rows"]] == ["busy"]


def test_notes_say_what_was_thrown_away_chosen_and_not_found() -> None:
    rounds_ = {"clean": 5, "discarded": ["round 2: others took 6.0% of the CPU"], "others": 0.012}
    rounds_ |= {"round_trip_ns": 57, "elsewhere": {"clean": 2, "round_trip_ns": 335, "speeds": {"ours": 81.234}}}
    copies = {"row_counts": False, "of_llama.cpp": 1.21, "of_bandwidth": 0.7, "resident_bytes": -1}
    said = "\n".join(
        notes(
            {
                "about": {
                    "decode-0.5b": {"rounds": rounds_, "copies": copies},
                    "context": {"int8": {"rounds": rounds_}},
                    "energy": {"sensors": {}, "looked_for": ["NVML: not installed"]},
                },
                "peer": {
                    "name": "llama.cpp",
                    "chosen": {"decode": {"flash": True}, "decode_tried": {"flash True": "30.0 tokens/s"}},
                    "built": None,
                },
                "models": {"a file": {"file": "a.gguf", "bytes": 1000, "sha256": "abc"}},
                "fed": "the same ids",
            }
        )
    )
    assert "decode-0.5b: 5 clean rounds, others took 1.2% of the CPU; 1 thrown away: round 2: others took 6.0%" in said
    assert "context (int8): 5 clean rounds" in said
    assert (
        "decode-0.5b: a word took 57 ns from core to core and back; in 2 more clean rounds 335 ns: ours 81.23" in said
    )
    assert "DOES NOT COUNT" in said and "70% of the bandwidth" in said
    assert "best setting for decode: {'flash': True} (tried: flash True: 30.0 tokens/s)" in said
    assert "energy: no sensor, so no figure; looked for NVML: not installed" in said
    assert "a.gguf, 1,000 bytes, sha256 abc" in said


def test_our_22_copies_count_only_as_a_strong_opponent() -> None:
    info = {"bytes_per_token": 100}
    strong = speed.judge_copies(info, copies=[13.0, 13.0], peer=[10.0, 10.0], bandwidth=[1700.0, 1700.0])
    assert strong == {
        "of_llama.cpp": pytest.approx(1.3),
        "of_bandwidth": pytest.approx(1300 / 1700),
        "row_counts": True,
    }
    assert not speed.judge_copies(info, copies=[12.9], peer=[10.0], bandwidth=[1700.0])["row_counts"]
    assert not speed.judge_copies(info, copies=[13.0], peer=[10.0], bandwidth=[1800.0])["row_counts"]


def test_every_preset_and_choice_of_types_has_a_file_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobillama.export.gguf_file.quantize_model", lambda *_, **__: None)
    monkeypatch.setattr(setting.machine, "describe_file", lambda path: {"file": str(path)})
    here = Setting("", folder=tmp_path)
    files = [here.file(preset, kind) for preset in table6.MODELS for kind in ("mobillama", "llama")]
    files += [here.file(speed.EIGHT, kind, setting.LOW) for kind in ("mobillama", "llama")]
    assert len(set(files)) == 8 and files[0].name == "mobillama-0.5b-q4_0-mobillama.gguf"


def test_keys_and_values_are_counted_for_all_layers() -> None:
    half = {"num_hidden_layers": 22, "num_key_value_heads": 32, "head_dim": 64}
    assert kv_bytes(half, "f16") == 180_224  # bytes a token, the paper's 0.5B
    assert kv_bytes(half, "int8") == 90_112


def test_every_target_is_of_a_row_that_a_section_gives() -> None:
    half = speed.name_of(speed.HALF)
    assert {f"decode-{half}", f"decode-{half}-copies", f"floor-{half}", f"memory-{half}"} <= set(decode.TARGETS)
    for types in (setting.TYPES, setting.LOW):
        eight = f"decode-{speed.name_of(speed.EIGHT, types)}"
        assert {eight, f"{eight}-copies"} <= set(decode.TARGETS)
    assert f"decode-{speed.name_of(speed.BASE)}" in decode.TARGETS
    assert f"prefill-{half}" in prefill.TARGETS


def test_the_program_that_is_missing_or_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"mobillama-run was found neither.*make setup"):
        program.find()
    (tmp_path / "mobillama-run").write_text("#!/bin/sh\necho no such model >&2\nexit 1\n")
    (tmp_path / "mobillama-run").chmod(0o755)
    with pytest.raises(MeasurementError, match="status 1: no such model"):
        program.run(tmp_path / "model.gguf", [1, 2], 1)


def test_ours_beside_transformers_is_measured_with_the_same_ids(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []
    real = setting.Process.ask

    def ask(process: setting.Process, do: str, **arguments: Any) -> dict[str, Any]:
        asked.append((process.name, {"do": do, **arguments}))
        if process.name == "transformers":  # its library takes seconds to import: its place is taken by a clock
            return {"seconds": [0.01] * len(arguments.get("ids", []))}
        return real(process, do, **arguments)

    monkeypatch.setattr(setting.Process, "ask", ask)
    rows, about = speed.decode(Setting("transformers", rounds=2, folder=tmp_path), tiny)
    assert [each["name"] for each in rows] == ["decode-tiny-q4_0"]
    assert rows[0]["peer"] == pytest.approx(100.0) and rows[0]["ours"] > 0
    assert about["rounds"]["clean"] == 2 * setting.PARTS
    fed = {
        name: [each["ids"] for side, each in asked if side == name and "ids" in each]
        for name in ("ours", "transformers")
    }
    assert fed["ours"] == fed["transformers"] and len(fed["ours"][0]) == 8
    # A round decodes the next of the four parts, each from where it begins.
    decoded = [(each["after"], each["ids"]) for side, each in asked if side == "ours" and each["do"] == "decode"]
    ids = Setting("", folder=tmp_path).ids(tiny, 12)[8:]
    assert decoded[:5] == [(8, ids[:1]), (9, ids[1:2]), (10, ids[2:3]), (11, ids[3:4]), (8, ids[:1])]


PEER_SECTIONS = {
    "decode": (speed.decode_half, ["decode-{}", "decode-{}-copies", "decode-{}-kv-int8", "floor-{}"]),
    "busy": (speed.busy, ["busy-{}", "busy-{}-quiet"]),
    "memory": (footprint.memory, ["memory-{}"]),
    "first token": (footprint.first_token, ["first-token-{}"]),
    "prefill": (prefill.SECTIONS["prefill-0.5b"], ["prefill-{}"]),
    "table6": (lambda here: table6.column(here, speed.HALF), ["table6-{}"]),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(each, marks=[pytest.mark.slow] if each in ("busy", "table6") else []) for each in PEER_SECTIONS],
)
def test_a_section_whose_peer_dies_still_prints_our_own_side(
    name: str, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = setting.engines.command
    dying = [sys.executable, "-c", "import os, signal; input(); os.kill(os.getpid(), signal.SIGSEGV)"]
    monkeypatch.setattr(setting.engines, "command", lambda kind, *_: real(kind) if kind == "ours" else dying)
    monkeypatch.setattr(setting.peers, "python_of", lambda *_: "python")
    monkeypatch.setattr(setting.peers, "built_with", lambda *_: BUILT)
    for constant, value in {"BUSY_TOKENS": 4, "STEPS": 4}.items():
        monkeypatch.setattr(speed, constant, value)
    monkeypatch.setattr(footprint, "TOKENS", 64)
    monkeypatch.setattr(prefill, "PEAK_UNITS", {})
    section, names = PEER_SECTIONS[name]
    found = decode.run("decode", Setting("llama.cpp", rounds=1, folder=tmp_path), {name: section}, {})
    model = speed.name_of(tiny)
    assert [each["name"] for each in found["rows"]] == [each.format(model) for each in names]
    assert found["rows"][0]["ours"] > 0
    of_the_peer = [each for each in found["rows"] if each["peer_name"].startswith("llama.cpp")]
    assert [each["peer"] for each in of_the_peer] == [None] * len(of_the_peer)
    assert of_the_peer or name == "memory"  # whose other rows are about the peer alone
    assert "'llama.cpp': it ended by SIGSEGV" in found["failed"][name] and "measured alone" in found["failed"][name]
    assert found["notes"]


def test_our_own_process_that_dies_gives_no_row(tmp_path: Path) -> None:
    def died(_: Setting) -> speed.Section:
        raise ProcessEndedError.of("ours", -11, "decode")

    found = decode.run("decode", Setting("", folder=tmp_path), {"decode-0.5b": died}, {})
    assert found["rows"] == [] and "'ours': it ended by SIGSEGV" in found["failed"]["decode-0.5b"]


def test_the_bandwidth_is_read_from_more_memory_than_a_large_cache_holds() -> None:
    class Reader:
        about: dict[str, Any] = {"cache_bytes": 105 << 20}  # noqa: RUF012

        def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
            self.bytes = arguments["bytes"]
            return {"bytes_per_second": 1e9}

    reader = Reader()
    assert setting.reading_memory(reader, 2)() == [1e-9]  # type: ignore[arg-type]
    assert reader.bytes == 8 * (105 << 20)


def test_the_peak_is_measured_with_what_the_processor_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill, "PEAK_SECONDS", 0.01)
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = prefill.dot_product_peak(1)
    if "avx2" in flags and shutil.which("c++"):
        assert found["peak_of"] == ("AVX-512 VNNI" if "avx512_vnni" in flags else "AVX2")
        assert found["peak_multiply_adds_per_second"] > 1e9
    monkeypatch.setattr(prefill, "PEAK_UNITS", {})
    assert "AVX-512 VNNI or AVX2" in prefill.dot_product_peak(1)["peak_not_measured"]


@pytest.mark.parametrize("peer_types", [setting.TYPES, setting.LOW])
def test_each_side_opens_the_file_of_its_types(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peer_types: str
) -> None:
    opened: dict[str, str] = {}

    def ask(process: setting.Process, do: str, **arguments: Any) -> dict[str, Any]:
        if do == "open":
            opened[process.name] = Path(arguments["file"]).name
        return {"seconds": [0.01] * len(arguments.get("ids", [])), "isa": "none"}

    monkeypatch.setattr(setting.Process, "ask", ask)
    monkeypatch.setattr(setting.peers, "python_of", lambda *_: "python")
    monkeypatch.setattr(setting.peers, "built_with", lambda *_: BUILT)
    monkeypatch.setattr(setting.engines, "command", lambda *_: ["cat"])  # ends with its input
    here = Setting("llama.cpp", folder=tmp_path)
    with here.ours(tiny, types=setting.LOW), here.peer(tiny, types=peer_types):
        pass
    low = f"{setting.plain(tiny)}-q4_0-ffn-q3_k"
    theirs = low if peer_types == setting.LOW else f"{setting.plain(tiny)}-q4_0"
    assert opened == {"ours": f"{low}-mobillama.gguf", "llama.cpp": f"{theirs}-llama.gguf"}


@pytest.mark.slow
def test_sections_about_ourselves_give_their_rows(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LONG": 64, "NEAR": 8, "STEPS": 4}.items():
        monkeypatch.setattr(speed, name, value)
    monkeypatch.setattr(footprint, "IDLE_SECONDS", 1.0)
    here = Setting("", rounds=1, folder=tmp_path)
    rows, about = speed.context(here)
    assert [each["name"] for each in rows] == ["context-tiny-q4_0-f16", "context-tiny-q4_0-int8"]
    assert about["f16"]["extra_bytes"] == 2 * about["int8"]["extra_bytes"] == 2 * 2 * 4 * 64 * 56
    idle, _ = footprint.idle(here)
    assert idle[0]["unit"] == "% of a core" and idle[0]["ours"] < 5
    monkeypatch.setattr(speed, "FFN_MEGABYTES", (1,))
    curve, said = speed.ffn_curve(here)
    # A whole number of blocks: 36 x 256 weights in a row, three matrices of 64 columns, 4.5 bits each: 1 MB.
    assert curve[0]["name"] == "ffn-1-mb-q4_0" and said["ffn-1-mb"]["intermediate_size"] == 36 * 256
    _, energy = footprint.energy(here)
    assert energy["looked_for"]


@pytest.mark.slow
def test_table6_prints_a_line_a_model(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table6, "MODELS", (tiny,))
    found = table6.measure(rounds=1, folder=tmp_path)
    assert found["failed"] == {}
    assert [each["name"] for each in found["rows"]] == ["table6-tiny-q4_0"]
    heading, line = found["table"].splitlines()
    assert "tokens/s" in heading and "peak MB" in heading
    assert tiny in line
