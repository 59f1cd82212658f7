"""Scoring with the on-device engine: a tree is walked in one sequence, which is rewound where branches meet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mobillama.eval.following import follow
from mobillama.eval.scoring import Answers, Ids, Node, Scorer, Stopped
from mobillama.generation.sampling import Settings
from mobillama.runtime.engine import MAX_VERIFY, Context
from mobillama.runtime.engine_model import EngineModel
from mobillama.runtime.generate import Generation


class EngineScorer(Scorer):
    """An open .gguf file; one context of one sequence for as long as the scorer lives."""

    def __init__(self, model: EngineModel) -> None:
        self.model = model
        self.vocab_size, self.context_length = model.info.vocab_size, model.info.context_length
        self._context: Context = model.engine.context(threads=model.threads, kv=model.kv)

    def _compute(self, trees: list[Node], answers: Answers) -> None:
        waiting = trees[::-1]
        while waiting:
            node = waiting.pop()
            self._context.rewind(node.start)
            self._read(node, answers)
            waiting += node.children[::-1]

    def _read(self, node: Node, answers: Answers) -> None:
        """Append a node's ids; logits are kept only from the first position asked about on."""
        places, targets = np.asarray(node.places, int), np.asarray(node.targets, int)
        log_probs, greedy = np.zeros(len(places)), np.zeros(len(places), np.bool_)
        first = int(places.min()) if len(places) else len(node.ids)
        if first:
            self._context.prefill(node.ids[:first])
        for start in range(first, len(node.ids), MAX_VERIFY):
            part: Ids = node.ids[start : start + MAX_VERIFY]
            self._context.verify(part)
            for row in range(len(part)):
                if not len(mine := np.flatnonzero(places == start + row)):
                    continue
                logits = self._context.logits(row).astype(np.float64)  # (V,)
                highest = logits.max()
                log_probs[mine] = logits[targets[mine]] - highest - np.log(np.exp(logits - highest).sum())
                greedy[mine] = targets[mine] == int(logits.argmax())
        answers.write(node, log_probs, greedy)

    def continue_ids(self, prompts: Sequence[Sequence[int]], settings: Settings, stopped: Stopped) -> list[list[int]]:
        """As Scorer.continue_ids."""
        running = Generation(self.model.engine, prompts, settings, threads=self.model.threads, kv=self.model.kv)
        return follow(running, len(prompts), stopped)
