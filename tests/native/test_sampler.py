"""The library's choice of a token against the numpy version: the same id for the same logits."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mobillama.errors import InputError
from mobillama.generation.sampling import Settings, choose
from mobillama.runtime.library import SamplingStruct, Status

SETTINGS = [
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.7},
    {"temperature": 1.0, "top_p": 1.0},
    {"temperature": 0.8, "top_p": 0.95},
    {"temperature": 0.5, "top_k": 5, "top_p": 1.0},
    {"temperature": 1.3, "top_p": 0.6},
    {"temperature": 0.9, "top_k": 40, "top_p": 0.8, "repetition_penalty": 1.3},
    {"temperature": 2.0, "top_k": 500, "top_p": 0.999, "repetition_penalty": 0.8},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_p": 1e-9},
    {"temperature": 1.0, "top_p": 1 - 1e-15},
    {"temperature": 1e-4, "top_p": 0.95},
    {"temperature": 1e4, "top_p": 0.5, "top_k": 100},
    {"temperature": 1e-306, "repetition_penalty": 100.0},
    {"temperature": 5e-324, "top_k": 3},
    {"temperature": 1.0, "top_p": 0.9, "num_ids": 7},
]


class Sampler:
    """The C++ function with numpy arguments. Error: InputError with its words."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        self._choose = library.choose_id
        self._choose.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.POINTER(SamplingStruct), ctypes.c_int64]
        self._choose.argtypes += [ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p, ctypes.c_size_t]

    def __call__(self, logits: np.ndarray, seen: np.ndarray | None, struct: SamplingStruct, position: int) -> int:
        row = np.ascontiguousarray(logits, dtype=np.float32)
        ids = np.array([] if seen is None else seen, dtype=np.int32)
        text = ctypes.create_string_buffer(1024)
        address = ids.ctypes.data if ids.size else None
        result = self._choose(
            row.ctypes.data, row.size, ctypes.byref(struct), position, address, ids.size, text, len(text)
        )
        if result < 0:
            assert result == -1 - Status.INVALID
            raise InputError(text.value.decode())
        return int(result)


@pytest.fixture(scope="module")
def sampler(compiled: Callable[..., Path]) -> Sampler:
    return Sampler(compiled(["tests/sampler_door.cpp", "src/sampler.cpp"], flags=["-shared", "-O3"]))


def struct_of(**values: float) -> SamplingStruct:
    chosen = Settings(**values)  # type: ignore[arg-type]
    names = ("temperature", "top_k", "top_p", "repetition_penalty", "seed")
    return SamplingStruct(*(getattr(chosen, name) for name in names), chosen.num_ids or 0)


def make_logits(numbers: np.random.Generator, kind: int) -> np.ndarray:
    """Rows of many shapes: smooth, tied, nearly flat, peaked, with ids that cannot be."""
    size = int(numbers.choice([1, 2, 15, 16, 17, 50, 500, 5000]))
    logits = numbers.normal(0, 3, size)
    if kind == 1:
        logits = np.round(logits)
    elif kind == 2:
        logits = np.zeros(size)
    elif kind == 3:
        logits *= 1e-4
    elif kind == 4:
        logits[numbers.integers(size)] += 40
    elif kind == 5:
        logits[numbers.random(size) < 0.5] = -np.inf
        logits[0] = 1.0  # else the first num_ids could hold nothing to choose
    elif kind == 6:
        logits = np.where(numbers.random(size) < 0.5, 3e38, -3e38)
    return logits.astype(np.float32)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_choice_equals_the_numpy_version(sampler: Sampler, settings: dict[str, float]) -> None:
    seed = int(os.environ.get("MOBILLAMA_TEST_SEED", "0")) or int.from_bytes(os.urandom(4), "big")
    print(f"MOBILLAMA_TEST_SEED={seed}")
    numbers = np.random.default_rng(seed)
    for round_ in range(400):
        logits = make_logits(numbers, round_ % 7)
        ids = numbers.integers(0, logits.size, logits.size // 3)
        mask = np.zeros(logits.size, dtype=np.bool_)
        mask[ids] = True
        values = {**settings, "seed": int(numbers.integers(2**64, dtype=np.uint64))}
        position = int(numbers.integers(100_000))
        with np.errstate(invalid="ignore"):
            expected = choose(logits, mask, Settings(**values), position)  # type: ignore[arg-type]
        assert sampler(logits, ids, struct_of(**values), position) == expected, (round_, logits.size, values)


def test_draws_of_a_whole_vocabulary_equal_the_numpy_version(sampler: Sampler) -> None:
    numbers = np.random.default_rng(5)
    logits = numbers.normal(0, 2.5, 32_000).astype(np.float32)
    for values in ({"temperature": 0.8, "top_p": 0.95}, {"temperature": 1.2, "top_p": 1.0}, {"top_k": 40}):
        expected = [choose(logits, None, Settings(**values), place) for place in range(60)]  # type: ignore[arg-type]
        assert [sampler(logits, None, struct_of(**values), place) for place in range(60)] == expected


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_a_choice_is_a_function_of_seed_and_position(sampler: Sampler, seed: int) -> None:
    logits = np.zeros(1000, dtype=np.float32)
    values = {"temperature": 1.0, "top_p": 1.0, "seed": seed}
    found = [sampler(logits, None, struct_of(**values), place) for place in (0, 1, 2**40, 0)]
    assert found[0] == found[3]
    assert len(set(found)) == 3
    assert found[2] == choose(logits, None, Settings(**values), 2**40)  # type: ignore[arg-type]


def test_repeats_among_the_seen_ids_count_once_and_ids_beyond_num_ids_are_left_alone(sampler: Sampler) -> None:
    logits = np.array([1.5, 1.0, 9.0], dtype=np.float32)
    struct = struct_of(temperature=0.0, repetition_penalty=1.4, num_ids=2)
    assert sampler(logits, np.array([0, 0, 0, 2]), struct, 0) == 0  # 1.5 / 1.4 > 1; three times would make it 0.55


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [1, 17, 100])
def test_logits_that_are_not_numbers_are_an_error(sampler: Sampler, bad: float, size: int) -> None:
    for at in {0, size // 2, size - 1}:
        logits = np.full(size, -np.inf if bad == -np.inf else 0.0)
        logits[at] = bad
        with pytest.raises(InputError, match=r"largest logit at position 4 .* finite"):
            sampler(logits, None, struct_of(), 4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1.0),
        ("temperature", np.nan),
        ("temperature", np.inf),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", np.nan),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", np.nan),
        ("num_ids", -1),
    ],
)
def test_an_impossible_setting_is_named(sampler: Sampler, name: str, value: float) -> None:
    struct = struct_of()
    setattr(struct, name, value)
    with pytest.raises(InputError, match=f"{name}=.*expected"):
        sampler(np.zeros(4), None, struct, 0)


def test_ids_and_positions_outside_are_an_error(sampler: Sampler) -> None:
    for ids in ([4], [-1]):
        with pytest.raises(InputError, match=f"id {ids[0]} among those already in the text; expected 0 to 3"):
            sampler(np.zeros(4), np.array(ids), struct_of(repetition_penalty=2.0), 0)
    with pytest.raises(InputError, match="position -1"):
        sampler(np.zeros(4), None, struct_of(), -1)
    with pytest.raises(InputError, match="0 logits"):
        sampler(np.zeros(0), None, struct_of(), 0)
