"""One side of `mobillama bench eval`: our adapter or lm_eval's HFLM, driven by lines of JSON (bench/process.py).

Run as `python -m mobillama.bench.eval_sides mobillama|lm_eval`. Both build the same items from the same rows, choose
the same of them, and answer the harness's own requests; what is timed is the call that the harness makes of a model.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobillama.errors import InputError
from mobillama.eval.data import LocalData, check_folders, stay_offline
from mobillama.eval.suite import find_suite, read_suite, task_files

SEED = 1234


@dataclass
class Row:
    """Items of a row: some for each round, and those of the trial."""

    rounds: list[list[Any]] = field(default_factory=list)
    trial: list[Any] = field(default_factory=list)  # items
    batch: int = 1


class Side:
    """A model and the items it is asked."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.model: Any = None
        self.rows: dict[str, Row] = {}
        self.data = Path()

    def open(self, model: str, data: str, dtype: str, threads: int) -> dict[str, Any]:
        """Open the model, in one type for both sides."""
        import torch

        from mobillama.device import dtype_name, place

        torch.set_num_threads(threads)
        here = place("cpu", dtype, threads)
        self.data = Path(data)
        if self.kind == "mobillama":
            from mobillama.eval.adapter import Adapter
            from mobillama.eval.subject import open_subject

            subject = open_subject(model, backend="torch", device="cpu", dtype=dtype_name(here.dtype), threads=threads)
            self.model = Adapter(subject.scorer, subject.encoder, bos=False)
            return {"dtype": subject.dtype, "where": subject.words}
        import transformers
        from lm_eval.models.huggingface import HFLM

        self.model = HFLM(
            pretrained=model,
            device="cpu",
            dtype=here.dtype,
            batch_size=1,
            max_length=2048,
            attn_implementation="sdpa",
            trust_remote_code=False,
        )
        name = str(self.model.model.config._attn_implementation)
        if self.model.model.dtype != here.dtype or name != "sdpa":
            raise InputError(f"HFLM runs {self.model.model.dtype} with {name}; expected {here.dtype} with sdpa")
        return {"dtype": dtype_name(here.dtype), "attention": name, "transformers": transformers.__version__}

    def build(self, row: str, benchmark: str, tasks: list[str], items: int, rounds: int) -> dict[str, Any]:
        """Build the items of a row and choose those of each round; gives the hashes of what will be asked."""
        from mobillama.eval.tasks import build_items, choose, load_tasks

        (found,) = (one for one in read_suite("paper9").benchmarks if one.name == benchmark)
        narrow = found.model_copy(update={"tasks": tuple(tasks), "min_items": 0})
        mine = self.rows[row] = Row(rounds=[[] for _ in range(rounds)])
        loaded, _ = load_tasks(narrow, task_files(find_suite("paper9")), self._local(found.data or found.name))
        trials = []
        for one in loaded:
            built = build_items(one, SEED)
            numbers = choose(len(built), items * (rounds + 1), one.name, SEED)
            if len(numbers) < items * (rounds + 1):
                raise InputError(
                    f"{one.name} has {len(numbers)} items; {items * (rounds + 1)} are needed: fewer --rounds"
                )
            groups = [[built[number] for number in numbers[at :: rounds + 1]] for at in range(rounds + 1)]
            for each, group in zip(mine.rounds, groups, strict=False):
                each += group
            trials.append(groups[-1])
        mine.trial = [item for group in zip(*trials, strict=True) for item in group]  # tasks take turns
        return {"asked": [[item.context for item in each] for each in mine.rounds]}

    def warm(self, rows: list[str]) -> dict[str, Any]:
        """Answer a little, so that what is done once is not timed."""
        for row in rows:
            self._answer(self.rows[row].trial[0].instances, self.rows[row].batch)
        return {}

    def choose(self, row: str, batch: int) -> dict[str, Any]:
        """The batch size of a row from here on."""
        self.rows[row].batch = batch
        return {}

    def attempt(self, row: str, batch: int, passes: int) -> dict[str, Any]:
        """Seconds of items of the trial at a batch size: so many that HFLM computes `passes` rows of tokens.

        It reads the answers that differ in their last token alone from one row.
        """
        requests: list[Any] = []
        rows: set[str] = set()
        for item in self.rows[row].trial:
            requests += item.instances
            rows |= {instance.args[0] + instance.args[1][:-1] for instance in item.instances}
            if len(rows) >= passes:
                break
        start = time.perf_counter()
        self._answer(requests, batch)
        return {"seconds": time.perf_counter() - start}

    def score(self, row: str, round: int) -> dict[str, Any]:
        """Answer one round: seconds, and the log-likelihoods of each item's requests."""
        items = self.rows[row].rounds[round]
        instances = [instance for item in items for instance in item.instances]
        start = time.perf_counter()
        answers = self._answer(instances, self.rows[row].batch)
        seconds = time.perf_counter() - start
        found, at = [], 0
        for item in items:
            end = at + len(item.instances)
            found.append([float(answer[0]) for answer in answers[at:end]])
            at = end
        return {"seconds": seconds, "found": found}

    def _answer(self, instances: list[Any], batch: int) -> list[Any]:
        if self.kind != "mobillama":
            self.model.batch_size_per_gpu = batch
        answers: list[Any] = self.model.loglikelihood(instances, disable_tqdm=True)
        return answers

    def _local(self, name: str) -> LocalData:
        return check_folders(self.data, [name])


def main() -> None:
    """Answer questions until there are no more."""
    stay_offline()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    side = Side(sys.argv[1])
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # the harness prints
        for line in sys.stdin:
            question = json.loads(line)
            do = question.pop("do")
            answer = getattr(side, {"try": "attempt"}.get(do, do))(**question)
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
