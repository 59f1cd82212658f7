"""The shard format: valid safetensors, read back as written, damage found and named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mobillama import manifest
from mobillama.data.header import VALIDATION, Header, chunk_name
from mobillama.data.shards import read_shards, require_tokenizer, tokenizer_files, write_shards
from mobillama.data.tensors import map_arrays
from mobillama.errors import DamagedFileError, InputError


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 500, (23, 9))


@pytest.fixture
def shards(tmp_path: Path, rows: np.ndarray) -> Path:
    write_shards(tmp_path / "shards", rows[:20], rows[20:], vocab_size=500, chunks=3, bytes_per_token=4)
    return tmp_path / "shards"


def test_rows_come_back_as_they_were_written(shards: Path, rows: np.ndarray):
    opened = read_shards(shards)
    assert opened.chunk_rows == (6, 7, 7)
    assert (opened.num_rows, opened.num_validation_rows, opened.seq_len, opened.row_len) == (20, 3, 8, 9)
    order = [19, 0, 6, 5, 13, 12]
    assert (opened.train_rows(order) == rows[order]).all()
    assert (opened.validation_rows([2, 0]) == rows[[22, 20]]).all()
    assert opened.row_bytes(order).tolist() == [32] * 6
    assert opened.row_sources([0, 19]).tolist() == [0, 0]
    assert opened.train_rows([]).shape == (0, 9)
    opened.check()


def test_a_chunk_is_a_safetensors_file(shards: Path, rows: np.ndarray):
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open(shards / "chunk_001.safetensors", "numpy") as file:
        assert (file.get_tensor("ids") == rows[6:13]).all()
        assert file.get_tensor("ids").dtype == np.uint16
        assert json.loads(file.metadata()["sources"]) == ["text"]
        assert file.metadata()["format"] == "mobillama.shards"


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_ids_take_16_bits_up_to_a_vocabulary_of_65536(tmp_path: Path, vocab_size: int, dtype: type):
    top = np.full((1, 3), vocab_size - 1)
    write_shards(tmp_path / "s", top, top[:0], vocab_size=vocab_size)
    arrays, metadata = map_arrays(tmp_path / "s" / "chunk_000.safetensors")
    assert arrays["ids"].dtype == dtype
    assert metadata["vocab_size"] == str(vocab_size)
    assert read_shards(tmp_path / "s").train_rows([0]).tolist() == top.tolist()
    assert read_shards(tmp_path / "s").num_validation_rows == 0


def test_chunk_names_sort_as_they_count():
    assert chunk_name(7, 360) == "chunk_007.safetensors"
    names = [chunk_name(number, 1200) for number in range(1200)]
    assert names == sorted(names)


@pytest.mark.parametrize("cut", [1, 100, -1])
def test_a_truncated_chunk_is_named(shards: Path, cut: int):
    path = shards / "chunk_001.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DamagedFileError, match=r"chunk_001\.safetensors"):
        read_shards(shards)


def test_a_missing_chunk_is_named(shards: Path):
    (shards / "chunk_002.safetensors").unlink()
    with pytest.raises(DamagedFileError, match=r"chunk_002\.safetensors is missing"):
        read_shards(shards)


def test_every_flipped_bit_is_found_by_check(shards: Path):
    random = np.random.default_rng(seed := 5)
    print("seed", seed)
    path = shards / "chunk_001.safetensors"
    whole = path.read_bytes()
    for place in random.integers(0, 8 * len(whole), 20).tolist():
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(DamagedFileError, match=r"chunk_001\.safetensors: found sha256"):
            manifest.check(shards)
    path.write_bytes(whole)
    read_shards(shards).check()


def test_a_flipped_bit_in_the_header_is_an_error_and_never_a_crash(shards: Path):
    path = shards / "chunk_001.safetensors"
    whole = path.read_bytes()
    head = 8 + int.from_bytes(whole[:8], "little")
    random = np.random.default_rng(seed := 6)
    print("seed", seed)
    refused = 0
    for place in random.integers(0, 8 * head, 200).tolist():
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            read_shards(shards)
        except (DamagedFileError, InputError) as error:
            assert "chunk_001" in str(error)
            refused += 1
    assert refused > 50


def test_ids_outside_the_vocabulary_are_refused_with_row_and_id(tmp_path: Path):
    ids = np.zeros((4, 5), int)
    ids[2, 3] = 77
    write_shards(tmp_path / "s", ids, ids, vocab_size=70, chunks=2)
    opened = read_shards(tmp_path / "s")
    assert opened.train_rows([0, 1, 3]).max() == 0
    with pytest.raises(InputError, match="train row 2 holds id 77; the vocabulary has 70 ids"):
        opened.train_rows([1, 2])
    with pytest.raises(InputError, match="validation row 2 holds id 77"):
        opened.validation_rows([2])


def test_rows_that_are_not_there_are_refused(shards: Path):
    for row in (20, -1):
        with pytest.raises(InputError, match="rows 0 to 19"):
            read_shards(shards).train_rows([row])


def test_another_tokenizer_is_refused(tmp_path: Path):
    write_shards(tmp_path / "s", [[1, 2]], [[1, 2]], vocab_size=5, tokenizer_digest="a" * 64)
    opened = read_shards(tmp_path / "s")
    require_tokenizer(opened, "a" * 64, "here")
    with pytest.raises(InputError, match=r"here has tokenizer bbbb.*were encoded with aaaa"):
        require_tokenizer(opened, "b" * 64, "here")


def test_chunks_that_disagree_are_refused(shards: Path, tmp_path: Path):
    write_shards(tmp_path / "other", [[1] * 9], [[1] * 9], vocab_size=400)
    shutil.copy(tmp_path / "other" / "chunk_000.safetensors", shards / "chunk_001.safetensors")
    text = json.loads((shards / "manifest.json").read_text())
    text["files"]["chunk_001.safetensors"]["bytes"] = (shards / "chunk_001.safetensors").stat().st_size
    (shards / "manifest.json").write_text(json.dumps(text))
    with pytest.raises(DamagedFileError, match=r"chunk_001.*vocab_size=400.*expected.*vocab_size=500"):
        read_shards(shards)


def test_a_newer_format_version_is_refused(shards: Path):
    path = shards / VALIDATION
    path.write_bytes(path.read_bytes().replace(b'"format_version":"2"', b'"format_version":"9"'))
    with pytest.raises(InputError, match="format version 9"):
        read_shards(shards)


def test_tokenizer_files_travel_with_the_shards(tmp_path: Path):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    write_shards(tmp_path / "s", [[1, 2]], [[1, 2]], vocab_size=5, tokenizer=tmp_path / "tokenizer")
    assert tokenizer_files(tmp_path / "s") == {"tokenizer.json": tmp_path / "s" / "tokenizer" / "tokenizer.json"}


def test_header_takes_the_smallest_type_that_holds_every_id():
    assert Header(32_000, 2048, "", ()).id_type == "U16"
    assert Header(65_537, 2048, "", ()).id_type == "U32"


def test_reading_rows_imports_neither_torch_nor_pyarrow(shards: Path):
    code = (
        "import sys; from mobillama.data.shards import read_shards; from mobillama.data.stream import row_ids\n"
        f"s = read_shards({str(shards)!r}); s.train_rows(row_ids(1, 1, 4, s.chunk_rows))\n"
        "assert not {'torch', 'pyarrow', 'datatrove', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
