"""Scoring with our Transformer: all nodes of a batch lie in one row of tokens, without any padding.

Everything but attention works on single positions, so that a row may hold any nodes in any order. Attention goes pack
by pack: a pack is nodes of one parent, its queries look at the keys of the nodes above and, in causal order, at their
own node's. Keys and values of a node whose children come in a later batch are kept until then, so a shared context is
computed once however many follow. The head is applied to the positions asked about alone.

Legend: N tokens of the row, H query heads, K key/value heads, Dh head_dim, D hidden_size, P tokens above a pack,
T tokens of it, A positions asked about, V vocab_size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mobillama.errors import InputError
from mobillama.eval.following import follow
from mobillama.eval.scoring import Answers, Node, Scorer, Stopped, in_order
from mobillama.generation.sampling import Settings
from mobillama.model.generate import generate
from mobillama.model.transformer import Transformer, rotary_angles

BUDGET = 16384  # tokens of a row to begin with
PACK = 256  # tokens of several nodes that attend together: what they waste on one another is less than a copy of P
HEAD_ROWS = 512  # positions whose logits are computed at once: V float32 numbers each


@dataclass
class _Pack:
    """Nodes of one parent that attend together, at row[start:end]."""

    nodes: list[Node]
    start: int = 0
    end: int = 0
    mask: Tensor | None = None  # (T, P + T), added to the scores; None = plain causal order, nothing above


@dataclass
class _Row:
    """One batch: its packs, and where each node lies."""

    packs: list[_Pack]
    spans: dict[int, tuple[int, int]] = field(default_factory=dict)  # id of a node -> its positions in the row


Kept = dict[int, list[tuple[Tensor, Tensor]]]  # id of a node -> keys and values (1, K, T, Dh) of every layer


class TorchScorer(Scorer):
    """A Transformer where it lies, in its own type; the softmax is float32."""

    def __init__(self, model: Transformer, *, budget: int = BUDGET) -> None:
        """budget: most tokens of a row; it halves itself when memory runs out."""
        self.model = model.eval()
        self.vocab_size, self.context_length = model.config.vocab_size, model.config.max_position_embeddings
        self.budget = budget

    @torch.inference_mode()
    def _compute(self, trees: list[Node], answers: Answers) -> None:
        nodes = in_order(trees)
        last = _last_below(nodes)
        kept: Kept = {}
        start = 0
        while start < len(nodes):
            end = _take(nodes, start, self.budget)
            keep = {id(node) for at, node in enumerate(nodes[start:end], start) if last[at] >= end}
            try:
                self._batch(nodes[start:end], keep, kept, answers)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or end - start == 1:
                    raise
                for node in nodes[start:end]:
                    kept.pop(id(node), None)
                self.budget = max(1, sum(len(node.ids) for node in nodes[start:end]) // 2)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            for at in range(end):
                if last[at] < end:
                    kept.pop(id(nodes[at]), None)
            start = end

    def _batch(self, nodes: Sequence[Node], keep: set[int], kept: Kept, answers: Answers) -> None:
        model, weight = self.model, self.model.head_weight
        row = _arrange(nodes)
        laid = [node for pack in row.packs for node in pack.nodes]
        ids = torch.from_numpy(np.concatenate([node.ids for node in laid]))[None].to(weight.device)  # (1, N)
        places = np.concatenate([np.arange(node.start, node.start + len(node.ids)) for node in laid])
        for pack in row.packs:
            pack.mask = _mask(pack, weight.dtype, weight.device)
        cos, sin = rotary_angles(torch.from_numpy(places)[None].to(weight.device), model.config, weight.dtype)
        x = model.embed_tokens(ids)  # (1, N, D)
        with _attending(model, partial(_attend, row, keep, kept)):
            for index, block in enumerate(model.layers):
                x = block(x, cos, sin, model.ffns[model.config.ffn_block_of(index)])
        self._answer(x[0], row, laid, answers)

    def _answer(self, x: Tensor, row: _Row, laid: Sequence[Node], answers: Answers) -> None:
        """Apply the head where something is asked; x (N, D), before the final norm."""
        asked = [node for node in laid if node.places]
        if not asked:
            return
        spots = np.concatenate([row.spans[id(node)][0] + np.asarray(node.places) for node in asked])
        targets = np.concatenate([np.asarray(node.targets) for node in asked])
        unique, which = np.unique(spots, return_inverse=True)  # (A,)
        hidden = self.model.norm(x[torch.from_numpy(unique).to(x.device)])  # (A, D)
        log_probs, greedy = np.zeros(len(spots)), np.zeros(len(spots), np.bool_)
        for start in range(0, len(unique), HEAD_ROWS):
            logits = F.linear(hidden[start : start + HEAD_ROWS], self.model.head_weight).float()  # (<= HEAD_ROWS, V)
            mine = np.flatnonzero((which >= start) & (which < start + HEAD_ROWS))
            lines = torch.from_numpy(which[mine] - start).to(x.device)
            wanted = torch.from_numpy(targets[mine]).to(x.device)
            found = logits[lines, wanted] - logits.logsumexp(-1)[lines]
            log_probs[mine] = found.double().cpu().numpy()
            greedy[mine] = (logits.argmax(-1)[lines] == wanted).cpu().numpy()
        begin = 0
        for node in asked:
            end = begin + len(node.places)
            answers.write(node, log_probs[begin:end], greedy[begin:end])
            begin = end

    def continue_ids(self, prompts: Sequence[Sequence[int]], settings: Settings, stopped: Stopped) -> list[list[int]]:
        """As Scorer.continue_ids."""
        return follow(generate(self.model, prompts, settings), len(prompts), stopped)


def _attend(
    row: _Row,
    keep: set[int],
    kept: Kept,
    layer: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention of a row: q (1, H, N, Dh), k and v (1, K, N, Dh) -> (1, H, N, Dh). The packs say who sees whom."""
    out = torch.empty_like(q)
    for pack in row.packs:
        keys, values = [], []
        for node in pack.nodes[0].path():
            if (span := row.spans.get(id(node))) is not None:
                keys.append(k[:, :, span[0] : span[1]])
                values.append(v[:, :, span[0] : span[1]])
            else:
                keys.append(kept[id(node)][layer][0])
                values.append(kept[id(node)][layer][1])
        own = slice(pack.start, pack.end)
        all_keys = torch.cat([*keys, k[:, :, own]], 2) if keys else k[:, :, own]  # (1, K, P + T, Dh)
        all_values = torch.cat([*values, v[:, :, own]], 2) if values else v[:, :, own]
        out[:, :, own] = F.scaled_dot_product_attention(
            q[:, :, own], all_keys, all_values, pack.mask, is_causal=pack.mask is None, enable_gqa=enable_gqa
        )
    for node_id in keep:
        start, end = row.spans[node_id]
        kept.setdefault(node_id, []).append((k[:, :, start:end].clone(), v[:, :, start:end].clone()))
    return out


@contextlib.contextmanager
def _attending(model: Transformer, attend: Any) -> Iterator[None]:
    """Let every layer attend by `attend(layer, q, k, v, ...)`, and put back what was there."""
    before = [block.self_attn.attend for block in model.layers]  # type: ignore[union-attr]
    try:
        for layer, block in enumerate(model.layers):
            block.self_attn.attend = partial(attend, layer)  # type: ignore[union-attr]
        yield
    finally:
        for block, was in zip(model.layers, before, strict=True):
            block.self_attn.attend = was  # type: ignore[union-attr]


def _arrange(nodes: Sequence[Node]) -> _Row:
    """Pack siblings and lay the packs one behind the other."""
    families: dict[int, list[_Pack]] = {}
    for node in nodes:
        family = families.setdefault(id(node.parent), [])
        room = PACK - sum(len(other.ids) for other in family[-1].nodes) if family else 0
        if len(node.ids) <= room:
            family[-1].nodes.append(node)
        else:
            family.append(_Pack([node]))
    row = _Row([pack for family in families.values() for pack in family])
    at = 0
    for pack in row.packs:
        pack.start = at
        for node in pack.nodes:
            row.spans[id(node)] = (at, at + len(node.ids))
            at += len(node.ids)
        pack.end = at
    return row


def _mask(pack: _Pack, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """Who may look at whom (T, P + T), as zeros and minus infinities."""
    above = pack.nodes[0].start
    if not above and len(pack.nodes) == 1:
        return None
    sizes = torch.tensor([len(node.ids) for node in pack.nodes], device=device)
    of = torch.repeat_interleave(torch.arange(len(sizes), device=device), sizes)  # (T,) which node
    order = torch.arange(len(of), device=device)
    own = (of[:, None] == of) & (order[:, None] >= order)  # (T, T)
    mask = torch.zeros(len(of), above + len(of), dtype=dtype, device=device)
    mask[:, above:].masked_fill_(~own, float("-inf"))
    return mask


def _last_below(nodes: Sequence[Node]) -> list[int]:
    """For each node in order, the place of the last child it has: until then its keys are needed."""
    place = {id(node): at for at, node in enumerate(nodes)}
    last = list(range(len(nodes)))
    for at in range(len(nodes) - 1, -1, -1):  # those below have their own last already
        parent = nodes[at].parent
        if parent is not None:
            above = place[id(parent)]
            last[above] = max(last[above], last[at])
    return last


def _take(nodes: Sequence[Node], start: int, budget: int) -> int:
    """The end of a batch that begins at `start`: as many nodes as fit the budget, at least one."""
    end, size = start, 0
    while end < len(nodes) and (end == start or size + len(nodes[end].ids) <= budget):
        size += len(nodes[end].ids)
        end += 1
    return end


def is_out_of_memory(error: BaseException) -> bool:
    """torch's CPU allocator raises a RuntimeError, told apart by its words alone."""
    if isinstance(error, InputError):
        return False
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
