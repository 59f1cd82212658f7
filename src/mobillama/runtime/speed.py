"""How fast models run in the engine on this machine, as a person sees it: one text, token by token.

A look, not a bench: whatever else runs on the machine counts. `mobillama bench decode` compares fairly.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mobillama.generation.sampling import Settings
from mobillama.runtime.engine import Context, Engine, Ids

GREEDY = Settings(temperature=0)


def look_at_speed(files: Mapping[str, Path], prompts: Mapping[str, Ids], *, new: int, rounds: int) -> dict[str, Any]:
    """Median tokens per second of reading a prompt and of `new` ids after it, models in turn, one thread per core.

    prompts: the ids of each model's prompt. Result: `isa` and, by name of model, `prompt_tokens_per_second`,
    `tokens_per_second`, `weight_bytes` in memory. Errors: those of Engine and Context.
    """
    with ExitStack() as stack:
        engines = {name: stack.enter_context(Engine.open(path)) for name, path in files.items()}
        contexts = {name: stack.enter_context(engine.context()) for name, engine in engines.items()}
        for name, context in contexts.items():
            answer(context, prompts[name], new)  # the first touches memory
        timed: dict[str, list[tuple[float, float]]] = {name: [] for name in contexts}
        for _ in range(rounds):
            for name, context in contexts.items():
                timed[name].append(answer(context, prompts[name], new))
        return {
            "isa": next(iter(engines.values())).info.isa,
            "models": {
                name: {
                    "prompt_tokens_per_second": len(prompts[name])
                    / statistics.median(first for first, _ in timed[name]),
                    "tokens_per_second": new / statistics.median(rest for _, rest in timed[name]),
                    "weight_bytes": engine.info.weight_bytes,
                }
                for name, engine in engines.items()
            },
        }


def answer(context: Context, prompt: Ids, new: int) -> tuple[float, float]:
    """Seconds of reading a prompt, and of the `new` likeliest ids after it."""
    context.rewind(0)
    started = time.perf_counter()
    context.prefill(prompt)
    read = time.perf_counter()
    for position in range(len(prompt), len(prompt) + new):
        context.decode([context.sample(GREEDY, position)])
    return read - started, time.perf_counter() - read
