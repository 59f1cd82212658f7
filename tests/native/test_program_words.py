"""Errors speak the command line's words, and what they quote from a file cannot steer a terminal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from tests.native.programs import run
from tests.native.tiny_models import write_tiny_model

from mobillama.errors import MobillamaError, OutOfMemoryError, RecipeError
from mobillama.runtime.engine_model import EngineModel

ROOT = Path(__file__).parents[2]
SHAPE: dict[str, Any] = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 64, "heads": 4, "kv_heads": 2}
# Clears a screen, names a window, ends a line, in one byte and in two, turns what follows.
HOSTILE = "a\x1b[2J\x1b]0;b\x07\r\n\x7f\x9b31m\u202ez"
TOKENIZER: dict[str, Any] = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a"],
    "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0],
    "tokenizer.ggml.token_type": [2, 3, 3, 1],
}
# What of a file is spoilt -> its keys.
SPOILT: dict[str, dict[str, Any]] = {
    "an unknown key": {f"mobillama.{HOSTILE}": 1},
    "the value of a key": {"mobillama.rope.scaling.type": HOSTILE},
    "a name twice as long as is shown": {f"mobillama.{HOSTILE * 20}": 1},
    "the kind of tokenizer": {**TOKENIZER, "tokenizer.ggml.model": HOSTILE},
    "a byte piece": {**TOKENIZER, "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", HOSTILE],
                     "tokenizer.ggml.token_type": [2, 3, 3, 6]},
    "a merge": {**TOKENIZER, "tokenizer.ggml.merges": [HOSTILE]},
}  # fmt: skip


def shown(text: str) -> bool:
    """Whether a terminal only shows it."""
    return all(one.isprintable() for one in text)


def errors_of(path: Path) -> list[str]:
    """What program and package say of a file that neither can read."""
    told = [run(path, "-p", "a", "-n", 1), run(path, "--tokenize", stdin=b"a")]
    found = [done.stderr.decode().removesuffix("\n") for done in told if done.returncode]
    with pytest.raises(MobillamaError) as error, EngineModel.load(path) as model:
        model.tokenizer.encode("a")
    return [*found, str(error.value)]


@pytest.mark.parametrize("what", SPOILT)
def test_what_a_key_or_a_value_holds_is_escaped(what: str, tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "spoilt.gguf", Type.F32, **SHAPE, keys=SPOILT[what])
    said = errors_of(path)
    assert len(said) >= 2
    assert all(map(shown, said)), said


def test_the_names_of_tensors_architectures_and_files_are_escaped(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "architecture.gguf", HOSTILE)
    writer.add_tensor("a", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    sound = write_tiny_model(tmp_path / "sound.gguf", Type.F32, **SHAPE)
    tensor = tmp_path / "tensor.gguf"
    tensor.write_bytes(sound.read_bytes().replace(b"blk.1.attn_q.weight", b"blk\x1b1\nattn_q\x9bweight"))
    named = sound.rename(tmp_path / "name\x1b[2J\n.gguf")
    for path in (tmp_path / "architecture.gguf", tensor, named):
        said = errors_of(path)
        assert all(map(shown, said)), said


def test_python_errors_escape_what_they_are_given_and_recipes_keep_their_lines() -> None:
    kinds = [MobillamaError]
    for kind in kinds:
        kinds += kind.__subclasses__()
        assert shown(str(kind(f"found {HOSTILE}")).replace("\n", "" if kind is RecipeError else "\n")), kind
    assert {OutOfMemoryError, RecipeError} < set(kinds)
    assert str(RecipeError("one\ntwo")) == "one\ntwo"
    assert str(MobillamaError("C:\\x1b is text")) == "C:\\x1b is text"


def test_the_program_says_options_and_never_the_librarys_names(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", Type.F32, **SHAPE, keys={"mobillama.odd": 1})
    ignored = ("--ignore-key", "mobillama.odd")
    for options, word in (
        (("--ids", "5", "--threads", 999, *ignored), "--threads 999"),
        (("--ids", "5", "--context", 2**31 - 1, *ignored), "--context 2147483647"),
        (("--ids", "5", "--temperature", 1, "--top-p", 0, *ignored), "--top-p 0"),
        (("--ids", "5,6,7", "--context", 2, *ignored), "larger --context"),
        (("--ids", ",".join(["5"] * 65), *ignored), "larger --context"),
        (("--ids", "40", *ignored), "id 40"),
        (("--ids", "5"), "--ignore-key"),
    ):
        done = run(path, "-n", 2, *options)
        said = done.stderr.decode()
        assert done.returncode in (1, 2), options
        assert word in said
        assert not re.search(r"mobillama_|NULL|max_tokens|ignore_keys|\b[a-z_]+=", said.replace(str(tmp_path), "")), (
            said
        )


def test_every_name_in_the_librarys_words_has_one_of_the_command_line() -> None:
    said = {
        name: source.name
        for source in sorted((ROOT / "native" / "src").glob("*.cpp"))
        for name in re.findall(r'"[^"\n]*?(?<!%)\b([a-z_]+)=%', source.read_text(encoding="utf-8"))
    }
    translated = set(re.findall(r'\{"(\w+)=", "--', (ROOT / "native/program/generate.cpp").read_text(encoding="utf-8")))
    assert {"threads", "top_p"} <= said.keys() & translated
    # These the program leaves at their defaults, or has no option for.
    assert said.keys() - translated <= {"share_ffn", "num_ids", "bytes", "max_sequences"}
