"""`mobillama bench quality`: what rounding costs on held-out text, by type, by kind of matrix and by engine setting.

Everything is computed by the engine from files written for it, and the engine gives the same bits on every machine: so
the figures depend on the model and the rows alone.

Legend: N rows, T positions of a row, W window, V vocab_size.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobillama.bench.setting import FOLDER, new_file, save
from mobillama.data.shards import read_shards, require_tokenizer
from mobillama.errors import InputError
from mobillama.export import calibration
from mobillama.export.gguf_file import Importance, quantize_model
from mobillama.export.gguf_source import Folder
from mobillama.export.gguf_types import DEFAULT, KINDS, parse_types, spell
from mobillama.model.hub import find_folder
from mobillama.runtime.engine import MAX_VERIFY, Engine
from mobillama.train.validate import choose_rows

REFERENCE = "f32"
WINDOW = MAX_VERIFY  # positions of each row at which whole distributions are compared
FLOAT_ROWS, FLOAT_TOKENS = 8, 256  # unrounded activations are slow: few rows, and short ones
OTHER_SETTINGS = ("q8_0", "q4_0", DEFAULT)

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Case:
    """A file to measure."""

    part: str  # heading of its table
    types: str  # as `quantize --type` takes them
    calibrated: bool = False
    settings: bool = False  # measured with other activations, keys and values too

    @property
    def name(self) -> str:
        return f"{self.types}, calibrated" if self.calibrated else self.types


@dataclass(frozen=True)
class Found:
    """What a file gave on some rows."""

    nats: NDArray[np.float64]  # (N,) means per token
    logits: Path  # (N, W, V) float32


def cases(types: Sequence[str], *, tied: bool) -> list[Case]:
    """The files to measure: those of `types`, or else all that show where bits are best spent."""
    if types:
        return [Case("Types", spec) for spec in types]
    kinds = [kind for kind in KINDS if not (tied and kind == "embedding")]
    whole = ("bf16", "f16", "q8_0", "q6_k", "q5_0", "q4_0", "q3_k", DEFAULT)
    finer = [("ffn", name) for name in ("q3_k", "q5_0", "q6_k", "q8_0")]
    finer += [(kind, name) for kind in kinds if kind != "ffn" for name in ("q6_k", "q8_0")]
    return [
        *(Case("Types", name, settings=name in OTHER_SETTINGS) for name in whole),
        *(Case("One kind of matrix rounded, the others not", f"f32,{kind}=q4_0") for kind in kinds),
        *(Case("One kind of matrix in other bits than the others", f"q4_0,{kind}={name}") for kind, name in finer),
        *(
            Case("Columns weighed by their inputs", name, calibrated=True)
            for name in ("q6_k", "q5_0", "q4_0", "q3_k", DEFAULT)
        ),
    ]


def measure(
    model: str | Path,
    data: Path,
    types: Sequence[str] = (),
    rows: int = 32,
    *,
    folder: Path = FOLDER,
    threads: int = 0,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Perplexity and mean KL divergence (nats, from the f32 file's distributions) of a model's files on held-out rows.

    model: a model folder, a run or a hub name. data: its shards. types: only these, as `quantize --type` takes them.
    rows: held-out rows, spread evenly; 0 = all. folder: of the files while they are measured, and of the result.
    Result: `rows` (the peer is what the row is compared with, a ratio above 1 = lower perplexity than the peer's),
    `table` (Markdown), `types` of each file's kinds, `fallbacks`, `saved`, and what was measured.
    Errors: InputError for shards of another tokenizer, and those of `quantize_model`.
    """
    source, shards = Folder(find_folder(model)), read_shards(data)
    if source.tokenizer is not None:
        require_tokenizer(shards, source.tokenizer.text_digest, model)
    tied, most = source.config.tie_word_embeddings, source.config.max_position_embeddings
    chosen = cases(types, tied=tied)
    for case in chosen:
        parse_types(case.types, tied=tied)  # before anything is measured
    if shards.padded:
        raise InputError(
            f"{shards.folder} was packed by best fit: its padding would be counted as text; give shards that were "
            "packed with pack.method=concatenate"
        )
    if not shards.num_validation_rows:
        raise InputError(f"{data} has no held-out rows; build shards with some")
    ids = shards.validation_rows(choose_rows(shards.num_validation_rows, rows))[:, : most + 1]  # (N, T + 1)
    importance: Importance | None = None
    if any(case.calibrated for case in chosen):
        read = shards.train_rows(choose_rows(shards.num_rows, calibration.ROWS))
        importance = calibration.collect_importance(model, read[:, :-1])
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="quality-", dir=folder) as work:
        bench = _Bench(model, ids, importance, Path(work), threads)
        measured: list[dict[str, Any]] = []
        for number, case in enumerate(chosen):
            (progress or (lambda _: None))(number / len(chosen))
            measured += bench.rows(case)
        (progress or (lambda _: None))(1.0)
    result = {
        "rows": measured,
        "table": table(measured),
        "types": bench.types,
        "fallbacks": bench.fallbacks,
        "model": str(model),
        "data": {"shards": str(data), "digest": shards.digest, "held_out_rows": len(ids), "tokens": ids[:, 1:].size},
        "kl_positions": len(ids) * min(WINDOW, ids.shape[1] - 1),
    }
    path = new_file("quality", folder)
    result["saved"] = str(path)
    save(path, result)
    return result


class _Bench:
    """Files of one model, written, measured and removed one after the other; what the reference gave stays."""

    def __init__(self, model: str | Path, ids: Ids, importance: Importance | None, work: Path, threads: int) -> None:
        self.model, self.ids, self.importance, self.work, self.threads = model, ids, importance, work, threads
        self.types, self.fallbacks = dict[str, dict[str, str]](), dict[str, dict[str, str]]()
        with self._open(Case("", REFERENCE)) as (engine, _):
            self.reference = self._measure(engine, ids, "reference")

    def rows(self, case: Case) -> Iterator[dict[str, Any]]:
        """The rows of one file."""
        with self._open(case) as (engine, said):
            about = {"part": case.part, "bytes": said["bytes"], "bits_per_weight": said["bits_per_weight"]}
            plain = self._measure(engine, self.ids, "plain")
            yield row(case.name, plain, self.reference, REFERENCE) | about
            if case.settings:
                about["part"] = "Activations, keys and values rounded"
                short = self.ids[:FLOAT_ROWS, : FLOAT_TOKENS + 1]
                exact = self._measure(engine, short, "exact", float_activations=True)
                rounded = self._measure(engine, short, "rounded")
                yield row(f"{case.name}, int8 activations", rounded, exact, "float activations") | about
                exact = self._measure(engine, self.ids, "exact", kv="f32")
                yield row(f"{case.name}, f16 KV", plain, exact, "f32 KV") | about
                rounded = self._measure(engine, self.ids, "rounded", kv="int8")
                yield row(f"{case.name}, int8 KV", rounded, exact, "f32 KV") | about

    @contextlib.contextmanager
    def _open(self, case: Case) -> Iterator[tuple[Engine, dict[str, Any]]]:
        """A file in the engine, and what its writer said; it is gone when the block ends."""
        path = self.work / "model.gguf"
        importance = self.importance if case.calibrated else None
        said = quantize_model(self.model, path, case.types, importance=importance, threads=self.threads)
        self.types[case.name] = said["types"]
        if said["fallbacks"]:
            self.fallbacks[case.name] = said["fallbacks"]
        try:
            with Engine.open(path, threads=self.threads) as engine:
                yield engine, said
        finally:
            path.unlink()

    def _measure(self, engine: Engine, ids: Ids, name: str, **options: Any) -> Found:
        """Read every row; keep the logits of one window of each in a file of that name."""
        rows, length = len(ids), ids.shape[1] - 1
        width, path = min(WINDOW, length), self.work / f"{name}.npy"
        shape = (rows, width, engine.info.vocab_size)
        logits = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        nats = np.empty(rows)
        with engine.context(threads=self.threads, max_tokens=length, **options) as context:
            for number, each in enumerate(ids):
                context.rewind(0)
                nats[number] = -context.log_probs(each[:-1], np.arange(length), each[1:]).mean()
                # From row to row the window moves from the beginning of the context to its end.
                start = (length - width) * number // max(rows - 1, 1)
                context.rewind(start)
                context.verify(each[start : start + width])
                for position in range(width):
                    logits[number, position] = context.logits(position, copy=False)
        return Found(nats, path)


def row(name: str, ours: Found, peer: Found, peer_name: str) -> dict[str, Any]:
    """A row of a bench: perplexities over all tokens, `pairs` and `spread` of the rows of text.

    `more_nats` per token than the peer's, with its standard error over the rows; `kl` from the peer's distributions.
    """
    more = ours.nats - peer.nats
    pairs = np.exp(np.stack([ours.nats, peer.nats], 1))
    perplexities = math.exp(ours.nats.mean()), math.exp(peer.nats.mean())
    return {
        "name": f"quality-{name}",
        "ours": perplexities[0],
        "peer": perplexities[1],
        "peer_name": peer_name,
        "ratio": perplexities[1] / perplexities[0],
        "unit": "perplexity",
        "pairs": pairs.tolist(),
        "spread": [float(pairs[:, 0].min()), float(pairs[:, 0].max())],
        "more_nats": float(more.mean()),
        "more_nats_error": float(more.std(ddof=1) / math.sqrt(len(more))) if len(more) > 1 else None,
        "kl": mean_divergence(peer.logits, ours.logits),
    }


def mean_divergence(exact: Path, rounded: Path) -> float:
    """Mean over all positions of the KL divergence (nats) of the rounded distributions from the exact ones."""
    found = []
    for one, two in zip(np.load(exact, mmap_mode="r"), np.load(rounded, mmap_mode="r"), strict=True):
        p, q = _log_softmax(one), _log_softmax(two)  # (W, V)
        found.append(float((np.exp(p) * (p - q)).sum(-1).mean()))
    return float(np.mean(found))


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(-1, keepdims=True)))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown: one table a part."""
    lines = []
    for part in dict.fromkeys(each["part"] for each in rows):
        lines += ["", f"**{part}**", "", "| | MB | bits per weight | perplexity | beside | more | mean KL |"]
        lines.append("|---|---|---|---|---|---|---|")
        for each in (each for each in rows if each["part"] == part):
            error = each["more_nats_error"]
            more = f"{100 * math.expm1(each['more_nats']):+.3f}%" + (f" ± {100 * error:.3f}" if error else "")
            beside = f"{each['peer_name']} {each['peer']:.3f}"
            cells = [each["name"].removeprefix("quality-"), f"{each['bytes'] / 1e6:.2f}"]
            cells += [f"{each['bits_per_weight']:.2f}", f"{each['ours']:.3f}", beside, more, f"{each['kl']:.6f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines[1:])


def words(result: dict[str, Any]) -> str:
    """The table, and what one has to know beside it."""
    data = result["data"]
    lines = [result["table"], ""]
    lines += [f"{name}: {spell(types)}" for name, types in result["types"].items() if name.startswith(DEFAULT)]
    lines += [
        f"{name}: {tensor} is {why}" for name, all_ in result["fallbacks"].items() for tensor, why in all_.items()
    ]
    lines.append(
        f"{result['model']} on {data['held_out_rows']} held-out rows of {data['shards']} ({data['tokens']:,} tokens); "
        f"KL over {result['kl_positions']:,} positions; int8 activations on {FLOAT_ROWS} rows of {FLOAT_TOKENS} tokens "
        f"at most; ± is one standard error over rows; all of it: {result['saved']}"
    )
    return "\n".join(lines)
