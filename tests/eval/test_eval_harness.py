"""Oracle: request by request what lm_eval's HFLM gives in float32, and the same metrics; a plain scorer agrees too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.eval.rooms import cut_data, harness_model, model_with_llamas_vocabulary, save_folder
from tests.model.twins import new_seed

from mobillama.errors import InputError
from mobillama.eval.data import check_folders, stay_offline
from mobillama.eval.plain_scorer import PlainScorer
from mobillama.eval.suite import Benchmark, find_suite, read_suite, task_files
from mobillama.eval.torch_scorer import TorchScorer
from mobillama.model.transformer import Transformer
from mobillama.tokenizer.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
NARROW = {  # tasks that stand for their benchmark
    "mmlu": ("mmlu_anatomy", "mmlu_high_school_european_history"),
    "crows_pairs": ("crows_pairs_english_race_color",),
}
QUICK = ("piqa", "siqa", "crows_pairs", "winogrande")  # compared by default; the others are slow
# Items of each task in the slow tests; what many shots or long texts make dear is compared in full in the long ones.
ITEMS = {"hellaswag": 8, "arc_challenge": 6, "mmlu": 12, "truthfulqa": 25, "race": 12}
TOLERANCE = 1e-3  # nats a request, in float32: sums over up to 2,048 positions in another order


@dataclass
class Setting:
    """One model, its tokenizer and the folder of both, with cut-down data."""

    seed: int
    model: Transformer
    tokenizer: Tokenizer
    folder: Path
    data: Path


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, shared_folder: Callable[[str], Path]) -> Callable[..., Setting]:
    stay_offline()
    tokenizer = Tokenizer.load(shared_folder("MOBILLAMA_TOKENIZER"))
    benchmarks = shared_folder("MOBILLAMA_BENCHMARKS")

    def build(rows: int, context: int = 2048, names: Sequence[str] = ()) -> Setting:
        folder = tmp_path_factory.mktemp("eval")
        seed = new_seed()
        model = model_with_llamas_vocabulary(seed, context)
        save_folder(folder / "model", model, tokenizer)
        data = cut_data(benchmarks, folder / "data", rows, names or QUICK)
        return Setting(seed, model, tokenizer, folder / "model", data)

    return build


@pytest.fixture(scope="module")
def setting(make: Callable[..., Setting]) -> Setting:
    return make(rows=24)


def narrowed(benchmark: Benchmark) -> Benchmark:
    return benchmark.model_copy(update={"tasks": NARROW.get(benchmark.name, benchmark.tasks), "min_items": 0})


def compare(setting: Setting, benchmark: Benchmark, *, bos: bool, items: int, oracle: bool = False) -> int:
    """Compare some items of a benchmark's tasks; gives how many requests were cut."""
    from mobillama.eval.adapter import Adapter
    from mobillama.eval.tasks import build_items, choose, load_tasks, process

    own = task_files(find_suite("paper9"))
    loaded, _ = load_tasks(narrowed(benchmark), own, check_folders(setting.data, [benchmark.data or benchmark.name]))
    adapter = Adapter(TorchScorer(setting.model), setting.tokenizer, bos=bos)
    harness = harness_model(setting.model, setting.folder, bos=bos)
    cut = 0
    for one in loaded:
        built = build_items(one, 1234)
        chosen = [built[number] for number in choose(len(built), items, one.name, setting.seed)]
        instances = [instance for item in chosen for instance in item.instances]
        answers = adapter.answer([adapter.pair(*instance.args) for instance in instances])
        found = [(answer.log_likelihood, answer.greedy) for answer in answers]
        expected = harness.loglikelihood(instances, disable_tqdm=True)
        for mine, theirs in zip(found, expected, strict=True):
            assert abs(mine[0] - theirs[0]) < TOLERANCE
            assert mine[1] == theirs[1]
        if oracle:
            with torch.inference_mode():
                plain = PlainScorer(lambda ids: setting.model(torch.tensor([ids]))[0], 32000, adapter.max_length)
                alone = Adapter(plain, setting.tokenizer, bos=bos).loglikelihood(instances)
            for mine, other in zip(found, alone, strict=True):
                assert abs(mine[0] - other[0]) < TOLERANCE
                assert mine[1] == other[1]
        at = 0
        for item in chosen:
            end = at + len(item.instances)
            assert process(one, item, found[at:end]) == pytest.approx(process(one, item, expected[at:end]), abs=1e-3)
            at = end
        cut += sum(answer.cut for answer in answers)
    return cut


@pytest.mark.parametrize("name", QUICK)
def test_two_items_of_each_task_score_as_in_the_harness(setting: Setting, name: str) -> None:
    (benchmark,) = (one for one in read_suite("paper9").benchmarks if one.name == name)
    assert compare(setting, benchmark, bos=False, items=2) == 0


@pytest.mark.parametrize("name", ["crows_pairs", "piqa", "winogrande"])
def test_with_bos_and_empty_contexts_scores_are_the_harnesss(setting: Setting, name: str) -> None:
    (benchmark,) = (one for one in read_suite("paper9").benchmarks if one.name == name)
    compare(setting, benchmark, bos=True, items=3, oracle=True)


def test_prompts_cut_to_a_short_context_score_as_in_the_harness(make: Callable[..., Setting]) -> None:
    short = make(rows=8, context=96, names=("siqa", "winogrande"))
    for name, shots in (("siqa", 0), ("winogrande", 5)):
        (benchmark,) = (one for one in read_suite("paper9").benchmarks if one.name == name)
        cut = compare(short, benchmark, bos=name == "siqa", items=4, oracle=True)
        assert (cut > 0) == (shots > 0)


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", read_suite("paper9").benchmarks, ids=lambda one: one.name)
def test_many_items_score_as_in_the_harness(make: Callable[..., Setting], benchmark: Benchmark) -> None:
    many = make(rows=120, names=(benchmark.data or benchmark.name,))
    cut = compare(many, benchmark, bos=False, items=ITEMS.get(benchmark.name, 100))
    assert (cut > 0) == (benchmark.name == "mmlu")  # European history is longer than the context


@pytest.mark.long
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("benchmark", read_suite("paper9").benchmarks, ids=lambda one: one.name)
def test_a_hundred_items_score_as_in_the_harness(make: Callable[..., Setting], benchmark: Benchmark, bos: bool) -> None:
    compare(make(rows=120, names=(benchmark.data or benchmark.name,)), benchmark, bos=bos, items=100, oracle=not bos)


def test_rolling_text_and_generation_are_the_harnesss(make: Callable[..., Setting]) -> None:
    from lm_eval.api.instance import Instance

    from mobillama.eval.adapter import Adapter

    short = make(rows=1, context=64, names=("piqa",))
    texts = ["", "One.", "A text that is longer than the context of this model. " * 20]
    rolling = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts]
    generating = [
        Instance("generate_until", {}, (text, {"until": ["\n", "Ġ"], "max_gen_toks": 12}), 0) for text in texts[1:]
    ]
    for bos in (False, True):
        mine = Adapter(TorchScorer(short.model), short.tokenizer, bos=bos)
        harness = harness_model(short.model, short.folder, bos=bos)
        expected = harness.loglikelihood_rolling(rolling, disable_tqdm=True)
        assert mine.loglikelihood_rolling(rolling) == pytest.approx(expected, abs=TOLERANCE)
        assert mine.generate_until(generating) == harness.generate_until(generating, disable_tqdm=True)
    first = mine.generate_until([generating[0]])[0]
    stop = first[len(first) // 2 :][:3]
    stopping = Instance("generate_until", {}, (texts[1], {"until": [stop], "max_gen_toks": 12}), 0)
    assert mine.generate_until([stopping]) == [first.split(stop)[0]]
    with pytest.raises(InputError, match="no room for a prompt"):
        mine.generate_until([Instance("generate_until", {}, ("a", {"max_gen_toks": 64}), 0)])


def test_what_cannot_be_scored_is_said(setting: Setting) -> None:
    from mobillama.eval.adapter import Adapter

    mine = Adapter(TorchScorer(setting.model), setting.tokenizer, bos=False)
    with pytest.raises(InputError, match="no token of its own"):
        mine.pair("a", "")
    with pytest.raises(InputError, match="holds 2048"):
        mine.answer([([1], [5] * 2049)])
    assert mine.pair("", "a")[0] == [setting.tokenizer.bos_id]
    assert Adapter(mine.scorer, setting.tokenizer, bos=False, empty="eos").pair("", "a")[0] == [2]
    assert mine.pair(" ", "a")[0] == [setting.tokenizer.bos_id]  # nothing but a space: nothing to stand on

    class Bare:
        bos_id: Any = None
        eos_id: Any = None

    with pytest.raises(InputError, match="has no <s>"):
        Adapter(mine.scorer, Bare(), bos=True)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="empty context"):
        Adapter(mine.scorer, Bare(), bos=False)  # type: ignore[arg-type]
