"""Memory that a context takes: by the tokens in it, not by those that would fit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Type
from tests.native.tiny_models import write_tiny_model

LAYERS, HEADS, HEAD_DIM = 8, 16, 16
BYTES_PER_TOKEN = LAYERS * HEADS * HEAD_DIM * 2 * 2  # keys and values, in half precision
BESIDE = 16 << 20  # activations, logits, sines, in 2 MB pages each where the system gives these to all
PROGRAM = """
import json, sys
from pathlib import Path
from mobillama.runtime.engine import Engine

def resident(name="VmRSS"):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

def fill(context, n, sequence=0):
    while (length := context.length(sequence)) < n:
        context.prefill([1] * min(64, n - length), sequence)

engine = Engine.open(sys.argv[1])
with engine.context(threads=1) as context:  # what a first one takes for good
    context.prefill([1])
before, taken = resident(), []
context = engine.context(threads=1, max_sequences=100)
for n in json.loads(sys.argv[2]):
    fill(context, n)
    taken.append(resident() - before)
print(json.dumps([taken, resident("VmHWM") - before]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="resident memory is read in /proc")
def test_a_long_contexts_memory_grows_with_its_tokens(tmp_path: Path) -> None:
    path = write_tiny_model(
        *(tmp_path / "long.gguf", Type.F16),
        vocab_size=16,
        hidden_size=HEADS * HEAD_DIM,
        intermediate_size=32,
        heads=HEADS,
        kv_heads=HEADS,
        layers=LAYERS,
        context_length=131_072,
    )
    lengths = [4, 500, 600, 1500, 2100]
    command = [sys.executable, "-c", PROGRAM, path, json.dumps(lengths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    taken, peak = json.loads(done.stdout)
    for length, found in zip(lengths, taken, strict=True):
        print(f"{length} tokens: {found / 1e6:.1f} MB")
        assert found <= max(512, 2 * length) * BYTES_PER_TOKEN + BESIDE
    # While it moves to larger memory, what was copied is given back, some megabytes at a time.
    assert peak <= taken[-1] + (10 << 20) < taken[-1] + 2048 * BYTES_PER_TOKEN
    assert taken[-1] >= lengths[-1] * BYTES_PER_TOKEN
