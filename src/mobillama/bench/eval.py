"""`mobillama bench eval`: items per second of our scoring beside lm_eval's own model class, interleaved in one run.

Each side is a process of its own (`eval_sides.py`), asleep while the other computes. Both read the same folder (a dense
LLaMA of random weights, which transformers runs with sdpa), build the same items, and are timed from request strings to
results. The peer runs at the batch size that was fastest in a short trial of each row. What both found is compared.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mobillama.bench.machine import describe
from mobillama.bench.process import Process
from mobillama.bench.rounds import Round, Sides, judge, take
from mobillama.bench.train import row_of
from mobillama.config import ModelConfig
from mobillama.cores import cores
from mobillama.errors import InputError, MeasurementError
from mobillama.model.cost import cost

MODEL = ModelConfig(
    name="bench-eval",
    vocab_size=32000,
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=8,
    num_ffn_blocks=6,  # as dense as the peer's: nothing here comes from sharing the FFN
    max_position_embeddings=2048,
)
SUBJECTS = ("anatomy", "high_school_geography", "high_school_mathematics", "professional_law")
# Row -> benchmark of paper9, its tasks, items of each task in a round.
ROWS: dict[str, tuple[str, tuple[str, ...], int]] = {
    "hellaswag": ("hellaswag", ("hellaswag",), 25),
    "arc_challenge": ("arc_challenge", ("arc_challenge",), 25),
    "mmlu": ("mmlu", tuple(f"mmlu_{subject}" for subject in SUBJECTS), 10),
    "european_history": ("mmlu", ("mmlu_high_school_european_history",), 10),  # every prompt is cut: nothing is shared
}
DEFAULT = ("hellaswag", "arc_challenge", "mmlu")
TARGETS = dict.fromkeys(DEFAULT, (3.0, 5.0))  # must, goal
BATCHES = (1, 4, 8, 16)
TRIAL_PASSES = max(BATCHES)  # that the peer computes in the trial of each batch size
MOST_SECONDS = 560.0  # no round begins that would end after this
OURS, PEER = "mobillama", "lm_eval"
SIDES = "mobillama.bench.eval_sides"


def measure(
    against: str,
    data: Path,
    tokenizer: Path,
    *,
    rows: Sequence[str] = (),
    rounds: int = 3,
    dtype: str = "auto",
    items: int = 0,
    model: ModelConfig = MODEL,
    most_seconds: float = MOST_SECONDS,
) -> dict[str, Any]:
    """Rows of items per second, ours and the peer's, and what says how they came about.

    rows: of ROWS [DEFAULT]. items: of each task in a round [as ROWS says]. Errors: InputError for another peer or row;
    MeasurementError if no round was free of what else runs here.
    """
    began = time.monotonic()
    if against != PEER:
        raise InputError(f"no peer {against!r} for evaluation; there is: {PEER}")
    if wrong := [name for name in rows if name not in ROWS]:
        raise InputError(f"there is no row {wrong[0]!r}; expected some of {', '.join(ROWS)}")
    chosen = tuple(rows) or DEFAULT
    threads = cores()
    with tempfile.TemporaryDirectory(prefix="mobillama-bench-") as home:
        folder = _write_model(Path(home) / "model", model, tokenizer)
        command = [sys.executable, "-m", SIDES]
        with Process(OURS, [*command, OURS]) as ours, Process(PEER, [*command, PEER]) as peer:
            sides = {OURS: ours, PEER: peer}
            for side in sides.values():
                side.about = side.ask("open", model=str(folder), data=str(data), dtype=dtype, threads=threads)
            for name in chosen:
                benchmark, tasks, count = ROWS[name]
                built = [
                    side.ask("build", row=name, benchmark=benchmark, tasks=tasks, items=items or count, rounds=rounds)
                    for side in sides.values()
                ]
                if built[0] != built[1]:
                    raise MeasurementError(f"{name}: the sides built other items; is lm_eval the same for both?")
            trials = {name: _trial(peer, name) for name in chosen}
            taken, agreement = _take_rounds(sides, chosen, rounds, began, most_seconds)
    shown, discarded = [], {}
    for name in chosen:
        faults = judge(taken[name], of_best=0.0)
        clean = [each for each, fault in zip(taken[name], faults, strict=True) if not fault]
        discarded[name] = [fault for fault in faults if fault]
        if not clean:
            raise MeasurementError(
                f"{name}: no clean round of {len(faults)}; {'; '.join(discarded[name])}. End what else runs here"
            )
        speeds = {side: [each.typical(side) for each in clean] for side in sides}
        shown.append(row_of(name, speeds[OURS], speeds[PEER], PEER, "items/s"))
    return {
        "rows": shown,
        "targets": {name: TARGETS[name] for name in chosen if name in TARGETS},
        "batch_tried": trials,
        "agreement": agreement,
        "rounds": {name: len(taken[name]) - len(discarded[name]) for name in chosen},
        "discarded": discarded,
        "others": {name: [round(each.others, 4) for each in taken[name]] for name in chosen},
        "ours": ours.about,
        "peer": peer.about,
        "model": {"name": model.name, "parameters": cost(model).stored_parameters},
        "threads": threads,
        "machine": describe(),
        "seconds": round(time.monotonic() - began, 1),
    }


def _trial(peer: Process, row: str) -> dict[str, Any]:
    """Seconds of a few requests at every batch size, and the size that the rounds take: the fastest."""
    peer.ask("try", row=row, batch=1, passes=2)  # what is done once is not timed
    seconds = {batch: peer.ask("try", row=row, batch=batch, passes=TRIAL_PASSES)["seconds"] for batch in BATCHES}
    best = min(seconds, key=lambda batch: float(seconds[batch]))
    peer.ask("choose", row=row, batch=best)
    return {"chosen": best, "seconds": seconds}


def _take_rounds(
    sides: dict[str, Process], rows: Sequence[str], rounds: int, began: float, most: float
) -> tuple[dict[str, list[Round]], dict[str, dict[str, float]]]:
    """The rounds of every row, the order turning, and how far apart what the sides found is."""
    for side in sides.values():
        side.ask("warm", rows=list(rows))
    taken: dict[str, list[Round]] = {row: [] for row in rows}
    agreement = {row: {"largest_difference": 0.0, "same_choice": 0.0, "items": 0.0} for row in rows}
    names = list(sides)
    for number in range(rounds):
        start = time.monotonic()
        for row in rows:
            order = names[number % 2 :] + names[: number % 2]
            each, found = _take_round(sides, row, number, order)
            taken[row].append(each)
            _agree(agreement[row], found)
        took = time.monotonic() - start
        print(f"round {number + 1} of {rounds}, {time.monotonic() - began:.0f} s", file=sys.stderr)
        if number + 1 < rounds and time.monotonic() - began + took > most:
            print(f"stopped after {number + 1} rounds: another would end after {most:.0f} s", file=sys.stderr)
            break
    for said in agreement.values():
        said["same_choice"] /= said["items"]
    return taken, agreement


def _take_round(
    sides: dict[str, Process], row: str, number: int, order: list[str]
) -> tuple[Round, dict[str, list[list[float]]]]:
    """One round of a row: seconds of an item, and the log-likelihoods that each side found."""
    found: dict[str, list[list[float]]] = {}

    def turn(name: str) -> list[float]:
        answer = sides[name].ask("score", row=row, round=number)
        found[name] = answer["found"]
        return [answer["seconds"] / len(answer["found"])]

    return take(Sides(sides, {name: partial(turn, name) for name in sides}), order), found


def _agree(said: dict[str, float], found: dict[str, list[list[float]]]) -> None:
    """Add one round: log-likelihoods of every item's choices, of both sides."""
    for mine, theirs in zip(found[OURS], found[PEER], strict=True):
        apart = max(abs(one - other) for one, other in zip(mine, theirs, strict=True))
        said["largest_difference"] = max(said["largest_difference"], apart)
        said["same_choice"] += mine.index(max(mine)) == theirs.index(max(theirs))
        said["items"] += 1


def _write_model(folder: Path, config: ModelConfig, tokenizer: Path) -> Path:
    """A plain LLaMA folder of random weights that both sides read."""
    from mobillama.export.folder import write_llama
    from mobillama.model.initialise import build_model
    from mobillama.tokenizer.tokenizer import Tokenizer

    folder.mkdir()
    write_llama(folder, build_model(config, 0))
    Tokenizer.load(tokenizer).save(folder)
    return folder


def words(result: dict[str, Any]) -> list[str]:
    """What a result says beside its rows, as lines."""
    lines = []
    for name, said in result["batch_tried"].items():
        tried = ", ".join(f"{batch}: {seconds:.2f} s" for batch, seconds in said["seconds"].items())
        lines.append(f"{name}: {PEER} at batch {said['chosen']} (tried {tried})")
        agreed = result["agreement"][name]
        lines.append(
            f"{name}: log-likelihoods differ by {agreed['largest_difference']:.3g} nats at most, the same choice in "
            f"{agreed['same_choice']:.1%} of {agreed['items']:.0f} items"
        )
        thrown = "; ".join(result["discarded"][name])
        lines.append(f"{name}: {result['rounds'][name]} clean rounds" + (f"; thrown away: {thrown}" if thrown else ""))
    lines += [f"{side}: {result[side]}" for side in ("ours", "peer")]
    return [*lines, *(f"{key}: {result[key]}" for key in ("threads", "machine", "seconds"))]
