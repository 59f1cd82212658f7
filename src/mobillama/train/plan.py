"""What a training run will need, before anything runs: tokens, steps, operations, bytes on disk and in memory, hours.

From the recipe's shapes alone (model/cost.py), and the shards where they are built. No torch. No speed is invented:
hours are told where a speed is given. Operations are the model's: a multiplication and an addition count as two, the
backward pass as two forward ones (Kaplan et al. 2020, section 2.1); attention counts what a causal token sees.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobillama.config import TrainRecipe
from mobillama.data.shards import read_shards
from mobillama.data.stream import steps_per_pass
from mobillama.errors import InputError
from mobillama.model.cost import cost
from mobillama.train.cluster import moments, plan_cluster

FLOAT32, BFLOAT16 = 4, 2


def plan_training(
    recipe: TrainRecipe,
    shards: Path | None = None,
    *,
    seq_len: int = 0,
    tokens_per_second: float = 0.0,
    gpus: int = 0,
    kind: str = "",
    mfu: float = 0.0,
) -> dict[str, Any]:
    """What training `recipe` takes, as plain JSON types; None where it cannot be known.

    `shards`: their folder, if it is there. `seq_len`: tokens of a row without it (0 = the model's context).
    `tokens_per_second`: a speed measured elsewhere, all devices together; 0 = not known. `gpus` and `kind`: what it
    will run on, `mfu` the share of their stated peak that it will reach (train/cluster.py); 0 and "" = left open.
    Errors: InputError if `shards` is no shards folder, or for GPUs of no or of an unknown kind.
    """
    if bool(gpus) != bool(kind):
        raise InputError("--gpus and --kind belong together: how many GPUs, and of which kind (such as a100-80g)")
    if mfu and not gpus:
        raise InputError("--mfu is a share of the stated peak of GPUs; say which with --gpus and --kind")
    config, model, sizes = recipe.train, recipe.model, cost(recipe.model)
    rows: int | None = None
    chunk_rows: tuple[int, ...] = ()
    if shards is not None:
        found = read_shards(shards)
        rows, seq_len, chunk_rows = found.num_rows, found.seq_len, found.chunk_rows
    seq_len = seq_len or model.max_position_embeddings
    tokens_per_step = config.rows_per_step * seq_len
    steps = config.steps or (steps_per_pass(config.rows_per_step, chunk_rows) if rows else None)
    tokens = steps * tokens_per_step if steps else None
    # A causal token sees half the row and itself, on average.
    attention = 4 * model.num_hidden_layers * model.hidden_size * (seq_len + 1) / 2
    head = 2 * model.vocab_size * model.hidden_size
    forward = sizes.flops_per_token + attention
    per_token = 3 * forward + (forward - head if config.activation_checkpointing else 0)
    checkpoint = FLOAT32 * (sizes.stored_parameters + moments(recipe))
    memory, cluster = _memory(recipe, seq_len), None
    if gpus:
        cluster = plan_cluster(
            recipe,
            gpus,
            kind,
            seq_len=seq_len,
            tokens=tokens,
            single=memory,
            mfu=mfu,
            tokens_per_second=tokens_per_second,
        )
        tokens_per_second = cluster["tokens_per_second"]
    return {
        "recipe": recipe.name,
        "steps": steps,
        "tokens_per_step": tokens_per_step,
        "tokens": tokens,
        "passes": steps * config.rows_per_step / rows if steps and rows else None,
        "flops_per_token": per_token,
        "flops": per_token * tokens if tokens else None,
        "checkpoint_bytes": checkpoint,
        "disk_bytes": checkpoint * config.keep_last + FLOAT32 * sizes.stored_parameters,
        "memory": memory,
        "tokens_per_second": tokens_per_second or None,
        "hours": tokens / tokens_per_second / 3600 if tokens and tokens_per_second else None,
        "hours_why": ""
        if tokens and tokens_per_second
        else "no speed is known: give --tokens-per-second, or --like with a run on the same machine"
        if tokens
        else "the number of steps follows from the shards, which are not built",
        "cluster": cluster,
    }


def _memory(recipe: TrainRecipe, seq_len: int) -> dict[str, int]:
    """Bytes on one device: `state` follows from the shapes, `activations` and `logits` are estimates.

    State: weights, gradients and moments in float32, and a copy of the weights in bfloat16 unless dtype is float32
    (train/precision.py; auto counts as bfloat16). Activations: what the backward pass of one micro-batch keeps, per
    token and layer: two norms' inputs and outputs, queries, keys, values, the attention's output, its projection, and
    four times the FFN's width; with activation checkpointing each layer's input, and one layer in full. Logits: the
    positions of one chunk, with their gradient, in float32. The libraries' own memory comes on top.
    """
    config, model, sizes = recipe.train, recipe.model, cost(recipe.model)
    width = FLOAT32 if config.dtype == "float32" else BFLOAT16
    table = model.vocab_size * model.hidden_size
    state = FLOAT32 * (2 * sizes.stored_parameters + moments(recipe))
    state += 0 if width == FLOAT32 else BFLOAT16 * (sizes.stored_parameters - table)
    hidden, keys = model.hidden_size, model.num_key_value_heads * model.head_dim
    layer = 4 * hidden + hidden + 2 * keys + 2 * hidden + 4 * model.intermediate_size
    held = model.num_hidden_layers * (hidden if config.activation_checkpointing else layer)
    held += layer if config.activation_checkpointing else 0
    tokens = config.micro_batch_rows * seq_len
    activations = tokens * held * width
    logits = 2 * FLOAT32 * min(config.loss_chunk_tokens or tokens, tokens) * model.vocab_size
    return {"state": state, "activations": activations, "logits": logits, "all": state + activations + logits}
