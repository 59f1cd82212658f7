"""A GGUF file in the forms that other programs give it: split, without a suffix, big-endian; and with absurd counts."""

from __future__ import annotations

import os
import random
import resource
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from tests.export.gguf_models import save_sealed, small_model
from tests.native.programs import PROGRAM, output, run
from tests.native.tiny_models import write_tiny_model

from mobillama import loading
from mobillama.errors import DamagedFileError, InputError, MobillamaError
from mobillama.eval.subject import open_subject
from mobillama.export.gguf_file import quantize_model
from mobillama.runtime.engine import Engine
from mobillama.runtime.engine_model import EngineModel
from mobillama.runtime.gguf_file import is_gguf
from mobillama.tokenizer.gguf_keys import read_keys

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE: dict[str, Any] = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 64, "heads": 4, "kv_heads": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its tokenizer as one file."""
    folder = tmp_path_factory.mktemp("forms")
    save_sealed(folder / "model", small_model())
    quantize_model(folder / "model", folder / "whole.gguf", "f32")
    return folder / "whole.gguf"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The parts of a model of 20 tensors, seven in each."""
    folder = tmp_path_factory.mktemp("parts")
    write_tiny_model(folder / "split.gguf", Type.Q8_0, **SHAPE, split_max_tensors=7)
    found = sorted(folder.iterdir())
    assert [path.name for path in found] == [f"split-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    return found


def logits(path: Path) -> np.ndarray:
    with EngineModel.load(path, threads=1) as model:
        return model([5, 6, 7])


def test_a_split_file_is_read_as_the_whole_one(parts: list[Path], tmp_path: Path) -> None:
    whole = write_tiny_model(tmp_path / "whole.gguf", Type.Q8_0, **SHAPE)
    assert np.array_equal(logits(parts[0]), logits(whole))
    with Engine.open(parts[0]) as engine:
        assert engine.info.file_bytes == sum(path.stat().st_size for path in parts)
    options = ("--ids", "5,6", "-n", 8, "--temperature", 0)
    assert output(parts[0], *options) == output(whole, *options)


def test_an_evaluation_names_every_part(whole: Path, tmp_path: Path) -> None:
    """Made by hand: the first part has keys and no tensors, the second the tensors."""
    data, count = whole.read_bytes(), len(read_keys(whole))
    split = [("split.no", 0), ("split.count", 2)]
    extra = b"".join(struct.pack("<Q", len(key)) + key.encode() + struct.pack("<IH", 2, value) for key, value in split)
    end = data.index(b"token_embd.weight") - 8
    number_of_tensors = struct.unpack_from("<Q", data, 8)[0]
    first = data[:8] + struct.pack("<QQ", 0, count + 2) + data[24:end] + extra
    (tmp_path / "m-00001-of-00002.gguf").write_bytes(first + bytes(-len(first) % 32))
    second = data[:8] + struct.pack("<QQ", number_of_tensors, 2) + extra.replace(b"no\2\0\0\0\0", b"no\2\0\0\0\1")
    at = end
    for _ in range(number_of_tensors):  # to the end of the table of tensors
        (size,) = struct.unpack_from("<Q", data, at)
        (dims,) = struct.unpack_from("<I", data, at + 8 + size)
        at += 8 + size + 4 + 8 * dims + 4 + 8
    second += data[end:at]
    second += bytes(-len(second) % 32) + data[at + -at % 32 :]
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(second)
    subject = open_subject(str(tmp_path / "m-00001-of-00002.gguf"), threads=1)
    names = [one["name"] for one in subject.made_from if one["kind"] == "source file"]
    assert names == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    assert np.array_equal(logits(tmp_path / "m-00001-of-00002.gguf"), logits(whole))


def test_parts_that_do_not_belong_together_are_told(parts: list[Path], tmp_path: Path) -> None:
    names = [path.name for path in parts]

    def copied(changes: dict[int, Path | None]) -> Path:
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        (tmp_path / "copy").mkdir()
        for number, name in enumerate(names):
            if (source := changes.get(number, parts[number])) is not None:
                shutil.copy(source, tmp_path / "copy" / name)
        return tmp_path / "copy" / names[0]

    first = copied({})
    for further in names[1:]:
        with pytest.raises(InputError, match=rf"is part \d of 3 of a model; give the first, .*{names[0]}"):
            Engine.open(first.with_name(further))
    with pytest.raises(InputError, match=r"part 1 of 3 of a model; expected a name that ends in -00001-of-00003\.gguf"):
        Engine.open(first.rename(first.with_name("first.gguf")))
    with pytest.raises(MobillamaError, match=f"{names[1]}: cannot be opened: No such file"):
        Engine.open(copied({1: None}))
    with pytest.raises(DamagedFileError, match=f"{names[1]}: tensor '.*' is in an earlier part too"):
        Engine.open(copied({1: parts[0]}))
    with pytest.raises(DamagedFileError, match="says that it is part 3 of 3; expected 2 of 3 from its name"):
        Engine.open(copied({1: parts[2]}))
    for key, value in (("split.count", 0), ("split.count", 2**31), ("split.no", 7)):
        odd = write_tiny_model(tmp_path / f"{key}-{value}.gguf", Type.F32, **SHAPE, keys={"split.no": 1, key: value})
        with pytest.raises(MobillamaError, match="expected 1 to 99999 parts"):
            Engine.open(odd)


def test_a_file_without_a_suffix_is_known_by_its_magic_wherever_a_model_is_named(whole: Path, tmp_path: Path) -> None:
    blob = tmp_path / "sha256-0123456789abcdef"
    os.link(whole, blob)
    assert is_gguf(blob)
    with loading.load(blob, threads=1) as model, loading.load(whole, threads=1) as named:
        assert isinstance(model, EngineModel)
        assert model.generate("a", max_new_tokens=4, seed=1) == named.generate("a", max_new_tokens=4, seed=1)
    assert open_subject(str(blob), threads=1).backend == "engine"
    assert output(blob, "-p", "a", "-n", 4, "--threads", 1) == output(whole, "-p", "a", "-n", 4, "--threads", 1)
    (tmp_path / "text").write_text("GGML")
    (tmp_path / "folder.gguf").mkdir()
    for other in (tmp_path / "text", tmp_path / "folder.gguf", tmp_path / "nowhere", "owner/name", "a\0b"):
        assert not is_gguf(other)
    assert is_gguf("nowhere.GGUF")


def test_a_big_endian_file_is_called_one_by_program_and_package(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    path.write_bytes(b"GGUF" + struct.pack(">IQQ", 3, 0, 0))
    words = "is a big-endian GGUF file; this"
    for read in (Engine.open, read_keys):
        with pytest.raises(InputError, match=f"{words} .*gguf-convert-endian"):
            read(path)
    assert words in run(path, "--ids", "5").stderr.decode()
    assert words in run(path, "--tokenize").stderr.decode()


def test_absurd_counts_take_no_memory(tmp_path: Path) -> None:
    """The program under a limit of memory: it says what is wrong, not that there is no memory."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    names = ["context_length", "embedding_length", "block_count", "feed_forward_length", "ffn_block_count"]
    names += ["attention.head_count", "attention.head_count_kv", "rope.dimension_count", "attention.key_length"]

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))

    for name in names:
        for value in (2**20, 2**24, 2**24 - chosen.randrange(2**20), 2**32 - 1):
            if name == "context_length" and value <= 2**24:
                continue  # a text may become so long; memory grows with it
            path = tmp_path / "absurd.gguf"
            path.unlink(missing_ok=True)
            optional = {"mobillama.rope.dimension_count": 8, "mobillama.attention.key_length": 8}
            write_tiny_model(path, Type.F32, **SHAPE, keys=optional)
            data = path.read_bytes()
            at = data.index(f"mobillama.{name}".encode()) + len(f"mobillama.{name}") + 4
            path.write_bytes(data[:at] + struct.pack("<I", value) + data[at + 4 :])
            done = subprocess.run(
                [PROGRAM, path, "--ids", "5", "-n", "1", "--threads", "1"],
                capture_output=True,
                timeout=60,
                preexec_fn=limited,
            )
            assert done.returncode == 1, (name, value)
            assert b"memory" not in done.stderr, done.stderr
