"""Memorisation: how much of what a run read its model can say by heart, beside text that it never read.

As Analysis360 does it: 32 tokens of a document are given, the next 32 are continued greedily and compared, token by
token and as a whole. Samples come from named chunks and from the held-out rows, each from inside one document, so that
every one has its document and the steps that read it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mobillama.data.reading import Reading
from mobillama.data.run_folder import steps_taken
from mobillama.data.shards import Shards, Split
from mobillama.data.span import Span
from mobillama.data.stream import positions
from mobillama.errors import InputError
from mobillama.eval.scoring import Scorer
from mobillama.generation.sampling import Settings

PROMPT, CONTINUATION = 32, 32
BATCH = 32  # prompts continued together

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Sample:
    """Tokens of one document: a prompt and what follows it."""

    split: Split
    row: int  # global in its split
    start: int  # position in the row
    ids: tuple[int, ...]
    span: Span


def measure(
    scorer: Scorer,
    reading: Reading,
    chunks: Sequence[int],
    samples: int,
    *,
    step: int | None = None,
    seed: int = 1234,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Continue `samples` prompts of each chunk and as many held-out ones; gives rates and a line a sample.

    step: steps that the model had taken [all that the run's ledger holds]. Rates are per cent, with standard errors
    over samples: `exact` (all tokens), `tokens` (share of equal ones).
    Errors: InputError for a chunk that is not there, shards without document spans, or a context that is too short.
    """
    shards = reading.shards
    if not shards.spans(0):
        raise InputError(f"{shards.folder} holds no document spans, so nobody knows what a row was cut from")
    if wrong := [chunk for chunk in chunks if not 0 <= chunk < len(shards.chunk_rows)]:
        raise InputError(
            f"chunk {wrong[0]}: {shards.folder} has chunks 0 to {len(shards.chunk_rows) - 1}; name one of those"
        )
    if scorer.context_length < PROMPT + CONTINUATION:
        raise InputError(
            f"the model's context holds {scorer.context_length} tokens; {PROMPT + CONTINUATION} are needed"
        )
    taken = step if step is not None else (steps_taken(reading.run) if reading.run else None)
    starts = np.concatenate(([0], np.cumsum(shards.chunk_rows)))
    groups: dict[str, tuple[Split, np.ndarray[Any, Any]]] = {
        f"chunk {chunk}": ("train", np.arange(starts[chunk], starts[chunk + 1])) for chunk in chunks
    }
    groups["held out"] = ("validation", np.arange(shards.num_validation_rows))
    rates, lines = {}, []
    for name, (split, rows) in groups.items():
        chosen = choose_samples(shards, split, rows.tolist(), samples, seed)
        if not chosen:
            raise InputError(f"{name} of {shards.folder} holds no document of {PROMPT + CONTINUATION} tokens in a row")
        found = []
        for at in range(0, len(chosen), BATCH):
            part = chosen[at : at + BATCH]
            for sample, said in zip(part, _continue(scorer, part), strict=True):
                found.append({"group": name, **_line(sample, said), **_lineage(reading, sample, taken)})
            if progress:
                progress(name, at + len(part), len(chosen))
        rates[name] = _rates(found)
        lines += found
    return {"groups": rates, "steps_taken": taken, "prompt": PROMPT, "continuation": CONTINUATION, "samples": lines}


def choose_samples(shards: Shards, split: Split, rows: Sequence[int], count: int, seed: int) -> list[Sample]:
    """At most `count` samples, one a row, rows in the order of a hash: a smaller choice begins a larger one."""

    def place(row: int) -> bytes:
        return hashlib.sha256(f"{seed}/{split}/{row}".encode()).digest()

    found: list[Sample] = []
    read = shards.train_rows if split == "train" else shards.validation_rows
    for row in sorted(rows, key=place):
        if len(found) == count:
            break
        spans = [one for one in shards.spans(row, split) if one.token_count >= PROMPT + CONTINUATION]
        if spans:
            draw = int.from_bytes(place(row)[:8], "big")
            span = spans[draw % len(spans)]
            start = span.token_start + (draw >> 16) % (span.token_count - PROMPT - CONTINUATION + 1)
            ids = tuple(read([row])[0, start : start + PROMPT + CONTINUATION].tolist())
            found.append(Sample(split, row, start, ids, span))
    return found


def _continue(scorer: Scorer, samples: Sequence[Sample]) -> list[list[int]]:
    """What the model says after each prompt, greedily; nothing ends it early."""
    settings = Settings(max_new_tokens=CONTINUATION, temperature=0.0)
    return scorer.continue_ids([sample.ids[:PROMPT] for sample in samples], settings, lambda index, ids: False)


def _line(sample: Sample, said: Sequence[int]) -> dict[str, Any]:
    expected = sample.ids[PROMPT:]
    equal = sum(one == other for one, other in zip(said, expected, strict=True))
    span = sample.span
    return {
        "document_id": span.document_id,
        "source": span.source,
        "document": span.document,
        "row": sample.row,
        "token_start": sample.start,
        "equal_tokens": equal,
        "exact": equal == len(expected),
    }


def _lineage(reading: Reading, sample: Sample, taken: int | None) -> dict[str, Any]:
    """The steps that had read the sample's row when the model was as it is; none of a held-out one."""
    if sample.split == "validation":
        return {"steps": []}
    shards, order = reading.shards, reading.order
    passes = -(-order.first_position(reading.steps + 1) // shards.num_rows) if reading.steps else 1
    places = [
        order.place_of(int(positions(reading.seed, [sample.row], epoch, shards.chunk_rows)[0]))
        for epoch in range(max(1, passes))
    ]
    steps = [place[0] for place in places if place]
    return {"steps": [step for step in steps if taken is None or step <= taken]}


def _rates(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    exact = [100.0 * line["exact"] for line in lines]
    tokens = [100.0 * line["equal_tokens"] / CONTINUATION for line in lines]
    return {
        "samples": len(lines),
        "read": sum(bool(line["steps"]) for line in lines),
        "exact": _mean(exact),
        "tokens": _mean(tokens),
    }


def _mean(values: Sequence[float]) -> dict[str, float | None]:
    count = len(values)
    mean = sum(values) / count
    spread = sum((value - mean) ** 2 for value in values)
    return {"value": mean, "stderr": math.sqrt(spread / (count - 1) / count) if count > 1 else None}


def table(found: dict[str, Any]) -> str:
    """The rates as text, a group a line."""
    lines = [f"{'':<12} {'samples':>8} {'read':>8} {'exact %':>16} {'equal tokens %':>16}"]
    for name, one in found["groups"].items():
        cells = [f"{one[key]['value']:.2f} +- {one[key]['stderr'] or 0:.2f}" for key in ("exact", "tokens")]
        lines.append(f"{name:<12} {one['samples']:>8,} {one['read']:>8,} {cells[0]:>16} {cells[1]:>16}")
    return "\n".join(lines)
