"""One training step on one device: accumulate gradients, clip, update.

Weights and optimizer are float32; the compute is in the type of the place (`precision.py`). Nothing here reads files,
knows of schedules or counts steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mobillama.config import TrainConfig
from mobillama.model.transformer import Transformer
from mobillama.train.loss import linear_cross_entropy, summed_nats
from mobillama.train.memory import keep_freed_memory
from mobillama.train.optimizer import Norms, Optimizer
from mobillama.train.parallel import prepare
from mobillama.train.precision import WorkingCopy
from mobillama.train.world import ALONE


class TrainStep:
    """The step that `mobillama train` runs.

    model: moved to `device`; its float32 weights are the masters and are always those of the last update.
    dtype: of the compute, torch.float32 or torch.bfloat16.
    """

    def __init__(self, model: Transformer, config: TrainConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.config, self.device, self.world = config, device, ALONE
        if device.type == "cpu":
            keep_freed_memory()
        self.model = model.to(device=device, dtype=torch.float32)
        self.optimizer = Optimizer(dict(model.named_parameters()), config, model.config)
        self.working = WorkingCopy(model, dtype)
        self.document_attention, self.kernel = prepare(self.working.model, config, device, dtype)

    def accumulate(
        self,
        rows: Tensor,
        share: float,
        documents: Tensor | None = None,
        counted: Tensor | None = None,
        *,
        last: bool = True,
    ) -> Tensor:
        """Add `share` of the gradient of rows (b, seq_len + 1) int64; their mean nats per token (0-d float32).

        share: what part of the step's targets these are, b / rows_per_step where all count; the loss returned is not
        multiplied by it. documents: int64 (b, seq_len), for a config with a document mask. counted: bool (b, seq_len),
        the targets trained on, at least one; None = all. last: no other micro-batch comes before `update`; several
        ranks sum their gradients then (ShardedStep), one has nothing to do.
        """
        del last
        hidden, targets = self._states(rows, documents)
        counted = None if counted is None else counted.to(self.device).flatten()
        loss = linear_cross_entropy(
            hidden, self.working.model.head_weight, targets, self.config.loss_chunk_tokens, self.kernel, counted
        )
        self.working.share = share
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def update(self, lr: float, most: float = math.inf) -> Norms:
        """Clip, step and zero the gradients; the gradient norms before clipping.

        Where the norm of all is no finite number or above `most`, nothing is changed, and `discard` or the end follow.
        """
        norms = self.optimizer.update(lr, most)
        self.working.refresh()
        return norms

    def discard(self) -> None:
        """Zero the gradients without an update."""
        self.optimizer.zero_gradients()

    @torch.no_grad()
    def evaluate(self, rows: Tensor, documents: Tensor | None = None, counted: Tensor | None = None) -> Tensor:
        """Nats (0-d float64) of all counted targets of rows (b, seq_len + 1) int64 together; changes nothing.

        documents, counted: as for `accumulate`.
        """
        # Without compile: a second shape would compile again, and the forward pass alone gains little.
        with torch.compiler.set_stance("force_eager"):
            hidden, targets = self._states(rows, documents)
            counted = None if counted is None else counted.to(self.device).flatten()
            head = self.working.model.head_weight
            return summed_nats(hidden, head, targets, self.config.loss_chunk_tokens, counted)

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on: live float32 tensors, `model.<name>` and `optimizer.<...>`."""
        return self.optimizer.state()

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave. Errors: InputError if it is not of this model."""
        self.optimizer.load_state(tensors)
        self.working.refresh()

    def loaded(self) -> None:
        """To be called after the tensors of `state` were filled in place."""
        self.optimizer.loaded()
        self.working.refresh()

    def _states(self, rows: Tensor, documents: Tensor | None) -> tuple[Tensor, Tensor]:
        """States (N, D) behind the final norm and the ids (N,) they shall predict."""
        if (documents is None) != (self.document_attention is None):
            raise ValueError("documents are given if, and only if, the config has a document_mask")
        if self.document_attention and documents is not None:
            self.document_attention.show(documents.to(self.device))
        rows = rows.to(self.device, torch.int64, non_blocking=True)
        hidden = self.working.model.hidden_states(rows[:, :-1])  # (b, T, D)
        return hidden.flatten(0, 1), rows[:, 1:].flatten()
