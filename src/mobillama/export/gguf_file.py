"""A model as one GGUF file, written tensor by tensor, whole or not at all. Format: docs/formats.md."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType, GGUFWriter, Keys, size_label
from numpy.typing import NDArray

from mobillama import manifest
from mobillama.config import ModelConfig
from mobillama.errors import WRITING, InputError, naming
from mobillama.export.fold_gains import Folded, require_no_adapters
from mobillama.export.gguf_layout import ARCHITECTURES, Architecture, Entry, entries, in_file_order, shapes_of
from mobillama.export.gguf_round import encode
from mobillama.export.gguf_source import SEED, Source, find_source
from mobillama.export.gguf_types import DEFAULT, FILE_TYPES, TYPES, fitting_type, parse_types, row_bytes, spell
from mobillama.model.initialise import outline_model
from mobillama.tokenizer.gguf_vocabulary import MORE_ENDS, write_tokenizer
from mobillama.tokenizer.tokenizer import Tokenizer

QUANTIZATION_VERSION = 2  # of the layout of blocks in GGUF

Importance = Mapping[str, NDArray[np.float32]]


def quantize_model(
    model: str | Path,
    out: Path,
    types: str = DEFAULT,
    *,
    architecture: Architecture = "mobillama",
    importance: Importance | None = None,
    tokenizer: Path | None = None,
    seed: int = SEED,
    threads: int = 0,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Write a model as the GGUF file `out` and say what was written.

    model: a model folder, a run or a hub name; a preset's name (or a model recipe's file) gives random weights of that
    shape, drawn from `seed`: for measuring. types: see `parse_types`. architecture: `mobillama` stores each FFN block
    once; `llama` stores it under every layer, for llama.cpp. importance: name of a tensor in a file of architecture
    mobillama -> (cols,), how much the squared error of a column counts; without an entry all columns count alike.
    tokenizer: one to put inside in place of the model's own. threads: 0 = one per core. progress: called with the share
    that is written, 0 to 1.
    Result: `out`, `bytes`, `weights`, `bits_per_weight`, `architecture`, `types` by kind, `fallbacks` (tensors -> what
    they got and why, empty where every row fits), `end_ids` (by the key that holds them),
    `end_ids_left_out` (those without a piece in the tokenizer), `seconds`.
    Gains of layers are folded into the copies of their FFN (`llama`); `mobillama` has no place for them.
    Errors: InputError for an unknown model, type or architecture, an `out` that exists, importance that fits no tensor,
    weights that are not finite, a model with FFN adapters, or with gains where they cannot be folded.
    """
    started = time.monotonic()
    if architecture not in ARCHITECTURES:
        raise InputError(f"architecture {architecture!r} is not known; use one of: {', '.join(ARCHITECTURES)}")
    source = find_source(model, seed)
    source = without_own_parts(source, architecture, importance)
    if tokenizer is not None:
        source.tokenizer = Tokenizer.load(tokenizer)
    plan = Plan(source.config, architecture, types, importance)
    with _whole_file(out) as path:
        writer = GGUFWriter(path, architecture)
        try:
            write_header(writer, plan, source)
            _write(writer, plan, source, threads, progress or (lambda _: None))
        finally:
            writer.close()
    return {
        "out": str(out),
        "bytes": out.stat().st_size,
        "weights": plan.weights,
        "bits_per_weight": round(8 * plan.bytes / plan.weights, 3),
        "architecture": architecture,
        "types": plan.types,
        "fallbacks": plan.fallbacks,
        "end_ids": end_keys(source),
        "end_ids_left_out": ends_without_piece(source),
        "seconds": round(time.monotonic() - started, 1),
    }


def without_own_parts(source: Source, architecture: Architecture, importance: Importance | None) -> Source:
    """The source without what layers have of their own beside their FFN, of which no GGUF file knows."""
    require_no_adapters(source.config, "a GGUF file")
    if not source.config.ffn_gain:
        return source
    if architecture == "mobillama":
        raise InputError(
            "the model has ffn_gain=true; a GGUF file for the engine holds each FFN block once and has no place for "
            "a gain of each layer's own: export --format llama.cpp folds gains into copies, --format hf keeps them"
        )
    if importance:
        raise InputError(
            "importance was given for a model with ffn_gain=true, whose FFNs are no longer shared in the file; "
            "leave it out"
        )
    return Folded(source)


class Plan:
    """Every tensor of the file with its type and size, decided before the first is read."""

    def __init__(
        self, config: ModelConfig, architecture: Architecture, spec: str, importance: Importance | None
    ) -> None:
        self.config, self.architecture = config, architecture
        self.importance = _checked(importance or {}, config)
        self.types = parse_types(spec, tied=config.tie_word_embeddings)
        self.shapes = shapes_of(outline_model(config))
        self.entries = list(entries(config, architecture))
        self.wanted = {e.name: "f32" if e.kind == "norm" else self.types[e.kind] for e in self.entries}
        self.type_of = {e.name: fitting_type(self.wanted[e.name], self.shape(e)[-1]) for e in self.entries}
        self.weights = sum(self.count(entry) for entry in self.entries)
        self.bytes = sum(self.size(entry) for entry in self.entries)

    def shape(self, entry: Entry) -> tuple[int, ...]:
        return self.shapes[entry.weight]

    def count(self, entry: Entry) -> int:
        return int(np.prod(self.shape(entry)))

    def size(self, entry: Entry) -> int:
        *rows, cols = self.shape(entry)
        return int(np.prod(rows)) * row_bytes(self.type_of[entry.name], cols)

    @property
    def fallbacks(self) -> dict[str, str]:
        return {
            entry.name: f"{found}, because rows of {self.shape(entry)[-1]} do not divide into blocks of {wanted}"
            for entry in self.entries
            if (found := self.type_of[entry.name]) != (wanted := self.wanted[entry.name])
        }

    @property
    def commonest(self) -> str:
        """The type of most weights."""
        counts = Counter[str]()
        for entry in self.entries:
            counts[self.type_of[entry.name]] += self.count(entry)
        return counts.most_common(1)[0][0]


def _checked(importance: Importance, config: ModelConfig) -> dict[str, NDArray[np.float32]]:
    """Importance by the name of the weight in a Transformer. Error: InputError if an entry fits no matrix."""
    known = {entry.name: entry.weight for entry in entries(config, "mobillama") if entry.kind != "norm"}
    shapes = shapes_of(outline_model(config))
    found = {}
    for name, values in importance.items():
        cols = shapes[known[name]][-1] if name in known else None
        if values.shape != (cols,) or not np.isfinite(values).all() or (values < 0).any():
            raise InputError(
                f"importance of {name!r}: found shape {values.shape}; expected "
                + (f"({cols},) finite numbers from 0 on" if cols else "the name of a matrix of this model")
                + ": collect it with this model"
            )
        found[known[name]] = np.ascontiguousarray(values, np.float32)
    return found


def _add_keys(writer: GGUFWriter, plan: Plan, source: Source) -> None:
    """The file's metadata: what it is, its shapes, where it comes from, its tokenizer."""
    config = plan.config
    writer.add_type("model")
    writer.add_name(config.name)
    writer.add_size_label(size_label(plan.weights, plan.weights, 0, 0))
    writer.add_file_type(FILE_TYPES[plan.commonest])
    writer.add_quantization_version(QUANTIZATION_VERSION)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_uint32("mobillama.ffn_block_count", config.num_ffn_blocks)
    for key, value in source.lineage.items():
        writer.add_string(key, value)
    writer.add_string("mobillama.types", spell(plan.types))
    if plan.importance:
        writer.add_string("mobillama.importance_digest", importance_digest(plan.importance))
    if source.tokenizer is None:
        writer.add_string(Keys.Tokenizer.MODEL, "none")
    else:
        write_tokenizer(writer, source.tokenizer, config.vocab_size)
        ends = end_keys(source)
        for id_ in ends.get(Keys.Tokenizer.EOT_ID, ()):
            writer.add_eot_token_id(id_)
        if MORE_ENDS in ends:
            writer.add_key_value(MORE_ENDS, ends[MORE_ENDS], GGUFValueType.ARRAY, GGUFValueType.UINT32)


def end_keys(source: Source) -> dict[str, list[int]]:
    """The ids that end a text, by the key that holds them: GGUF has one for eos, one for eot; the rest are in ours."""
    if source.tokenizer is None:
        return {}
    first = source.tokenizer.eos_id
    ends = dict.fromkeys((*source.end_ids, *sorted(source.tokenizer.end_ids)))
    further = [id_ for id_ in ends if id_ != first and id_ < source.tokenizer.vocab_size]
    held = {Keys.Tokenizer.EOS_ID: [] if first is None else [first]}
    held |= {Keys.Tokenizer.EOT_ID: further[:1], MORE_ENDS: further[1:]}
    return {key: ids for key, ids in held.items() if ids}


def ends_without_piece(source: Source) -> list[int]:
    """The ids that end a text by the model's files, but are no piece of its tokenizer: no text can come to them."""
    return [id_ for id_ in source.end_ids if source.tokenizer is None or id_ >= source.tokenizer.vocab_size]


def importance_digest(importance: Importance) -> str:
    """sha256 (hex) over names and values, in order of the names."""
    found = hashlib.sha256()
    for name in sorted(importance):
        found.update(name.encode() + b"\0" + importance[name].tobytes())
    return found.hexdigest()


def write_header(writer: GGUFWriter, plan: Plan, source: Source) -> None:
    """All of the file before the first tensor's bytes, without the padding to them."""
    _add_keys(writer, plan, source)
    for entry in plan.entries:
        dtype = np.dtype(np.float32)  # of no effect beside the type in GGUF
        writer.add_tensor_info(entry.name, plan.shape(entry), dtype, plan.size(entry), TYPES[plan.type_of[entry.name]])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def _write(writer: GGUFWriter, plan: Plan, source: Source, threads: int, progress: Callable[[float], None]) -> None:
    assert writer.fout is not None
    (file,) = writer.fout
    done = 0
    for entry, data in encoded(plan, source, plan.entries, threads):
        # The writer's own write_tensor_data goes through numpy's tofile, which does not say why a disk takes no more.
        writer.write_padding(file, file.tell())
        file.write(np.ascontiguousarray(data).data)
        writer.write_padding(file, data.nbytes)
        done += plan.count(entry)
        progress(done / plan.weights)


def encoded(
    plan: Plan, source: Source, chosen: Iterable[Entry], threads: int
) -> Iterator[tuple[Entry, NDArray[np.uint8]]]:
    """Bytes of the chosen tensors, in the order of the file. A shared FFN is rounded once, however often it occurs."""
    block, copies = "", dict[str, NDArray[np.uint8]]()
    for entry in chosen:
        if entry.weight in copies:
            yield entry, copies[entry.weight]
            continue
        weight = in_file_order(entry, source.weight(entry.weight))
        data = encode(weight, plan.type_of[entry.name], entry.name, plan.importance.get(entry.weight), threads)
        if entry.kind == "ffn":
            _, number, *_ = entry.weight.split(".")
            if block != number:
                block = number
                copies.clear()
            copies[entry.weight] = data
        yield entry, data


@contextlib.contextmanager
def _whole_file(out: Path) -> Iterator[Path]:
    """A path to write to that becomes `out`, synced, when the block ends, and is gone if the block fails.

    Errors: InputError if `out` is there already, or if another process is writing it.
    """
    partial = manifest.partial_path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial.touch()
    with manifest.locked(partial, f"{out} is being written by another process; wait for it"):
        try:
            if out.exists():
                raise InputError(f"{out} exists already; choose another name or remove it")
            with naming(out, WRITING):
                yield partial
            manifest.sync(partial)
            partial.rename(out)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    manifest.sync(out.parent)
