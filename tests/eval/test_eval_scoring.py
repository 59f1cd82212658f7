"""Oracle: log-probabilities of trees = of every request alone, for every scorer, however requests share and are cut."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.model.twins import llama_twin, new_seed, tiny_model

from mobillama.errors import InputError
from mobillama.eval import torch_scorer
from mobillama.eval.engine_scorer import EngineScorer
from mobillama.eval.plain_scorer import PlainScorer
from mobillama.eval.scoring import SHARED, Request, Scorer, computed_tokens, grow
from mobillama.eval.torch_scorer import TorchScorer
from mobillama.eval.transformers_scorer import TransformersScorer
from mobillama.export.gguf_file import quantize_model
from mobillama.model.transformer import Transformer
from mobillama.model.weights import save_model
from mobillama.runtime.engine_model import EngineModel

pytestmark = pytest.mark.usefixtures("one_thread")
VOCABULARY = 53


def random_requests(seed: int, context: int = 64) -> list[Request]:
    """Requests that share beginnings in every way: none, a little, a lot, all, one inside another, some twice."""
    rng = random.Random(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(VOCABULARY) for _ in range(count))

    shots = ids(20)
    requests = [Request(ids(2), 1), Request(ids(context + 1), 3), Request(ids(5), 4)]
    for _ in range(4):
        question = shots + ids(rng.randint(1, 12))
        requests += [Request(question + ids(1), 1) for _ in range(4)]
        requests += [Request(question + ids(size), size) for size in (2, 5, 9)]
        requests.append(Request(question, 3))
        requests.append(Request(shots[:15] + ids(3), 2))
        requests.append(Request(shots[: SHARED - 1] + ids(9), 2))
    requests += [requests[5], requests[7]]
    rng.shuffle(requests)
    return requests


def plain(model: Transformer) -> PlainScorer:
    def logits(ids: list[int]) -> Any:
        with torch.no_grad():
            return model(torch.tensor([ids]))[0].double().numpy()

    return PlainScorer(logits, model.config.vocab_size, model.config.max_position_embeddings)


def check_equal(scorer: Scorer, oracle: Scorer, requests: list[Request], atol: float) -> None:
    for one, other, request in zip(scorer.score(requests), oracle.score(requests), requests, strict=True):
        np.testing.assert_allclose(one.log_probs, other.log_probs, atol=atol)
        assert len(one.log_probs) == request.scored
        if atol < 1e-3:
            assert one.greedy == other.greedy


@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 2, "num_ffn_blocks": 3}], ids=["mha", "gqa"])
@pytest.mark.parametrize(("budget", "pack"), [(16384, 256), (40, 8), (1, 1)])
def test_our_transformer_scores_trees_as_requests_alone(
    changes: dict[str, int], budget: int, pack: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = new_seed()
    model = tiny_model(seed, **changes)
    monkeypatch.setattr(torch_scorer, "PACK", pack)
    monkeypatch.setattr(torch_scorer, "HEAD_ROWS", 7)
    check_equal(TorchScorer(model, budget=budget), plain(model), random_requests(seed), 1e-4)


@pytest.mark.parametrize("budget", [8192, 100, 1])
def test_a_model_of_transformers_scores_trees_as_requests_alone(budget: int) -> None:
    seed = new_seed()
    model = tiny_model(seed, num_key_value_heads=2)
    scorer = TransformersScorer(llama_twin(model), budget=budget)
    check_equal(scorer, plain(model), random_requests(seed), 1e-4)


def test_the_engine_scores_trees_as_torch_does(tmp_path: Path) -> None:
    seed = new_seed()
    model = tiny_model(seed, hidden_size=64, intermediate_size=64)
    save_model(tmp_path / "model", model, model.config)
    quantize_model(str(tmp_path / "model"), tmp_path / "model.gguf", "f32")
    with EngineModel.load(tmp_path / "model.gguf", threads=1, kv="f32") as opened:
        requests = random_requests(seed)
        check_equal(EngineScorer(opened), plain(model), requests, 0.1)  # the engine rounds what goes into a product
        oracle = PlainScorer(opened, VOCABULARY, model.config.max_position_embeddings)
        check_equal(EngineScorer(opened), oracle, requests, 1e-6)


def test_what_is_shared_is_computed_once() -> None:
    shots, questions, choices = tuple(range(30)), [(n, 40) * 6 for n in range(10)], [50, 51, 52]
    letters = [Request(shots + question + (choice,), 1) for question in questions for choice in choices]
    starts = list(itertools.accumulate((request.scored for request in letters), initial=0))
    assert computed_tokens(grow(letters, starts)) == 30 + 10 * 12
    long = [Request(shots + question + (choice,) * 9, 9) for question in questions for choice in choices]
    starts = list(itertools.accumulate((request.scored for request in long), initial=0))
    assert computed_tokens(grow(long, starts)) == 30 + 10 * (12 + 3 * 8)


def test_a_batch_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    seed = new_seed()
    model = tiny_model(seed)
    oracle = plain(model)
    embed, sizes = model.embed_tokens.forward, []

    def short_of_memory(ids: torch.Tensor) -> torch.Tensor:
        sizes.append(ids.shape[1])
        if ids.shape[1] > 70:
            raise torch.OutOfMemoryError("no more")
        return embed(ids)

    requests = random_requests(seed)
    expected = oracle.score(requests)
    monkeypatch.setattr(model.embed_tokens, "forward", short_of_memory)
    scorer = TorchScorer(model)
    for one, other in zip(scorer.score(requests), expected, strict=True):
        np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-4)
    assert max(sizes) > 70
    assert scorer.budget < torch_scorer.BUDGET
    monkeypatch.setattr(
        model.embed_tokens, "forward", lambda ids: (_ for _ in ()).throw(torch.OutOfMemoryError("none"))
    )
    with pytest.raises(torch.OutOfMemoryError):
        scorer.score(requests)


def test_scoring_leaves_the_model_as_it_was() -> None:
    model = tiny_model(3)
    before = [layer.self_attn.attend for layer in model.layers]
    TorchScorer(model).score([Request((1, 2, 3), 2)])
    assert [layer.self_attn.attend for layer in model.layers] == before


@pytest.mark.slow
def test_sharing_adds_nothing_to_the_rounding_of_bfloat16() -> None:
    seed = new_seed()
    model = tiny_model(seed)
    requests = random_requests(seed)
    exact = np.concatenate([score.log_probs for score in plain(model).score(requests)])
    model.to(torch.bfloat16)
    alone = np.concatenate([score.log_probs for score in plain(model).score(requests)])
    shared = np.concatenate([score.log_probs for score in TorchScorer(model).score(requests)])
    assert 0 < np.abs(shared - exact).mean() < 1.5 * np.abs(alone - exact).mean()


def test_requests_that_cannot_be_scored_are_refused() -> None:
    scorer = TorchScorer(tiny_model(1))
    for request, words in [
        (Request((1,), 1), "at least one"),
        (Request((1, 2), 0), "at least one"),
        (Request((1,) * 66, 1), "holds 64"),
        (Request((1, 53), 1), "the id 53"),
        (Request((1, -1), 1), "the id -1"),
    ]:
        with pytest.raises(InputError, match=words):
            scorer.score([request])
    assert scorer.score([]) == []


def test_logits_that_are_not_numbers_are_an_error() -> None:
    model = tiny_model(1)
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    with pytest.raises(InputError, match="not numbers"):
        TorchScorer(model).score([Request((1, 2, 3), 1)])


@pytest.mark.parametrize("kind", ["torch", "transformers", "plain"])
def test_continuing_gives_the_likeliest_ids_until_stopped(kind: str) -> None:
    from mobillama.generation.sampling import Settings

    model = tiny_model(5)
    scorer: Scorer = {
        "torch": lambda: TorchScorer(model),
        "transformers": lambda: TransformersScorer(llama_twin(model)),
        "plain": lambda: plain(model),
    }[kind]()
    settings = Settings(max_new_tokens=9, temperature=0.0)
    (whole,) = scorer.continue_ids([[3, 4, 5]], settings, lambda index, ids: False)
    assert whole == plain(model).continue_ids([[3, 4, 5]], settings, lambda index, ids: False)[0]
    assert len(whole) == 9
    (short,) = scorer.continue_ids([[3, 4, 5]], settings, lambda index, ids: len(ids) == 4)
    assert short == whole[:4]
