"""The items of the nine text benchmarks, each as the texts it can stand for, to be looked for in documents.

Reads `<benchmark>/<split>.jsonl.gz` (MMLU: one such file in a folder a subject), with the columns of the Hugging Face
data sets that lm-evaluation-harness reads; the split is the one that is scored.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from mobillama import manifest
from mobillama.config import CleanConfig, external_folder
from mobillama.data.compressed import DAMAGE, open_bytes
from mobillama.errors import DamagedFileError, InputError

Record = dict[str, Any]


def _filled(question: str, answers: Iterable[str]) -> list[str]:
    """The question with each answer in the place of its blank (_), or after it."""
    return [question.replace("_", f" {answer} ") if "_" in question else f"{question} {answer}" for answer in answers]


def _arc_challenge(item: Record) -> list[list[str]]:
    return [_filled(item["question"], item["choices"]["text"])]


def _crows_pairs(item: Record) -> list[list[str]]:
    return [[item["sent_more"], item["sent_less"]]]


def _hellaswag(item: Record) -> list[list[str]]:
    return [[f"{item['ctx']} {ending.removeprefix('[tag] ')}" for ending in item["endings"]]]


def _mmlu(item: Record) -> list[list[str]]:
    return [_filled(item["question"], item["choices"])]


def _piqa(item: Record) -> list[list[str]]:
    return [[f"{item['goal']} {solution}" for solution in (item["sol1"], item["sol2"])]]


def _race(item: Record) -> list[list[str]]:
    problems = ast.literal_eval(item["problems"])
    return [[item["article"]], *(_filled(problem["question"], problem["options"]) for problem in problems)]


def _siqa(item: Record) -> list[list[str]]:
    return [[f"{item['context']} {item['question']} {item['answer' + letter]}" for letter in "ABC"]]


def _truthfulqa(item: Record) -> list[list[str]]:
    answers = [*item["mc1_targets"]["choices"], *item["mc2_targets"]["choices"]]
    return [[f"{item['question']} {answer}" for answer in answers]]


def _winogrande(item: Record) -> list[list[str]]:
    return [_filled(item["sentence"], (item["option1"], item["option2"]))]


# Per benchmark: the split that is scored, and the items of one record, each as its texts.
BENCHMARKS: dict[str, tuple[str, Callable[[Record], list[list[str]]]]] = {
    "arc_challenge": ("test", _arc_challenge),
    "crows_pairs": ("test", _crows_pairs),
    "hellaswag": ("validation", _hellaswag),
    "mmlu": ("test", _mmlu),
    "piqa": ("validation", _piqa),
    "race": ("test", _race),
    "siqa": ("validation", _siqa),
    "truthfulqa": ("validation", _truthfulqa),
    "winogrande": ("validation", _winogrande),
}
NAMES = tuple(BENCHMARKS)


def benchmarks_folder(clean: CleanConfig) -> Path:
    """The folder of the benchmarks. Error: InputError where neither the recipe nor the environment names one."""
    return external_folder("clean.benchmarks", clean.benchmarks, "MOBILLAMA_BENCHMARKS")


def describe_benchmarks(folder: Path) -> list[dict[str, str]]:
    """Entries for `made_from`: each benchmark with the sha256 of its files' sha256, one after the other by name."""
    found = []
    for name in NAMES:
        digests = "".join(manifest.sha256_file(path) for path in _files(folder, name))
        found.append({"kind": "benchmark", "name": name, "digest": hashlib.sha256(digests.encode()).hexdigest()})
    return found


def items(folder: Path, name: str) -> Iterator[list[str]]:
    """The items of a benchmark, each as its texts.

    Errors: InputError for a file that is missing or has other columns, DamagedFileError for one that is cut short.
    """
    for path in _files(folder, name):
        try:
            with open_bytes(path) as file:
                for number, line in enumerate(file, 1):
                    try:
                        found = BENCHMARKS[name][1](json.loads(line))
                    except (ValueError, KeyError, TypeError, AttributeError, SyntaxError) as error:
                        raise InputError(
                            f"{path}, line {number}: found {str(line[:80], 'utf-8', 'replace')!r}; expected an item of "
                            f"{name} with the columns of its Hugging Face data set ({type(error).__name__}: {error}): "
                            "put that there"
                        ) from None
                    yield from found
        except DAMAGE as error:
            if not is_gzip(path):
                raise InputError(f"{path} is not compressed, though its name says so; compress it with gzip") from None
            raise DamagedFileError(f"{path} cannot be decompressed ({error}); fetch the file again") from None


def is_gzip(path: Path) -> bool:
    """Whether a file begins as gzip's do, whatever its name."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _files(folder: Path, name: str) -> list[Path]:
    pattern = f"{name}/{'*/' if name == 'mmlu' else ''}{BENCHMARKS[name][0]}.jsonl.gz"
    found = sorted(folder.glob(pattern))
    if not found:
        raise InputError(f"{folder} has no {pattern}; put that benchmark there, or set clean.overlap to off")
    return found
