"""What a bench of the engine measures on: files of random weights, processes of both sides, rows and where they go."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from mobillama.bench import engines, machine, peers
from mobillama.bench.process import Process
from mobillama.bench.rounds import OF_BEST, Computing, Measured, Placement, Sides, Turn, interleave
from mobillama.config import ModelConfig, read_recipe
from mobillama.cores import cores
from mobillama.errors import InputError
from mobillama.manifest import partial_path
from mobillama.runtime.library import library

FOLDER = Path("artefacts/bench")
TYPES = "q4_0"  # in every matrix, head included
LOW = "q4_0,ffn=q3_k"  # for an FFN that is too large for the cache in 4 bits
PROMPT, DECODED, CONTEXT = 128, 128, 512  # tokens: of the prompt, decoded after it, room for both
PARTS = 4  # turns in which they are decoded, a round each
PREFILLED = 256  # tokens of the prefill row
SEED = 11111
MEMORY = "memory"  # the side that measures the machine's bandwidth
PEERS = ("llama.cpp", "transformers")
FLASH, UBATCHES = (True, False), (128, 256, 512)  # settings of llama.cpp to choose from
# Read for the bandwidth of memory: 256 MiB, and more where the cache that the system reports would hold much of that.
BANDWIDTH_BYTES, BANDWIDTH_CACHES, BANDWIDTH_SECONDS = 1 << 28, 8, 0.2
KV_BYTES = {"f16": 2, "int8": 1, "f32": 4}  # of a key or value; int8's scales are not counted


@dataclass
class Setting:
    """Where, against whom and how often; what it learns on the way is kept for the next section."""

    against: str
    rounds: int = 5
    folder: Path = FOLDER
    placement: Placement = "any"  # of the cores, in which rounds count
    peers_folder: Path = peers.FOLDER
    threads: int = field(default_factory=cores)
    models: dict[str, Any] = field(default_factory=dict)  # what was measured: files, shapes, load seconds
    chosen: dict[str, Any] = field(default_factory=dict)  # the peer's best settings, and what they were chosen from
    built: dict[str, Any] | None = None  # how the peer was built, if it was

    def __post_init__(self) -> None:
        if self.against not in ("", *PEERS):
            raise InputError(f"no peer {self.against!r} for decoding; the peers are: {', '.join(PEERS)}")
        if self.rounds < 1:
            raise InputError(f"rounds={self.rounds}; expected 1 or more")
        if self.placement not in get_args(Placement):
            raise InputError(f"placement={self.placement!r}; expected one of: {', '.join(get_args(Placement))}")
        if self.against == "llama.cpp":
            self.built = peers.built_with(self.against, self.peers_folder)  # or an error before anything is measured

    @property
    def peer_name(self) -> str:
        """The peer as a figure names it: with its build, where that is not the first choice."""
        return peers.called(self.built) if self.built else self.against

    def alone(self) -> Setting:
        """The same without the peer; what is learned on the way goes to both."""
        return dataclasses.replace(self, against="")

    def config(self, preset: str) -> ModelConfig:
        """The shape of a preset."""
        return read_recipe(ModelConfig, preset)

    def write_preset(self, shape: ModelConfig) -> str:
        """A shape as a model recipe's file, for the functions here that take a preset."""
        path = self.folder / f"{shape.name}.toml"
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in shape.tree().items()), "utf-8")
        return str(path)

    def ids(self, preset: str, count: int) -> list[int]:
        """The ids that every side is fed: the same for every count, up to its length."""
        numbers = random.Random(SEED)
        return [numbers.randrange(3, self.config(preset).vocab_size) for _ in range(count)]

    def file(self, preset: str, architecture: Literal["mobillama", "llama"] = "mobillama", types: str = TYPES) -> Path:
        """The GGUF file of a preset's random weights, written at the first use. llama: 22 copies, for llama.cpp."""
        name = f"{plain(preset)}-{spelled(types)}"
        path = self.folder / f"{name}-{architecture}.gguf"
        if not path.exists():
            from mobillama.export.gguf_file import quantize_model

            print(f"writing {path}", file=sys.stderr)
            quantize_model(preset, path, types, architecture=architecture)
        key = f"{name} as {architecture}"
        if key not in self.models:
            self.models[key] = machine.describe_file(path)
        return path

    @contextlib.contextmanager
    def ours(
        self,
        preset: str,
        *,
        kv: str = "f16",
        tokens: int = CONTEXT,
        sequences: int = 1,
        isa: str = "",
        share_ffn: bool = True,
        resident_bytes: int = 0,
        types: str = TYPES,
    ) -> Iterator[Process]:
        """Our engine with a preset open and a context made. isa: what MOBILLAMA_ISA forces; "" = nothing."""
        with Process("ours", engines.command("ours"), {"MOBILLAMA_ISA": isa} if isa else {}) as process:
            file = str(self.file(preset, types=types))
            process.about = process.ask("open", file=file, share_ffn=share_ffn, resident_bytes=resident_bytes)
            process.ask("context", max_tokens=tokens, threads=self.threads, kv=kv, max_sequences=sequences)
            if share_ffn and not isa:
                self.models[f"{plain(preset)}-{spelled(types)} in our engine"] = process.about
            yield process

    @contextlib.contextmanager
    def peer(
        self,
        preset: str,
        *,
        kv: str = "f16",
        tokens: int = CONTEXT,
        mmap: bool = True,
        types: str = TYPES,
        **options: Any,
    ) -> Iterator[Process]:
        """The peer with the same weights (transformers: the same shape) open and a context made, at its best."""
        if self.against == "transformers":
            with Process("transformers", engines.command("transformers")) as process:
                process.about = process.ask("open", file=preset, **self.config(preset).tree())
                process.ask("context", max_tokens=tokens, threads=self.threads)
                yield process
            return
        python = peers.python_of(self.against, self.peers_folder)
        with Process("llama.cpp", engines.command("llama.cpp", python)) as process:
            process.about = process.ask(
                "open", file=str(self.file(preset, "llama", types)), mmap=mmap, **self._build_options()
            )
            self.models[f"{plain(preset)}-{spelled(types)} in llama.cpp"] = process.about
            settings = options or self.best(preset, process)
            process.ask("context", max_tokens=tokens, threads=self.threads, kv=kv, **settings)
            yield process

    def _build_options(self) -> dict[str, Any]:
        return dict(self.built["build"]["options"]) if self.built else {}

    def best(self, preset: str, process: Process) -> dict[str, Any]:
        """llama.cpp's best of flash attention on and off, for decoding; found once."""
        if "decode" not in self.chosen:
            tried = {}
            for flash in FLASH:
                process.ask("context", max_tokens=CONTEXT, threads=self.threads, flash=flash)
                process.ask("prefill", ids=self.ids(preset, PROMPT))
                seconds = [decoding(process, self.ids(preset, 32), PROMPT)() for _ in range(2)][-1]
                tried[flash] = statistics.median(seconds)
            flash = min(tried, key=lambda each: tried[each])
            self.chosen["decode"] = {"flash": flash}
            self.chosen["decode_tried"] = {f"flash {on}": f"{1 / each:.1f} tokens/s" for on, each in tried.items()}
            print(
                f"llama.cpp decodes best with flash attention {flash}: {self.chosen['decode_tried']}", file=sys.stderr
            )
        found: dict[str, Any] = self.chosen["decode"]
        return found

    def best_prefill(self, preset: str, process: Process) -> dict[str, Any]:
        """llama.cpp's best of flash attention on and off and n_ubatch, for a prompt; found once."""
        if "prefill" not in self.chosen:
            ids = self.ids(preset, PREFILLED)
            tried = {}
            for flash in FLASH:
                for ubatch in UBATCHES:
                    process.ask("context", max_tokens=CONTEXT, threads=self.threads, flash=flash, ubatch=ubatch)
                    tried[flash, ubatch] = min(prefilling(process, ids)()[0] for _ in range(2))
            flash, ubatch = min(tried, key=lambda each: tried[each])
            self.chosen["prefill"] = {"flash": flash, "ubatch": ubatch}
            self.chosen["prefill_tried"] = {
                f"flash {on}, n_ubatch {size}": f"{1 / each:.1f} tokens/s" for (on, size), each in tried.items()
            }
            print(f"llama.cpp reads a prompt best with {self.chosen['prefill']}", file=sys.stderr)
        found: dict[str, Any] = self.chosen["prefill"]
        return found

    def measure(
        self,
        what: str,
        turns: Mapping[str, tuple[Computing, Turn]],
        *,
        parts: int = 1,
        of_best: float = OF_BEST,
        beside: tuple[int, ...] = (),
    ) -> Measured:
        """Clean rounds of these sides, `parts` for each that is wanted; see `interleave`.

        beside: processes that are meant to run meanwhile.
        """
        processes = {name: process for name, (process, _) in turns.items()}
        trip = library().mobillama_round_trip if self.threads > 1 else None
        sides = Sides(
            processes, {name: turn for name, (_, turn) in turns.items()}, beside, frozenset({MEMORY}), round_trip=trip
        )
        return interleave(what, sides, self.rounds * parts, placement=self.placement, of_best=of_best)


def plain(preset: str) -> str:
    """The name of a preset, which may be a recipe's file.

    >>> plain("mobillama-0.5b"), plain("some/tiny.toml")
    ('mobillama-0.5b', 'tiny')
    """
    return Path(preset).name.removesuffix(".toml")


def spelled(types: str) -> str:
    """A `--type` value as part of a name.

    >>> spelled("q4_0,ffn=q3_k")
    'q4_0-ffn-q3_k'
    """
    return types.replace(",", "-").replace("=", "-")


def decoding(process: Process, ids: Sequence[int], after: int, sequence: int = 0, parts: int = 1) -> Turn:
    """Turns that decode `ids` after the first `after` tokens of a sequence, one of so many parts of them each time.

    With parts a round is short: the machine seldom changes in it. Every side must take the same number of turns.
    """
    size = len(ids) // parts
    turns = itertools.cycle(range(0, size * parts, size))

    def turn() -> list[float]:
        at = next(turns)
        seconds: list[float] = process.ask(
            "decode", ids=list(ids[at : at + size]), after=after + at, sequence=sequence
        )["seconds"]
        return seconds

    return turn


def prefilling(process: Process, ids: Sequence[int]) -> Turn:
    """A turn that reads a prompt; gives the seconds per token."""
    return lambda: [process.ask("prefill", ids=list(ids))["seconds"][0] / len(ids)]


def reading_memory(process: Process, threads: int) -> Turn:
    """A turn that measures memory bandwidth; gives the seconds per byte."""
    size = max(BANDWIDTH_BYTES, BANDWIDTH_CACHES * process.about["cache_bytes"])

    def turn() -> list[float]:
        found = process.ask("bandwidth", bytes=size, threads=threads, seconds=BANDWIDTH_SECONDS)
        return [1.0 / found["bytes_per_second"]]

    return turn


def kv_bytes(info: dict[str, Any], kv: str) -> int:
    """Bytes of keys and values of one token, all layers."""
    return 2 * int(info["num_hidden_layers"]) * int(info["num_key_value_heads"]) * int(info["head_dim"]) * KV_BYTES[kv]


def row(
    name: str,
    ours: Sequence[float],
    peer: Sequence[float],
    peer_name: str,
    unit: str,
    *,
    smaller_is_better: bool = False,
) -> dict[str, Any]:
    """One row of a bench: medians over the pairs, and the median of their ratios (above 1 = ours is better).

    peer may be empty: then ours stands alone. `spread`: smallest and largest of ours.
    """
    pairs = [list(pair) for pair in zip(ours, peer, strict=True)] if peer else []
    ratios = [theirs / mine if smaller_is_better else mine / theirs for mine, theirs in pairs]
    return {
        "name": name,
        "ours": statistics.median(ours),
        "peer": statistics.median(peer) if peer else None,
        "peer_name": peer_name,
        "ratio": statistics.median(ratios) if ratios else None,
        "unit": unit,
        "pairs": pairs,
        "spread": [min(ours), max(ours)],
    }


def new_file(name: str, folder: Path = FOLDER) -> Path:
    """Where a bench's result goes, beside earlier ones: NAME-DATE-TIME.json."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.json"


def save(path: Path, result: dict[str, Any]) -> None:
    """Write a bench's result, whole or not at all."""
    beside = partial_path(path)
    beside.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    beside.rename(path)
