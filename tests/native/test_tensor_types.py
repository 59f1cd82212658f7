"""Tensor types: decoding equals the gguf package's bit for bit; rounding is never worse than its rounding."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

INVALID = 1
TYPES = [Type.F32, Type.F16, Type.BF16, Type.Q4_0, Type.Q5_0, Type.Q8_0, Type.Q3_K, Type.Q6_K]
BLOCKS = [Type.Q4_0, Type.Q5_0, Type.Q8_0, Type.Q3_K, Type.Q6_K]
# Types that the gguf package only decodes: runs of 16 with a whole multiple of one half as scale. The lowest integer
# and the lowest multiple.
SUPERS = {Type.Q3_K: (-4, -32), Type.Q6_K: (-32, -128)}


class Door:
    """The tensor types' C++ functions on arrays."""

    def __init__(self, library: Path) -> None:
        pointer, i32, i64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
        self.c = ctypes.CDLL(str(library))
        self.c.last_words.restype = ctypes.c_char_p
        self.c.bytes_of_row.restype = i64
        self.c.bytes_of_row.argtypes = [i32, i64]
        self.c.halves_to_floats.argtypes = self.c.floats_to_halves.argtypes = [pointer, i64, pointer]
        self.c.dequantize.argtypes = [i32, pointer, i64, i64, pointer]
        self.c.quantize.argtypes = [i32, pointer, i64, i64, pointer, pointer]

    def dequantize(self, kind: int, data: np.ndarray, cols: int) -> np.ndarray:
        data = np.ascontiguousarray(data).view(np.uint8)
        out = np.empty((len(data), cols), np.float32)
        self.c.dequantize(kind, data.ctypes.data, *out.shape, out.ctypes.data)
        return out

    def quantize(self, kind: int, rows: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
        rows = np.ascontiguousarray(rows, np.float32)
        out = np.empty((len(rows), max(self.c.bytes_of_row(kind, rows.shape[1]), 0)), np.uint8)
        weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
        status = self.c.quantize(
            kind, rows.ctypes.data, *rows.shape, None if weights is None else weights.ctypes.data, out.ctypes.data
        )
        if status != 0:
            raise ValueError(status, self.c.last_words().decode())
        return out


@pytest.fixture(scope="module")
def door(compiled: Callable[..., Path]) -> Door:
    sources = ["tests/types_door.cpp", "src/tensor_type.cpp", "src/quantize.cpp"]
    return Door(compiled(sources, flags=["-shared", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]))


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal bit for bit, but for the payload of a NaN."""
    nan = np.isnan(a) & np.isnan(b)
    return bool(np.all((a.view(np.uint32) == b.view(np.uint32)) | nan))


def test_every_half_is_the_float_that_numpy_makes_of_it(door: Door) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    floats = np.empty(1 << 16, np.float32)
    door.c.halves_to_floats(halves.ctypes.data, 1 << 16, floats.ctypes.data)
    assert same_bits(floats, halves.view(np.float16).astype(np.float32))


def test_floats_round_to_halves_as_in_numpy(door: Door) -> None:
    # Every half, the middle between each two, and the floats beside these: ties, carries, subnormals, overflow.
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    exact = np.concatenate([halves, (halves[:-1] + halves[1:]) / 2, [65519.99, 65520, 65536, 1e30, np.inf, 1e-30]])
    points = exact.astype(np.float32)
    floats = np.concatenate([points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(-1))])
    floats = np.concatenate(
        [floats, -floats, np.random.default_rng(1).integers(0, 1 << 32, 1 << 20, np.uint32).view(np.float32)]
    )
    out = np.empty(len(floats), np.uint16)
    door.c.floats_to_halves(floats.ctypes.data, len(floats), out.ctypes.data)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = floats.astype(np.float16)
    nan = np.isnan(floats)
    assert np.array_equal(out[~nan], expected.view(np.uint16)[~nan])
    assert np.isnan(out.view(np.float16)[nan]).all()


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_bytes_of_a_row_are_those_of_the_format(door: Door, kind: Type) -> None:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    assert door.c.bytes_of_row(kind, 3 * block) == 3 * size
    assert door.c.bytes_of_row(kind, 0) == 0
    assert door.c.bytes_of_row(kind, -block) == -1
    exact = (1 << 62) // block * size
    assert door.c.bytes_of_row(kind, 1 << 62) == (exact if exact < 1 << 63 else -1)
    if block > 1:
        assert door.c.bytes_of_row(kind, 3 * block + 1) == -1


def test_unknown_types_have_no_rows(door: Door) -> None:
    known = {int(kind) for kind in TYPES}
    for number in [*range(-3, 64), 2**31 - 1, -(2**31)]:
        assert (door.c.bytes_of_row(number, 256) == -1) == (number not in known)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_any_bytes_decode_as_in_the_gguf_package(door: Door, kind: Type) -> None:
    cols = 1024
    rows = np.random.default_rng(2).integers(0, 256, (512, door.c.bytes_of_row(kind, cols)), np.uint8)
    with np.errstate(invalid="ignore", over="ignore"):
        expected = gguf.quants.dequantize(rows, kind)
    assert same_bits(door.dequantize(kind, rows, cols), expected)


def weights(spread: str) -> np.ndarray:
    """Rows [64, 1024] of weights as they occur (normal), with outliers, and far from any model's."""
    random = np.random.default_rng(3)
    if spread == "normal":
        return (random.standard_normal((64, 1024)) * 0.02).astype(np.float32)
    if spread == "outliers":
        return (random.standard_t(2, (64, 1024)) * 0.02).astype(np.float32)
    sizes = random.uniform(-12, 4, (64, 1024 // 32, 1))
    return (random.standard_normal((64, 1024 // 32, 32)) * 10.0**sizes).astype(np.float32).reshape(64, 1024)


def by_the_largest(rows: np.ndarray, kind: Type) -> np.ndarray:
    """Rows after rounding by the rule of the largest weight: the gguf package's, and for SUPERS, which it only decodes,
    the same rule for the sixteen scales and their half."""
    if kind not in SUPERS:
        return gguf.quants.dequantize(gguf.quants.quantize(rows, kind), kind)
    low, least = SUPERS[kind]
    runs = rows.reshape(-1, 16, 16).astype(np.float64)
    scales = np.take_along_axis(runs, np.abs(runs).argmax(2, keepdims=True), 2) / low
    unit = np.take_along_axis(scales, np.abs(scales).argmax(1, keepdims=True), 1) / least
    unit = unit.astype(np.float16).astype(np.float64)
    some = np.where(unit == 0, 1, unit)
    steps = unit * np.clip(np.round(scales / some), least, -least - 1)
    q = np.clip(np.round(runs / np.where(steps == 0, 1, steps)), low, -low - 1)
    return (steps * q).reshape(rows.shape)


# The bounds are for normal weights: ours measures 0.884, 0.876, 0.863, 0.856 and 0.794 of the rule's squared error.
@pytest.mark.parametrize(
    ("kind", "most"), zip(BLOCKS, [0.90, 0.89, 0.88, 0.87, 0.82], strict=True), ids=lambda value: str(value)
)
def test_scales_by_error_beat_scales_by_the_largest_weight(door: Door, kind: Type, most: float) -> None:
    for spread in ("normal", "outliers", "wide"):
        rows = weights(spread)
        ours = gguf.quants.dequantize(door.quantize(kind, rows), kind)
        block = gguf.GGML_QUANT_SIZES[kind][0]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            theirs = by_the_largest(rows, kind)

        def squared(other: np.ndarray, rows: np.ndarray = rows, block: int = block) -> np.ndarray:
            return ((rows.astype(np.float64) - other).reshape(-1, block) ** 2).sum(1)

        # The rule of the largest is one of the candidates: no block is worse, up to the float sums that compared them.
        if kind not in SUPERS:
            assert np.all(squared(ours) <= squared(theirs) * (1 + 1e-5))
        gain = squared(ours).sum() / squared(theirs).sum()
        assert gain <= 1
        if spread == "normal":
            print(f"{kind.name}: squared error is {gain:.3f} of that of the largest-weight rule")
            assert gain <= most


@pytest.mark.parametrize("kind", BLOCKS, ids=lambda kind: kind.name)
def test_importance_moves_the_error_to_where_it_counts_less(door: Door, kind: Type) -> None:
    rows = weights("normal")
    importance = np.exp(np.random.default_rng(4).normal(0, 2, rows.shape[1]))

    def weighted(data: np.ndarray) -> float:
        return float((importance * (rows.astype(np.float64) - gguf.quants.dequantize(data, kind)) ** 2).sum())

    plain, heavy = door.quantize(kind, rows), door.quantize(kind, rows, importance)
    assert weighted(heavy) < 0.97 * weighted(plain)
    # Only ratios count, and where nothing counts everything does.
    assert np.array_equal(door.quantize(kind, rows, importance * 2.0**80), heavy)
    assert np.array_equal(door.quantize(kind, rows, np.zeros(rows.shape[1])), plain)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_what_a_type_can_hold_comes_back_unchanged(door: Door, kind: Type) -> None:
    assert not door.dequantize(kind, door.quantize(kind, np.zeros((2, 512))), 512).any()
    random = np.random.default_rng(5)
    if kind in (Type.F32, Type.F16, Type.BF16):
        rows = random.integers(-127, 128, (8, 512)) * 2.0**-12
    elif kind in SUPERS:
        low, least = SUPERS[kind]
        multiples = random.integers(least, -least, (8, 2, 16, 1))
        multiples[:, :, 5] = least
        integers = random.integers(low, -low, (8, 2, 16, 16))
        integers[..., 3] = low
        rows = (2.0**-16 * multiples * integers).reshape(8, 512)
    else:  # a half for each 32 weights
        low = {Type.Q4_0: -8, Type.Q5_0: -16, Type.Q8_0: -127}[kind]
        integers = random.integers(low, -low, (8, 16, 32))
        integers[..., 3] = low
        scales = random.uniform(-0.01, 0.01, (8, 16, 1)).astype(np.float16)
        rows = (scales.astype(np.float32) * integers).reshape(8, 512)
    assert np.array_equal(door.dequantize(kind, door.quantize(kind, rows), 512), rows)


@pytest.mark.parametrize("kind", [Type.F16, Type.BF16], ids=lambda kind: kind.name)
def test_sixteen_bit_types_round_as_the_gguf_package_does(door: Door, kind: Type) -> None:
    rows = weights("outliers")
    assert np.array_equal(door.quantize(kind, rows), gguf.quants.quantize(rows, kind).view(np.uint8).reshape(64, -1))


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_the_largest_weights_fit_and_larger_ones_are_refused(door: Door, kind: Type) -> None:
    sizes = {Type.F32: 3.4028235e38, Type.F16: 65504, Type.BF16: 3.3895314e38, Type.Q4_0: 8 * 65504}
    sizes |= {Type.Q5_0: 16 * 65504, Type.Q8_0: 127 * 65504, Type.Q3_K: 4 * 22 * 65504, Type.Q6_K: 32 * 116 * 65504}
    rows = np.zeros((1, 256), np.float32)
    for sign in (-1, 1):
        rows[0, 7] = sign * sizes[kind]
        back = door.dequantize(kind, door.quantize(kind, rows), 256)
        assert np.allclose(back, rows, rtol=2**-3 if kind in (Type.Q4_0, Type.Q3_K) else 2**-4)
    bad = [np.nan, np.inf, -np.inf] + ([] if kind == Type.F32 else [sizes[kind] * 1.001])
    for value in bad:
        rows[0, 7] = value
        with pytest.raises(
            ValueError, match=f"weight 7 of the row is .*; {kind.name} holds finite weights of size up to"
        ):
            door.quantize(kind, rows)


def test_rows_and_importances_that_cannot_be_used_are_refused(door: Door) -> None:
    with pytest.raises(ValueError, match="a row of 48 weights cannot be Q4_0, whose blocks take 32"):
        door.quantize(Type.Q4_0, np.zeros((1, 48)))
    with pytest.raises(ValueError, match="there is no tensor type 12 in this engine"):
        door.quantize(12, np.zeros((1, 256)))
    for value in (np.nan, np.inf, -1):
        with pytest.raises(ValueError, match=r"the importance of column 31 is .*; expected a finite number, 0 or more"):
            door.quantize(Type.Q4_0, np.zeros((1, 32)), np.append(np.ones(31), value))
