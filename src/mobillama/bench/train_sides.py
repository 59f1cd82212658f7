"""The processes of `mobillama bench train`: our training step, transformers' LLaMA eager and compiled, and a bare
matrix product.

Run as `python -m mobillama.bench.train_sides KIND SHAPE_JSON`: each line of standard input is a number of steps, each
line of standard output a JSON object with their `seconds` and `losses`, and the peak memory so far. Every training side
has float32 master weights, the same compute type, fused AdamW with the same settings, clipping and accumulation; the
peer computes as its own trainer does, under autocast.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mobillama.config import ModelConfig, TrainConfig

if TYPE_CHECKING:
    from torch import Tensor

    from mobillama.device import Place

OURS, OURS_FREE, PRODUCT = "ours", "ours-nondeterministic", "product"
SEED = 11111
LEARNING_RATE = 3e-4  # the paper's
PRODUCT_SIZES = {"cpu": 2048, "cuda": 8192, "mps": 4096}  # of a square product: large enough to be bound by arithmetic
PRODUCT_SECONDS = 1.0  # that a side multiplies for at each turn
Step = Callable[["Tensor"], float]


@dataclass(frozen=True)
class Shape:
    """What a side trains, as plain values in its argument."""

    model: ModelConfig
    train: TrainConfig  # rows_per_step and micro_batch_rows are the rows of a step and of a pass
    seq_len: int

    def text(self) -> str:
        """JSON."""
        return json.dumps({"model": self.model.tree(), "train": self.train.tree(), "seq_len": self.seq_len})

    @staticmethod
    def parse(text: str) -> Shape:
        """What `text` gave."""
        tree = json.loads(text)
        return Shape(
            ModelConfig.model_validate(tree["model"]), TrainConfig.model_validate(tree["train"]), tree["seq_len"]
        )


def our_step(config: ModelConfig, train: TrainConfig, here: Place) -> Step:
    """The step of `mobillama train`."""
    import torch

    from mobillama.model.initialise import build_model
    from mobillama.train.step import TrainStep

    step = TrainStep(build_model(config, SEED), train, here.device, here.dtype)
    share = train.micro_batch_rows / train.rows_per_step

    def take(rows: Tensor) -> float:
        losses = [step.accumulate(part, share) for part in torch.split(rows, train.micro_batch_rows)]
        step.update(LEARNING_RATE)
        return float(torch.stack(losses).mean())

    return take


def transformers_step(config: ModelConfig, train: TrainConfig, here: Place, *, compiled: bool) -> Step:
    """transformers' LlamaForCausalLM with our initial weights, its MLPs aliased; compiled whole, with its loss."""
    import torch
    import torch.nn.functional as F

    model: Any = _shared_llama(config).to(here.device)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=LEARNING_RATE,
        betas=(train.beta1, train.beta2),
        eps=train.eps,
        weight_decay=train.weight_decay,
        fused=True,
    )
    share = train.micro_batch_rows / train.rows_per_step

    def forward(ids: Tensor, targets: Tensor) -> Tensor:
        logits = model(input_ids=ids, use_cache=False).logits
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    loss_of: Any = torch.compile(forward) if compiled else forward
    narrow = here.dtype != torch.float32

    def take(rows: Tensor) -> float:
        losses = []
        for part in torch.split(rows.to(here.device), train.micro_batch_rows):
            with torch.autocast(here.device.type, here.dtype, enabled=narrow):
                loss = loss_of(part[:, :-1].contiguous(), part[:, 1:].contiguous())
            (loss * share).backward()
            losses.append(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip)
        optimizer.step()
        optimizer.zero_grad()
        return float(torch.stack(losses).mean())

    return take


def _shared_llama(config: ModelConfig) -> Any:
    """A float32 LlamaForCausalLM whose layers use the first one's MLP, with the weights our model starts from."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from mobillama.model.initialise import build_model

    theirs = set(LlamaConfig().to_dict()) - {"rope_theta"}
    shape = {key: value for key, value in config.model_dump().items() if key in theirs}
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


def multiply(here: Place, seconds: float = PRODUCT_SECONDS) -> float:
    """Operations per second of a large square matrix product in the compute type, repeated for `seconds`."""
    import torch

    size = PRODUCT_SIZES[here.device.type]
    left, right = (torch.randn(size, size, device=here.device).to(here.dtype) for _ in range(2))
    out = torch.empty_like(left)
    torch.mm(left, right, out=out)
    settle(here)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for _ in range(16 if here.device.type == "cuda" else 1):
            torch.mm(left, right, out=out)
        settle(here)
        done += 16 if here.device.type == "cuda" else 1
    return 2.0 * size**3 * done / (time.perf_counter() - started)


def settle(here: Place) -> None:
    """Wait until the device has done all it was told to."""
    import torch

    if here.device.type == "cuda":
        torch.cuda.synchronize(here.device)


def main(kind: str, shape: Shape) -> None:
    """Take steps as standard input says."""
    import torch

    from mobillama.device import computing, peak_memory, place

    train = shape.train
    here = place(train)
    # Ours as a run does it; the peer in PyTorch's own settings.
    ours = kind in (OURS, OURS_FREE)
    deterministic = train.deterministic and kind == OURS
    setting = computing(here, deterministic=deterministic) if ours else contextlib.nullcontext()
    if not ours:
        torch.set_num_threads(here.threads)
    replies, sys.stdout = sys.stdout, sys.stderr
    done = 0

    def reply(**told: Any) -> None:
        peak = peak_memory(here)
        print(json.dumps({"losses": [], **told, "peak_memory": peak}), file=replies, flush=True)

    with setting:
        if kind == PRODUCT:
            for _ in sys.stdin:
                reply(seconds=PRODUCT_SECONDS, flops_per_second=multiply(here))
            return
        if ours:
            take = our_step(shape.model, train, here)
        else:
            take = transformers_step(shape.model, train, here, compiled=kind == "transformers-compiled")
        for line in sys.stdin:
            count = int(line)
            batches = [batch(shape.model, done + n, train.rows_per_step, shape.seq_len) for n in range(count)]
            losses = []
            if here.device.type == "cuda" and done:
                # Memory was handed back for the other sides: the first step asks for it again, and is not timed.
                losses.append(take(batch(shape.model, done + count, train.rows_per_step, shape.seq_len)))
                settle(here)
            started = time.perf_counter()
            losses += [take(each) for each in batches]
            settle(here)
            seconds = time.perf_counter() - started
            done += len(losses)
            if here.device.type == "cuda":
                torch.cuda.empty_cache()
            reply(seconds=seconds, losses=losses)


if __name__ == "__main__":
    main(sys.argv[1], Shape.parse(sys.argv[2]))
