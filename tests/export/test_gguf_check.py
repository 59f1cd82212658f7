"""A GGUF file is what the model gives when it is rounded again; whatever differs is told by its name."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter
from gguf_models import save_sealed, small_model
from typer.testing import CliRunner

from mobillama.cli.app import app
from mobillama.cli.artefact import verify
from mobillama.errors import DamagedFileError, InputError
from mobillama.export.calibration import collect_importance
from mobillama.export.gguf_check import check_gguf
from mobillama.export.gguf_file import quantize_model
from mobillama.tokenizer.gguf_keys import read_header

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sealed(tmp_path_factory.mktemp("one") / "model", small_model(num_ffn_blocks=1))


@pytest.fixture(scope="module")
def importance(folder: Path) -> dict[str, np.ndarray]:
    print("seed 5")
    return collect_importance(folder, np.random.default_rng(5).integers(0, 420, (2, 40)))


def changed(path: Path, at: int, data: bytes) -> Path:
    """The file with other bytes at one place."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)
    return path


def flipped(path: Path, at: int) -> Path:
    return changed(path, at, bytes([path.read_bytes()[at] ^ 1]))


@pytest.mark.parametrize(
    ("types", "more"),
    [
        ("f32", {}),
        ("q8_0", {}),
        ("q4_0,ffn=q6_k", {}),  # rows of 64 and 96 fall back
        ("mixed", {"architecture": "llama"}),
    ],
)
def test_a_file_equals_what_its_model_gives_again(
    folder: Path, tmp_path: Path, types: str, more: dict[str, Any]
) -> None:
    quantize_model(folder, tmp_path / "out.gguf", types, **more)
    found = check_gguf(tmp_path / "out.gguf", folder)
    keys, tensors = read_header(tmp_path / "out.gguf")
    assert (found.differences, found.not_compared, found.whole) == ([], [], True)
    assert (found.keys, found.tensors) == (len(keys), len(tensors))


def test_a_model_whose_gains_are_folded_equals_too(tmp_path: Path) -> None:
    model = save_sealed(tmp_path / "model", small_model(num_ffn_blocks=1, ffn_gain=True))
    quantize_model(model, tmp_path / "out.gguf", "f32", architecture="llama")
    assert check_gguf(tmp_path / "out.gguf", model).whole


def test_a_tokenizer_that_was_put_inside_is_given_again(folder: Path, tmp_path: Path) -> None:
    other = save_sealed(tmp_path / "other", small_model(5))
    quantize_model(folder, tmp_path / "out.gguf", "f16", tokenizer=other)
    assert check_gguf(tmp_path / "out.gguf", folder, tokenizer=other).whole


def test_a_calibrated_file_is_compared_with_its_calibration_and_without_it_as_far_as_that_goes(
    folder: Path, tmp_path: Path, importance: dict[str, np.ndarray]
) -> None:
    out = tmp_path / "out.gguf"
    quantize_model(folder, out, "q4_0,head=f16", importance=importance)
    assert check_gguf(out, folder, importance=importance).whole
    without = check_gguf(out, folder)
    rounded = 4 * 4 + 3  # attention of four layers, one FFN; norms, the embedding and a head of f16 are not
    assert without.not_compared == [
        f"{rounded} tensors were rounded with calibration; give --importance SHARDS",
        "key mobillama.importance_digest",
    ]
    assert (without.differences, without.whole) == ([], False)
    _, tensors = read_header(out)
    assert without.tensors == len(tensors) - rounded
    other = {name: values + 1 for name, values in importance.items()}
    told = check_gguf(out, folder, importance=other)
    assert [line.split(":")[0] for line in told.differences] == ["key mobillama.importance_digest"]
    assert "another calibration" in told.not_compared[0]
    flipped(out, tensors["token_embd.weight"].start)
    assert [line.split(":")[0] for line in check_gguf(out, folder).differences] == ["tensor token_embd.weight"]


@pytest.mark.parametrize("name", ["token_embd.weight", "blk.0.ffn_down.weight", "blk.3.attn_norm.weight"])
def test_one_flipped_byte_is_told_by_the_tensors_name(folder: Path, tmp_path: Path, name: str) -> None:
    quantize_model(folder, tmp_path / "out.gguf", "q8_0")
    start = read_header(tmp_path / "out.gguf")[1][name].start + 7
    (line,) = check_gguf(flipped(tmp_path / "out.gguf", start), folder).differences
    assert line.startswith(f"tensor {name}: 1 of ")
    assert line.endswith(f" bytes differ, the first at byte {start} of the file")


def test_a_changed_key_is_told_by_its_name(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    quantize_model(folder, out, "q8_0")
    whole = out.read_bytes()
    for key, old, new in [
        ("general.name", b"small", b"smell"),
        ("mobillama.rope.freq_base", struct.pack("<f", 5000.0), struct.pack("<f", 5001.0)),
        ("mobillama.types", b"attention=q8_0", b"attention=q4_0"),
        ("tokenizer.ggml.scores", struct.pack("<f", -1.0), struct.pack("<f", -1.5)),
    ]:
        at = whole.index(old, whole.index(key.encode()))
        out.write_bytes(whole[:at] + new + whole[at + len(new) :])
        (line,) = check_gguf(out, folder).differences
        assert line.startswith(f"key {key}: "), line


def test_of_another_model_keys_and_the_first_tensors_are_named_and_the_rest_counted(
    folder: Path, tmp_path: Path
) -> None:
    quantize_model(folder, tmp_path / "out.gguf", "q4_0")
    lines = check_gguf(tmp_path / "out.gguf", save_sealed(tmp_path / "other", small_model(4, num_ffn_blocks=1)))
    told = [line.split(":")[0] for line in lines.differences]
    assert told[:3] == ["key mobillama.model_digest", "tensor token_embd.weight", "tensor blk.0.attn_norm.weight"]
    assert lines.differences[-1] == "and 25 more tensors: 30 differ, the file holds 30"
    assert len(told) == 1 + 5 + 1
    shape = save_sealed(tmp_path / "shape", small_model(hidden_size=32, num_hidden_layers=2))
    lines = check_gguf(tmp_path / "out.gguf", shape)
    assert "key mobillama.block_count: found 4; the model gives 2" in lines.differences
    assert any("found shape (420, 64); the model gives (420, 32)" in line for line in lines.differences)


def test_bytes_that_belong_to_nothing_are_no_difference_but_the_file_is_not_whole(folder: Path, tmp_path: Path) -> None:
    quantize_model(folder, tmp_path / "out.gguf", "q8_0")
    with (tmp_path / "out.gguf").open("ab") as file:
        file.write(bytes(1))
    found = check_gguf(tmp_path / "out.gguf", folder)
    assert (found.differences, found.whole) == ([], False)


def test_files_that_cannot_be_rounded_again_are_refused_in_words(
    folder: Path, tmp_path: Path, importance: dict[str, np.ndarray]
) -> None:
    def other(name: str, architecture: str, key: str = "", value: int = 0) -> Path:
        writer = GGUFWriter(tmp_path / name, architecture)
        if key:
            writer.add_uint16(key, value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        return tmp_path / name

    out = tmp_path / "out.gguf"
    quantize_model(folder, out, "f16")
    with pytest.raises(InputError, match="not written by `mobillama quantize`"):
        check_gguf(other("theirs.gguf", "llama"), folder)
    with pytest.raises(InputError, match="one part of a split model"):
        check_gguf(other("part.gguf", "mobillama", "split.count", 3), folder)
    with pytest.raises(InputError, match="without calibration"):
        check_gguf(out, folder, importance=importance)
    with pytest.raises(InputError, match="no file"):
        check_gguf(tmp_path / "missing.gguf", folder)
    whole = out.read_bytes()
    for size in (len(whole) - 64, 4000, 60, 4):
        out.write_bytes(whole[:size])
        with pytest.raises(DamagedFileError, match="not a whole GGUF file"):
            check_gguf(out, folder)


def test_the_command_says_what_was_compared_and_exits_with_1_where_something_differs(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    quantize_model(folder, out, "f16")
    said = CliRunner().invoke(app, ["verify", str(out), "--model", str(folder)])
    assert (said.exit_code, "equal, byte for byte" in said.stdout) == (0, True)
    flipped(out, read_header(out)[1]["output.weight"].start)
    said = CliRunner().invoke(app, ["verify", str(out), "--model", str(folder)])
    assert said.exit_code == 1
    assert said.stdout.startswith("tensor output.weight: 1 of ")
    with pytest.raises(InputError, match="give --model FOLDER"):
        verify(out)
    with pytest.raises(InputError, match="is no GGUF file; --model"):
        verify(folder, model=str(folder))
