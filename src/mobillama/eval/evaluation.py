"""One evaluation: a model on a suite, item by item, into a results artefact.

`OUT.partial/items.jsonl` gets a line an item as soon as it is computed; `evaluation.json` beside it holds the settings,
so that an interrupted evaluation goes on if they are the same, and is refused if not. When all is there the scores are
computed from the lines alone and the folder is sealed. Format: docs/formats.md, Results.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobillama import manifest
from mobillama.errors import InputError
from mobillama.eval import data as local_data
from mobillama.eval.contamination import known_overlap
from mobillama.eval.results import (
    DECIDED_BY,
    ITEMS,
    SETTINGS,
    read_items,
    read_results,
    seal_results,
    todays_settings,
    write_tree,
)
from mobillama.eval.suite import Benchmark, Suite, find_suite, read_suite, task_files

CHUNK_CHARACTERS = 400_000  # text of the requests that are computed together, each context counted once
CHUNK_ITEMS = 256

Progress = Callable[[str, int, int], None]  # benchmark, items done, items in all


@dataclass(frozen=True)
class Choices:
    """What an evaluation can be told beside model and suite."""

    data: Path | None = None  # folder of local benchmarks; None = the hub
    limit: int = 0  # most items of each task, a fixed sample; 0 = as the suite says
    bos: bool | None = None  # <s> before every context; None = as the tokenizer's own settings say
    empty: str | None = None  # what stands for an empty context, bos or eos; None = as the harness's HFLM
    share: tuple[int, int] = (0, 1)  # (rank, size): every size-th item, from the rank-th
    allow_code: bool = False  # run code of task files that does not come with the harness
    shards: Path | None = None  # what the model was trained on; None = where it says, or beside it


def evaluate(
    model: Callable[[], Any],
    suite_name: str | Path,
    out: Path,
    choices: Choices,
    progress: Progress | None = None,
    *,
    again: bool = False,
) -> dict[str, Any]:
    """Evaluate a model on a suite; gives the scores that OUT holds.

    model: opens the Subject; called when tasks and data were found good. again: an OUT that is finished, with the same
    settings, is no error; its scores are given.
    Errors: RecipeError for the suite; InputError and DamagedFileError for data, a task, the model, or an evaluation
    with other settings in OUT.
    """
    suite = read_suite(suite_name)
    own = task_files(find_suite(suite_name))
    local = None
    if choices.data is not None:
        local_data.stay_offline()
        local = local_data.check_folders(choices.data, (one.data or one.name for one in suite.benchmarks))
    from mobillama.eval.adapter import Adapter
    from mobillama.eval.task_files import TaskFiles
    from mobillama.eval.tasks import find_files, load_tasks

    code, is_local = choices.allow_code, local is not None
    decided = TaskFiles()
    for one in suite.benchmarks:  # all of them before the first is loaded: nothing of a suite runs if it is refused
        find_files(one, own, decided, allow_code=code, local=is_local)
    tasks = [load_tasks(one, own, local, allow_code=code) for one in suite.benchmarks]
    hashes = {} if local is None else local.hashes
    began = time.monotonic()

    def open_model() -> tuple[Any, Any, dict[str, Any]]:
        subject = model()
        bos = subject.bos if choices.bos is None else choices.bos
        empty: Any = choices.empty
        adapter = Adapter(subject.scorer, subject.encoder, bos=bos, empty=empty, end_ids=subject.end_ids)
        return subject, adapter, _settings(suite, own, decided, subject, adapter, choices, hashes)

    if again and (out / manifest.FILE).is_file():
        return _finished(out, open_model()[2])
    with manifest.building(out) as partial:
        subject, adapter, settings = open_model()
        _same_settings(partial, settings)
        done = read_items(partial / ITEMS, mend=True)
        rows: list[dict[str, Any]] = []
        origins: dict[str, Any] = {}
        with (partial / ITEMS).open("a", encoding="utf-8") as file:
            for benchmark, (loaded, lacking) in zip(suite.benchmarks, tasks, strict=True):
                found = _benchmark(benchmark, loaded, lacking, suite.seed, choices, adapter, done, file, progress)
                origins |= found.pop("rows_of")
                rows.append(found)
        from mobillama.eval.scores import average

        rows = [row for row in rows if row["items"]]  # a share may have no item of a small benchmark
        scores = {
            "model": subject.name,
            "trained": subject.trained,
            "suite": suite.name,
            "benchmarks": rows,
            **average(suite, rows),
            "rows": origins,
            "training_text": known_overlap(subject.folder, suite, hashes, choices.shards),
        }
        files = [{"kind": "source file", "name": name, "digest": digest} for name, digest in sorted(hashes.items())]
        circumstance = {"seconds": round(time.monotonic() - began, 1), "where": subject.words}
        return seal_results(partial, out, scores, settings, [*subject.made_from, *files], circumstance)


def _finished(out: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of results that are there already. Error: InputError if they were made with other settings."""
    there = read_results(out)
    before = todays_settings(there.manifest.recipe)
    if changed := _changed(before, settings):
        raise InputError(f"{out} holds results with another {changed[0]}; choose another --out or remove it")
    return {**there.scores, "out": str(out), "digest": there.manifest.digest()}


def _benchmark(
    benchmark: Benchmark,
    loaded: Sequence[Any],
    lacking: Sequence[str],
    seed: int,
    choices: Choices,
    adapter: Any,
    done: dict[tuple[str, int], dict[str, Any]],
    file: Any,
    progress: Progress | None,
) -> dict[str, Any]:
    """Compute what is not done of one benchmark, write it, and score it."""
    from mobillama.eval.scores import score_benchmark, score_task
    from mobillama.eval.tasks import build_items, choose, in_words, share_of

    wanted = min((size for size in (benchmark.sample, choices.limit) if size), default=0)
    numbers = {
        one.name: share_of(choose(len(one.task.eval_docs), wanted, one.name, seed), *choices.share) for one in loaded
    }
    total = sum(map(len, numbers.values()))
    finished = sum((name, number) in done for name, mine in numbers.items() for number in mine)
    scores = {}
    for one in loaded:
        mine = set(numbers[one.name])
        left = [number for number in numbers[one.name] if (one.name, number) not in done]
        if left:
            items = build_items(one, seed)
            for chunk in _chunks([items[number] for number in left]):
                for line in _compute(benchmark, one, chunk, adapter):
                    done[(one.name, line["item"])] = line
                    file.write(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n")
                file.flush()
                os.fsync(file.fileno())
                finished += len(chunk)
                if progress:
                    progress(benchmark.name, finished, total)
        if not mine:
            continue
        lines = [line for (name, number), line in done.items() if name == one.name and number in mine]
        lines.sort(key=lambda line: int(line["item"]))
        with in_words(f"{one.name}: its items cannot be put together by {benchmark.metric}"):
            better = one.task.higher_is_better()
            scores[one.name] = score_task(benchmark.metric, lines, one.task.aggregation(), better)
    row = score_benchmark(benchmark, scores, lacking) if scores else {"benchmark": benchmark.name, "items": 0}
    return {**row, "rows_of": {one.name: {"origin": one.origin, "sha256": one.fingerprint} for one in loaded}}


def _chunks(items: Sequence[Any]) -> Iterator[list[Any]]:
    """Items whose requests are computed together: the more, the more is shared; the fewer, the less a kill costs."""
    chunk: list[Any] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += sum(map(len, {str(instance.args[0]) for instance in item.instances}))
        if size >= CHUNK_CHARACTERS or len(chunk) >= CHUNK_ITEMS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _compute(benchmark: Benchmark, loaded: Any, items: Sequence[Any], adapter: Any) -> list[dict[str, Any]]:
    """The lines of some items of one task."""
    from mobillama.eval.tasks import process, right_choice

    instances = [instance for item in items for instance in item.instances]
    golds = [right_choice(loaded, item) if item.has_choices(loaded.task) else None for item in items]
    try:
        responses, notes = _respond(instances, adapter)
    except InputError as error:
        numbers = f"items {items[0].number} to {items[-1].number}" if len(items) > 1 else f"item {items[0].number}"
        raise InputError(f"{loaded.name}, {numbers}: {error}") from None
    lines, at = [], 0
    for item, gold in zip(items, golds, strict=True):
        end = at + len(item.instances)
        metrics = process(loaded, item, responses[at:end])
        line = {
            "benchmark": benchmark.name,
            "task": loaded.name,
            "item": item.number,
            "context": item.context,
            "requests": notes[at:end],
            "metrics": {name: _plain(value) for name, value in metrics.items()},
        }
        if item.has_choices(loaded.task):
            totals = [note["log_likelihood"] for note in notes[at:end]]
            line |= {"choice": totals.index(max(totals)), "gold": _plain(gold)}
        lines.append(line)
        at = end
    return lines


def _respond(instances: Sequence[Any], adapter: Any) -> tuple[list[Any], list[dict[str, Any]]]:
    """What the harness takes as responses, and what is noted of each request."""
    kind = instances[0].request_type
    if kind == "loglikelihood":
        answers = adapter.answer([adapter.pair(*instance.args[:2]) for instance in instances])
        notes = [
            {
                "log_likelihood": one.log_likelihood,
                "greedy": one.greedy,
                "context_tokens": one.context_tokens,
                "continuation_tokens": one.continuation_tokens,
                "cut": one.cut,
            }
            for one in answers
        ]
        return [(one.log_likelihood, one.greedy) for one in answers], notes
    repeated = [instance for instance in instances for _ in range(instance.repeats or 1)]
    found = getattr(adapter, kind)(repeated)
    if kind == "loglikelihood_rolling":
        return found, [{"log_likelihood": value} for value in found]
    counts = [instance.repeats or 1 for instance in instances]
    starts = [sum(counts[:index]) for index in range(len(counts))]
    texts = [found[start : start + count] for start, count in zip(starts, counts, strict=True)]
    return texts, [{"texts": one} for one in texts]


def _plain(value: Any) -> Any:
    """A metric as JSON takes it."""
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if hasattr(value, "tolist"):  # numpy's numbers and arrays
        return value.tolist()
    return value


def _settings(
    suite: Suite, own: Path, decided: Any, subject: Any, adapter: Any, choices: Choices, hashes: Mapping[str, str]
) -> dict[str, Any]:
    """All that the lines depend on: an evaluation goes on only with the same."""
    from mobillama.eval.task_files import core_digest
    from mobillama.eval.tasks import VERSION

    mine = sorted(path for path in own.glob("*.yaml")) if any(not one.folder for one in suite.benchmarks) else []
    return {
        "suite": suite.tree(),
        "task_files": {path.name: manifest.sha256_file(path) for path in mine},
        "harness": f"lm_eval {VERSION}",
        "model": list(subject.made_from),
        "backend": subject.backend,
        "dtype": subject.dtype,
        "bos": adapter.bos,
        "empty_context": adapter.empty,
        "context_length": adapter.max_length,
        "limit": choices.limit,
        "share": list(choices.share),
        "data": dict(sorted(hashes.items())) if choices.data is not None else "hub",
        DECIDED_BY: {"lm_eval": core_digest(), **dict(sorted(decided.hashes.items()))},
        **({"ignored_keys": list(subject.ignored_keys)} if subject.ignored_keys else {}),
        **({"allowed_code": sorted(decided.code)} if decided.code else {}),
    }


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that differ; an older version's say nothing of all files that decide a task."""
    names = [name for name in {**now, **before} if name != DECIDED_BY or name in before]
    return [name for name in names if before.get(name) != now.get(name)]


def _same_settings(partial: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of a new evaluation, or compare those of one that goes on."""
    path = partial / SETTINGS
    if not path.is_file():
        write_tree(path, settings)
        return
    before = todays_settings(manifest.read_object(path, "remove the unfinished evaluation"))
    if changed := _changed(before, settings):
        name = changed[0]
        raise InputError(
            f"{partial} is an unfinished evaluation with another {name} ({json.dumps(before.get(name))[:200]}; now"
            f" {json.dumps(settings.get(name))[:200]}); go on with the same settings, choose another --out, or remove"
            " it"
        )
