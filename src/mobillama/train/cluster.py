"""What a training run will need of many GPUs, before it has them: memory, bytes, hours; and the paper's own figures.

From shapes alone, for the layout of `sharded_step.py`: each block a unit that is gathered for its forward and its
backward pass, everything else one root unit that is gathered once. No torch, and no speed is invented: hours follow
from a utilisation that is given, or from the paper's own speed, and the plan says which.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from mobillama.config import ModelConfig, TrainRecipe, read_recipe
from mobillama.errors import InputError, RecipeError
from mobillama.model.cost import cost
from mobillama.train.flops import model_flops_per_token
from mobillama.train.gpus import Gpu, find_gpu

FLOAT32, BFLOAT16 = 4, 2
Shape = tuple[int, ...]  # rows first; one number for a vector
GATHERED_BLOCKS = 2  # the one that computes and the next, gathered meanwhile

# The paper's Table 1 (arXiv 2402.16840): GPU-hours on 160 A100 80 GB; and section 4: 14-15k tokens per second and GPU.
PAPER_HOURS = {"mobillama-0.5b": 26.6e3, "large-base-1.2b": 46.1e3, "baseline1": 28.8e3, "baseline2": 26.9e3}
PAPER_GPUS, PAPER_KIND, PAPER_MODEL = 160, "a100-80g", "mobillama-0.5b"
PAPER_SPEED = (14e3, 15e3)
PAPER_ROW = 2048
# 800 rows a step, one pass over Amber's 360 chunks with what each chunk has left over dropped.
PAPER_TOKENS = 767_880 * 800 * PAPER_ROW


def plan_cluster(
    recipe: TrainRecipe,
    gpus: int,
    kind: str,
    *,
    seq_len: int,
    tokens: int | None,
    single: dict[str, int],
    mfu: float = 0.0,
    tokens_per_second: float = 0.0,
) -> dict[str, Any]:
    """What `recipe` takes of `gpus` accelerators of a kind, as plain JSON types.

    tokens: of the whole run, if known. single: bytes that one device alone takes, as `plan_training` says them. mfu:
    the share of the stated peak that the model's operations reach (0 = that of the paper's speed); tokens_per_second:
    a speed of all GPUs together, in its place. Errors: InputError for an unknown kind; RecipeError if
    train.shard_ranks does not divide the GPUs.
    """
    if mfu and tokens_per_second:
        raise InputError("--mfu and a speed both say how fast it is; leave one out")
    gpu = find_gpu(kind)
    flops = model_flops_per_token(recipe.model, seq_len)
    parts = recipe.train.rows_per_step // recipe.train.micro_batch_rows
    passes = math.ceil(parts / gpus)
    busy = parts / (passes * gpus)
    memory = _memory(recipe, gpus, single, passes)
    if tokens_per_second:
        speed, basis = tokens_per_second, "the speed that was given"
    else:
        share = mfu or paper_utilisation()
        speed = share * gpu.bf16_flops * gpus / flops * busy
        basis = f"a utilisation of {share:.1%} of the stated {gpu.bf16_flops / 1e12:.0f} TFLOP/s, " + (
            "which was given" if mfu else f"that of the paper's {PAPER_MODEL} at 14.5k tokens/s on an A100 80 GB"
        )
    return {
        "gpus": gpus,
        "kind": kind,
        "stated_by": gpu.source,
        "copies": gpus // _shard_ranks(recipe, gpus),
        "passes_per_step": passes,
        "idle_share": 1.0 - busy,
        "memory": memory,
        "memory_of_gpu": gpu.memory_bytes,
        "fits": memory["all"] <= gpu.memory_bytes,
        "collectives": collectives(recipe, gpus),
        "model_flops_per_token": flops,
        "tokens_per_second": speed,
        "tokens_per_second_per_gpu": speed / gpus,
        "utilisation": speed / gpus * flops / gpu.bf16_flops,
        "speed_basis": basis,
        "hours": tokens / speed / 3600 if tokens else None,
        "gpu_hours": tokens / speed / 3600 * gpus if tokens else None,
        "paper": compare_with_paper(recipe, speed / gpus, gpu, seq_len),
    }


def collectives(recipe: TrainRecipe, gpus: int) -> dict[str, dict[str, int]]:
    """Count and bytes of each kind of collective of one optimizer step; empty for one GPU.

    Bytes: what each GPU sends in a ring, (n - 1) / n of a tensor that is gathered or scattered among n, twice that of
    one reduced for all n. Weights are gathered in the compute type (auto counts as bfloat16), gradients reduced in
    float32, once a step. The few numbers of norms and losses are left out.
    """
    if gpus == 1:
        return {}
    ranks = _shard_ranks(recipe, gpus)
    copies, layers = gpus // ranks, recipe.model.num_hidden_layers
    passes = math.ceil(recipe.train.rows_per_step // recipe.train.micro_batch_rows / gpus)
    block, root = (padded(shapes, ranks) for shapes in units(recipe.model))
    width = FLOAT32 if recipe.train.dtype == "float32" else BFLOAT16
    gathered = passes * (2 * layers * block + root) * width
    reduced = (layers * block + root) * FLOAT32
    found = {
        "all_gather": {"count": passes * (2 * layers + 1), "bytes": gathered * (ranks - 1) // ranks},
        "reduce_scatter": {"count": layers + 1, "bytes": reduced * (ranks - 1) // ranks},
    }
    if copies > 1:
        found["all_reduce"] = {"count": layers + 1, "bytes": 2 * (copies - 1) * reduced // (ranks * copies)}
    return found


def units(model: ModelConfig) -> tuple[list[Shape], list[Shape]]:
    """Shapes of the weights of one block, and of the root unit: its tables, the FFNs, the last norm."""
    hidden, inner = model.hidden_size, model.intermediate_size
    keys = model.num_key_value_heads * model.head_dim
    block: list[Shape] = [(hidden, hidden), (keys, hidden), (keys, hidden), (hidden, hidden), (hidden,), (hidden,)]
    if model.ffn_adapter_rank:
        block += [(model.ffn_adapter_rank, hidden), (hidden, model.ffn_adapter_rank)]
    if model.ffn_gain:
        block.append((hidden,))
    ffn = [(inner, hidden), (inner, hidden), (hidden, inner)]
    tables = [(model.vocab_size, hidden)] * (1 if model.tie_word_embeddings else 2)
    return block, [*tables, *ffn * model.num_ffn_blocks, (hidden,)]


def padded(shapes: Iterable[Shape], ranks: int) -> int:
    """Elements of weights whose rows are spread over `ranks`, the same number of rows on each.

    >>> padded([(5, 3), (3,)], 2)
    22
    """
    return sum(math.ceil(rows / ranks) * ranks * math.prod(rest) for rows, *rest in shapes)


def moments(recipe: TrainRecipe, ranks: int = 1) -> int:
    """Elements of all moments that the optimizer keeps, rows spread over `ranks`, on all of these together.

    AdamW keeps two of each weight. Muon keeps one of each matrix inside the layers; the rest is AdamW's.
    """
    block, root = units(recipe.model)
    kept = 2 * (recipe.model.num_hidden_layers * padded(block, ranks) + padded(root, ranks))
    if recipe.train.optimizer == "adamw":
        return kept
    matrices = [shape for shape in block if len(shape) == 2] * recipe.model.num_hidden_layers
    ffn = root[1 if recipe.model.tie_word_embeddings else 2 : -1]
    return kept - padded([*matrices, *ffn], ranks)


def paper_utilisation(model: str = PAPER_MODEL, tokens_per_second_per_gpu: float = sum(PAPER_SPEED) / 2) -> float:
    """Share of the stated peak of the paper's GPUs that a speed of one of its models is.

    >>> round(paper_utilisation(), 3)
    0.385
    """
    flops = model_flops_per_token(read_recipe(ModelConfig, model), PAPER_ROW)
    return tokens_per_second_per_gpu * flops / find_gpu(PAPER_KIND).bf16_flops


def compare_with_paper(recipe: TrainRecipe, speed: float, gpu: Gpu, seq_len: int) -> dict[str, Any] | None:
    """The paper's Table 1 beside `speed` tokens per second and GPU; None if the model is not one of its own."""
    shape = recipe.model.model_dump(exclude={"name"})
    presets = {name: read_recipe(ModelConfig, name) for name in PAPER_HOURS}
    name = next((name for name, each in presets.items() if each.model_dump(exclude={"name"}) == shape), None)
    if name is None:
        return None
    hours = PAPER_HOURS[name]
    implied = PAPER_TOKENS / hours / 3600
    planned = PAPER_TOKENS / speed / 3600
    used = paper_utilisation(name, implied)
    reasons = []
    if name == PAPER_MODEL:
        most, least = (PAPER_TOKENS / each / 3600 for each in PAPER_SPEED)
        reasons.append(
            f"the paper's 14-15k tokens/s per GPU make {least / 1e3:.1f}K to {most / 1e3:.1f}K GPU-hours of its "
            f"{PAPER_TOKENS / 1e12:.3f} T tokens, Table 1 says {hours / 1e3:.1f}K: the rest, {1 - most / hours:.0%} to "
            f"{1 - least / hours:.0%}, went into something besides such steps (loading a chunk, saving at its end, "
            "restarts; the paper does not say)"
        )
    else:
        ours, its = (cost(each) for each in (presets[name], presets[PAPER_MODEL]))
        reasons.append(
            f"{name} takes {hours / PAPER_HOURS[PAPER_MODEL]:.2f} times the hours of {PAPER_MODEL} for "
            f"{ours.flops_per_token / its.flops_per_token:.2f} times its operations and "
            f"{ours.stored_parameters / its.stored_parameters:.2f} times its stored weights: "
            "the hours do not follow the arithmetic, so overheads bound those runs"
        )
    sent = sum(told["bytes"] for told in collectives(recipe, PAPER_GPUS).values())
    state = FLOAT32 * (cost(recipe.model).stored_parameters + moments(recipe))
    reasons.append(
        f"weights and optimizer state ({state / 1e9:.1f} GB) lay in the CPUs' memory (cpu_offload=True in the released "
        f"code); here they stay on the GPUs, and a step sends {sent / 1e9:.2f} GB from each of {PAPER_GPUS}"
    )
    if recipe.train.activation_checkpointing:
        again = cost(recipe.model).flops_per_token / model_flops_per_token(recipe.model, seq_len)
        reasons.append(
            f"recomputed activations are up to {again:.0%} more operations than the model's, in no utilisation"
        )
    if gpu.kind != PAPER_KIND:
        reasons.append(f"the plan is for {gpu.kind}, the paper used {PAPER_KIND}")
    return {
        "model": name,
        "tokens": PAPER_TOKENS,
        "gpu_hours": hours,
        "days": hours / PAPER_GPUS / 24,
        "tokens_per_second_per_gpu": implied,
        "utilisation": used,
        "planned_gpu_hours": planned,
        "ratio": planned / hours,
        "differences": reasons,
    }


def _memory(recipe: TrainRecipe, gpus: int, single: dict[str, int], passes: int) -> dict[str, int]:
    """Bytes on one GPU. The first part follows from the shapes; activations and logits are estimates.

    state: this GPU's share of weights, gradients and moments in float32. gathered: the root unit and two blocks in the
    compute type. gradients: whole ones in float32, of the root and of one block (of all blocks where a step takes
    several passes, as they are summed before they are sent), and the root's once more on its way.
    """
    if gpus == 1:
        return dict(single)
    ranks, layers = _shard_ranks(recipe, gpus), recipe.model.num_hidden_layers
    block, root = (padded(shapes, ranks) for shapes in units(recipe.model))
    width = FLOAT32 if recipe.train.dtype == "float32" else BFLOAT16
    found = {
        "state": FLOAT32 * (2 * (layers * block + root) + moments(recipe, ranks)) // ranks,
        "gathered": width * (root + GATHERED_BLOCKS * block),
        "gradients": FLOAT32 * (2 * root + (layers if passes > 1 else 1) * block),
        "activations": single["activations"],
        "logits": single["logits"],
    }
    return {**found, "all": sum(found.values())}


def _shard_ranks(recipe: TrainRecipe, gpus: int) -> int:
    ranks = recipe.train.shard_ranks or gpus
    if gpus % ranks:
        fitting = [number for number in range(1, gpus + 1) if gpus % number == 0]
        raise RecipeError(f"train.shard_ranks={ranks} does not divide {gpus} GPUs; use one of {fitting}, or 0 for all")
    return ranks
