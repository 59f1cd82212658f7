"""The GGUF reader: files that the gguf package writes are read; damaged and hostile ones get a status and words."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import gguf
import numpy as np
import pytest

IO, FORMAT, UNSUPPORTED = 2, 3, 4
U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)

Dump = Callable[..., list[str]]


@pytest.fixture(scope="module")
def dump(compiled: Callable[..., Path]) -> Dump:
    """A function from paths (and options) to the lines that the reader's driver prints, under sanitizers."""
    sources = ["tests/dump.cpp", "src/gguf.cpp", "src/gguf_values.cpp", "src/file.cpp", "src/tensor_type.cpp"]
    program = compiled(sources, sanitize="address,undefined")

    def run(*arguments: str | Path) -> list[str]:
        done = subprocess.run([program, *arguments], capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().splitlines()

    return run


def text(value: str) -> bytes:
    """A string as GGUF writes it."""
    return struct.pack("<Q", len(value)) + value.encode()


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, dims: Sequence[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


@dataclass(frozen=True)
class Draft:
    """The parts of a GGUF file, each of which a test may spoil; by default a sound one with two tensors."""

    magic: bytes = b"GGUF"
    version: int = 3
    keys: tuple[bytes, ...] = field(
        default=(key("general.architecture", STRING, text("llama")), key("n", U32, b"\7\0\0\0"))
    )
    tensors: tuple[bytes, ...] = field(default=(tensor("a", [32, 2], 2, 0), tensor("b", [8], 0, 64)))
    num_keys: int | None = None
    num_tensors: int | None = None
    data: bytes = bytes(64 + 32)

    def write(self, path: Path) -> Path:
        counts = [
            len(part) if count is None else count
            for part, count in ((self.tensors, self.num_tensors), (self.keys, self.num_keys))
        ]
        header = self.magic + struct.pack("<IQQ", self.version, *counts) + b"".join(self.keys + self.tensors)
        path.write_bytes(header + bytes(-len(header) % 32) + self.data)
        return path


def test_files_of_the_gguf_package_are_read_as_it_reads_them(dump: Dump, tmp_path: Path) -> None:
    path = tmp_path / "written.gguf"
    writer = gguf.GGUFWriter(path, "mobillama")
    writer.add_custom_alignment(64)
    writer.add_uint64("big", 2**40)
    writer.add_int32("negative", -5)
    writer.add_bool("yes", True)
    writer.add_float32("third", 1 / 3)
    writer.add_string("name", "Ünï")
    writer.add_array("words", ["a", "▁b", "c"])
    writer.add_array("scores", [0.5, -1.25])
    writer.add_array("kinds", [1, -2, 3])
    weights = np.random.default_rng(0).standard_normal((4, 64), np.float32)
    kinds = [gguf.GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q4_0", "Q5_0", "Q8_0")]
    for kind in kinds:
        writer.add_tensor(f"t.{kind.name}", gguf.quants.quantize(weights, kind), raw_dtype=kind)
    writer.add_tensor("vector", weights[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    asked = [
        "--integer big",
        "--integer negative",
        "--integer yes",
        "--number third",
        "--number negative",
        "--text name",
    ]
    asked += ["--texts words", "--numbers scores", "--integers kinds", "--text general.architecture"]
    lines = dump(*" ".join(asked).split(), path)
    expected = [
        f"{entry.name} {entry.tensor_type.name} {entry.shape[0]} {entry.shape[1] if len(entry.shape) > 1 else 1} "
        f"{entry.data_offset} {entry.n_bytes}"
        for entry in gguf.GGUFReader(path).tensors
    ]
    assert lines[: len(expected)] == expected
    assert lines[len(expected) :] == [
        f"big {2**40}",
        "negative -5",
        "yes 1",
        f"third {float(np.float32(1 / 3)):.17g}",
        "negative -5",
        "name Ünï",
        "words a ▁b c",
        "scores 0.5 -1.25",
        "kinds 1 -2 3",
        "general.architecture mobillama",
    ]


def test_the_sound_draft_is_read_in_both_versions(dump: Dump, tmp_path: Path) -> None:
    for version in (2, 3):
        lines = dump("--integer", "n", Draft(version=version).write(tmp_path / "sound"))
        assert lines == ["a Q4_0 32 2 160 36", "b F32 8 1 224 32", "n 7"]


SOUND = Draft()
A, B = SOUND.tensors
HUGE = 2**64 - 1
BAD: dict[str, tuple[Draft, int, str]] = {
    "magic": (replace(SOUND, magic=b"GGML"), FORMAT, "begins with 0x4c4d4747, not with GGUF"),
    "newer version": (replace(SOUND, version=4), UNSUPPORTED, "version 4; this engine reads 2 and 3: it needs a newer"),
    "older version": (replace(SOUND, version=1), UNSUPPORTED, "version 1; this engine reads 2 and 3: convert"),
    "big-endian": (replace(SOUND, version=3 << 24), UNSUPPORTED, "is a big-endian GGUF file"),
    "too many keys": (replace(SOUND, num_keys=HUGE), FORMAT, f"{HUGE} keys and 2 tensors cannot lie in"),
    "too many tensors": (replace(SOUND, num_tensors=1 << 40), FORMAT, "tensors cannot lie in"),
    "one key more": (replace(SOUND, num_keys=3), FORMAT, "the name of tensor 0 needs"),
    "nameless key": (replace(SOUND, keys=(key("", U8, b"\0"),)), FORMAT, "key 0 has no name"),
    "same key": (replace(SOUND, keys=SOUND.keys * 2), FORMAT, "key 'general.architecture' is there twice"),
    "key too long": (replace(SOUND, keys=(key("k" * 65536, U8, b"\0"),)), FORMAT, "has 65536 bytes, at most 65535"),
    "string past the end": (
        replace(SOUND, keys=(key("k", STRING, struct.pack("<Q", HUGE)),)),
        FORMAT,
        f"key 'k' needs {HUGE} bytes",
    ),
    "array past the end": (
        replace(SOUND, keys=(key("k", ARRAY, struct.pack("<IQ", U64, 1 << 61)),)),
        FORMAT,
        f"key 'k' needs {1 << 61} bytes",
    ),
    "array of eight times the bytes": (
        replace(SOUND, keys=(key("k", ARRAY, struct.pack("<IQ", F64, 100)),)),
        FORMAT,
        "key 'k' needs 800 bytes",
    ),
    "nested array": (
        replace(SOUND, keys=(key("k", ARRAY, struct.pack("<IQ", ARRAY, 1)),)),
        UNSUPPORTED,
        "key 'k' is an array of arrays",
    ),
    "value type": (replace(SOUND, keys=(key("k", 13, b""),)), FORMAT, "key 'k' has value type 13"),
    "unprintable name": (
        replace(SOUND, keys=(key("k\n\x1b\x00", 13, b""),)),
        FORMAT,
        r"key 'k\x0a\x1b\x00' has value type",
    ),
    "alignment 0": (
        replace(SOUND, keys=(key("general.alignment", U32, bytes(4)),)),
        FORMAT,
        "general.alignment is 0; expected a power of two",
    ),
    "alignment 48": (replace(SOUND, keys=(key("general.alignment", U32, b"\x30\0\0\0"),)), FORMAT, "alignment is 48"),
    "alignment 2^31": (
        replace(SOUND, keys=(key("general.alignment", U32, b"\0\0\0\x80"),)),
        FORMAT,
        "alignment is 214",
    ),
    "alignment in words": (
        replace(SOUND, keys=(key("general.alignment", STRING, text("32")),)),
        FORMAT,
        "'general.alignment' has a value of type string; expected an integer",
    ),
    "nameless tensor": (replace(SOUND, tensors=(tensor("", [8], 0, 0),)), FORMAT, "tensor 0 has no name"),
    "same tensor": (replace(SOUND, tensors=(A, tensor("a", [8], 0, 64))), FORMAT, "tensor 'a' is there twice"),
    "name too long": (replace(SOUND, tensors=(tensor("t" * 65, [8], 0, 0),)), FORMAT, "has 65 bytes, at most 64"),
    "no dimensions": (
        replace(SOUND, tensors=(tensor("t", [], 0, 0),) * 2),
        FORMAT,
        "'t' has 0 dimensions; expected 1 to 4",
    ),
    "five dimensions": (replace(SOUND, tensors=(tensor("t", [1] * 5, 0, 0),)), FORMAT, "'t' has 5 dimensions"),
    "three dimensions": (replace(SOUND, tensors=(tensor("t", [2, 2, 2], 0, 0),)), UNSUPPORTED, "shape 2 x 2 x 2 x 1"),
    "empty": (replace(SOUND, tensors=(tensor("t", [0, 2], 0, 0),)), FORMAT, "'t' has the shape 0 x 2, which is empty"),
    "product overflows": (replace(SOUND, tensors=(tensor("t", [1 << 32, 1 << 32], 0, 0),)), FORMAT, "cannot lie in"),
    "product too large": (
        replace(SOUND, tensors=(tensor("t", [96, 96], 0, 0),)),
        FORMAT,
        "'t', 96 x 96 of F32 at 0, cannot",
    ),
    "negative dimension": (replace(SOUND, tensors=(tensor("t", [HUGE], 0, 0),)), FORMAT, f"shape {HUGE} x 1"),
    "known type without a kernel": (
        replace(SOUND, tensors=(tensor("t", [256], 12, 0),)),
        UNSUPPORTED,
        "'t' has type 12 (Q4_K)",
    ),
    "unknown type": (
        replace(SOUND, tensors=(tensor("t", [256], 1 << 31, 0),)),
        UNSUPPORTED,
        "type 2147483648 (unknown)",
    ),
    "block does not divide": (
        replace(SOUND, tensors=(tensor("t", [48], 2, 0),)),
        FORMAT,
        "rows of 48 weights; the blocks of Q4_0 take 32",
    ),
    "offset not aligned": (
        replace(SOUND, tensors=(A, tensor("b", [4], 0, 65))),
        FORMAT,
        "'b' lies at 65, which is no multiple of the alignment 32",
    ),
    "offset outside": (replace(SOUND, tensors=(A, tensor("b", [8], 0, 96))), FORMAT, "tensor 'b' takes bytes"),
    "offset far outside": (
        replace(SOUND, tensors=(A, tensor("b", [8], 0, HUGE - 31))),
        FORMAT,
        "cannot lie in a file of",
    ),
    "last tensor cut": (replace(SOUND, data=SOUND.data[:-1]), FORMAT, "is cut or damaged"),
    "overlap": (replace(SOUND, tensors=(A, tensor("b", [8], 0, 32))), FORMAT, "tensors 'a' and 'b' overlap at byte"),
    "same place": (replace(SOUND, tensors=(tensor("b", [8], 0, 0), A)), FORMAT, "overlap"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gets_a_status_and_words(dump: Dump, tmp_path: Path, name: str) -> None:
    draft, status, words = BAD[name]
    path = draft.write(tmp_path / "bad.gguf")
    (line,) = dump(path)
    assert line.startswith(f"status {status}: {path}: ")
    assert words in line


def test_a_file_cut_anywhere_is_refused(dump: Dump, tmp_path: Path) -> None:
    whole = SOUND.write(tmp_path / "whole").read_bytes()
    paths = []
    for length in range(len(whole)):
        paths.append(tmp_path / f"cut-{length}")
        paths[-1].write_bytes(whole[:length])
    lines = dump(*paths)
    assert len(lines) == len(whole)
    assert all(line.startswith(f"status {FORMAT}: ") for line in lines)


def test_a_value_of_another_kind_is_refused(dump: Dump, tmp_path: Path) -> None:
    keys = (
        key("text", STRING, text("x")),
        key("nan", F32, struct.pack("<f", np.nan)),
        key("big", U64, struct.pack("<Q", HUGE)),
        key("bool", BOOL, b"\2"),
        key("numbers", ARRAY, struct.pack("<IQ2f", F32, 2, 1, np.inf)),
        key("integers", ARRAY, struct.pack("<IQ2q", I64, 2, 1, 1 << 31)),
        key("texts", ARRAY, struct.pack("<IQ", STRING, 1) + text("x")),
    )
    path = replace(SOUND, keys=keys).write(tmp_path / "kinds")
    for option, name, words in [
        ("--integer", "absent", "has no key 'absent'; expected an integer"),
        ("--integer", "text", "'text' has a value of type string; expected an integer"),
        ("--integer", "nan", "of type float32; expected an integer"),
        ("--integer", "big", f"'big' is {HUGE}, which is too large"),
        ("--integer", "bool", "is a bool of value 2; expected 0 or 1"),
        ("--integer", "texts", "of type array; expected an integer"),
        ("--number", "nan", "'nan' is nan; expected a finite number"),
        ("--number", "text", "expected"),
        ("--text", "nan", "of type float32; expected a string"),
        ("--texts", "text", "of type string; expected an array of strings"),
        ("--texts", "numbers", "an array of float32; expected strings"),
        ("--numbers", "numbers", "is inf; expected a finite number"),
        ("--numbers", "texts", "of type string; expected"),
        ("--integers", "integers", "item 1 of key 'integers' is 2147483648, which does not fit 32 bits"),
        ("--integers", "numbers", "of type float32; expected an integer"),
    ]:
        line = dump(option, name, path)[-1]
        assert f"status {FORMAT}: {path}: " in line
        assert words in line


def test_what_is_no_file_is_refused(dump: Dump, tmp_path: Path) -> None:
    assert dump(tmp_path / "absent") == [f"status {IO}: {tmp_path}/absent: cannot be opened: No such file or directory"]
    assert "it is no regular file" in dump(tmp_path)[0]
    (tmp_path / "empty").touch()
    assert dump(tmp_path / "empty")[0].startswith(f"status {FORMAT}: ")
