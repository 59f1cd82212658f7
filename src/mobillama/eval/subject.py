"""The model under evaluation: any form it comes in, as a scorer and an encoder, with the digests that name it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mobillama import manifest
from mobillama.errors import InputError, missing_extra
from mobillama.eval.adapter import Encoder
from mobillama.eval.scoring import Scorer

if TYPE_CHECKING:
    from mobillama.device import Place
    from mobillama.model.transformer import Transformer

OURS = ("mobillama", "llama")  # model types that our Transformer computes
Backend = Literal["auto", "torch", "transformers", "engine"]


@dataclass(frozen=True)
class Subject:
    """A model that can be asked, and what names it."""

    name: str
    scorer: Scorer
    encoder: Encoder
    backend: str
    dtype: str
    bos: bool  # whether its tokenizer's own settings put <s> before a text
    made_from: list[dict[str, str]] = field(default_factory=list)
    words: str = ""  # where and how it computes
    folder: Path | None = None  # of the model (of a .gguf file: itself), from which its training data can be found
    end_ids: frozenset[int] = frozenset()  # any of them ends a generated text
    trained: dict[str, int] = field(default_factory=dict)  # `step` and `tokens`, where its manifest says so
    ignored_keys: tuple[str, ...] = ()  # of a .gguf file, without which it computes


def open_subject(
    name: str,
    *,
    backend: Backend = "auto",
    device: str = "auto",
    dtype: str = "auto",
    threads: int = 0,
    ignore_keys: Sequence[str] = (),
) -> Subject:
    """Open a model folder, a run, a hub name, or a .gguf file.

    backend: auto takes the engine for a .gguf file, our Transformer for a model it can compute, transformers for
    others. dtype of the weights: auto, bfloat16, float32 (a .gguf file has its own). ignore_keys of a .gguf file: as
    Engine.open.
    Errors: InputError for a model or tokenizer that is not found or does not fit, or an option that has no effect.
    """
    from mobillama.runtime.gguf_file import is_gguf

    in_engine = is_gguf(name)
    if in_engine != (backend == "engine") and (backend != "auto"):
        raise InputError(
            f"--backend {backend} does not open {name}; a .gguf file, and nothing else, runs in the engine"
        )
    if in_engine:
        if device not in ("auto", "cpu") or dtype != "auto":
            raise InputError(f"--device and --dtype have no effect on {name}, which runs in the engine; leave them out")
        return _engine(name, threads, ignore_keys)
    if ignore_keys:
        raise InputError(f"--ignore-key {ignore_keys[0]} was given, but {name} is no .gguf file; leave it out")
    from mobillama.device import place
    from mobillama.model.config_file import read_tree
    from mobillama.model.hub import find_folder

    here = place(device, dtype, threads)
    folder = find_folder(name)
    kind = read_tree(folder).get("model_type", "mobillama")
    if backend == "transformers" or (backend == "auto" and kind not in OURS):
        return _transformers(name, folder, here)
    return _torch(name, folder, here)


def _torch(name: str, folder: Path, here: Any) -> Subject:
    import torch

    from mobillama.device import dtype_name
    from mobillama.eval.torch_scorer import TorchScorer
    from mobillama.language_model import LanguageModel

    torch.set_num_threads(here.threads)
    loaded = LanguageModel.load(folder, device=str(here.device), dtype=dtype_name(here.dtype))
    return Subject(
        name,
        TorchScorer(loaded.model),
        loaded.tokenizer,
        "torch",
        dtype_name(here.dtype),
        _says_bos(folder),
        _origins(folder),
        here.words(),
        folder,
        loaded.end_ids,
        _trained(folder),
    )


def subject_of(
    name: str, model: Transformer, words: Path, here: Place, made_from: list[dict[str, str]], folder: Path
) -> Subject:
    """A Transformer that was not read from a model folder, moved to where it shall compute.

    words: folder of its tokenizer; folder: of what it was made from. Error: InputError if the tokenizer does not fit.
    """
    import torch

    from mobillama.device import dtype_name
    from mobillama.eval.torch_scorer import TorchScorer
    from mobillama.language_model import LanguageModel
    from mobillama.tokenizer.tokenizer import Tokenizer

    torch.set_num_threads(here.threads)
    loaded = LanguageModel(model.to(device=here.device, dtype=here.dtype), Tokenizer.load(words), name)
    scorer, dtype = TorchScorer(loaded.model), dtype_name(here.dtype)
    return Subject(
        name,
        scorer,
        loaded.tokenizer,
        "torch",
        dtype,
        _says_bos(words),
        made_from,
        here.words(),
        folder,
        loaded.end_ids,
        _trained(folder),
    )


def _transformers(name: str, folder: Path, here: Any) -> Subject:
    import torch

    from mobillama.device import dtype_name
    from mobillama.eval.transformers_scorer import TransformersScorer
    from mobillama.model.end_ids import read_end_ids

    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise missing_extra("hf", error) from error
    torch.set_num_threads(here.threads)
    try:
        # False, not left out: transformers would then ask whether to run the code in the folder.
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=here.dtype, trust_remote_code=False).to(here.device)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        raise InputError(f"transformers cannot open {name}: {str(error).splitlines()[0]}") from None
    encoder = HubEncoder(tokenizer)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise InputError(
            f"the tokenizer of {name} has {len(tokenizer)} pieces, the model an embedding of"
            f" {model.get_input_embeddings().num_embeddings} rows: this is not the model's tokenizer"
        )
    dtype = dtype_name(here.dtype)
    scorer = TransformersScorer(model)
    end_ids = frozenset(read_end_ids(folder, model.get_input_embeddings().num_embeddings))
    return Subject(
        name, scorer, encoder, "transformers", dtype, encoder.adds_bos, _origins(folder), here.words(), folder, end_ids
    )


def _engine(name: str, threads: int, ignore_keys: Sequence[str]) -> Subject:
    from mobillama.eval.engine_scorer import EngineScorer
    from mobillama.runtime.engine_model import EngineModel
    from mobillama.runtime.gguf_file import part_paths
    from mobillama.tokenizer.gguf_keys import read_keys

    path = Path(name)
    model = EngineModel.load(path, threads=threads, ignore_keys=ignore_keys)
    keys = read_keys(path)
    made_from = [
        {"kind": "source file", "name": part.name, "digest": manifest.sha256_file(part)}
        for part in part_paths(path, keys)
    ]
    if digest := keys.get("mobillama.model_digest"):
        made_from.append({"kind": "model", "name": str(keys.get("general.name", path.stem)), "digest": str(digest)})
    bos = model.tokenizer.vocabulary.adds_bos
    words = f"the engine, {model.info.isa}"
    scorer = EngineScorer(model)
    return Subject(
        name,
        scorer,
        model.tokenizer,
        "engine",
        "gguf",
        bos,
        made_from,
        words,
        path,
        model.end_ids,
        ignored_keys=model.info.ignored_keys,
    )


class HubEncoder:
    """A tokenizer of transformers as an Encoder."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @property
    def bos_id(self) -> int | None:
        """The id of <s>, or what the tokenizer has in its place."""
        found: int | None = self._tokenizer.bos_token_id
        return found

    @property
    def eos_id(self) -> int | None:
        """The id that ends a text."""
        found: int | None = self._tokenizer.eos_token_id
        return found

    @property
    def adds_bos(self) -> bool:
        """Whether it puts the begin id before a text if nothing else is said."""
        return self.bos_id is not None and self._tokenizer.encode("a")[:1] == [self.bos_id]

    def encode(self, text: str) -> list[int]:
        """Ids without begin and end ids."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, control pieces left out."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


def _says_bos(folder: Path) -> bool:
    """Whether a folder's tokenizer_config.json asks for <s>; not if it does not say."""
    path = folder / "tokenizer_config.json"
    return bool(manifest.read_object(path).get("add_bos_token")) if path.is_file() else False


def _trained(folder: Path) -> dict[str, int]:
    """Steps and tokens of a model or checkpoint of a run."""
    counts = manifest.read(folder).counts if (folder / manifest.FILE).is_file() else {}
    return {name: int(counts[name]) for name in ("step", "tokens") if name in counts}


def _origins(folder: Path) -> list[dict[str, str]]:
    """The artefact a folder is, or, where it is none, its files with weights, shapes, end ids and tokenizer."""
    if (folder / manifest.FILE).is_file():
        return [manifest.origin(folder)]
    weights, words = ("*.safetensors", "*.bin"), ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
    names = (*weights, "config.json", "generation_config.json", *words)
    files = sorted({path for pattern in names for path in folder.glob(pattern)})
    return [{"kind": "source file", "name": path.name, "digest": manifest.sha256_file(path)} for path in files]
