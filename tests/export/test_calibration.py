"""Importance of columns: mean squares of the inputs that a matrix meets on text, and what rounding makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gguf_models import keys, save_sealed, small_model, tensors

from mobillama.errors import InputError
from mobillama.export.calibration import collect_importance
from mobillama.export.gguf_file import quantize_model
from mobillama.model.transformer import Transformer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    print("seed 5")
    return np.random.default_rng(5).integers(0, 420, (3, 40))


def ffn_inputs(model: Transformer, ids: np.ndarray) -> torch.Tensor:
    """What the FFN of every layer is given: (layers * n * T, D)."""
    seen = []
    handles = [
        block.post_attention_layernorm.register_forward_hook(lambda *found: seen.append(found[2]))
        for block in model.layers
    ]
    with torch.no_grad():
        model.hidden_states(torch.from_numpy(ids))
    for handle in handles:
        handle.remove()
    return torch.cat([each.flatten(0, 1) for each in seen])


def mean_squares(x: torch.Tensor) -> np.ndarray:
    return x.detach().flatten(0, -2).square().mean(0).numpy()


def test_it_is_the_mean_square_of_the_inputs_over_all_layers_that_share_a_matrix(
    tmp_path: Path, ids: np.ndarray
) -> None:
    model = small_model(num_ffn_blocks=1)
    found = collect_importance(save_sealed(tmp_path / "model", model), ids)
    assert set(found) == {
        *(f"blk.{layer}.attn_{part}.weight" for layer in range(4) for part in ("q", "k", "v", "output")),
        *(f"blk.0.ffn_{part}.weight" for part in ("gate", "up", "down")),
        "output.weight",
    }
    first = model.layers[0].input_layernorm(model.embed_tokens(torch.from_numpy(ids)))
    ffn, x = model.ffns[0], ffn_inputs(model, ids)
    assert len(x) == 4 * ids.size
    with torch.no_grad():
        expected = {
            "blk.0.attn_q.weight": first,
            "blk.0.attn_v.weight": first,
            "blk.0.ffn_gate.weight": x,
            "blk.0.ffn_up.weight": x,
            "blk.0.ffn_down.weight": F.silu(ffn.gate_proj(x)) * ffn.up_proj(x),
            "output.weight": model.hidden_states(torch.from_numpy(ids)),
        }
    for name, inputs in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], mean_squares(inputs), rtol=1e-4, err_msg=name)


def test_a_tied_head_counts_what_the_head_is_given(tmp_path: Path, ids: np.ndarray) -> None:
    model = small_model(tie_word_embeddings=True)
    found = collect_importance(save_sealed(tmp_path / "model", model), ids)
    assert "output.weight" not in found
    hidden = model.hidden_states(torch.from_numpy(ids))
    np.testing.assert_allclose(found["token_embd.weight"], mean_squares(hidden), rtol=1e-4)


def test_of_a_row_longer_than_the_context_only_its_beginning_counts(tmp_path: Path, ids: np.ndarray) -> None:
    folder = save_sealed(tmp_path / "model", small_model(max_position_embeddings=16))
    long, short = collect_importance(folder, ids), collect_importance(folder, ids[:, :16])
    assert all(np.array_equal(long[name], short[name]) for name in short)


def test_rounding_by_it_brings_the_products_closer_to_those_of_the_model(tmp_path: Path, ids: np.ndarray) -> None:
    model = small_model(num_ffn_blocks=1)
    with torch.no_grad():  # inputs of very different sizes, as trained models have them
        for block in model.layers:
            block.post_attention_layernorm.weight.copy_(
                torch.logspace(-2, 1, 64)[torch.randperm(64, generator=torch.Generator().manual_seed(5))]
            )
    folder = save_sealed(tmp_path / "model", model)
    importance = collect_importance(folder, ids)
    quantize_model(folder, tmp_path / "plain.gguf", "q4_0")
    quantize_model(folder, tmp_path / "weighed.gguf", "q4_0", importance=importance)
    assert "mobillama.importance_digest" in keys(tmp_path / "weighed.gguf")
    x = ffn_inputs(model, ids).numpy()
    for part in ("gate", "up"):
        exact = model.ffns[0].get_submodule(f"{part}_proj").weight.detach().numpy()
        errors = [
            float(np.linalg.norm(x @ (tensors(tmp_path / file)[f"blk.0.ffn_{part}.weight"] - exact).T))
            for file in ("plain.gguf", "weighed.gguf")
        ]
        assert errors[1] < 0.9 * errors[0], (part, errors)


def test_rows_that_are_none_or_of_another_vocabulary_are_refused(tmp_path: Path) -> None:
    folder = save_sealed(tmp_path / "model", small_model())
    with pytest.raises(InputError, match="no rows of text"):
        collect_importance(folder, np.empty((0, 8), np.int64))
    with pytest.raises(InputError, match="ids 5 to 420; expected 0 to 419"):
        collect_importance(folder, np.array([[5, 420]]))
