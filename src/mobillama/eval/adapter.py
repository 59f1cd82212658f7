"""The harness's model class over a scorer: every request kind, ids as its own HFLM makes them.

Contexts and continuations are encoded together and split, spaces at the end of a context belong to the continuation,
a prompt that is too long loses ids on the left, and an empty context becomes one id: all as
lm_eval.models.huggingface.HFLM does it, so that scores agree request by request. Whether <s> stands before a context
(`bos`) and which id an empty context becomes (`empty`) are explicit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from mobillama.errors import InputError
from mobillama.eval.scoring import Request, Scorer
from mobillama.generation.sampling import Settings

MAX_NEW = 256  # as HFLM
Empty = Literal["bos", "eos"]


class Encoder(Protocol):
    """Text to ids and back, no begin or end ids added."""

    @property
    def bos_id(self) -> int | None: ...
    @property
    def eos_id(self) -> int | None: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class Answer:
    """What one loglikelihood request gave."""

    log_likelihood: float
    greedy: bool  # every id of the continuation was the likeliest
    context_tokens: int  # before cutting
    continuation_tokens: int
    cut: bool  # the context lost ids on the left


Pair = tuple[list[int], list[int]]  # ids of a context and of a continuation


class Adapter(TemplateLM):  # type: ignore[misc]
    """What lm_eval asks of a model, answered by a scorer."""

    def __init__(
        self,
        scorer: Scorer,
        encoder: Encoder,
        *,
        bos: bool,
        empty: Empty | None = None,
        end_ids: Collection[int] = (),
    ) -> None:
        """bos: put <s> before every context. empty: what stands for no context; None = <s> if there is one (as HFLM).

        end_ids: ids that end a generated text beside the encoder's `eos_id`.
        Error: InputError if the tokenizer lacks an id that is asked for.
        """
        super().__init__()
        self.scorer, self.encoder, self.bos = scorer, encoder, bos
        self.end_ids = frozenset(end_ids) | ({encoder.eos_id} if encoder.eos_id is not None else set())
        if bos and encoder.bos_id is None:
            raise InputError("bos was asked for, but the tokenizer has no <s>; leave it out")
        self.empty: Empty = empty or ("eos" if encoder.bos_id is None else "bos")
        found = encoder.bos_id if self.empty == "bos" else encoder.eos_id
        if found is None:
            raise InputError(f"an empty context needs the tokenizer's {self.empty} id, which it does not have")
        self._prefix = found
        self._encode_context = lru_cache(4096)(self._encode)

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        if self.encoder.eos_id is None:
            raise InputError("the tokenizer has no end-of-text id, which this task needs")
        return self.encoder.eos_id

    @property
    def prefix_token_id(self) -> int:
        """The id that stands for an empty context."""
        return self._prefix

    @property
    def max_length(self) -> int:
        """Tokens of context."""
        return self.scorer.context_length

    @property
    def tokenizer_name(self) -> str:
        """For the harness's own cache, which is not used."""
        return "mobillama"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text, with <s> where `bos` says so and it is not forbidden."""
        return self._encode(string, self.bos if add_special_tokens is None else add_special_tokens)

    def _encode(self, text: str, bos: bool) -> list[int]:
        first = [self.encoder.bos_id] if bos and self.encoder.bos_id is not None else []
        return first + self.encoder.encode(text)

    def pair(self, context: str, continuation: str) -> Pair:
        """Ids of a context and its continuation. Error: InputError if the continuation has none of its own."""
        if context == "":
            after = self._encode(continuation, False)
            before = [self._prefix]
            if after[:1] == before:  # the continuation brings the id along
                before, after = after[:1], after[1:]
        else:
            kept = context.rstrip()
            whole = self._encode(context + continuation, self.bos)
            before = self._encode_context(kept, self.bos)
            after = whole[len(before) :]
            before = before or [self._prefix]
        if not after:
            raise InputError(f"the continuation {continuation!r} of {context[-40:]!r} has no token of its own to score")
        return before, after

    def answer(self, pairs: Iterable[Pair]) -> list[Answer]:
        """Score continuations; contexts lose ids on the left where both do not fit."""
        pairs = list(pairs)
        requests = []
        for before, after in pairs:
            if len(after) > self.max_length:
                raise InputError(
                    f"a continuation has {len(after)} tokens; the model's context holds {self.max_length}: the task"
                    " is not for this model"
                )
            requests.append(Request(tuple((before + after)[-(self.max_length + 1) :]), len(after)))
        return [
            Answer(score.total, score.greedy, len(before), len(after), len(before) + len(after) > self.max_length + 1)
            for (before, after), score in zip(pairs, self.scorer.score(requests), strict=True)
        ]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood, greedy) of each request's continuation given its context."""
        found = self.answer(self.pair(*request.args[:2]) for request in requests)
        return [(one.log_likelihood, one.greedy) for one in found]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        return [(one.log_likelihood, one.greedy) for one in self.answer((pair[1], pair[2]) for pair in requests)]

    def roll(self, text: str) -> list[Pair]:
        """A text as windows that are scored end to end, each id once, as HFLM cuts it."""
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self._prefix,
            max_seq_len=self.max_length,
            context_len=1,
        )
        return [make_disjoint_window(window) for window in windows]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text."""
        windows = [self.roll(request.args[0]) for request in requests]
        scores = iter(self.answer(pair for pairs in windows for pair in pairs))
        return [sum(next(scores).log_likelihood for _ in pairs) for pairs in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text that follows each context, up to a stop string, the end of text or the most tokens."""
        repeats: dict[str, int] = {}
        return [self._generate(request.args[0], request.args[1], repeats) for request in requests]

    def _generate(self, context: str, wanted: dict[str, Any], repeats: dict[str, int]) -> str:
        kwargs = dict(normalize_gen_kwargs(wanted, MAX_NEW))
        stops = [stop for stop in handle_stop_sequences(kwargs.pop("until"), eos=None) if stop]
        most = int(kwargs.pop("max_gen_toks"))
        sampled = bool(kwargs.pop("do_sample"))
        temperature = float(kwargs.pop("temperature", 0.0 if not sampled else 1.0))
        shape = {name: kwargs.pop(name) for name in ("top_k", "top_p", "repetition_penalty") if name in kwargs}
        if kwargs:
            raise InputError(f"the task asks for {', '.join(sorted(kwargs))} in generation, which is not known here")
        room = self.max_length - most
        if room < 1:
            raise InputError(
                f"the task generates {most} tokens; the model's context holds {self.max_length}: no room for a prompt"
            )
        again = repeats.get(context, 0)  # the same context once more: another sample
        repeats[context] = again + 1
        settings = Settings(
            max_new_tokens=most,
            temperature=temperature if sampled else 0.0,
            seed=again,
            end_ids=self.end_ids,
            **{"top_p": 1.0, **shape},
        )
        prompt = (self.tok_encode(context) or [self._prefix])[-room:]

        def stopped(_: int, ids: Sequence[int]) -> bool:
            return any(stop in self.encoder.decode(ids) for stop in stops)

        (ids,) = self.scorer.continue_ids([prompt], settings, stopped)
        text: str = postprocess_generated_text(self.encoder.decode(ids), stops, None)
        return text
