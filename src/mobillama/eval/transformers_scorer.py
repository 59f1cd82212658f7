"""Scoring with any causal model of transformers: siblings in one padded batch over the cache of what is above them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mobillama.errors import InputError
from mobillama.eval.scoring import Answers, Node, Scorer, Stopped
from mobillama.eval.torch_scorer import is_out_of_memory
from mobillama.generation.sampling import Settings

# B siblings of a batch, T tokens of the longest, A positions asked about, V vocab_size

BUDGET = 8192  # tokens of a batch to begin with, those in the cache included


class TransformersScorer(Scorer):
    """A causal model of transformers where it lies, in its own type; the softmax is float32."""

    def __init__(self, model: Any, *, budget: int = BUDGET) -> None:
        """budget: most tokens of a batch; it halves itself when memory runs out.

        Error: InputError if the model's configuration does not say how long its context is.
        """
        self.model = model.eval()
        config = model.config.get_text_config()
        context = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        if not context:
            raise InputError(f"{type(model).__name__} does not say its context; expected max_position_embeddings")
        self.context_length = int(context)
        self.vocab_size = int(config.vocab_size)
        self.budget = budget
        if "logits_to_keep" not in inspect.signature(model.forward).parameters:
            raise InputError(f"{type(model).__name__}.forward has no logits_to_keep; expected a causal language model")

    @torch.inference_mode()
    def _compute(self, trees: list[Node], answers: Answers) -> None:
        waiting: list[tuple[list[Node], Any]] = [(trees, None)]  # siblings, and the cache of what is above them
        while waiting:
            siblings, cache = waiting.pop()
            left = sorted(siblings, key=lambda node: -len(node.ids))
            while left:
                size = max(1, self.budget // (left[0].start + len(left[0].ids)))
                try:
                    filled = self._batch(left[:size], cache, answers)
                except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error) or size == 1:
                        raise
                    self.budget //= 2
                    continue
                for row, node in enumerate(left[:size]):
                    if node.children:
                        waiting.append((node.children, _one_row(filled, row, node.start + len(node.ids))))
                left = left[size:]

    def _batch(self, nodes: Sequence[Node], above: Any, answers: Answers) -> Any:
        """Compute siblings; gives their cache, filled, with a row for each."""
        from transformers import DynamicCache

        device = self.model.device
        longest = max(len(node.ids) for node in nodes)
        ids = np.zeros((len(nodes), longest), np.int64)  # what stands behind a short row is looked at by nobody
        for line, node in zip(ids, nodes, strict=True):
            line[: len(node.ids)] = node.ids
        cache = DynamicCache() if above is None else copy.deepcopy(above)
        if above is not None:
            cache.batch_repeat_interleave(len(nodes))
        places = sorted({place for node in nodes for place in node.places}) or [longest - 1]
        out = self.model(
            input_ids=torch.from_numpy(ids).to(device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=torch.tensor(places, device=device),
        )
        column = {place: at for at, place in enumerate(places)}
        for row, node in enumerate(nodes):
            if node.places:
                self._answer(node, out.logits[row], column, answers)
        return out.past_key_values

    def _answer(self, node: Node, logits: Tensor, column: dict[int, int], answers: Answers) -> None:
        """logits (A, V) of one row, `column` from a position to its line."""
        unique = sorted(set(node.places))
        line = {place: at for at, place in enumerate(unique)}
        mine = logits[[column[place] for place in unique]].float()  # (places of this node, V)
        lines = torch.tensor([line[place] for place in node.places], device=logits.device)
        targets = torch.tensor(node.targets, device=logits.device)
        log_probs = mine[lines, targets] - mine.logsumexp(-1)[lines]
        greedy = mine.argmax(-1)[lines] == targets
        answers.write(node, log_probs.double().cpu().numpy(), greedy.cpu().numpy())

    @torch.inference_mode()
    def continue_ids(self, prompts: Sequence[Sequence[int]], settings: Settings, stopped: Stopped) -> list[list[int]]:
        """As Scorer.continue_ids, one prompt at a time."""
        from transformers import StoppingCriteriaList

        texts, ends_at = [], sorted(settings.end_ids)
        for index, prompt in enumerate(prompts):
            room = min(settings.max_new_tokens, self.context_length - len(prompt))
            ids = torch.tensor([list(prompt)], device=self.model.device)

            def ends(found: Tensor, _scores: Any, index: int = index, size: int = len(prompt), **_: Any) -> Tensor:
                return torch.tensor([stopped(index, found[0, size:].tolist())], device=found.device)

            choice: dict[str, Any] = {"do_sample": settings.temperature > 0}
            if settings.temperature > 0:
                torch.manual_seed(settings.seed)
                choice |= {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": settings.top_k}
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=room,
                eos_token_id=ends_at or None,
                pad_token_id=ends_at[0] if ends_at else 0,
                repetition_penalty=settings.repetition_penalty,
                stopping_criteria=StoppingCriteriaList([ends]),
                **choice,
            )
            text = out[0, len(prompt) :].tolist()
            texts.append(text[:-1] if text and text[-1] in settings.end_ids else text)
        return texts


def _one_row(cache: Any, row: int, length: int) -> Any:
    """A cache of one row of another, up to a length."""
    mine = copy.deepcopy(cache)
    mine.batch_select_indices(torch.tensor([row]))
    mine.crop(length)
    return mine
