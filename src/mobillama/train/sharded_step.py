"""One training step over several ranks: FSDP2 (or HSDP), with the face of `TrainStep`.

Each block is a unit of its own, gathered for its forward and again for its backward pass. All else that holds weights
(embedding, the shared FFNs, final norm, head) is the root unit: gathered once for a micro-batch and kept until its
backward pass is over, however many layers use the FFN. Gradients are kept on each rank until the last micro-batch of a
step and summed over ranks then, once. The loss is computed inside the root's forward, where the head is whole.

The sharded float32 parameters are the masters; what is gathered is in the compute type. A gradient arrives in the
compute type from each use of a weight and is summed in float32: over uses and micro-batches here, over ranks by FSDP.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from mobillama.config import TrainConfig
from mobillama.model.transformer import Transformer
from mobillama.train.loss import Kernel, linear_cross_entropy, summed_nats
from mobillama.train.memory import keep_freed_memory
from mobillama.train.optimizer import Norms, Optimizer
from mobillama.train.parallel import prepare
from mobillama.train.world import World, spread


class ShardedStep:
    """The step that `mobillama train` runs on each of several ranks.

    model: the same whole model on every rank; only this rank's shards of it are kept, on `device`.
    dtype: of the compute, torch.float32 or torch.bfloat16. Every method is called on all ranks, in the same order.
    Where train.shard_ranks does not divide the ranks, a copy is spread over more of them (`spread` in world.py).
    """

    def __init__(
        self, model: Transformer, config: TrainConfig, device: torch.device, dtype: torch.dtype, world: World
    ) -> None:
        self.config, self.device, self.world = config, device, world
        mesh = make_mesh(device, world, config.shard_ranks)
        if device.type == "cpu":
            keep_freed_memory()
        owners = {name: model.get_submodule(name.rpartition(".")[0]) for name, _ in model.named_parameters()}
        self.document_attention, kernel = prepare(model, config, device, dtype)
        look_up_in_float32(model.embed_tokens)
        self.root = RootUnit(model.to(device, torch.float32), config.loss_chunk_tokens, kernel)
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        blocks = [fully_shard(block, mesh=mesh, mp_policy=policy) for block in model.layers]
        self.sharded = fully_shard(self.root, mesh=mesh, mp_policy=policy)
        self.units = [*blocks, self.sharded]
        for unit in self.units:
            # Shares of a mean are summed. Said as a plain sum, which gloo can do: NCCL's scaled sums it cannot.
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)
        self._sum_gradients_in_float32()
        self.weights = {name: getattr(owner, name.rpartition(".")[2]) for name, owner in owners.items()}
        self.optimizer = Optimizer(self.weights, config, model.config)

    def accumulate(
        self,
        rows: Tensor,
        share: float,
        documents: Tensor | None = None,
        counted: Tensor | None = None,
        *,
        last: bool = True,
    ) -> Tensor:
        """As `TrainStep.accumulate`, of this rank's rows; the shares of all ranks' micro-batches add up to one.

        A rank with nothing to do while others have gives any rows and a share of 0. last: no further micro-batch comes
        before `update`, so the gradients are summed over the ranks now.
        """
        self.sharded.set_requires_gradient_sync(last)
        counted = None if counted is None else counted.to(self.device).flatten()
        self._show(documents)
        loss = self.root(self._put(rows), counted)
        (loss * share).backward()
        return loss.detach()  # type: ignore[no-any-return]

    def update(self, lr: float, most: float = math.inf) -> Norms:
        """As `TrainStep.update`; the same norms on all ranks."""
        return self.optimizer.update(lr, most)

    def discard(self) -> None:
        """Zero the gradients without an update."""
        self.optimizer.zero_gradients()

    @torch.no_grad()
    def evaluate(self, rows: Tensor, documents: Tensor | None = None, counted: Tensor | None = None) -> Tensor:
        """As `TrainStep.evaluate`, of the same rows on every rank: each computes its part of them, all get the sum."""
        size, rank = self.world.size, self.world.rank
        idle = rank >= len(rows)  # such a rank computes a row for nothing: units are gathered by all together
        mine = slice(0, 1) if idle else slice(rank, None, size)
        self._show(None if documents is None else documents[mine])
        counted = None if counted is None else counted[mine].to(self.device).flatten()
        # Without compile: a second shape would compile again, and the forward pass alone gains little.
        with torch.compiler.set_stance("force_eager"):
            nats = self.root(self._put(rows[mine]), counted, summed=True)
        self.sharded.reshard()
        return torch.tensor(self.world.gather([0.0 if idle else float(nats)], size), dtype=torch.float64).sum()

    def state(self) -> dict[str, Tensor]:
        """As `TrainStep.state`: live DTensors, and replicated plain ones."""
        return self.optimizer.state()

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """As `TrainStep.load_state`, from whole tensors."""
        self.optimizer.load_state(tensors)

    def loaded(self) -> None:
        """As `TrainStep.loaded`."""
        self.optimizer.loaded()

    def _put(self, rows: Tensor) -> Tensor:
        return rows.to(self.device, torch.int64, non_blocking=True)

    def _show(self, documents: Tensor | None) -> None:
        if (documents is None) != (self.document_attention is None):
            raise ValueError("documents are given if, and only if, the config has a document_mask")
        if self.document_attention and documents is not None:
            self.document_attention.show(documents.to(self.device))

    def _sum_gradients_in_float32(self) -> None:
        """Let autograd sum the uses of a weight, and FSDP its micro-batches, in float32 whatever the compute type."""
        for unit in self.units:
            unit.unshard()
        for weight in self.root.parameters():
            weight.grad_dtype = torch.float32
        for unit in self.units:
            unit.reshard()


class RootUnit(nn.Module):
    """The model with its loss: FSDP's root, so that the head is whole where the loss needs it."""

    def __init__(self, model: Transformer, chunk_tokens: int, kernel: Kernel) -> None:
        super().__init__()
        self.model, self.chunk_tokens, self.kernel = model, chunk_tokens, kernel

    def forward(self, rows: Tensor, counted: Tensor | None, summed: bool = False) -> Tensor:
        """Rows (b, seq_len + 1) -> mean nats of the counted targets (0-d float32); `summed`: their sum (float64)."""
        hidden = self.model.hidden_states(rows[:, :-1]).flatten(0, 1)  # (N, D)
        targets, head = rows[:, 1:].flatten(), self.model.head_weight
        if summed:
            return summed_nats(hidden, head, targets, self.chunk_tokens, counted)
        return linear_cross_entropy(hidden, head, targets, self.chunk_tokens, self.kernel, counted)


def make_mesh(device: torch.device, world: World, shard_ranks: int) -> DeviceMesh:
    """All ranks in one row (FSDP), or copies x ranks of a copy (HSDP), neighbours in rank sharing a copy."""
    over = spread(world.size, shard_ranks)
    if over == world.size:
        return init_device_mesh(device.type, (world.size,), mesh_dim_names=("shard",))
    return init_device_mesh(device.type, (world.size // over, over), mesh_dim_names=("copy", "shard"))


def look_up_in_float32(embedding: nn.Embedding) -> None:
    """Let the gradient of the looked-up rows be summed in float32: a frequent token's is a long sum."""

    def look_up(ids: Tensor) -> Tensor:
        return _LookUp.apply(embedding.weight, ids)  # type: ignore[no-any-return,no-untyped-call]

    embedding.forward = look_up  # type: ignore[method-assign,assignment]


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor) -> Tensor:  # (V, D), (B, T) -> (B, T, D)
        ctx.save_for_backward(ids)
        ctx.vocabulary = weight.shape[0]
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        wide = gradients[0].float()
        return torch.ops.aten.embedding_dense_backward(wide, ids, ctx.vocabulary, -1, False), None
