"""The MobiLlama decoder: a LLaMA whose feed-forward networks are stored once and used by several layers.

Follows figure 2 and section 3.2 of the MobiLlama paper with the numerics of the LLaMA reference. `num_ffn_blocks` is
the one dial: 1 is MobiLlama, `num_hidden_layers` is a dense LLaMA, anything between is sharing in groups. An FFN is
registered once, on the model, and handed to each block's forward, so that it is one tensor in memory, in a state dict
and in a gradient. Nothing here knows of devices, compute types, compilation or more than one process.

Legend: B batch, T new positions, S all positions (cached + new), D hidden_size, H query heads, K key/value heads,
Dh head_dim, F intermediate_size, R ffn_adapter_rank, V vocab_size, L layers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobillama.config import ModelConfig
from mobillama.errors import InputError


class RMSNorm(nn.Module):
    """Scale to a root mean square of one, in float32, then by a learned weight in the input's own type."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # (..., D) -> (..., D)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class FeedForward(nn.Module):
    """The SiLU-gated network that MobiLlama shares between layers."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        return self.down_proj(self.inner(x))  # type: ignore[no-any-return]

    def inner(self, x: Tensor) -> Tensor:
        """What `down_proj` gets: (..., D) -> (..., F)."""
        return F.silu(self.gate_proj(x)) * self.up_proj(x)  # type: ignore[no-any-return]


class Adapter(nn.Module):
    """A low-rank path beside a shared FFN, of one layer's own."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.down = nn.Linear(config.hidden_size, config.ffn_adapter_rank, bias=False)
        self.up = nn.Linear(config.ffn_adapter_rank, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        return self.up(self.down(x))  # type: ignore[no-any-return]  # (B, T, R) between the two


class LayerCache:
    """Keys and values of one layer, in room set aside for `max_tokens` positions."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys = keys  # (B, K, max_tokens, Dh)
        self.values = values  # (B, K, max_tokens, Dh)
        self.length = 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write T new positions behind those present and give all of them: (B, K, S, Dh) twice."""
        start, end = self.length, self.length + keys.shape[2]
        self.keys[:, :, start:end] = keys.detach()
        self.values[:, :, start:end] = values.detach()
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class KVCache:
    """Keys and values of every layer, all filled to the same `length`; for inference, as no gradient passes it."""

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        max_tokens: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = (batch, config.num_key_value_heads, max_tokens, config.head_dim)
        self.max_tokens = max_tokens
        self.layers = [
            LayerCache(*(torch.zeros(shape, device=device, dtype=dtype) for _ in range(2)))
            for _ in range(config.num_hidden_layers)
        ]

    @property
    def length(self) -> int:
        """Positions filled so far."""
        return self.layers[0].length

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on."""
        for layer in self.layers:
            layer.length = min(layer.length, length)


class Attention(nn.Module):
    """Causal attention with rotary positions; K key/value heads serve H query heads."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)
        self.attend: Callable[..., Tensor] = F.scaled_dot_product_attention  # or another with its signature

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: LayerCache | None) -> Tensor:
        """x (B, T, D) -> (B, T, D); mask (B, 1, T, S), True = may look, or None for plain causal order."""
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, self.heads, self.head_dim).transpose(1, 2)  # (B, H, T, Dh)
        k = self.k_proj(x).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)  # (B, K, T, Dh)
        v = self.v_proj(x).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)  # (B, K, T, Dh)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.append(k, v)  # (B, K, S, Dh)
        # One new position may look at everything; several without a mask are a whole text, in causal order.
        mixed = self.attend(
            q, k, v, attn_mask=mask, is_causal=mask is None and T > 1, enable_gqa=self.kv_heads != self.heads
        )  # (B, H, T, Dh)
        return self.o_proj(mixed.transpose(1, 2).reshape(B, T, self.heads * self.head_dim))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One layer: its own attention and norms, the FFN it is handed, and what the config adds to that of its own."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.ffn_adapter = Adapter(config) if config.ffn_adapter_rank else None
        self.ffn_gain = nn.Parameter(torch.ones(config.hidden_size)) if config.ffn_gain else None

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        ffn: FeedForward,
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, cache)
        seen = self.post_attention_layernorm(x)  # (B, T, D)
        given = ffn(seen)
        if self.ffn_gain is not None:
            given = given * self.ffn_gain
        if self.ffn_adapter is not None:
            given = given + self.ffn_adapter(seen)
        return x + given  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Token ids to logits. Weights are PyTorch's defaults until `initialise` or `load_model` sets them.

    >>> config = ModelConfig(vocab_size=16, hidden_size=8, intermediate_size=12, num_hidden_layers=4,
    ...                      num_attention_heads=2, num_ffn_blocks=1)
    >>> model = Transformer(config)
    >>> len(model.ffns), tuple(model(torch.tensor([[1, 2, 3]])).shape)
    (1, (1, 3, 16))
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.ffns = nn.ModuleList(FeedForward(config) for _ in range(config.num_ffn_blocks))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def ffn_of(self, layer: int) -> FeedForward:
        """The FFN that a layer uses."""
        ffn = self.ffns[self.config.ffn_block_of(layer)]
        assert isinstance(ffn, FeedForward)
        return ffn

    @property
    def head_weight(self) -> Tensor:
        """The (V, D) matrix that turns hidden states into logits."""
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def forward(
        self,
        ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Logits (B, T, V) of the next token at each position of ids (B, T); with last_only (B, 1, V), of the last."""
        hidden = self.hidden_states(ids, attention_mask=attention_mask, cache=cache)
        return F.linear(hidden[:, -1:] if last_only else hidden, self.head_weight)

    def hidden_states(
        self, ids: Tensor, *, attention_mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """States (B, T, D) after the final norm.

        attention_mask (B, S): True where a position holds text, False where it is padding; it covers the cached
        positions too. Rotary positions count text alone, so padding on the left changes nothing.
        cache: holds the positions before `ids` and receives theirs.
        Errors: InputError if the mask has another shape, or the cache is too short.
        """
        T = ids.shape[1]
        past = 0 if cache is None else cache.length
        if cache is not None and past + T > cache.max_tokens:
            raise InputError(
                f"{past} cached and {T} new positions do not fit a cache of {cache.max_tokens}; make a longer KVCache"
            )
        positions, mask = locate(ids, past, attention_mask)
        x = self.embed_tokens(ids)  # (B, T, D)
        cos, sin = rotary_angles(positions, self.config, x.dtype)
        for index, block in enumerate(self.layers):
            ffn = self.ffns[self.config.ffn_block_of(index)]
            x = block(x, cos, sin, ffn, mask, None if cache is None else cache.layers[index])
        return self.norm(x)  # type: ignore[no-any-return]


def locate(ids: Tensor, past: int, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Rotary positions (1 or B, T) of `ids` (B, T) behind `past` cached ones, and who may look at whom (B, 1, T, S)."""
    B, T = ids.shape
    S = past + T
    keys = torch.arange(S, device=ids.device)  # (S,)
    queries = keys[past:]  # (T,)
    causal = queries[:, None] >= keys  # (T, S)
    if attention_mask is None:
        return queries[None], causal[None, None] if past and T > 1 else None
    if attention_mask.shape != (B, S):
        raise InputError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; expected {(B, S)}: "
            f"one row per text, {past} cached and {T} new positions"
        )
    text = attention_mask.bool()  # (B, S)
    positions = (text.long().cumsum(-1) - 1).clamp(min=0)[:, past:]  # (B, T)
    # Padding looks at itself alone: nobody reads it, and a row that sees nothing would be NaN.
    itself = queries[:, None] == keys  # (T, S)
    return positions, (causal & text[:, None] | itself)[:, None]


def rotary_angles(positions: Tensor, config: ModelConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine (1 or B, 1, T, Dh / 2) of each position's rotation, computed in float32."""
    pairs = torch.arange(0, config.head_dim, 2, device=positions.device).float() / config.head_dim  # (Dh / 2,)
    frequencies = 1.0 / config.rope_theta**pairs
    angles = positions[:, None, :, None].float() * frequencies  # (1 or B, 1, T, Dh / 2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + Dh / 2) of x (B, heads, T, Dh) by its angle: the layout of Hugging Face's LLaMA."""
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
