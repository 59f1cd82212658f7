"""Law: logits are numbers or there is an error. What is too large for a type of keys and values is cut to its range."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from tests.native.tiny_models import write_tiny_model

from mobillama.errors import DamagedFileError
from mobillama.runtime.engine import KV_TYPES, Context, Engine

SHAPE = {"vocab_size": 48, "hidden_size": 64, "intermediate_size": 64, "heads": 4, "kv_heads": 2}
# What is large there is normed at once, by a sum that is infinite, to zeros: as in every float32.
NEVER = {"token_embd"}
IDS = [1, 5, 7, 2, 40, 11]
TENSORS = ["token_embd", "attn_norm", "attn_q", "attn_k", "attn_v", "attn_output"]
TENSORS += ["ffn_norm", "ffn_gate", "ffn_up", "ffn_down", "output_norm", "output"]


def computed(context: Context) -> np.ndarray:
    """Everything that the door gives of these ids: every row of logits, and log-probabilities."""
    context.verify(IDS)
    rows = [context.logits(row) for row in range(len(IDS))]
    context.decode([3])
    rows.append(context.logits())
    context.rewind(0)
    return np.concatenate((*rows, context.log_probs(IDS).astype(np.float32)))


@pytest.mark.parametrize("tensor", ["attn_k", "attn_v"])
@pytest.mark.parametrize("kv", KV_TYPES)
def test_keys_and_values_beyond_half_precision_give_numbers(kv: str, tensor: str, tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "large.gguf", Type.F32, **SHAPE, factors={tensor: 1e6})
    with Engine.open(path) as engine, engine.context(kv=kv, threads=1) as context:  # type: ignore[arg-type]
        assert np.isfinite(computed(context)).all()


def test_half_precision_cuts_and_does_no_more(tmp_path: Path) -> None:
    # Values of 1e9 are all cut, to the same as values of 1e12.
    found = []
    for factor in (1e9, 1e12):
        path = write_tiny_model(tmp_path / "large.gguf", Type.F32, **SHAPE, layers=1, factors={"attn_v": factor})
        with Engine.open(path) as engine, engine.context(threads=1) as context:
            found.append(computed(context))
    assert np.array_equal(*found)


@pytest.mark.parametrize("tensor", TENSORS)
def test_weights_so_large_that_numbers_overflow_are_an_error_or_give_numbers(tensor: str, tmp_path: Path) -> None:
    outcomes = set()
    for type_ in (Type.F32, Type.BF16, Type.Q8_0):
        for factor in (1e3, 1e10, 1e20, 1e38):
            if type_ == Type.Q8_0 and factor > 1e3:
                continue  # its scales would be infinite, which is refused when the file is opened
            path = write_tiny_model(tmp_path / "odd.gguf", type_, **SHAPE, factors={tensor: factor})
            with Engine.open(path) as engine:
                for kv in KV_TYPES:
                    with engine.context(kv=kv, threads=1) as context:  # type: ignore[arg-type]
                        try:
                            assert np.isfinite(computed(context)).all(), (tensor, type_, factor, kv)
                            outcomes.add("numbers")
                        except DamagedFileError as error:
                            assert "overflow" in str(error)
                            assert context.length() == 0
                            outcomes.add("error")
    assert outcomes >= {"numbers"}
    assert "error" in outcomes or tensor in NEVER
