"""The processes of `mobillama bench train`: our training step, and transformers' LLaMA eager and compiled.

Run as `python -m mobillama.bench.train_sides KIND SHAPE_JSON`: each line of standard input is a number of steps, each
line of standard output a JSON object with their `seconds` and `losses`. Every kind has float32 master weights, bfloat16
compute, fused AdamW with the same settings and clipping; the peer computes as its own trainer does, under autocast.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mobillama.config import ModelConfig, TrainConfig

if TYPE_CHECKING:
    from torch import Tensor

SIDES = ("ours", "transformers-eager", "transformers-compiled")
SEED = 11111
LEARNING_RATE = 3e-4  # the paper's
Step = Callable[["Tensor"], float]


def our_step(config: ModelConfig, train: TrainConfig) -> Step:
    """The step of `mobillama train`."""
    import torch

    from mobillama.model.initialise import build_model
    from mobillama.train.step import TrainStep

    step = TrainStep(build_model(config, SEED), train, torch.device("cpu"), torch.bfloat16)

    def take(rows: Tensor) -> float:
        loss = float(step.accumulate(rows, 1.0))
        step.update(LEARNING_RATE)
        return loss

    return take


def transformers_step(config: ModelConfig, train: TrainConfig, *, compiled: bool) -> Step:
    """transformers' LlamaForCausalLM with our initial weights, its MLPs aliased; compiled whole, with its loss."""
    import torch
    import torch.nn.functional as F

    model: Any = _shared_llama(config)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=LEARNING_RATE,
        betas=(train.beta1, train.beta2),
        eps=train.eps,
        weight_decay=train.weight_decay,
        fused=True,
    )

    def forward(ids: Tensor, targets: Tensor) -> Tensor:
        logits = model(input_ids=ids, use_cache=False).logits
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    loss_of: Any = torch.compile(forward) if compiled else forward

    def take(rows: Tensor) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return take


def _shared_llama(config: ModelConfig) -> Any:
    """A float32 LlamaForCausalLM whose layers use the first one's MLP, with the weights our model starts from."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from mobillama.model.initialise import build_model

    shape = config.model_dump(exclude={"name", "num_ffn_blocks", "rope_theta"})
    model: Any = LlamaForCausalLM(LlamaConfig(**shape))  # type: ignore[no-untyped-call]
    ours = build_model(config, SEED).state_dict()
    for index, layer in enumerate(model.model.layers):
        layer.mlp = model.model.layers[config.first_layer_of(config.ffn_block_of(index))].mlp
    weights = {}
    for name, tensor in ours.items():
        kind, _, rest = name.partition(".")
        if kind == "ffns":
            block, _, last = rest.partition(".")
            name = f"layers.{config.first_layer_of(int(block))}.mlp.{last}"
        weights[name if kind == "lm_head" else f"model.{name}"] = tensor
    found = model.load_state_dict(weights, strict=False)
    absent = [name for name in found.missing_keys if ".mlp." not in name]
    assert not found.unexpected_keys and not absent, (found.unexpected_keys, absent)
    return model.train()


def batch(config: ModelConfig, step: int, rows: int, seq_len: int) -> Tensor:
    """Ids (rows, seq_len + 1) of step `step`: frequent and rare ones as in text (Zipf), each depending on the last."""
    import torch

    generator = torch.Generator().manual_seed(SEED + step)
    likely = 1.0 / torch.arange(1, config.vocab_size + 1, dtype=torch.float64)
    ids = torch.multinomial(likely, rows * (seq_len + 1), replacement=True, generator=generator).view(rows, -1)
    follows = torch.rand(ids.shape, generator=generator) < 0.5
    for position in range(1, seq_len + 1):
        successor = (ids[:, position - 1] * 7 + 1) % config.vocab_size
        ids[:, position] = torch.where(follows[:, position], successor, ids[:, position])
    return ids


def main(kind: str, shape: dict[str, Any]) -> None:
    """Take steps as standard input says."""
    from mobillama.device import computing, place

    config = ModelConfig.model_validate(shape["model"])
    rows, seq_len = shape["rows"], shape["seq_len"]
    train = TrainConfig(rows_per_step=rows, micro_batch_rows=rows)
    here = place("cpu", "bfloat16")
    # Ours as a run does it; the peer in PyTorch's own settings.
    setting = computing(here, deterministic=train.deterministic) if kind == "ours" else contextlib.nullcontext()
    replies, sys.stdout = sys.stdout, sys.stderr
    done = 0
    with setting:
        if kind == "ours":
            take = our_step(config, train)
        else:
            take = transformers_step(config, train, compiled=kind == "transformers-compiled")
        for line in sys.stdin:
            batches = [batch(config, done + step, rows, seq_len) for step in range(int(line))]
            started = time.perf_counter()
            losses = [take(each) for each in batches]
            seconds = time.perf_counter() - started
            done += len(losses)
            print(json.dumps({"seconds": seconds, "losses": losses}), file=replies, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
