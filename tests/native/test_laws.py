"""The C door's laws at the edges, under sanitizers, on models of odd shapes: the driver is native/tests/laws.cpp."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType as Type
from tests.native.tiny_models import write_tiny_model


def shape(vocab_size: int, hidden_size: int, intermediate_size: int, heads: int, kv_heads: int) -> dict[str, Any]:
    names = ("vocab_size", "hidden_size", "intermediate_size", "heads", "kv_heads")
    return dict(zip(names, (vocab_size, hidden_size, intermediate_size, heads, kv_heads), strict=True))


SHAPES: dict[str, tuple[Type, dict[str, Any]]] = {
    "heads of 4, five for one key": (Type.F16, shape(37, 20, 18, 5, 1)),
    "heads of 4, tied, two FFNs for three layers": (
        Type.Q4_0,
        {**shape(53, 32, 32, 8, 2), "layers": 3, "ffn_blocks": 2, "tied": True},
    ),
    "heads of 20": (Type.Q8_0, shape(33, 160, 96, 8, 4)),
    "one of everything": (Type.F32, {**shape(1, 4, 1, 1, 1), "layers": 1}),
    "a head of 256": (Type.Q5_0, {**shape(16, 256, 64, 1, 1), "layers": 1}),
    "heads of 12": (Type.BF16, shape(17, 24, 40, 2, 2)),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("laws")
    return [write_tiny_model(folder / f"{name}.gguf", type_, **sizes) for name, (type_, sizes) in SHAPES.items()]


@pytest.fixture(scope="module")
def driver(compiled: Callable[..., Path], engine: tuple[list[str], dict[str, list[str]]]) -> Path:
    sources = ["tests/laws.cpp", *engine[0]]
    return compiled(sources, own_flags=engine[1], flags=["-O1"], sanitize="address,undefined")


@pytest.mark.parametrize(
    "isa", ["", pytest.param("avx2", marks=pytest.mark.slow), pytest.param("scalar", marks=pytest.mark.slow)]
)
def test_every_way_to_the_same_tokens_gives_the_same_bits(driver: Path, files: list[Path], isa: str) -> None:
    if isa == "avx2" and isa not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no avx2")
    environment = {**os.environ, "MOBILLAMA_ISA": isa}
    done = subprocess.run([driver, *files], capture_output=True, text=True, env=environment, timeout=1800)
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-6000:]}"
    assert len(done.stdout.splitlines()) == len(files)
