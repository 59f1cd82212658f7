"""Text in, text out, whole or as it comes: what every model with a tokenizer shares, whatever computes its logits."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypedDict, Unpack, overload

from mobillama.errors import InputError
from mobillama.generation.sampling import Settings
from mobillama.generation.sequences import Ending, Generation
from mobillama.generation.stop import StopFilter
from mobillama.tokenizer.tokenizer import Tokenizer


class Choices(TypedDict, total=False):
    """How text is generated: the fields of mobillama.generation.sampling.Settings, and what belongs to text."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    seed: int
    stop: str | Sequence[str]
    bos: bool | None
    batch_size: int
    lookup: int  # of a model in the engine only


class ContextWarning(UserWarning):
    """Text was cut short because the model's context is full."""


@dataclass(frozen=True)
class Completion:
    """One prompt's continuation, and why it ended: eos, length (max_new_tokens), context (full) or stop (string)."""

    prompt: str
    text: str
    ids: tuple[int, ...]
    ending: Ending


class TextModel(ABC):
    """A model with a tokenizer; a subclass says how ids are continued."""

    OWN_CHOICES: ClassVar[frozenset[str]] = frozenset()  # names of choices that `_continue` takes beside Settings

    @property
    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """The tokenizer. Error: InputError if there is none."""

    @property
    def end_ids(self) -> frozenset[int]:
        """The ids any of which ends a text."""
        return self.tokenizer.end_ids

    @abstractmethod
    def _continue(self, prompts: Sequence[Sequence[int]], settings: Settings, own: Mapping[str, Any]) -> Generation:
        """Begin to continue prompts of ids; nothing is computed before the first step."""

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
        repetition_penalty (1 = none), seed (0; same seed, same text): see mobillama.generation.sampling.
        stop: a string or several; the text ends before the one that is complete first.
        bos (None = as the tokenizer's own settings say): put its begin id, <s>, in front. The MobiLlama base models
        never saw it in training.
        batch_size (16): texts computed at once; it changes speed and memory only.
        lookup (0; of a model in the engine only): guess up to this many tokens from repeats in the text and check
        them at once; it changes speed only.
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

    def __init__(self, owner: TextModel, prompts: Sequence[str], choices: Choices) -> None:
        """All is checked here, before the first token. Errors: InputError; TypeError for a choice there is not."""
        rest: dict[str, Any] = dict(choices)
        stops, bos, size = rest.pop("stop", ()), rest.pop("bos", None), rest.pop("batch_size", 16)
        tokenizer = owner.tokenizer
        if size < 1:
            raise InputError(f"batch_size={size}; expected 1 or more")
        own = {name: rest.pop(name) for name in sorted(owner.OWN_CHOICES & rest.keys())}
        settings = Settings(end_ids=owner.end_ids, num_ids=tokenizer.vocab_size, **rest)
        self._texts = [_Text(tokenizer, prompt, bos, StopFilter(stops)) for prompt in prompts]
        ids = [text.prompt_ids for text in self._texts]
        self._runs = [
            (start, owner._continue(ids[start : start + size], settings, own))
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
            context = self._runs[0][1].context_length
            warnings.warn(
                f"{which} ended because prompt and answer fill the model's context of {context} tokens",
                ContextWarning,
                stacklevel=4,
            )


class _Text:
    """One text as it grows: ids to characters, less what the stop strings hold back."""

    def __init__(self, tokenizer: Tokenizer, prompt: str, bos: bool | None, stops: StopFilter) -> None:
        self.prompt = prompt
        self.prompt_ids = tokenizer.encode_prompt(prompt, bos)
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
