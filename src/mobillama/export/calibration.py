"""Which columns of a matrix count more when it is rounded: those whose inputs are large on real text.

The error of a product W x comes from each column of W in proportion to the square of its input, so the mean of that
square is what a column's squared rounding error counts. It leaves out that inputs go together.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mobillama.errors import InputError
from mobillama.export.gguf_layout import entries
from mobillama.model.hub import find_folder
from mobillama.model.transformer import Transformer
from mobillama.model.weights import load_model

ROWS = 8  # of text: from here on, more of them change little (LOG.md)


def collect_importance(model: str | Path, rows: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
    """Mean squared input of every column of every matrix: name in a file of architecture mobillama -> (cols,).

    model: a model folder, a run or a hub name. rows: ids (n, T) of text like what the model was trained on; of a longer
    row as much as the model takes. The inputs of a shared FFN are those of all layers that use it. An embedding is no
    product and gets no entry, unless it is the head as well. Errors: those of `load_model`; InputError without rows or
    for an id outside the vocabulary.
    """
    loaded = load_model(find_folder(model))
    if not rows.size:
        raise InputError(f"{model}: found no rows of text to calibrate on; give shards that have some")
    if rows.min() < 0 or rows.max() >= loaded.config.vocab_size:
        raise InputError(
            f"{model}: the rows to calibrate on hold ids {rows.min()} to {rows.max()}; expected 0 to "
            f"{loaded.config.vocab_size - 1}: give the shards that the model was trained on"
        )
    found = _mean_squares(loaded, torch.from_numpy(rows[:, : loaded.config.max_position_embeddings]))
    return {
        entry.name: found["norm" if entry.kind == "head" else entry.weight.removesuffix(".weight")].float().numpy()
        for entry in entries(loaded.config, "mobillama")
        if entry.kind in ("attention", "ffn", "head")
    }


def _mean_squares(model: Transformer, rows: Tensor) -> dict[str, Tensor]:
    """Name of a linear module -> (cols,) of its inputs; `norm` -> (D,) of what the head gets."""
    sums, counts = dict[str, Tensor](), dict[str, int]()

    def add(name: str, x: Tensor) -> None:  # (1, T, cols)
        squares = x.double().square().sum((0, 1))
        sums[name] = sums[name] + squares if name in sums else squares
        counts[name] = counts.get(name, 0) + x.shape[0] * x.shape[1]

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs, name=name: add(name, inputs[0]))
    model.norm.register_forward_hook(lambda _module, _inputs, output: add("norm", output))
    with torch.inference_mode():
        for row in rows:
            model.hidden_states(row[None])
    return {name: total / counts[name] for name, total in sums.items()}
