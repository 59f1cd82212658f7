"""`mobillama data build`: a data recipe becomes a corpus and shards.

Stages are lists of datatrove steps (clean, dedup, corpus; tokenizer, encode, pack); each leaves files in a work folder
beside the artefact, so that the same command goes on after any interruption. The bytes depend on the recipe and the
input alone, never on the number of workers.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobillama import manifest
from mobillama.config import DataRecipe, external_folder, with_defaults
from mobillama.errors import InputError, missing_extra

try:
    from mobillama.data.corpus import build_corpus, clear_strays, drop_work, work_folder
    from mobillama.data.display import Display
    from mobillama.data.documents import reading
    from mobillama.data.encode import SPLITS, Encode, TrainTokenizer, load_tokenizer
    from mobillama.data.executor import Executor, OnProgress, make_executor, run_stage
    from mobillama.data.header import Header
    from mobillama.data.pack import Plan, Stream, WriteChunk, plan_stream
except ImportError as error:
    raise missing_extra("data", error) from None

if TYPE_CHECKING:
    from mobillama.tokenizer.tokenizer import Tokenizer


def build_shards(
    recipe: DataRecipe,
    out: Path,
    *,
    workers: int = 0,
    executor: str | Executor = "local",
    tokenizer: Tokenizer | None = None,
    on_progress: OnProgress | None = None,
) -> manifest.Manifest:
    """Build the shards of a recipe at `out`, and their corpus beside it at `<out>-corpus`, on `workers` processes.

    `workers` 0 = all cores (on a cluster: no limit). `executor` is local, ray, slurm or one that `make_executor` made
    with options (its workers count then). `tokenizer` takes the place of the recipe's. Without `on_progress`, progress
    is shown on stderr. Errors: InputError for input that cannot be used (with file and line), DamagedFileError for
    files cut short, OSError for a full disk. After any of them, or a kill, the same call goes on; shards of this recipe
    that are finished are given back as they are.
    """
    where = make_executor(executor, workers) if isinstance(executor, str) else executor
    out = out.absolute()  # workers on other machines run in folders of their own
    if out.exists():
        return _finished(recipe, out, tokenizer)
    if on_progress is not None:
        return _build(recipe, out, where, tokenizer, on_progress)
    display = Display()
    try:
        return _build(recipe, out, where, tokenizer, display)
    finally:
        display.close()


def _finished(recipe: DataRecipe, out: Path, tokenizer: Tokenizer | None) -> manifest.Manifest:
    """The shards at `out`, if they are this recipe's. Error: InputError if they are not."""
    found = manifest.read(out, "shards")
    if with_defaults(DataRecipe, found.recipe) != recipe.tree():
        raise InputError(f"{out} exists already, built from another recipe; choose another --out or remove it")
    given = _given_tokenizer(recipe, tokenizer)
    if given is not None and given.digest not in [origin["digest"] for origin in found.made_from]:
        raise InputError(f"{out} exists already, encoded with another tokenizer; choose another --out or remove it")
    drop_work(out)
    return found


def _build(
    recipe: DataRecipe, out: Path, workers: Executor, tokenizer: Tokenizer | None, on_progress: OnProgress
) -> manifest.Manifest:
    given = _given_tokenizer(recipe, tokenizer)
    corpus = corpus_folder(out)
    source = build_corpus(recipe, corpus, workers=workers, tokenizer=given, on_progress=on_progress)
    with manifest.building(out) as partial:
        settings = {"recipe": recipe.tree(), "corpus": source.digest(), "tokenizer": given.digest if given else None}
        work = work_folder(out, settings, DataRecipe)
        seconds: dict[str, float] = {}
        parts = sorted((corpus / "documents").glob("*.parquet"))
        if given is None:
            config = recipe.tokenizer
            step = TrainTokenizer(
                parts, source.counts["bytes"], config.train_vocab_size, config.train_bytes, work / "tokenizer-files"
            )
            seconds["tokenizer"] = run_stage("tokenizer", [step], 1, work, workers, on_progress)
        else:
            given.save(work / "tokenizer-files")
        used = load_tokenizer(work / "tokenizer-files")
        header = Header(
            used.vocab_size, recipe.pack.seq_len, used.digest, tuple(source.counts["funnel"]), recipe.pack.method
        )
        seconds["encode"] = _encode(recipe, parts, work, partial, workers, on_progress)
        plan = _plan(recipe, header, used.document_end, parts, work)
        pack = WriteChunk(plan, partial)
        seconds["pack"] = run_stage("pack", [pack], plan.chunks + 1, work, workers, on_progress)
        shutil.copytree(work / "tokenizer-files", partial / "tokenizer", dirs_exist_ok=True)
        clear_strays(partial)
        sealed = manifest.seal(
            partial,
            out,
            "shards",
            made_from=[
                manifest.origin(corpus, source),
                {"kind": "tokenizer", "name": "tokenizer", "digest": used.digest},
            ],
            recipe=recipe.tree(),
            counts=_counts(plan),
            circumstance={"seconds": seconds, "workers": workers.workers},
        )
    drop_work(out)
    return sealed


def corpus_folder(out: Path) -> Path:
    """Where the corpus of the shards at `out` lies."""
    return out.with_name(out.name + "-corpus")


def _given_tokenizer(recipe: DataRecipe, tokenizer: Tokenizer | None) -> Tokenizer | None:
    """The tokenizer that is there before the build, or None if the recipe trains one. Asked before anything runs."""
    config = recipe.tokenizer
    if tokenizer is not None or not config.train_vocab_size:
        found = tokenizer or load_tokenizer(
            external_folder("tokenizer.root", config.root, "MOBILLAMA_TOKENIZER").resolve()
        )
        return found.for_documents()
    if config.root:
        raise InputError(
            f"tokenizer.root={config.root!r} and tokenizer.train_vocab_size={config.train_vocab_size} exclude each "
            "other; leave one out"
        )
    return None


def _encode(
    recipe: DataRecipe,
    parts: Sequence[Path],
    work: Path,
    partial: Path,
    workers: Executor,
    on_progress: OnProgress | None,
) -> float:
    import pyarrow.parquet as parquet

    documents = []
    for path in parts:
        with reading(path):
            documents.append(parquet.read_metadata(path).num_rows)
    firsts = np.cumsum([0, *documents])[:-1].tolist()
    step = Encode(
        list(parts),
        firsts,
        work / "tokenizer-files",
        recipe.pack.validation_share,
        work / "encoded",
        partial / "documents",
    )
    return run_stage("encode", [step], len(parts), work, workers, on_progress)


def _plan(recipe: DataRecipe, header: Header, end_id: int, parts: Sequence[Path], work: Path) -> Plan:
    """Which part belongs to which source, and from that every row. Error: InputError for too few rows."""
    import pyarrow.parquet as parquet

    stems: dict[str, list[Path]] = {source: [] for source in header.sources}
    for number, path in enumerate(parts):
        if parquet.read_metadata(path).num_rows:
            source = parquet.ParquetFile(path).read_row_group(0, columns=["source"]).column(0)[0].as_py()
            stems[source].append(work / "encoded" / f"{number:05d}")
    streams: dict[str, tuple[Stream, ...]] = {
        split: tuple(
            plan_stream(
                [stem.with_suffix(f".{split}") for stem in stems[source]],
                work / f"{split}-{number}.table",
                recipe.pack.method,
                header.row_len,
            )
            for number, source in enumerate(header.sources)
        )
        for split in SPLITS
    }
    plan = Plan(header, end_id, recipe.seed, recipe.pack.chunks, streams["train"], streams["validation"])
    rows, held_out = sum(plan.rows(plan.train)), sum(plan.rows(plan.validation))
    if not rows:
        raise InputError(
            f"no row of {header.row_len} ids is left to train on: pack.validation_share="
            f"{recipe.pack.validation_share:g} holds out {held_out} rows, by the ids of documents (documents with one "
            "id go together): check that ids differ (source.id_field), lower the share, use a smaller pack.seq_len or "
            "read more text"
        )
    if rows < plan.chunks:
        raise InputError(
            f"the corpus fills {rows} rows of {header.row_len} ids; pack.chunks={plan.chunks} needs at least one row "
            f"each: set pack.chunks to at most {rows}, use a smaller pack.seq_len or read more text"
        )
    return plan


def _counts(plan: Plan) -> dict[str, Any]:
    """Rows, tokens, bytes and documents, in all and per source; and what packing wastes.

    `tail_tokens` are dropped at a stream's end (concatenate), `padding_tokens` fill rows up (best_fit), `waste` is the
    share of either.
    """
    per_source: dict[str, Any] = {}
    for number, source in enumerate(plan.header.sources):
        told = per_source[source] = {}
        for split, streams in (("train", plan.train), ("validation", plan.validation)):
            stream = streams[number]
            rows, padding = stream.layout.rows, stream.layout.padding
            told[split] = {
                "documents": len(stream.documents) - 1,
                "bytes": int(stream.byte_starts[-1]),
                "tokens": stream.tokens,
                "rows": rows,
                "tail_tokens": stream.tokens + padding - rows * plan.header.row_len,
                "padding_tokens": padding,
            }
    names = ("documents", "bytes", "tokens", "rows", "tail_tokens", "padding_tokens")
    totals = {
        split: {name: sum(source[split][name] for source in per_source.values()) for name in names} for split in SPLITS
    }
    for counted in (*totals.values(), *(split for source in per_source.values() for split in source.values())):
        lost, held = counted["tail_tokens"] + counted["padding_tokens"], counted["tokens"] + counted["padding_tokens"]
        counted["waste"] = round(lost / held, 6) if held else 0.0
    return {
        "train_rows": totals["train"]["rows"],
        "validation_rows": totals["validation"]["rows"],
        "vocab_size": plan.header.vocab_size,
        "seq_len": plan.header.seq_len,
        "chunks": plan.chunks,
        **totals,
        "sources": per_source,
    }
