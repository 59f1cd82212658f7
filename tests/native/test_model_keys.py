"""Keys of a GGUF file: each is used, harmless or changes the arithmetic, and none that changes it is passed over."""

from __future__ import annotations

import json
import math
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from tests.native.programs import PROGRAM, output, run
from tests.native.tiny_models import write_tiny_model

from mobillama import loading
from mobillama.errors import InputError
from mobillama.runtime.engine import Engine
from mobillama.runtime.engine_model import EngineModel

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]
SHAPE: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 64,
    "heads": 4,
    "kv_heads": 2,
    "context_length": 64,
}
HEAD_SCALE = 1 / math.sqrt(8)
# What the engine says it knows of a key that changes the arithmetic -> values with which it must open, and must not.
VALUES: dict[str, tuple[list[Any], list[Any]]] = {
    "0": ([0, 0.0, False, [0, 0]], [1, 0.5, True, [0, 1], "text"]),
    "1": ([0, 1, 1.0, [1.0, 1.0]], [2, 0.5, [1.0, 3.0], "1"]),
    "true": ([True, 1], [False, 0, "true"]),
    "the embedding's width": ([0, 32], [64]),
    "1 / sqrt(head size)": ([0.0, HEAD_SCALE, round(HEAD_SCALE, 5)], [1.0, 0.25]),
    "0, or a window of the whole context": ([0, 64, 4096], [63, 8]),
    "none, or linear with a factor of 1": (["none", "linear"], ["yarn", "longrope", "dynamic", 1]),
    "silu": (["silu"], ["gelu", 0]),
    "reference": (["reference", "Meta AI original pth"], ["transposed"]),
}

Keys = dict[str, tuple[str, str]]


@pytest.fixture(scope="module")
def known(compiled: Callable[..., Path], engine: tuple[list[str], dict[str, list[str]]]) -> Keys:
    """The engine's own list: name behind the architecture -> (use, neutral value in words)."""
    sources, own_flags = engine
    program = compiled(["tests/model_keys.cpp", *sources], own_flags=own_flags)
    lines = subprocess.run([program], capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    return {name: (use, words) for name, use, words in (line.split("\t") for line in lines)}


@pytest.fixture(scope="module")
def logits(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., np.ndarray]:
    """Logits of a tiny model with further keys, of a few ids."""
    path = tmp_path_factory.mktemp("keys") / "tiny.gguf"

    def compute(keys: dict[str, Any], *ignore_keys: str) -> np.ndarray:
        path.unlink(missing_ok=True)
        write_tiny_model(path, Type.F32, **SHAPE, keys={f"mobillama.{name}": value for name, value in keys.items()})
        with EngineModel.load(path, threads=1, ignore_keys=ignore_keys) as model:
            assert model.info.ignored_keys == ignore_keys
            return model([5, 6, 7])

    return compute


def names_of_the_gguf_package(group: type = gguf.Keys) -> Iterator[str]:
    for value in vars(group).values():
        if isinstance(value, type):
            yield from names_of_the_gguf_package(value)
        elif isinstance(value, str) and value.startswith("{arch}."):
            name = value.removeprefix("{arch}.")
            yield from (name.format(dense=f"dense_{n}") for n in (2, 3)) if "{dense}" in name else (name,)


def test_every_key_that_the_gguf_package_can_write_is_known_and_the_list_is_in_order(known: Keys) -> None:
    assert not set(names_of_the_gguf_package()) - set(known)
    assert list(known) == sorted(known)


def test_a_key_that_changes_the_arithmetic_opens_with_its_neutral_value_alone(
    known: Keys, logits: Callable[..., np.ndarray]
) -> None:
    plain = logits({})
    changing = {name: words for name, (use, words) in known.items() if use == "changes"}
    assert set(changing.values()) == set(VALUES)
    for name, words in changing.items():
        neutral, others = VALUES[words]
        for value in neutral:
            assert np.array_equal(logits({name: value}), plain), (name, value)
        for value in others:
            with pytest.raises(InputError, match=rf"mobillama\.{re.escape(name)}'.*{re.escape(words)}: to compute"):
                logits({name: value})
        assert np.array_equal(logits({name: others[0]}, f"mobillama.{name}"), plain)


def test_a_factor_of_scaled_positions_counts_without_a_type_and_not_with_none(
    logits: Callable[..., np.ndarray],
) -> None:
    plain = logits({})
    for factor in ("rope.scaling.factor", "rope.scale_linear"):
        assert np.array_equal(logits({factor: 4.0, "rope.scaling.type": "none"}), plain)
        for further in ({}, {"rope.scaling.type": "linear"}):
            with pytest.raises(InputError, match=rf"mobillama\.{factor}' is 4,"):
                logits({factor: 4.0, **further})


def test_a_harmless_key_changes_nothing_and_an_unknown_one_is_an_error(
    known: Keys, logits: Callable[..., np.ndarray]
) -> None:
    plain = logits({})
    for name in (name for name, (use, _) in known.items() if use == "harmless"):
        for value in (7, 0.5, [1, 2], "text"):
            assert np.array_equal(logits({name: value}), plain), (name, value)
    for name in ("attention.new", "Embedding_scale", "rope.scaling", "", "x" * 200):
        with pytest.raises(InputError, match="is not known to this engine"):
            logits({name: 0})
        assert np.array_equal(logits({name: 0}, f"mobillama.{name}"), plain)


def test_a_name_to_ignore_that_stands_in_nobodys_way_is_an_error(logits: Callable[..., np.ndarray]) -> None:
    for name, words in {
        "mobillama.absent": "there is no such key",
        "mobillama.block_count": "it is understood",
        "mobillama.logit_scale": "it is understood",
        "general.name": "there is no such key",
    }.items():
        with pytest.raises(InputError, match=f"{name}' was to be ignored, but {words}; leave it out"):
            logits({"logit_scale": 1.0}, name)


def test_python_and_the_program_record_what_was_ignored(tmp_path: Path) -> None:
    odd = {"mobillama.new": 1, "mobillama.logit_scale": 2.0}
    path = write_tiny_model(tmp_path / "odd.gguf", Type.F32, **SHAPE, keys=odd)
    with loading.load(path, ignore_keys=list(odd)) as model:
        assert model.info.ignored_keys == tuple(odd)
    with pytest.raises(InputError, match="give its name to --ignore-key"):
        Engine.open(path, ignore_keys=["mobillama.new"])
    options = [part for key in odd for part in ("--ignore-key", key)]
    found = json.loads(output(path, "--ids", "5,6", "-n", 2, "--json", *options))
    assert found["ignored_keys"] == list(odd)
    assert run(path, "--ids", "5,6", "-n", 2, *options).stderr.endswith(
        b"; ignored key mobillama.new; ignored key mobillama.logit_scale\n"
    )
    assert PROGRAM.is_file()
    refused = run(path, "--ids", "5,6")
    assert refused.returncode == 1
    assert b"'mobillama.logit_scale' is 2, which changes what the model computes" in refused.stderr
    assert b"leave it out of --tokenize" in run(path, "--tokenize", "--ignore-key", "mobillama.new").stderr


def test_the_formats_page_names_every_key(known: Keys) -> None:
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    section = page.partition("### Keys of a model")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([a-z0-9_.]+)`", section))
    assert set(known) <= named, set(known) - named
