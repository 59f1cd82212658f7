"""One scoring interface: log-probabilities of given tokens behind contexts that are shared wherever ids agree.

A request is a row of ids of which the last few are scored. Requests become trees: a node holds ids that all requests
below it have in common behind those of its parent, and what is asked after some of them. So the five shots of an MMLU
subject, a question, and the beginnings of its choices are computed once each, and one-token choices of one context are
read from one position. Sharing is found by the ids alone: nothing has to be told about tasks, and a prompt that was
cut shares what is still equal. A `Scorer` computes trees; what is exact for one request alone is exact in a tree.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from mobillama.errors import InputError
from mobillama.generation.sampling import Settings

SHARED = 8  # ids from which a beginning in common is worth a node of its own

Ids = npt.NDArray[np.int64]
Stopped = Callable[[int, Sequence[int]], bool]


@dataclass(frozen=True)
class Request:
    """Ids of which the last `scored` are scored, each given all before it."""

    ids: tuple[int, ...]
    scored: int


@dataclass(frozen=True)
class Score:
    """Natural log-probabilities of a request's scored ids, and whether each was the likeliest."""

    log_probs: tuple[float, ...]
    greedy: bool

    @property
    def total(self) -> float:
        """Log-likelihood of the scored ids together."""
        return float(sum(self.log_probs))


@dataclass
class Node:
    """Ids behind those of the parent, and what is asked: after `places[i]` of them, the id `targets[i]`."""

    start: int  # ids before the node
    ids: Ids
    parent: Node | None = None
    children: list[Node] = field(default_factory=list)
    places: list[int] = field(default_factory=list)  # positions inside the node, those of equal requests repeated
    targets: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)  # where each answer belongs

    def path(self) -> list[Node]:
        """The nodes above, the root first."""
        above: list[Node] = []
        node = self.parent
        while node is not None:
            above.append(node)
            node = node.parent
        return above[::-1]


@dataclass
class Answers:
    """What a scorer writes: for every scored id of every request."""

    log_probs: npt.NDArray[np.float64]
    greedy: npt.NDArray[np.bool_]

    def write(self, node: Node, log_probs: npt.NDArray[np.float64], greedy: npt.NDArray[np.bool_]) -> None:
        """Take the answers (len(node.answers),) of one node. Error: InputError if one is not a number."""
        if np.isnan(log_probs).any() or np.isposinf(log_probs).any():
            raise InputError(
                f"the model gave logits that are not numbers after {node.start + len(node.ids)} tokens: the weights"
                " are damaged, or the type is too narrow for them (try --dtype float32)"
            )
        self.log_probs[node.answers] = log_probs
        self.greedy[node.answers] = greedy


class Scorer(ABC):
    """A model that scores; a subclass says how it computes trees."""

    vocab_size: int
    context_length: int

    def score(self, requests: Sequence[Request]) -> list[Score]:
        """The scores of all requests, in their order.

        Errors: InputError for ids outside the vocabulary, a request without a context or longer than the context
        (of which the last id is only scored, so that it may stand one behind), and logits that are not numbers.
        """
        self._check(requests)
        starts = np.concatenate(([0], np.cumsum([request.scored for request in requests]))).astype(int).tolist()
        answers = Answers(np.zeros(starts[-1]), np.zeros(starts[-1], np.bool_))
        if requests:
            self._compute(grow(requests, starts), answers)
        return [
            Score(tuple(answers.log_probs[start:end].tolist()), bool(answers.greedy[start:end].all()))
            for start, end in pairwise(starts)
        ]

    @abstractmethod
    def _compute(self, trees: list[Node], answers: Answers) -> None:
        """Answer all that is asked in some trees."""

    @abstractmethod
    def continue_ids(self, prompts: Sequence[Sequence[int]], settings: Settings, stopped: Stopped) -> list[list[int]]:
        """Continue prompts of ids; `stopped(index, ids so far)` ends one of them early."""

    def _check(self, requests: Sequence[Request]) -> None:
        for request in requests:
            if not 0 < request.scored < len(request.ids):
                raise InputError(
                    f"a request of {len(request.ids)} ids asks for {request.scored}; expected at least one, and one"
                    " before it"
                )
            if len(request.ids) - 1 > self.context_length:
                raise InputError(
                    f"a request has {len(request.ids)} ids; the model's context holds {self.context_length}: cut it"
                )
            low, high = min(request.ids), max(request.ids)
            if low < 0 or high >= self.vocab_size:
                raise InputError(
                    f"a request holds the id {low if low < 0 else high}; this model's vocabulary has ids 0 to"
                    f" {self.vocab_size - 1}: the tokenizer is not the model's"
                )


def grow(requests: Sequence[Request], starts: Sequence[int]) -> list[Node]:
    """The trees of some requests; `starts[r]` is where the answers of request r begin.

    Every request is fed all its ids but the last: the last is only asked for.
    """
    rows = [np.asarray(request.ids[:-1], np.int64) for request in requests]
    keys = [row.astype(">u4").tobytes() for row in rows]  # bytes compare as the ids do
    order = sorted(range(len(rows)), key=keys.__getitem__)
    roots: list[Node] = []
    # (requests order[low:high], which agree in their first `depth` ids; the node those end with)
    waiting: list[tuple[int, int, int, Node | None]] = [(0, len(order), 0, None)]
    while waiting:
        low, high, depth, parent = waiting.pop()
        first, last = rows[order[low]], rows[order[high - 1]]
        common = _agree(first, last) if high - low > 1 else len(first)
        equal = common == len(last)
        groups = [] if equal else _groups(order, rows, low, high, common)
        if not equal and (common - depth < SHARED or len(groups) == 0):
            waiting += [(start, end, depth, parent) for start, end in reversed(groups)]
            continue
        node = Node(depth, first[depth:common], parent)
        (roots if parent is None else parent.children).append(node)
        inside = low
        while inside < high and len(rows[order[inside]]) == common:
            _ask(node, requests[order[inside]], starts[order[inside]])
            inside += 1
        waiting += [(start, end, common, node) for start, end in reversed(groups) if start >= inside]
    return roots


def _agree(one: Ids, other: Ids) -> int:
    """How many ids two rows begin with in common."""
    size = min(len(one), len(other))
    differ = np.flatnonzero(one[:size] != other[:size])
    return int(differ[0]) if len(differ) else size


def _groups(order: Sequence[int], rows: Sequence[Ids], low: int, high: int, common: int) -> list[tuple[int, int]]:
    """The parts of a sorted range that agree in one id more; rows that end at `common` are a part of their own."""
    following = [int(rows[index][common]) if len(rows[index]) > common else -1 for index in order[low:high]]
    edges = [low, *(low + i for i in range(1, high - low) if following[i] != following[i - 1]), high]
    return list(pairwise(edges))


def _ask(last: Node, request: Request, start: int) -> None:
    """Ask for a request's scored ids in the nodes that hold the ids before them; `last` is where it ends."""
    node: Node = last
    for slot in range(request.scored - 1, -1, -1):
        at = len(request.ids) - request.scored + slot - 1  # the id after which this one is asked for
        while at < node.start:
            assert node.parent is not None, "ids before the root"
            node = node.parent
        node.places.append(at - node.start)
        node.targets.append(request.ids[at + 1])
        node.answers.append(start + slot)


def in_order(trees: Iterable[Node]) -> list[Node]:
    """All nodes, each before those below it."""
    found: list[Node] = []
    waiting = list(trees)[::-1]
    while waiting:
        node = waiting.pop()
        found.append(node)
        waiting += node.children[::-1]
    return found


def computed_tokens(trees: Iterable[Node]) -> int:
    """How many positions are computed for some trees."""
    return sum(len(node.ids) for node in in_order(trees))
