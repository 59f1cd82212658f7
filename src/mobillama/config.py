"""Typed recipes: a TOML file plus `--set a.b=c` becomes one checked, frozen tree.

Reads `recipes/{model,data,train}/*.toml` (or any path). Imports no torch. A whole recipe is checked before anything
runs; an unknown key, an impossible shape or a value of the wrong type is a `RecipeError` that names the key.
Field names are Hugging Face's LLaMA names where there is one (the paper's Table 3 uses the same words).
"""

from __future__ import annotations

import codecs
import difflib
import hashlib
import json
import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mobillama.errors import InputError, RecipeError

RecipeKind = Literal["model", "data", "train"]
Scale = Literal["1", "1/sqrt(uses)", "1/uses"]


def scale_of(scale: Scale, uses: int) -> float:
    """The factor that a scale by uses is, for an FFN that `uses` layers use.

    >>> [scale_of(scale, 4) for scale in ("1", "1/sqrt(uses)", "1/uses")]
    [1.0, 0.5, 0.25]
    """
    return {"1": 1.0, "1/sqrt(uses)": 1 / math.sqrt(uses), "1/uses": 1 / uses}[scale]


class Section(BaseModel):
    """One table of a recipe: immutable, and a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    def tree(self) -> dict[str, Any]:
        """The resolved values as plain JSON types."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """sha256 (hex) of the canonical JSON of the resolved values."""
        return hashlib.sha256(json.dumps(self.tree(), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class ModelConfig(Section):
    """Shapes of one model. The defaults are MobiLlama 0.5B (paper, Table 3; released weights are multi-head)."""

    name: str = Field("custom", description="name of the preset or of your own model")
    vocab_size: int = Field(32000, ge=1, description="rows of the embedding and of the head")
    hidden_size: int = Field(2048, ge=1, description="width of the residual stream")
    intermediate_size: int = Field(5632, ge=1, description="width inside the feed-forward network")
    num_hidden_layers: int = Field(22, ge=1, description="decoder blocks")
    num_attention_heads: int = Field(32, ge=1, description="query heads")
    num_key_value_heads: int = Field(0, ge=0, description="key and value heads; 0 = as many as query heads")
    num_ffn_blocks: int = Field(
        1, ge=0, description="feed-forward networks stored; 1 = one for all layers, 0 = one per layer (dense)"
    )
    max_position_embeddings: int = Field(2048, ge=1, description="tokens of context")
    rms_norm_eps: float = Field(1e-5, gt=0, description="added to the mean square in RMSNorm (1e-5 in the release)")
    rope_theta: float = Field(10000.0, gt=0, description="base of the rotary wavelengths")
    initializer_range: float = Field(0.02, gt=0, description="standard deviation of the initial weights")
    tie_word_embeddings: bool = Field(False, description="use the embedding matrix as the head")
    ffn_adapter_rank: int = Field(
        0, ge=0, description="rank of a low-rank path of each layer's own, added to what its FFN gives; 0 = none"
    )
    ffn_gain: bool = Field(
        False, description="a gain per feature of each layer's own on what its FFN gives, its adapter apart"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_zeroes(cls, data: Any) -> Any:
        """0 key/value heads means all heads, 0 FFN blocks means one per layer."""
        if isinstance(data, dict):
            fields = cls.model_fields
            data = dict(data)
            for zero, full in (
                ("num_key_value_heads", "num_attention_heads"),
                ("num_ffn_blocks", "num_hidden_layers"),
            ):
                if data.get(zero, fields[zero].default) == 0:
                    data[zero] = data.get(full, fields[full].default)
        return data

    @model_validator(mode="after")
    def _check_shapes(self) -> Self:
        hidden, heads, kv = self.hidden_size, self.num_attention_heads, self.num_key_value_heads
        # An even head size, so that rotary pairs fit: the hidden size must be a multiple of 2 * heads.
        if hidden % (2 * heads):
            below, above = hidden // (2 * heads) * 2 * heads, -(-hidden // (2 * heads)) * 2 * heads
            nearest = ", ".join(str(size) for size in (below, above) if size)
            if hidden % heads:
                why = f"is not divisible by num_attention_heads={heads}"
            else:
                why = f"gives an odd head size of {hidden // heads}, which rotary embeddings cannot split in pairs"
            hint = ""
            if (hidden, self.intermediate_size) == (2532, 11080):
                hint = (
                    "; 2532/11080 are the sizes in the paper's text, which its own 32 heads cannot divide: the"
                    " published configuration uses 2560/10240 (recipes/model/mobillama-0.8b.toml)"
                )
            raise ValueError(f"hidden_size={hidden} {why}; the nearest sizes that fit are: {nearest}{hint}")
        if heads % kv:
            raise ValueError(
                f"num_attention_heads={heads} is not a multiple of num_key_value_heads={kv}; "
                f"use one of {[d for d in range(1, heads + 1) if heads % d == 0]}"
            )
        if self.num_ffn_blocks > self.num_hidden_layers:
            raise ValueError(
                f"num_ffn_blocks={self.num_ffn_blocks} is more than num_hidden_layers={self.num_hidden_layers}; "
                "use 1 (one for all) to num_hidden_layers (dense)"
            )
        if self.ffn_adapter_rank > hidden:
            raise ValueError(
                f"ffn_adapter_rank={self.ffn_adapter_rank} is more than hidden_size={hidden}, the rank of any path "
                f"between its ends; use 1 to {hidden}, or 0 for none"
            )
        return self

    @property
    def head_dim(self) -> int:
        """Features per attention head."""
        return self.hidden_size // self.num_attention_heads

    def ffn_block_of(self, layer: int) -> int:
        """Which FFN block layer `layer` uses."""
        return layer * self.num_ffn_blocks // self.num_hidden_layers

    def first_layer_of(self, block: int) -> int:
        """The first layer that uses FFN block `block`: the name the block is stored under."""
        return -(-block * self.num_hidden_layers // self.num_ffn_blocks)

    def layers_of(self, block: int) -> range:
        """The layers that use FFN block `block`."""
        after = self.first_layer_of(block + 1) if block + 1 < self.num_ffn_blocks else self.num_hidden_layers
        return range(self.first_layer_of(block), after)


SourceKind = Literal["jsonl", "parquet", "folder", "python-installation", "warc", "latex", "stackexchange"]


class SourceConfig(Section):
    """Where documents come from. Every source yields text with an id, a subset name, a url and a licence."""

    kind: SourceKind = Field(
        "jsonl",
        description="jsonl (.jsonl, .ndjson, .json; plain, .gz, .zst, .bz2, .xz), parquet, folder, "
        "python-installation, warc, latex (arXiv sources), "
        "stackexchange (Posts.xml of a dump)",
    )
    root: str = Field(
        "", description="folder, or address such as hf://datasets/owner/name; empty = environment MOBILLAMA_CORPORA"
    )
    files: tuple[str, ...] = Field(
        (), description="patterns below root, such as data/*.parquet; empty = all of the kind"
    )
    url_list: str = Field(
        "", description="text file, local or remote, that names one file to read a line, instead of root"
    )
    subsets: tuple[str, ...] = Field(
        (), description="names of the files (without suffix) or sub-folders to read, in this order; empty = all"
    )
    subset: str = Field(
        "", description="one subset that all files belong to; empty = subsets are named by files or sub-folders"
    )
    text_field: str = Field(
        "text", description="field or column that holds the text; doc.text is the field text inside doc"
    )
    id_field: str = Field(
        "id", description="field or column that holds the id, likewise; empty = name documents by file and record"
    )
    url_field: str = Field("url", description="field or column that holds the address, likewise; empty = none")
    license_field: str = Field("license", description="field or column that holds the licence, likewise; empty = none")
    encoding: str = Field(
        "utf-8", description="encoding of JSON lines, of a folder's files and of binary columns, such as latin-1"
    )
    max_record_bytes: int = Field(
        256 << 20,
        ge=1,
        le=(1 << 31) - 2,
        description="longest record; longer ones are bad (record_too_long). The default holds the longest text that "
        "clean.max_characters lets through, each character as JSON escapes it",
    )
    bad_records: Literal["drop", "stop"] = Field(
        "drop",
        description="records that cannot be read (invalid JSON, no text, not of the encoding, too long): drop and "
        "count them, or end the build at the first",
    )
    max_bad_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of a source's records above which bad ones end the build all the same; more bad than good "
        "ones are a setting that is wrong",
    )
    damaged_files: Literal["stop", "drop"] = Field(
        "stop",
        description="files that are cut short or damaged: end the build, or keep what is before the damage and count "
        "the rest (damaged_file)",
    )
    license: str = Field("", description="licence of documents that name none")
    max_bytes: int = Field(0, ge=0, description="stop after this many bytes of text a subset; 0 = all")

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, value: str) -> str:
        """The name by which Python knows it. Error: ValueError for one that it does not know as one of text."""
        try:
            "".encode(value)
            return codecs.lookup(value).name
        except LookupError:
            raise ValueError(f"encoding={value!r} is not known; use utf-8, latin-1, gb18030, shift_jis, ...") from None

    @model_validator(mode="after")
    def _check_lines(self) -> Self:
        if self.kind == "jsonl" and "\n".encode(self.encoding) not in (b"\n", b"\xef\xbb\xbf\n"):
            raise ValueError(
                f"encoding={self.encoding!r} has a line end of more than one byte; JSON lines need one in which it is "
                "one byte: convert the files to UTF-8"
            )
        if self.subset and self.subsets:
            raise ValueError(
                f"subset={self.subset!r} makes one subset of all files, subsets={list(self.subsets)} chooses among "
                "several; leave one out"
            )
        return self


Quality = Literal["light", "code", "gopher_repetition", "gopher_quality", "c4", "fineweb"]


class SubsetConfig(Section):
    """What is special about one subset."""

    source: SourceConfig | None = Field(None, description="where it comes from; none = the recipe's source")
    target_tokens: int = Field(0, ge=0, description="tokens it should have: what `plan` and the page compare with")
    languages: tuple[str, ...] = Field(
        (), description="ISO 639-1 codes of the languages to keep (others: language); empty = all"
    )
    quality: tuple[Quality, ...] = Field((), description="quality filters, applied in this order; empty = none")


class CleanConfig(Section):
    """Normalisation, masks, and the filters that drop a document, each with a reason."""

    min_characters: int = Field(100, ge=1, description="shorter documents are dropped (too_short)")
    max_characters: int = Field(20_000_000, ge=1, description="longer documents are dropped (too_long)")
    max_control_share: float = Field(
        0.01, ge=0, le=1, description="share of control characters above which a document is dropped as binary"
    )
    mask: bool = Field(False, description="replace e-mail addresses and public IP addresses")
    deduplicate: bool = Field(True, description="drop documents whose normalised text was seen before (duplicate)")
    near_duplicates: bool = Field(
        False, description="drop documents that are nearly an earlier one, across subsets, by MinHash (near_duplicate)"
    )
    minhash_words: int = Field(5, ge=1, description="words in a shingle (FineWeb: 5)")
    minhash_buckets: int = Field(14, ge=1, description="buckets; equal in one = nearly duplicate (FineWeb: 14)")
    minhash_hashes: int = Field(8, ge=1, description="hashes in a bucket (FineWeb: 8)")
    overlap: Literal["off", "mark", "drop"] = Field(
        "off", description="documents that share 13 words in a row with a benchmark: mark or drop (benchmark_overlap)"
    )
    benchmarks: str = Field(
        "", description="folder of the benchmarks; empty = environment variable MOBILLAMA_BENCHMARKS"
    )
    keep_rejected: bool = Field(False, description="keep dropped documents beside the corpus, with their reasons")


class TokenizerConfig(Section):
    """The tokenizer to encode with: an existing one, or one trained on the corpus."""

    root: str = Field("", description="folder or file; empty = environment variable MOBILLAMA_TOKENIZER")
    train_vocab_size: int = Field(0, ge=0, description="train a byte-fallback BPE of this many pieces; 0 = use root")
    train_bytes: int = Field(20_000_000, ge=1, description="bytes of text the tokenizer is trained on at most")


class PackConfig(Section):
    """Rows, chunks and the held-out split."""

    method: Literal["concatenate", "best_fit"] = Field(
        "concatenate",
        description="concatenate documents and cut (Amber), or fit whole documents into rows and pad what is left",
    )
    seq_len: int = Field(2048, ge=1, description="positions trained per row; a row stores seq_len + 1 ids")
    chunks: int = Field(360, ge=1, description="training chunks (Amber: 360)")
    validation_share: float = Field(
        0.01, ge=0, lt=1, description="share of documents held out, decided by a hash of the document id alone"
    )


class DataRecipe(Section):
    """Raw text to shards: one run of `mobillama data build`."""

    name: str = "custom"
    seed: int = Field(11111, ge=0, description="seed of the mixing of rows into chunks (Amber: 11111)")
    source: SourceConfig = SourceConfig()
    subset: dict[str, SubsetConfig] = Field({}, description="what is special about a subset, by name")
    clean: CleanConfig = CleanConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    pack: PackConfig = PackConfig()


class RunData(Section):
    """What a training run reads."""

    recipe: str = Field("", description="data recipe to build when no shards are given; empty = --data is required")
    shards: str = Field("", description="folder of shards; empty = --data, else artefacts/shards/<data recipe>")


class InitConfig(Section):
    """Weights to start from, instead of new ones of the seed."""

    model: str = Field("", description="a model folder; empty = new weights of the seed")
    ffn: Literal["layer", "mean", "least_squares"] = Field(
        "mean", description="how the FFNs of a model with more of them become the stored ones"
    )
    layer: int = Field(0, ge=0, description="whose FFN is taken, counted inside each block's layers (ffn = layer)")
    rows: int = Field(16, ge=1, description="training rows whose activations least_squares fits")


class TrainConfig(Section):
    """How a model is trained. The defaults are the paper's (section 4) unless a field says otherwise."""

    seed: int = Field(11111, ge=0, description="seed of the initial weights and of the order of rows")
    ffn_init_scale: Scale = Field(
        "1", description="factor of the initial weights of an FFN (all three matrices), by the layers that use it"
    )
    steps: int = Field(0, ge=0, description="optimizer steps; 0 = one pass over the shards")
    rows_per_step: int = Field(800, ge=1, description="rows per optimizer step over all devices")
    micro_batch_rows: int = Field(5, ge=1, description="rows per forward pass; the rest is gradient accumulation")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: for the matrices inside the layers; AdamW for embedding, head and norms"
    )
    learning_rate: float = Field(3e-4, gt=0, description="peak learning rate")
    muon_learning_rate: float = Field(0.02, gt=0, description="peak learning rate of the matrices that muon updates")
    muon_momentum: float = Field(0.95, ge=0, lt=1)
    ffn_lr_scale: Scale = Field("1", description="factor of the learning rate of an FFN, by the layers that use it")
    schedule: Literal["cosine", "wsd"] = Field(
        "cosine", description="after the warm-up: a cosine, or the peak held and a linear decay at the end"
    )
    decay_share: float = Field(0.2, gt=0, le=1, description="share of the steps after warm-up that wsd decays over")
    min_lr_ratio: float = Field(0.1, ge=0, le=1, description="final over peak learning rate")
    warmup_steps: int = Field(2000, ge=0, description="steps of linear warm-up from 0")
    weight_decay: float = Field(0.1, ge=0, description="weight decay of the matrices inside the layers")
    decay_norms: bool = Field(True, description="weight decay on norms and gains too, as in the paper")
    decay_embeddings: bool = Field(True, description="weight decay on embedding and head too, as in the paper")
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    clip: float = Field(1.0, gt=0, description="largest global gradient norm")
    anomaly: Literal["stop", "skip"] = Field(
        "stop", description="at a loss or gradient norm that is no number or a spike: end the run, or skip the update"
    )
    spike_factor: float = Field(
        0.0,
        ge=0,
        description="a gradient norm above this many times the median of the last 100 is a spike; 0 = never",
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto",
        description="compute type (weights and optimizer stay float32); auto = bfloat16 where it is fast",
    )
    float8: bool = Field(False, description="matrix products inside the layers in float8, on a GPU that has it")
    compile: bool = Field(True, description="compile each block with torch.compile")
    shard_ranks: int = Field(
        0, ge=0, description="ranks that one copy of weights and optimizer is spread over; 0 = all (FSDP), else HSDP"
    )
    document_mask: bool = Field(
        False, description="attention stays inside a document, and its first token is not trained on; off as in Amber"
    )
    activation_checkpointing: bool = Field(False, description="recompute blocks in the backward pass")
    loss_chunk_tokens: int = Field(2048, ge=0, description="positions whose logits exist at once; 0 = all")
    deterministic: bool = Field(True, description="same machine kind, world size and threads give the same bits")
    device: Literal["auto", "cuda", "mps", "cpu"] = Field("auto", description="auto = cuda, then mps, then cpu")
    threads: int = Field(0, ge=0, description="CPU threads; 0 = all cores")
    validate_every: int = Field(100, ge=0, description="steps between validations; 0 = only at the end")
    validation_rows: int = Field(0, ge=0, description="held-out rows per validation; 0 = all")
    checkpoint_every: int = Field(100, ge=1, description="steps between checkpoints")
    keep_last: int = Field(2, ge=1, description="full training states kept, beside the published ones")
    asynchronous: bool = Field(True, description="write checkpoints while training goes on")
    publish_chunks: bool = Field(
        False,
        description="keep the checkpoint at each chunk's end for good, with a model folder (ckpt_000 ...)",
    )
    publish_tokens: int = Field(0, ge=0, description="likewise each time this many tokens were read; 0 = never")

    @model_validator(mode="after")
    def _check_batch(self) -> Self:
        if self.rows_per_step % self.micro_batch_rows:
            divisors = [d for d in range(1, self.rows_per_step + 1) if self.rows_per_step % d == 0]
            raise ValueError(
                f"rows_per_step={self.rows_per_step} is not a multiple of micro_batch_rows={self.micro_batch_rows}; "
                f"use one of {divisors}"
            )
        return self

    @model_validator(mode="after")
    def _check_float8(self) -> Self:
        if self.float8 and self.device in ("cpu", "mps"):
            raise ValueError(
                f"float8=true with device={self.device!r}: only a GPU multiplies in float8; use device=cuda, or "
                "--set train.float8=false"
            )
        if self.float8 and self.dtype == "float32":
            raise ValueError(
                "float8=true with dtype='float32': what float8 products give is bfloat16; use dtype=bfloat16 or auto, "
                "or --set train.float8=false"
            )
        return self


class TrainRecipe(Section):
    """Shards to a run: one run of `mobillama train`. `model.preset` names a model recipe to overlay."""

    name: str = "custom"
    model: ModelConfig
    init: InitConfig = InitConfig()
    data: RunData = RunData()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _check_start(self) -> Self:
        if self.init.model and self.train.ffn_init_scale != "1":
            raise ValueError(
                f"train.ffn_init_scale={self.train.ffn_init_scale!r} scales new weights, but init.model="
                f"{self.init.model!r} gives trained ones; leave one of the two out"
            )
        if self.init.layer and self.init.ffn != "layer":
            raise ValueError(
                f"init.layer={self.init.layer} is read with init.ffn='layer' only; found init.ffn={self.init.ffn!r}: "
                "leave init.layer out, or --set init.ffn=layer"
            )
        return self


R = TypeVar("R", bound=Section)

SEPARATORS = ("/", "\\")  # of folders, here and on other systems
LONGEST_NAME = 200  # bytes; file systems take 255, and what is under way has a longer name

KINDS: dict[type[Section], RecipeKind] = {ModelConfig: "model", DataRecipe: "data", TrainRecipe: "train"}


def recipes_folder() -> Path:
    """Folder of the recipes that ship with the package (inside it when installed, beside it in a checkout)."""
    installed = Path(__file__).parent / "recipes"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "recipes"


def presets(kind: RecipeKind) -> list[str]:
    """Names of the shipped recipes of one kind."""
    return sorted(path.stem for path in (recipes_folder() / kind).glob("*.toml"))


def read_recipe(recipe: type[R], name: str | Path, overrides: Sequence[str] = ()) -> R:
    """Read a recipe by path or by shipped name, overlay `a.b=c` settings, and check all of it.

    >>> read_recipe(ModelConfig, "mobillama-0.5b").num_ffn_blocks
    1
    >>> read_recipe(ModelConfig, "mobillama-0.5b", ["num_hidden_layers=4"]).num_hidden_layers
    4
    """
    kind = KINDS[recipe]
    path = _find(kind, str(name))
    tree = _read_toml(path)
    tree.setdefault("name", path.stem)
    for setting in overrides:
        _overlay(tree, setting)
    resolved = resolve(recipe, tree, str(path))
    check_name(getattr(resolved, "name", path.stem), str(path))
    if isinstance(resolved, DataRecipe):
        for subset in filter(None, (resolved.source.subset, *resolved.subset)):
            check_name(subset, str(path), "subset")
    return resolved


def check_name(name: str, origin: str, key: str = "name") -> None:
    """RecipeError for what is no plain name: folders and files are called by it, and it must not lead elsewhere.

    `origin` names the recipe in the error, `key` what is called so.
    """
    if not name.isprintable() or not name.strip() or {*name} & {*SEPARATORS} or name.startswith("."):
        raise RecipeError(
            f"{origin}: {key}={name!r}; expected a plain name that a folder can have, without "
            f"{' or '.join(SEPARATORS)}, control characters or a dot in front (where to write is said with --out)"
        )
    if len(name.encode(errors="replace")) > LONGEST_NAME:
        raise RecipeError(f"{origin}: {key}={name[:20]!r}... is too long; expected at most {LONGEST_NAME} bytes")


def resolve(recipe: type[R], tree: dict[str, Any], origin: str) -> R:
    """Check a tree of plain values against a recipe type; `origin` names it in errors."""
    if recipe is TrainRecipe and isinstance(tree.get("model"), dict):
        model = dict(tree["model"])
        if preset := model.pop("preset", None):
            path = _find("model", str(preset))
            model = {"name": path.stem, **_read_toml(path), **model}
        tree = {**tree, "model": model}
    try:
        return recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(_explain(recipe, error, origin)) from None


def with_defaults(section: type[Section], tree: Mapping[str, Any]) -> dict[str, Any]:
    """A tree that an older version wrote, with the defaults of the keys that it did not know: what is compared today.

    A tree that this version cannot read is given back as it is, so that it equals none of this version's.

    >>> old = TokenizerConfig().tree()
    >>> del old["train_bytes"]
    >>> with_defaults(TokenizerConfig, old) == TokenizerConfig().tree()
    True
    """
    try:
        return section.model_validate(tree).tree()
    except ValidationError:
        return dict(tree)


def external_folder(field: str, value: str, variable: str) -> Path:
    """A folder or file outside the project: the recipe field, else the environment variable, else a clear error."""
    text = value or os.environ.get(variable, "")
    if not text:
        raise InputError(
            f"{field} is empty; give it with --set {field}=DIR or with the environment variable {variable}"
        )
    path = Path(text).expanduser()
    origin = f"--set {field}" if value else f"environment variable {variable}"
    try:
        there = path.exists()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise InputError(f"{text[:200]} (from {origin}) cannot be looked at ({error.strerror}); correct it") from None
    if not there:
        raise InputError(f"{path} (from {origin}) does not exist; give a folder that does")
    return path


def _find(kind: RecipeKind, name: str) -> Path:
    path = Path(name)
    if path.suffix == ".toml" and path.is_file():
        return path
    shipped = recipes_folder() / kind / f"{name}.toml"
    if shipped.is_file():
        return shipped
    known = presets(kind)
    close = difflib.get_close_matches(name, known, 1)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    raise RecipeError(f"no {kind} recipe {name!r}: give a .toml file or one of {', '.join(known) or 'none'}{meant}")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid TOML: {error}") from None


def change_recipe(recipe: R, overrides: Sequence[str]) -> R:
    """A recipe with `a.b=c` settings laid over it, checked again. Errors: RecipeError."""
    tree = recipe.tree()
    for setting in overrides:
        _overlay(tree, setting)
    return resolve(type(recipe), tree, "--set")


def _overlay(tree: dict[str, Any], setting: str) -> None:
    """Put one `a.b=c` setting into the tree; c is read as a TOML value, else as a string."""
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {setting!r} is not of the form key=value, for example --set train.steps=100")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *tables, leaf = key.strip().split(".")
    for table in tables:
        inner = tree.setdefault(table, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {setting!r}: {table} is a value, not a table")
        tree = inner
    tree[leaf] = value


def _explain(recipe: type[Section], error: ValidationError, origin: str) -> str:
    """A ValidationError in the user's words, one line a problem."""
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _fields_at(recipe, problem["loc"][:-1])
            close = difflib.get_close_matches(str(problem["loc"][-1]), known, 1)
            meant = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
            lines.append(f"{origin}: unknown key {where!r}; {meant}")
        elif problem["type"] == "missing":
            lines.append(f"{origin}: {where!r} is missing; add it")
        elif problem["type"] == "value_error":
            lines.append(f"{origin}: {problem['msg'].removeprefix('Value error, ')}")
        else:
            lines.append(f"{origin}: {where}={problem['input']!r}: {problem['msg']}")
    return "\n".join(lines)


def _fields_at(recipe: type[Section], location: Sequence[int | str]) -> list[str]:
    section: Any = recipe
    for part in location:
        if isinstance(part, str):  # a number is a place in a list of sections
            found = section.model_fields[part].annotation
            section = next((one for one in get_args(found) if hasattr(one, "model_fields")), found)
    return list(section.model_fields)
