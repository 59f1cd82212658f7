"""Generation of tokens: cached equals uncached, batched equals alone, and it ends where it should."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mobillama.config import ModelConfig
from mobillama.errors import InputError
from mobillama.generation.sampling import Settings, choose
from mobillama.model.generate import generate
from mobillama.model.initialise import build_model
from mobillama.model.transformer import Transformer

V = 97
CONTEXT = 48
PROMPTS = [[5], [1, 2, 3, 4, 5, 6, 7, 8, 9], [11, 12, 13], [20, 21, 22, 23, 24]]
SAMPLED = Settings(max_new_tokens=12, temperature=1.0, top_k=40, top_p=0.9, repetition_penalty=1.2, seed=3)
GREEDY = Settings(max_new_tokens=12, temperature=0.0)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model() -> Transformer:
    config = ModelConfig(
        vocab_size=V,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,  # far from uniform, so that a wrong position or mask changes the text
    )
    return build_model(config, seed=1)


def run(model: Transformer, prompts: list[list[int]], settings: Settings) -> list[list[int]]:
    texts: list[list[int]] = [[] for _ in prompts]
    for step in generate(model, prompts, settings):
        for text, token in zip(texts, step, strict=True):
            if token is not None:
                text.append(token)
    return texts


def run_without_cache(model: Transformer, prompt: list[int], settings: Settings) -> list[int]:
    """The definition: the whole sequence is read again for every token."""
    sequence = list(prompt)
    while len(sequence) < len(prompt) + settings.max_new_tokens:
        with torch.no_grad():
            logits = model(torch.tensor([sequence]))[0, -1].numpy()
        seen = np.isin(np.arange(V), sequence)
        sequence.append(choose(logits, seen, settings, len(sequence)))
    return sequence[len(prompt) :]


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_cached_equals_reading_everything_again(model: Transformer, settings: Settings) -> None:
    for prompt in PROMPTS:
        assert run(model, [prompt], settings) == [run_without_cache(model, prompt, settings)]


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_sequence_in_a_batch_equals_itself_alone(model: Transformer, settings: Settings) -> None:
    alone = [run(model, [prompt], settings)[0] for prompt in PROMPTS]
    assert run(model, PROMPTS, settings) == alone
    assert run(model, PROMPTS[::-1], settings) == alone[::-1]
    assert len({tuple(text) for text in alone}) == len(PROMPTS)


def test_same_seed_same_text_other_seed_other_text(model: Transformer) -> None:
    first, again = run(model, PROMPTS, SAMPLED), run(model, PROMPTS, SAMPLED)
    torch.manual_seed(99)
    np.random.seed(99)
    other = run(model, PROMPTS, Settings(max_new_tokens=12, temperature=1.0, seed=4))
    assert first == again
    assert other != first


def test_text_made_in_two_halves_equals_text_made_at_once(model: Transformer) -> None:
    settings = Settings(max_new_tokens=6, temperature=1.0, seed=3)
    first = run(model, [PROMPTS[1]], settings)[0]
    second = run(model, [PROMPTS[1] + first], settings)[0]
    assert [first + second] == run(model, [PROMPTS[1]], Settings(max_new_tokens=12, temperature=1.0, seed=3))


@pytest.mark.parametrize("places", [[4], [4, 2]])
def test_any_end_id_ends_one_sequence_and_is_not_returned(model: Transformer, places: list[int]) -> None:
    free = run(model, PROMPTS, GREEDY)
    ends = frozenset(free[1][place] for place in places)
    ended = generate(model, PROMPTS, Settings(max_new_tokens=12, temperature=0.0, end_ids=ends))
    steps = list(ended)
    for index, text in enumerate(free):
        cut = next((place for place, id_ in enumerate(text) if id_ in ends), len(text))
        assert [step[index] for step in steps if step[index] is not None] == text[:cut]
        assert ended.endings[index] == ("eos" if cut < len(text) else "length")
    assert ended.endings.count("eos") in range(1, len(PROMPTS))


def test_a_sequence_that_ended_changes_nothing_for_the_others(model: Transformer) -> None:
    free = run(model, PROMPTS, SAMPLED)
    running = generate(model, PROMPTS, SAMPLED)
    texts: list[list[int]] = [[] for _ in PROMPTS]
    for number, step in enumerate(running):
        for text, token in zip(texts, step, strict=True):
            if token is not None:
                text.append(token)
        if number == 2:
            running.end(1)
    assert texts == [free[0], free[1][:3], free[2], free[3]]
    assert running.endings == ["length", "stop", "length", "length"]


def test_generation_stops_at_the_end_of_the_context_and_says_so(model: Transformer) -> None:
    prompts = [[7] * (CONTEXT - 3), [8, 9], [6] * CONTEXT]
    running = generate(model, prompts, Settings(max_new_tokens=20, temperature=0.0))
    steps = list(running)
    assert [sum(step[index] is not None for step in steps) for index in range(3)] == [3, 20, 0]
    assert running.endings == ["context", "length", "context"]
    assert [[step[1] for step in steps]] == run(model, [[8, 9]], Settings(max_new_tokens=20, temperature=0.0))


def test_only_one_position_a_sequence_is_computed_after_the_prompt(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes, caches = [], set()
    forward = Transformer.forward

    def watched(self: Transformer, ids: torch.Tensor, **rest: object) -> torch.Tensor:
        shapes.append(tuple(ids.shape))
        caches.add(rest["cache"].layers[0].keys.data_ptr())  # type: ignore[attr-defined]
        assert rest["last_only"]
        return forward(self, ids, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Transformer, "forward", watched)
    run(model, PROMPTS, GREEDY)
    assert shapes == [(4, 9)] + [(4, 1)] * 11
    assert len(caches) == 1  # the cache is made once


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "no prompt"),
        ([[1], []], "prompt 1 is empty"),
        ([[1] * (CONTEXT + 1)], f"has {CONTEXT + 1} tokens.*holds {CONTEXT}: shorten"),
        ([[1, V]], f"holds the id {V}.*ids 0 to {V - 1}"),
        ([[-1]], "holds the id -1"),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_an_error(
    model: Transformer, prompts: list[list[int]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        generate(model, prompts, GREEDY)


def test_damaged_weights_are_named_instead_of_text(model: Transformer) -> None:
    broken = build_model(model.config, seed=1)
    with torch.no_grad():
        broken.norm.weight[0] = float("nan")
    with pytest.raises(InputError, match="weights are damaged"):
        run(broken, [[1]], GREEDY)


def test_bfloat16_weights_give_text(model: Transformer) -> None:
    narrow = build_model(model.config, seed=1).to(torch.bfloat16)
    assert [len(text) for text in run(narrow, PROMPTS, SAMPLED)] == [12] * 4
