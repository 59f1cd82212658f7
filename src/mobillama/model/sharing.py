"""From a model with many FFNs to one that shares them: what each stored FFN starts from.

A stored FFN stands for those of all layers that use it: one of theirs, their mean, or the one that gives most nearly
what they give (least squares on the activations of some rows). All other weights are kept; what the new model has
beside (adapters, gains) starts as in a new model, giving nothing and changing nothing.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mobillama.config import ModelConfig
from mobillama.errors import InputError, RecipeError
from mobillama.model.ffn_fit import fit_ffns, mean_ffn
from mobillama.model.initialise import build_model
from mobillama.model.transformer import Transformer

Method = Literal["layer", "mean", "least_squares"]

# What two models must have in common; the number of FFN blocks, the context and names may differ.
COMMON = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_theta",
    "tie_word_embeddings",
)
OWN = ("ffn_adapter_rank", "ffn_gain")  # a model that has them may only become one with the same


def share_ffns(
    dense: Transformer,
    config: ModelConfig,
    method: Method,
    *,
    layer: int = 0,
    rows: Tensor | None = None,
    seed: int = 0,
) -> Transformer:
    """A new float32 model of `config` from one with other FFN blocks, as a rule more of them; `dense` stays as it is.

    layer: for the method of that name, whose FFN is taken, counted inside each block's layers. rows: int64 (n, T) ids
    that least_squares fits the outputs of each layer's own FFN on, given its own inputs. seed: of new adapters.
    Errors: RecipeError naming the key that does not fit; InputError if least_squares gets no rows.
    """
    check_shapes(dense.config, config, layer if method == "layer" else 0)
    if method == "least_squares" and (rows is None or not rows.numel()):
        raise InputError("found no rows to fit FFNs on; init.ffn=least_squares needs training rows (init.rows)")
    shared = build_model(config, seed)
    with torch.no_grad():
        kept = {name: weight for name, weight in dense.named_parameters() if not name.startswith("ffns.")}
        for name, weight in shared.named_parameters():
            if name in kept:
                weight.copy_(kept[name])
        ffns = [dense.ffn_of(index) for index in range(config.num_hidden_layers)]
        fitted = fit_ffns(dense, config, rows) if method == "least_squares" and rows is not None else []
        for block, layers in enumerate(map(config.layers_of, range(config.num_ffn_blocks))):
            ffn, theirs = shared.ffn_of(layers[0]), [ffns[index] for index in layers]
            if method == "layer":
                ffn.load_state_dict(theirs[layer].state_dict())
            elif method == "mean":
                ffn.load_state_dict(mean_ffn(theirs))
            else:
                ffn.load_state_dict(fitted[block])
    return shared


def check_shapes(found: ModelConfig, config: ModelConfig, layer: int = 0) -> None:
    """Whether a model of `found` can start one of `config`. Error: RecipeError naming the first key that does not."""
    for key in COMMON:
        if (theirs := getattr(found, key)) != (ours := getattr(config, key)):
            raise RecipeError(
                f"model.{key}={ours!r}, but the model to start from has {theirs!r}; give another init.model, or "
                f"--set model.{key}={str(theirs).lower()}"
            )
    for key in OWN:
        if (theirs := getattr(found, key)) and theirs != (ours := getattr(config, key)):
            raise RecipeError(
                f"model.{key}={ours!r}, but the model to start from has {theirs!r}, which would be lost; "
                f"--set model.{key}={str(theirs).lower()}"
            )
    fewest = min(len(config.layers_of(block)) for block in range(config.num_ffn_blocks))
    if layer >= fewest:
        raise RecipeError(
            f"init.layer={layer}, but an FFN block of this model has {fewest} layers (model.num_ffn_blocks="
            f"{config.num_ffn_blocks} of {config.num_hidden_layers} layers); use 0 to {fewest - 1}"
        )
