"""Text from the engine: what torch gives, alone and together, streamed or not, with guesses or without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mobillama
from mobillama.errors import InputError
from mobillama.generation.text import ContextWarning
from mobillama.language_model import LanguageModel
from mobillama.runtime import generate
from mobillama.runtime.engine import Context
from mobillama.runtime.engine_model import EngineModel

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = ["def ", "import os\n", "for name in names:\n    print(name)", "import os\nimport sys\nimport json\n"]
CHOICES = [
    {"temperature": 0.0},
    {"seed": 3, "temperature": 1.2, "top_p": 1.0},
    {"seed": 5, "top_k": 40, "repetition_penalty": 1.3},
]


@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_text_equals_torchs(model: EngineModel, torch_model: LanguageModel, choices: dict[str, float]) -> None:
    expected = torch_model.complete(PROMPTS, max_new_tokens=30, **choices)  # type: ignore[arg-type]
    assert model.complete(PROMPTS, max_new_tokens=30, **choices) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("choices", CHOICES, ids=str)
@pytest.mark.parametrize("kv", ["f16", "int8"])
def test_a_text_is_the_same_alone_beside_others_streamed_and_with_guesses(
    file: Path, choices: dict[str, float], kv: str
) -> None:
    with EngineModel.load(file, kv=kv, threads=1) as model:  # type: ignore[arg-type]
        alone = [model.generate(prompt, max_new_tokens=40, **choices) for prompt in PROMPTS]  # type: ignore[call-overload]
        for size in (2, 16):
            assert model.generate(PROMPTS, max_new_tokens=40, batch_size=size, **choices) == alone  # type: ignore[call-overload]
        for lookup in (1, 7):
            assert model.generate(PROMPTS, max_new_tokens=40, lookup=lookup, **choices) == alone  # type: ignore[call-overload]
        streamed = [""] * len(PROMPTS)
        for index, piece in model.generate(PROMPTS, stream=True, max_new_tokens=40, **choices):  # type: ignore[call-overload]
            assert piece
            streamed[index] += piece
        assert streamed == alone


def test_guesses_save_calls_and_some_are_wrong(model: EngineModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    rewinds: list[int] = []
    verify, rewind, decode = Context.verify, Context.rewind, Context.decode
    monkeypatch.setattr(Context, "verify", lambda self, ids, seq: (calls.append(len(ids)), verify(self, ids, seq))[1])
    monkeypatch.setattr(Context, "decode", lambda self, ids, seqs: (calls.append(1), decode(self, ids, seqs))[1])

    def watched(self: Context, n: int, sequence: int) -> None:
        rewinds.append(self.length(sequence) - n)
        rewind(self, n, sequence)

    monkeypatch.setattr(Context, "rewind", watched)
    prompt = "a b c d e " * 4
    (answer,) = model.complete([prompt], max_new_tokens=80, temperature=0.0, lookup=8)
    assert len(answer.ids) == 80
    assert len(calls) < 79, "fewer calls than ids"
    assert max(rewinds) > 0
    assert max(calls) == 9


def test_prompts_that_begin_alike_are_computed_once(model: EngineModel, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    prefill = Context.prefill
    monkeypatch.setattr(
        Context, "prefill", lambda self, ids, seq: (computed.append(len(ids)), prefill(self, ids, seq))[1]
    )
    begin = "import os\nimport sys\nimport json\nimport shutil\n"
    prompts = [begin + "def ", begin + "class ", begin + "def ", "x"]
    texts = model.generate(prompts, max_new_tokens=20, seed=1)
    sizes = [len(model.tokenizer.encode(prompt)) for prompt in prompts]
    assert computed[0] == sizes[0]
    assert computed[1] < 8 < sizes[1]
    assert computed[2:] == [1, sizes[3]]
    assert texts == [model.generate(prompt, max_new_tokens=20, seed=1) for prompt in prompts]


@pytest.mark.parametrize("lookup", [0, 5])
def test_it_ends_where_torch_ends(model: EngineModel, torch_model: LanguageModel, lookup: int) -> None:
    prompt = "a b c " * 25
    assert 64 < len(model.tokenizer.encode(prompt)) < 128
    with pytest.warns(ContextWarning, match="context of 128 tokens"):
        (ended,) = model.complete([prompt], max_new_tokens=100, seed=2, lookup=lookup)
    with pytest.warns(ContextWarning, match="context of 128 tokens"):
        assert torch_model.complete([prompt], max_new_tokens=100, seed=2) == [ended]
    assert ended.ending == "context"
    assert len(ended.ids) == 128 - len(model.tokenizer.encode(prompt))
    (free,) = model.complete(["def "], max_new_tokens=40, seed=1, lookup=lookup)
    (cut,) = model.complete(["def "], max_new_tokens=40, seed=1, lookup=lookup, stop=free.text[8:11])
    assert (cut.ending, cut.text) == ("stop", free.text[: free.text.index(free.text[8:11])])
    assert free.ending == "length"


@pytest.mark.parametrize("lookup", [0, 5])
def test_the_end_of_text_id_ends_a_text(model: EngineModel, monkeypatch: pytest.MonkeyPatch, lookup: int) -> None:
    (free,) = model.complete(["a b a b a b "], max_new_tokens=30, temperature=0.0)
    end = free.ids[11]
    monkeypatch.setattr(model.tokenizer, "end_ids", frozenset((end, 2)))
    (ended,) = model.complete(["a b a b a b "], max_new_tokens=30, temperature=0.0, lookup=lookup)
    assert (ended.ids, ended.ending) == (free.ids[: free.ids.index(end)], "eos")


def test_two_streams_run_side_by_side(model: EngineModel) -> None:
    first, second = (model.generate("def ", stream=True, max_new_tokens=20, seed=seed) for seed in (1, 2))
    pieces = [(next(first), next(second)) for _ in range(5)]
    for seed, place, rest in ((1, 0, first), (2, 1, second)):
        text = "".join(pair[place] for pair in pieces) + "".join(rest)
        assert text == model.generate("def ", max_new_tokens=20, seed=seed)


@pytest.mark.parametrize(
    ("texts", "choices", "message"),
    [
        ([""], {}, r"prompt 0 is empty.*bos=True"),
        (["a", "word " * 200], {}, r"prompt 1 has \d+ tokens; the model's context holds 128"),
        (["a"], {"lookup": 64}, r"lookup=64; expected 0 .* to 63"),
        (["a"], {"lookup": -1}, r"lookup=-1"),
        (["a"], {"batch_size": 0}, r"batch_size=0"),
    ],
)
def test_what_cannot_be_continued_is_an_error_before_anything_is_computed(
    model: EngineModel, texts: list[str], choices: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        model.generate(texts, stream=True, **choices)  # type: ignore[call-overload]


def test_lookup_is_a_choice_of_the_engine_alone(torch_model: LanguageModel, model: EngineModel) -> None:
    with pytest.raises(TypeError, match="lookup"):
        torch_model.generate("a", lookup=3)
    with pytest.raises(TypeError, match="temprature"):
        model.generate("a", temprature=1.0)  # type: ignore[call-overload]


def test_a_repeat_is_continued_in_a_circle() -> None:
    for ids, most, expected in (
        ([9, 9, 9, 9], 5, [9] * 5),
        ([1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3], 2, [8, 1]),
        ([5, 1, 2, 8, 1, 2], 3, [8, 1, 2]),
        ([1, 2, 3], 4, []),
        ([1], 4, []),
    ):
        assert generate.find_repeat(np.array(ids, np.int32), most).tolist() == expected


def test_load_takes_files_and_folders_and_refuses_the_others_options(file: Path, folder: Path) -> None:
    with mobillama.load(file, threads=1) as loaded:
        assert isinstance(loaded, EngineModel)
        assert "f16 keys and values" in repr(loaded)
        assert loaded.tokenizer.vocab_size == 512
    for name, options in ((file, {"device": "cpu"}), (folder, {"threads": 1})):
        with pytest.raises(InputError, match=r"was given, but .* expected only"):
            mobillama.load(name, **options)  # type: ignore[call-overload]
