"""What a model costs, from its config alone: the columns of the paper's Table 1 that follow from shapes.

No torch. `stored` counts each tensor once; `executed` counts an FFN once for every layer that runs it, so that a shared
model's executed parameters are the stored ones of the dense model it computes like.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mobillama.config import ModelConfig


@dataclass(frozen=True)
class Shares:
    """How parameters divide; the five add up to 1."""

    ffn: float
    attention: float
    embedding: float  # embedding and head
    norm: float
    adapter: float  # each layer's own beside its FFN: adapters and gains


@dataclass(frozen=True)
class Cost:
    """Sizes of one model; `tree()` is what `mobillama model info --json` prints."""

    name: str
    hidden_size: int
    num_hidden_layers: int
    num_ffn_blocks: int
    stored_parameters: int
    executed_parameters: int  # FFN counted once per layer
    adapter_parameters: int  # low-rank paths beside the FFN, of each layer's own
    gain_parameters: int  # gains on what the FFN gives, of each layer's own
    stored_shares: Shares
    executed_shares: Shares
    flops_per_token: int  # forward, matrices only: 2 for each weight that is multiplied (embedding look-up is not)
    attention_flops_per_token: int  # forward, scores and mixing for a token that sees the whole context
    bytes_fp32: int
    bytes_bf16: int
    bytes_4_5_bit: int  # 4-bit blocks of 32 weights with a 16-bit scale
    kv_bytes_per_token: int  # 16-bit keys and values of all layers

    def tree(self) -> dict[str, Any]:
        """The values as plain JSON types."""
        return asdict(self)


def cost(config: ModelConfig) -> Cost:
    """Count parameters, operations and bytes of `config`.

    >>> cost(ModelConfig()).stored_parameters, cost(ModelConfig()).executed_parameters
    (534865920, 1261529088)
    """
    hidden, layers = config.hidden_size, config.num_hidden_layers
    kv_width = config.num_key_value_heads * config.head_dim
    attention = layers * (2 * hidden * hidden + 2 * hidden * kv_width)
    ffn_block = 3 * hidden * config.intermediate_size
    table = config.vocab_size * hidden
    embedding = table if config.tie_word_embeddings else 2 * table
    norm = (2 * layers + 1) * hidden
    adapters = layers * 2 * hidden * config.ffn_adapter_rank
    gains = layers * hidden * config.ffn_gain
    stored = attention + config.num_ffn_blocks * ffn_block + embedding + norm + adapters + gains
    executed = attention + layers * ffn_block + embedding + norm + adapters + gains
    return Cost(
        name=config.name,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_ffn_blocks=config.num_ffn_blocks,
        stored_parameters=stored,
        executed_parameters=executed,
        adapter_parameters=adapters,
        gain_parameters=gains,
        stored_shares=_shares(config.num_ffn_blocks * ffn_block, attention, embedding, norm, adapters + gains),
        executed_shares=_shares(layers * ffn_block, attention, embedding, norm, adapters + gains),
        flops_per_token=2 * (attention + layers * ffn_block + adapters + table),
        attention_flops_per_token=4 * layers * hidden * config.max_position_embeddings,
        bytes_fp32=4 * stored,
        bytes_bf16=2 * stored,
        bytes_4_5_bit=-(-stored * 9 // 16),
        kv_bytes_per_token=2 * 2 * layers * kv_width,
    )


def _shares(*parts: int) -> Shares:
    total = sum(parts)
    return Shares(*(part / total for part in parts))


def table(costs: Mapping[str, Cost]) -> str:
    """The costs as aligned text, one column a model, for reading on a terminal."""
    rows = [
        ("", list(costs)),
        ("hidden size", [str(c.hidden_size) for c in costs.values()]),
        ("layers", [str(c.num_hidden_layers) for c in costs.values()]),
        ("FFN blocks", [str(c.num_ffn_blocks) for c in costs.values()]),
        ("stored parameters", [f"{c.stored_parameters:,}" for c in costs.values()]),
        ("  FFN / attention / embedding", [_percentages(c.stored_shares) for c in costs.values()]),
        *_own(costs),
        ("executed parameters", [f"{c.executed_parameters:,}" for c in costs.values()]),
        ("  FFN / attention / embedding", [_percentages(c.executed_shares) for c in costs.values()]),
        ("forward GFLOP per token", [f"{c.flops_per_token / 1e9:.3f}" for c in costs.values()]),
        ("  + attention, full context", [f"{c.attention_flops_per_token / 1e9:.3f}" for c in costs.values()]),
        ("MB in fp32", [f"{c.bytes_fp32 / 1e6:,.1f}" for c in costs.values()]),
        ("MB in bf16", [f"{c.bytes_bf16 / 1e6:,.1f}" for c in costs.values()]),
        ("MB at 4.5 bits", [f"{c.bytes_4_5_bit / 1e6:,.1f}" for c in costs.values()]),
        ("KV bytes per token, 16 bit", [f"{c.kv_bytes_per_token:,}" for c in costs.values()]),
    ]
    label_width = max(len(label) for label, _ in rows)
    width = max(len(value) for _, values in rows for value in values)
    cells = [(label, [value.rjust(width) for value in values]) for label, values in rows]
    return "\n".join("  ".join((label.ljust(label_width), *values)) for label, values in cells)


def _own(costs: Mapping[str, Cost]) -> list[tuple[str, list[str]]]:
    """Rows for what layers have of their own beside the FFN, where any of the models has it."""
    rows = [
        ("  of these adapters", [f"{c.adapter_parameters:,}" for c in costs.values()]),
        ("  of these gains", [f"{c.gain_parameters:,}" for c in costs.values()]),
    ]
    return [(label, values) for label, values in rows if set(values) != {"0"}]


def _percentages(shares: Shares) -> str:
    return " / ".join(f"{100 * share:.1f}%" for share in (shares.ffn, shares.attention, shares.embedding))
