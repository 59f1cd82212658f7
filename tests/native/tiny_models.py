"""GGUF files of tiny models in shapes that real ones do not have, with random weights, written without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type


def write_tiny_model(
    path: Path,
    type_: Type,
    *,
    vocab_size: int,
    hidden_size: int,
    intermediate_size: int,
    heads: int,
    kv_heads: int,
    layers: int = 2,
    ffn_blocks: int = 1,
    tied: bool = False,
    context_length: int = 64,
    seed: int = 1,
    factors: Mapping[str, float] | None = None,
    keys: Mapping[str, Any] | None = None,
    split_max_tensors: int = 0,
    vocabulary: Callable[[gguf.GGUFWriter], None] | None = None,
) -> Path:
    """A file of architecture mobillama whose matrices are all of one type; layers share ffn_blocks FFN blocks.

    factors: of the weights of tensors, by the last part of their names, such as attn_k.
    keys: whole names -> further values; a whole number is written with 32 bits, a list with its items' type.
    split_max_tensors: write parts NAME-0000N-of-0000M.gguf of at most so many tensors.
    vocabulary: adds the keys of a tokenizer.
    """
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "mobillama", split_max_tensors=split_max_tensors)
    writer.add_context_length(context_length)
    writer.add_embedding_length(hidden_size)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_uint32("mobillama.ffn_block_count", ffn_blocks)

    for key, value in (keys or {}).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
        add.get(type(value), writer.add_string)(key, value)
    if vocabulary:
        vocabulary(writer)

    def matrix(name: str, rows: int, cols: int) -> None:
        factor = (factors or {}).get(name.split(".")[-2], 1.0)
        weights = (random.normal(0, 2 / np.sqrt(cols), (rows, cols)) * factor).astype(np.float32)
        writer.add_tensor(name, gguf.quantize(weights, type_), raw_dtype=type_)

    def norm(name: str) -> None:
        factor = (factors or {}).get(name.split(".")[-2], 1.0)
        writer.add_tensor(name, (random.uniform(0.5, 1.5, hidden_size) * factor).astype(np.float32))

    matrix("token_embd.weight", vocab_size, hidden_size)
    norm("output_norm.weight")
    if not tied:
        matrix("output.weight", vocab_size, hidden_size)
    kv_size = hidden_size // heads * kv_heads
    written = set()
    for layer in range(layers):
        prefix = f"blk.{layer}."
        norm(prefix + "attn_norm.weight")
        for name, rows in (("q", hidden_size), ("k", kv_size), ("v", kv_size), ("output", hidden_size)):
            matrix(f"{prefix}attn_{name}.weight", rows, hidden_size)
        norm(prefix + "ffn_norm.weight")
        block = layer * ffn_blocks // layers
        if block not in written:
            written.add(block)
            matrix(prefix + "ffn_gate.weight", intermediate_size, hidden_size)
            matrix(prefix + "ffn_up.weight", intermediate_size, hidden_size)
            matrix(prefix + "ffn_down.weight", hidden_size, intermediate_size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
