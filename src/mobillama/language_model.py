"""A model with its tokenizer on a device: text in, text out, whole or as it comes.

`load` takes a model folder, a run or a name on the Hugging Face hub. Tokens are chosen in mobillama.model.generate.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mobillama.config import ModelConfig
from mobillama.device import dtype_name, place
from mobillama.errors import InputError
from mobillama.model.generate import Ending, Generation
from mobillama.model.hub import find_folder
from mobillama.model.ids import as_rows
from mobillama.model.sampling import Settings
from mobillama.model.stop import StopFilter
from mobillama.model.transformer import Transformer
from mobillama.model.weights import load_model
from mobillama.tokenizer.tokenizer import Tokenizer

# B batch, T time, V vocab_size


class Choices(TypedDict, total=False):
    """How text is generated: the fields of mobillama.model.sampling.Settings, and what belongs to text."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    seed: int
    stop: str | Sequence[str]
    bos: bool
    batch_size: int


class ContextWarning(UserWarning):
    """Text was cut short because the model's context is full."""


@dataclass(frozen=True)
class Completion:
    """One prompt's continuation, and why it ended: eos, length (max_new_tokens), context (full) or stop (string)."""

    prompt: str
    text: str
    ids: tuple[int, ...]
    ending: Ending


class LanguageModel:
    """A Transformer, its tokenizer and where it computes.

    >>> model = LanguageModel.load(model_folder, device="cpu")
    >>> model.config.num_ffn_blocks
    1
    >>> model([5, 6, 7]).shape == (3, model.config.vocab_size)
    True
    >>> for piece in model.generate("def ", stream=True, max_new_tokens=4, seed=1):
    ...     shown = piece  # print(piece, end="", flush=True)
    >>> model.generate(["def ", "class "], max_new_tokens=4) == [
    ...     model.generate("def ", max_new_tokens=4), model.generate("class ", max_new_tokens=4)]
    True
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer | None, name: str = "model") -> None:
        """Put together what `load` would read; the model stays where it is and keeps its type."""
        if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
            raise InputError(
                f"the tokenizer of {name} has {tokenizer.vocab_size} pieces, the model an embedding of"
                f" {model.config.vocab_size} rows: this is not the tokenizer the model was trained with"
            )
        self.model = model.eval()
        self.name = name
        self._tokenizer = tokenizer

    @classmethod
    def load(
        cls, name: str | Path, *, device: str = "auto", dtype: str = "auto", revision: str | None = None
    ) -> LanguageModel:
        """Read a model folder, a run's model, or a hub model `owner/name` (at a branch, tag or commit).

        device: auto (CUDA, then MPS, then CPU), cuda, cuda:1, mps, cpu. dtype of the weights: auto (bfloat16 where
        the device is fast at it), bfloat16, float32.
        Errors: InputError if the model is not found or its files do not fit together; RecipeError for the device.
        """
        here = place(device, dtype)
        folder = find_folder(name, revision)
        model = load_model(folder, dtype=here.dtype).to(here.device)
        has_tokenizer = any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model"))
        return cls(model, Tokenizer.load(folder) if has_tokenizer else None, str(name))

    @property
    def config(self) -> ModelConfig:
        """The model's shapes."""
        return self.model.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer. Error: InputError if the folder held none."""
        if self._tokenizer is None:
            raise InputError(
                f"{self.name} holds neither tokenizer.json nor tokenizer.model, so text cannot be read; copy the"
                " tokenizer the model was trained with into the folder (token ids work without)"
            )
        return self._tokenizer

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.head_weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        return self.model.head_weight.dtype

    def __repr__(self) -> str:
        size = sum(weight.numel() for weight in self.model.parameters())
        return f"LanguageModel({self.name!r}: {size:,} parameters, {dtype_name(self.dtype)} on {self.device})"

    @torch.no_grad()
    def __call__(
        self, ids: Sequence[int] | Sequence[Sequence[int]] | npt.NDArray[Any] | Tensor, attention_mask: Any = None
    ) -> Tensor:
        """Float32 logits of the next token: (T, V) for ids (T,), (B, T, V) for ids (B, T).

        attention_mask (B, T): false where a position is padding. Errors: InputError for ids that are ragged, empty,
        outside the vocabulary or longer than the context.
        """
        rows = as_rows(ids, self.config.vocab_size, self.config.max_position_embeddings)  # (B, T)
        mask = None if attention_mask is None else torch.as_tensor(attention_mask, device=self.device).view(rows.shape)
        logits = self.model(rows.to(self.device), attention_mask=mask).float()  # (B, T, V)
        return logits[0] if np.ndim(ids) == 1 else logits  # type: ignore[no-any-return]

    @overload
    def generate(self, text: str, *, stream: Literal[False] = False, **choices: Unpack[Choices]) -> str: ...
    @overload
    def generate(self, text: str, *, stream: Literal[True], **choices: Unpack[Choices]) -> Iterator[str]: ...
    @overload
    def generate(
        self, text: list[str] | tuple[str, ...], *, stream: Literal[False] = False, **choices: Unpack[Choices]
    ) -> list[str]: ...
    @overload
    def generate(
        self, text: list[str] | tuple[str, ...], *, stream: Literal[True], **choices: Unpack[Choices]
    ) -> Iterator[tuple[int, str]]: ...
    def generate(
        self, text: str | list[str] | tuple[str, ...], *, stream: bool = False, **choices: Unpack[Choices]
    ) -> str | list[str] | Iterator[str] | Iterator[tuple[int, str]]:
        """Continue a text, or each text of a list; the prompt is not repeated in the answer.

        stream: give pieces of text as they come (for a list: pairs of a text's index and a piece).
        max_new_tokens (128), temperature (0.8; 0 = the likeliest token), top_k (0 = all), top_p (0.95),
        repetition_penalty (1 = none), seed (0; same seed, same text): see mobillama.model.sampling.
        stop: a string or several; the text ends before the one that is complete first.
        bos: put the tokenizer's <s> in front (the MobiLlama base models never saw it in training).
        batch_size (16): texts computed at once; it changes speed and memory only.
        A text that ends because the context is full gives a ContextWarning; `complete` tells how each text ended.
        """
        single = isinstance(text, str)
        running = TextStream(self, [text] if isinstance(text, str) else text, choices)
        if stream:
            return (piece for _, piece in running) if single else running
        texts = [completion.text for completion in running.finish()]
        return texts[0] if single else texts

    def complete(self, texts: Sequence[str], **choices: Unpack[Choices]) -> list[Completion]:
        """As `generate` for a list, with the ids of each text and why it ended."""
        return TextStream(self, texts, choices).finish()


class TextStream(Iterator[tuple[int, str]]):
    """Running generation of several texts: pairs of a text's index and the next piece of it, never empty."""

    def __init__(self, owner: LanguageModel, prompts: Sequence[str], choices: Choices) -> None:
        """All is checked here, before the first token. Errors: InputError; TypeError for a choice there is not."""
        rest: dict[str, Any] = dict(choices)
        stops, bos, size = rest.pop("stop", ()), rest.pop("bos", False), rest.pop("batch_size", 16)
        tokenizer = owner.tokenizer
        if bos and tokenizer.bos_id is None:
            raise InputError("bos=True, but the tokenizer has no <s>; leave it out")
        if size < 1:
            raise InputError(f"batch_size={size}; expected 1 or more")
        settings = Settings(eos_id=tokenizer.eos_id, num_ids=tokenizer.vocab_size, **rest)
        self._texts = [_Text(tokenizer, prompt, StopFilter(stops)) for prompt in prompts]
        first = [tokenizer.bos_id] if bos and tokenizer.bos_id is not None else []
        ids = [first + text.prompt_ids for text in self._texts]
        self._context = owner.config.max_position_embeddings
        self._runs = [
            (start, Generation(owner.model, ids[start : start + size], settings))
            for start in range(0, max(len(ids), 1), size)
        ]
        self._pieces = self._generate()

    def __next__(self) -> tuple[int, str]:
        return next(self._pieces)

    def finish(self) -> list[Completion]:
        """Generate all that is left; every text with its ids and its ending."""
        for _ in self:
            pass
        return [
            Completion(text.prompt, "".join(text.shown), tuple(text.ids), ending)
            for text, ending in zip(self._texts, self._endings(), strict=True)
            if ending is not None
        ]

    def _endings(self) -> list[Ending | None]:
        return [ending for _, running in self._runs for ending in running.endings]

    def _generate(self) -> Iterator[tuple[int, str]]:
        for start, running in self._runs:
            texts = self._texts[start : start + len(running.endings)]
            for step in running:
                for index, token in enumerate(step):
                    if token is None:
                        continue
                    if piece := texts[index].push(token):
                        yield start + index, piece
                    if texts[index].stops.stopped:
                        running.end(index)
            for index, text in enumerate(texts):
                if piece := text.flush():
                    yield start + index, piece
        self._warn()

    def _warn(self) -> None:
        full = [index for index, ending in enumerate(self._endings()) if ending == "context"]
        if full:
            which = "the text" if len(self._texts) == 1 else f"texts {', '.join(map(str, full))}"
            warnings.warn(
                f"{which} ended because prompt and answer fill the model's context of {self._context} tokens",
                ContextWarning,
                stacklevel=4,
            )


class _Text:
    """One text as it grows: ids to characters, less what the stop strings hold back."""

    def __init__(self, tokenizer: Tokenizer, prompt: str, stops: StopFilter) -> None:
        self.prompt = prompt
        self.prompt_ids = tokenizer.encode(prompt)
        self.stops = stops
        self.ids: list[int] = []
        self.shown: list[str] = []
        self._decoder = tokenizer.stream()
        for token in self.prompt_ids:  # so that a space between prompt and answer is kept
            self._decoder.push(token)

    def push(self, token: int) -> str:
        """Add an id; the text that can be shown now."""
        self.ids.append(token)
        return self._show(self.stops.push(self._decoder.push(token)))

    def flush(self) -> str:
        """The text still held back, at the end."""
        return self._show("" if self.stops.stopped else self.stops.push(self._decoder.flush()) + self.stops.flush())

    def _show(self, piece: str) -> str:
        if piece:
            self.shown.append(piece)
        return piece


def load(name: str | Path, *, device: str = "auto", dtype: str = "auto", revision: str | None = None) -> LanguageModel:
    """Read a model with its tokenizer: a folder, a run, or a hub name; see LanguageModel.load.

    >>> model = load(model_folder, device="cpu")
    >>> isinstance(model.generate("import ", max_new_tokens=3), str)
    True
    """
    return LanguageModel.load(name, device=device, dtype=dtype, revision=revision)
