"""The ids of a running generation, each sequence ended where its text is complete."""

from __future__ import annotations

from mobillama.eval.scoring import Stopped
from mobillama.generation.sequences import Generation


def follow(generation: Generation, count: int, stopped: Stopped) -> list[list[int]]:
    """The ids of `count` sequences; `stopped(index, ids so far)` ends one."""
    texts: list[list[int]] = [[] for _ in range(count)]
    for step in generation:
        for index, token in enumerate(step):
            if token is not None:
                texts[index].append(token)
                if stopped(index, texts[index]):
                    generation.end(index)
    return texts
