"""Benchmark text in what a model was trained on, counted from the marks of its corpus where lineage is known.

A model leads to its shards (its manifest, or its run), shards to their corpus; a corpus that was built with
`clean.overlap` names, for every document, the benchmarks whose text it holds (data/overlap.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mobillama import manifest
from mobillama.data.benchmarks import BENCHMARKS
from mobillama.data.find import find_corpus
from mobillama.data.run_folder import read_run_file
from mobillama.data.shards import Shards, read_shards
from mobillama.errors import DamagedFileError, InputError
from mobillama.eval.suite import Suite
from mobillama.tokenizer.gguf_keys import read_keys


def known_overlap(
    model: Path | None, suite: Suite, hashes: Mapping[str, str], told: Path | None = None
) -> dict[str, Any]:
    """How many documents of a model's training and held-out rows hold text of each benchmark of a suite.

    model: its folder, or its .gguf file; hashes: of the benchmarks' files, to say whether they are those that the
    corpus was compared with; told: where its shards are, if they were moved. Gives `documents` (benchmark -> counts of
    `training` and `held_out`) with the digests of `shards` and `corpus`, or `unknown`, in words, where that cannot be
    told.
    """
    try:
        shards = find_shards(model, told)
        corpus = find_corpus(shards)
        marks = _marks(shards, corpus)
    except (InputError, DamagedFileError) as error:
        return {"unknown": str(error)}
    documents, other = {}, []
    compared = {entry["name"]: entry["digest"] for entry in manifest.read(corpus).made_from}
    for one in suite.benchmarks:
        name = one.data or one.name
        if name not in BENCHMARKS:
            continue
        documents[one.name] = {split: found.get(name, 0) for split, found in marks.items()}
        if compared.get(name) != _digest(name, hashes):
            other.append(one.name)
    found = {"documents": documents, "shards": shards.digest, "corpus": manifest.read(corpus).digest()}
    return {**found, "compared_with_other_files": other}


def find_shards(model: Path | None, told: Path | None = None) -> Shards:
    """The shards that a model was trained on. Error: InputError says why they are not known.

    model: its folder; or a .gguf file, which names them: they are looked for beside it and one folder up, and in
    `shards` there. told: where they are, if anybody knows better.
    """
    if model is not None and model.is_file():
        digest, places = _said_in_gguf(model)
    else:
        digest, places = _said_in_folder(model)
    if not digest:
        raise InputError("nothing says what the model was trained on: it is neither in a run nor made from shards")
    for place in [told] if told is not None else places:
        if (place / manifest.FILE).is_file() and manifest.read(place).digest() == digest:
            return read_shards(place)
    raise InputError(f"the shards that the model was trained on (digest {digest}) are not at hand")


def _said_in_gguf(file: Path) -> tuple[str, list[Path]]:
    """Digest of the shards, "" if unknown, and where they may lie."""
    keys = read_keys(file)
    digest, name = str(keys.get("mobillama.shards_digest", "")), Path(str(keys.get("mobillama.shards_name", ""))).name
    beside = file.resolve().parent
    return digest, [place / name for up in (beside, beside.parent) for place in (up, up / "shards")]


def _said_in_folder(folder: Path | None) -> tuple[str, list[Path]]:
    """Digest of the shards, "" if unknown, and where they may lie."""
    run = find_run(folder)
    entries = [] if folder is None or not (folder / manifest.FILE).is_file() else manifest.read(folder).made_from
    origin = next((entry for entry in entries if entry["kind"] == "shards"), None)
    places = [folder.resolve().parent / origin["name"]] if folder is not None and origin else []
    digest = origin["digest"] if origin else ""
    if run is not None:
        said = read_run_file(run)["shards"]
        path = Path(said["path"])
        places = [path, run.resolve().parent / path.name, *places]
        digest = digest or said["digest"]
    return digest, places


def find_run(folder: Path | None) -> Path | None:
    """The run that a model or checkpoint folder lies in; None if it lies in none."""
    if folder is None:
        return None
    above = list(folder.resolve().parents)[:2]  # RUN/model, RUN/published/ckpt_000
    return next((place for place in above if (place / "run.json").is_file()), None)


def _marks(shards: Shards, corpus: Path) -> dict[str, dict[str, int]]:
    """Documents by split and benchmark. Error: InputError if the corpus has no marks."""
    how = manifest.read(corpus).recipe.get("clean", {}).get("overlap", "off")
    if how == "off":
        raise InputError(
            f"the corpus {corpus.name} was not compared with the benchmarks; build it with --set clean.overlap=mark"
        )
    import pyarrow.parquet as parquet

    train: list[npt.NDArray[np.bool_]] = []
    for path in sorted((shards.folder / "documents").glob("*.parquet")):
        column = parquet.read_table(path, columns=["split"]).column("split").to_pylist()
        train.append(np.array([split == "train" for split in column], np.bool_))
    is_training = np.concatenate(train) if train else np.zeros(0, np.bool_)
    found: dict[str, dict[str, int]] = {"training": {}, "held_out": {}}
    at = 0
    for path in sorted((corpus / "documents").glob("*.parquet")):
        column = parquet.read_table(path, columns=["overlap"]).column("overlap")
        for number, names in enumerate(column.to_pylist(), at):
            counts = found["training" if is_training[number] else "held_out"]
            for name in names or ():
                counts[name] = counts.get(name, 0) + 1
        at += len(column)
    return found


def _digest(name: str, hashes: Mapping[str, str]) -> str:
    """The digest of a benchmark's files as data/benchmarks.py makes it, from the hashes of those at hand."""
    split = BENCHMARKS[name][0]
    mine = sorted(file for file in hashes if file.startswith(f"{name}/") and file.endswith(f"{split}.jsonl.gz"))
    return hashlib.sha256("".join(hashes[file] for file in mine).encode()).hexdigest()
