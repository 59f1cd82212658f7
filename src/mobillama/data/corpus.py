"""The corpus artefact: cleaned, deduplicated documents in Parquet and the funnel that led to them.

A folder of kind "corpus" holds documents/part_00000.parquet ... (columns: parts.COLUMNS), rejected/ beside it if the
recipe asks for it, and manifest.json, whose counts have the funnel per subset. Stages: clean (read, normalise, filter,
language, quality, mask, overlap, signatures, write), dedup, near, ids, corpus. Format: docs/formats.md.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as parquet
from datatrove.pipeline.base import PipelineStep
from pydantic import Field

from mobillama import manifest
from mobillama.config import CleanConfig, DataRecipe, Section, SourceConfig, SubsetConfig, with_defaults
from mobillama.data.bad_records import EARLY_SHARE, POLICY, add_bad, check_share
from mobillama.data.benchmarks import benchmarks_folder, describe_benchmarks
from mobillama.data.clean import Filter, Normalise
from mobillama.data.clocks import read_seconds
from mobillama.data.dedup import FindDuplicates, buckets, merge_duplicates
from mobillama.data.documents import reading
from mobillama.data.executor import Executor, OnProgress, Progress, run_stage
from mobillama.data.funnel import Repeats, make_funnel
from mobillama.data.ingest import Read
from mobillama.data.language import Language
from mobillama.data.mask import Mask
from mobillama.data.merge import Merge
from mobillama.data.minhash import MatchBuckets, Signatures, cluster, shares, signature_files
from mobillama.data.overlap import Overlap, write_index
from mobillama.data.parts import WriteParts, replacing
from mobillama.data.quality import Quality
from mobillama.data.sources import Task, Unread, describe, list_tasks, recipe_tasks, state
from mobillama.errors import InputError

if TYPE_CHECKING:
    from mobillama.tokenizer.tokenizer import Tokenizer


LINE_CHARACTERS = 16 << 20  # of a text file that are held at once


class CorpusSettings(Section):
    """What of a recipe a corpus depends on: the `recipe` of its manifest."""

    source: SourceConfig = SourceConfig()
    subset: dict[str, SubsetConfig] = Field({}, description="as in DataRecipe")
    clean: CleanConfig = CleanConfig()
    counted_with: str | None = None  # digest of the tokenizer


def without_policy(settings: dict[str, Any]) -> dict[str, Any]:
    """A tree of CorpusSettings with the defaults of the keys that decide no byte: a build goes on with others."""
    defaults = {key: SourceConfig.model_fields[key].default for key in POLICY}
    subsets = {
        name: {**subset, "source": subset["source"] and {**subset["source"], **defaults}}
        for name, subset in settings["subset"].items()
    }
    return {**settings, "source": {**settings["source"], **defaults}, "subset": subsets}


def build_corpus(
    recipe: DataRecipe,
    out: Path,
    *,
    workers: int | Executor,
    tokenizer: Tokenizer | None = None,
    on_progress: OnProgress | None = None,
) -> manifest.Manifest:
    """Build the corpus of a recipe at `out`, or take the one there if it was built from the same recipe.

    With a tokenizer the funnel counts tokens too. Errors: InputError for a subset that the source does not have, input
    that cannot be used, or if nothing is left; DamagedFileError for files cut short.
    """
    counted_with = tokenizer.digest if tokenizer else None
    settings = CorpusSettings(
        source=recipe.source, subset=recipe.subset, clean=recipe.clean, counted_with=counted_with
    ).tree()
    if out.exists():
        found = manifest.read(out, "corpus")
        if with_defaults(CorpusSettings, found.recipe) != settings:
            raise InputError(
                f"{out} was built from another source or clean recipe, or its tokens were counted with another "
                "tokenizer; remove it or choose another --out"
            )
        drop_work(out)
        return found
    unread: Unread = {}
    tasks = recipe_tasks(recipe, unread)
    _check_subsets(recipe, tasks)
    marks = recipe.clean.overlap != "off"
    benchmarks = describe_benchmarks(benchmarks_folder(recipe.clean)) if marks else []
    with manifest.building(out) as partial:
        work = work_folder(
            out, {"recipe": without_policy(settings), "inputs": state(tasks), "benchmarks": benchmarks}, CorpusSettings
        )
        build = _Build(recipe, tasks, work, workers, tokenizer, on_progress)
        build.clean()
        repeats = build.find_repeats()
        numbers = {reason: np.load(path, mmap_mode="r") for reason, path in repeats.items()}
        funnel = make_funnel(tasks, build.told, work / "parts", numbers, tokens=tokenizer is not None)
        documents = sum(subset["documents_out"] for subset in funnel.values())
        if not documents:
            raise InputError(f"no document is left of what was read: {json.dumps(funnel)}; check source and clean")
        merge = Merge(work / "parts", partial, build.told, repeats, keep_rejected=recipe.clean.keep_rejected)
        build.stage("corpus", [merge], merge.tasks)
        clear_strays(partial)
        counts = {
            "documents": documents,
            "bytes": sum(subset["bytes_out"] for subset in funnel.values()),
            **({"tokens": sum(subset["tokens_out"] for subset in funnel.values())} if tokenizer else {}),
            "repeated_ids": build.count_repeated_ids(numbers.values()),
            "funnel": funnel,
            "unread": dict(sorted(unread.items())),
            "bad_records": add_bad(build.told),
        }
        sealed = manifest.seal(
            partial,
            out,
            "corpus",
            made_from=[*describe(tasks, work / "digests"), *benchmarks],
            recipe=settings,
            counts=counts,
            circumstance={"seconds": build.seconds, "step_seconds": read_seconds(work)},
        )
    drop_work(out)
    return sealed


class _Build:
    """The stages of one corpus; `told` is what cleaning left of each task."""

    def __init__(
        self,
        recipe: DataRecipe,
        tasks: Sequence[Task],
        work: Path,
        workers: int | Executor,
        tokenizer: Tokenizer | None,
        on_progress: OnProgress | None,
    ) -> None:
        self.recipe, self.tasks, self.work, self.parts = recipe, list(tasks), work, work / "parts"
        self.workers, self.tokenizer, self.on_progress = workers, tokenizer, on_progress
        self.seconds: dict[str, float] = {}
        self.told: list[dict[str, Any]] = []
        self.judged = 0  # tasks

    def stage(
        self, name: str, steps: Sequence[PipelineStep], tasks: int, judge: OnProgress = lambda progress: None
    ) -> None:
        """Run one stage to its end; `judge` may end it with an error."""

        def tell(progress: Progress) -> None:
            if self.on_progress is not None:
                self.on_progress(progress)
            judge(progress)

        self.seconds[name] = run_stage(name, list(steps), tasks, self.work, self.workers, tell)

    def clean(self) -> None:
        """Read and clean every document."""
        clean, subsets = self.recipe.clean, self.recipe.subset
        steps = [Read(self.tasks, self.work / "digests"), Normalise(clean), Filter(clean)]
        steps += [Language(subsets), Quality(subsets), *([Mask()] if clean.mask else [])]
        if clean.overlap != "off":
            write_index(benchmarks_folder(clean), self.work / "benchmarks.index")
            steps.append(Overlap(clean, self.work / "benchmarks.index"))
        if clean.near_duplicates:
            steps.append(Signatures(clean, self.work / "signatures"))
        steps.append(WriteParts(self.parts, self.tokenizer, keep_rejected=clean.keep_rejected))
        self.stage("clean", steps, len(self.tasks), self._judge)
        told = self._told()
        check_share(self.recipe, self.tasks, told)
        self.told = [told[task] for task in range(len(self.tasks))]

    def _judge(self, progress: Progress) -> None:
        """Look at the bad records of the tasks that are done, each time a twentieth of all is. Error: InputError."""
        if progress.tasks_done >= self.judged + EARLY_SHARE * progress.tasks:
            self.judged = progress.tasks_done
            check_share(self.recipe, self.tasks, self._told())

    def _told(self) -> dict[int, dict[str, Any]]:
        """What the tasks that are done told of their documents, by their numbers."""
        paths = {task: self.parts / f"{task:05d}.json" for task in range(len(self.tasks))}
        return {task: json.loads(path.read_text()) for task, path in paths.items() if path.is_file()}

    def find_repeats(self) -> dict[str, Path]:
        """Documents that repeat an earlier one, by reason: .npy of (document, the one it repeats), sorted."""
        clean = self.recipe.clean
        exact = self.work / "duplicates.npy"
        if clean.deduplicate:
            step = FindDuplicates(self._files("hashes"), self.work / "duplicates")
            self.stage("dedup", [step], buckets(self._kept()))
        merge_duplicates(self.work / "duplicates", exact)
        if not clean.near_duplicates:
            return {"duplicate": exact}
        gone = self.work / "duplicates.numbers.npy"
        with replacing(gone) as beside, beside.open("wb") as file:
            np.save(file, np.load(exact)[:, 0])
        files = signature_files(self.work / "signatures", [task["kept"][0] for task in self.told])
        match = MatchBuckets(clean, files, gone, self.work / "near-duplicates")
        self.stage("near", [match], clean.minhash_buckets * shares(self._kept()))
        cluster(self.work / "near-duplicates", self.work / "near-duplicates.npy")
        return {"duplicate": exact, "near_duplicate": self.work / "near-duplicates.npy"}

    def count_repeated_ids(self, repeats: Iterable[Repeats]) -> int:
        """How many documents of the corpus have the id of an earlier one."""
        self.stage("ids", [FindDuplicates(self._files("ids"), self.work / "ids-again")], buckets(self._kept()))
        merge_duplicates(self.work / "ids-again", self.work / "ids-again.npy")
        again: Repeats = np.load(self.work / "ids-again.npy")
        gone = np.concatenate([np.empty(0, np.int64), *(pairs[:, 0] for pairs in repeats)])
        return int((~np.isin(again, gone).any(axis=1)).sum())

    def _files(self, suffix: str) -> list[Path]:
        return [self.parts / f"{task:05d}.{suffix}" for task in range(len(self.tasks))]

    def _kept(self) -> int:
        return sum(task["kept"][0] for task in self.told)


def _check_subsets(recipe: DataRecipe, tasks: Sequence[Task]) -> None:
    """Error: InputError if the recipe says something of a subset that the source does not have."""
    unread = recipe.subset.keys() - {task.subset for task in tasks}
    if not unread:
        return
    # One that is there and was not chosen is no mistake.
    there = {task.subset for task in list_tasks(recipe.source.model_copy(update={"subsets": ()}))}
    if unknown := sorted(unread - there):
        raise InputError(
            f"the recipe has a section for subset {', '.join(map(repr, unknown))}, which the source does not have; it "
            f"has {', '.join(sorted(there))}: correct the name or remove the section"
        )


def read_texts(path: Path) -> Iterator[str]:
    """The texts of a corpus artefact in order, or the lines of a text file, of which a very long one comes in pieces.

    Errors: InputError for a text file that is no UTF-8, DamagedFileError for a part that cannot be read.
    """
    if path.is_file():
        try:
            with path.open(encoding="utf-8") as file:
                while line := file.readline(LINE_CHARACTERS):
                    yield line.rstrip("\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 ({error.reason}); convert it, or give a corpus") from None
        return
    manifest.read(path, "corpus")
    for part in sorted((path / "documents").glob("*.parquet")):
        with reading(part):
            for batch in parquet.ParquetFile(part).iter_batches(64, columns=["text"]):
                yield from (text.as_py() for text in batch.column(0))


def work_folder(out: Path, plan: dict[str, Any], recipe: type[Section] | None = None) -> Path:
    """The folder for what is between the stages of a build. One left by another plan is thrown away.

    `recipe`: what `plan["recipe"]` is a tree of; one of an older version is compared with today's defaults added.
    """
    work, text = _work_path(out), json.dumps(plan, sort_keys=True).encode()
    if work.is_dir() and _kept_plan(work, recipe) != json.loads(text):
        manifest.remove(work)
        shutil.rmtree(manifest.partial_path(out))
        manifest.partial_path(out).mkdir()
    work.mkdir(exist_ok=True)
    manifest.write_file(work / "plan.json", text)
    clear_strays(work)
    return work


def _kept_plan(work: Path, recipe: type[Section] | None) -> Any:
    """The plan that a broken build left; None if it was killed before it wrote one."""
    if not (work / "plan.json").is_file():
        return None
    plan = json.loads((work / "plan.json").read_bytes())
    return {**plan, "recipe": with_defaults(recipe, plan["recipe"])} if recipe and "recipe" in plan else plan


def drop_work(out: Path) -> None:
    """Remove what a finished build no longer needs; a kill may have left it behind."""
    shutil.rmtree(_work_path(out), ignore_errors=True)


def _work_path(out: Path) -> Path:
    return out.with_name(out.name + ".work")


def clear_strays(folder: Path) -> None:
    """Remove temporary files that a killed process left behind."""
    for path in [*folder.rglob(".*.tmp")]:
        path.unlink()
