"""Models and contexts: the C door from Python, its laws (fork, rewind, verify, batch, threads) and its errors."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mobillama.errors import DamagedFileError, EngineError, InputError
from mobillama.export.gguf_file import quantize_model
from mobillama.generation.sampling import Settings, choose
from mobillama.language_model import LanguageModel
from mobillama.runtime.engine import Engine
from mobillama.runtime.engine_model import EngineModel
from mobillama.runtime.sample import sample

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = [5, 300, 17, 42, 511, 0, 9, 9, 120, 33, 7]


@pytest.fixture(scope="module")
def engine(model: EngineModel) -> Engine:
    return model.engine


@pytest.fixture(scope="module")
def rows(model: EngineModel) -> np.ndarray:
    return model(IDS)


def test_a_file_says_what_it_holds(engine: Engine, file: Path) -> None:
    info = engine.info
    assert (info.vocab_size, info.hidden_size, info.intermediate_size, info.context_length) == (512, 64, 96, 128)
    assert (info.num_hidden_layers, info.num_ffn_blocks, info.head_dim) == (3, 1, 16)
    assert (info.num_attention_heads, info.num_key_value_heads) == (4, 2)
    assert info.file_bytes == file.stat().st_size
    assert info.unique_bytes_per_token < info.bytes_per_token
    assert info.isa in repr(engine)


def test_logits_are_those_of_torch(model: EngineModel, torch_model: LanguageModel, rows: np.ndarray) -> None:
    expected = torch_model(IDS).numpy()
    errors = np.linalg.norm(rows - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert errors.max() < 1e-5, errors  # float32 in another order of summation
    long = np.random.default_rng(1).integers(0, 512, 100)  # more than one call of verify
    assert np.abs(model(long) - torch_model(long).numpy()).max() < 1e-3


@pytest.mark.parametrize("kv", ["f32", "f16", "int8"])
def test_bits_do_not_depend_on_calls_threads_or_neighbours(engine: Engine, kv: str) -> None:
    others = [[1, 2, 3], [400] * 9, [7]]
    with (
        engine.context(kv=kv, threads=1) as alone,
        engine.context(kv=kv, threads=2, max_sequences=4) as together,
    ):
        alone.prefill(IDS)
        expected = alone.logits()
        for index, ids in enumerate([*others, IDS[:4]]):
            together.prefill(ids, index)
        for at in range(4, len(IDS)):
            together.decode([1, 2, IDS[at]], [0, 1, 3])
        assert np.array_equal(together.logits(2), expected)
        together.verify(IDS[:5], 2)  # behind the 7 that is there
        together.rewind(0, 2)
        together.verify(IDS, 2)
        assert np.array_equal(together.logits(len(IDS) - 1), expected)
        assert [together.length(index) for index in range(4)] == [10, 16, len(IDS), len(IDS)]


def test_a_fork_and_a_rewind_are_as_if_computed(engine: Engine, rows: np.ndarray) -> None:
    with engine.context(kv="f32", threads=1, max_sequences=2) as context:
        context.prefill(IDS)
        context.fork(0, 1, 6)
        assert context.length(1) == 6
        context.prefill(IDS[6:], 1)
        assert np.array_equal(context.logits(), rows[-1])
        context.rewind(3)
        context.prefill(IDS[3:6])
        assert np.array_equal(context.logits(), rows[5])
        context.fork(1, 0)
        assert context.length(0) == len(IDS)


@pytest.mark.parametrize("kv", ["f32", "f16", "int8"])
def test_a_sequence_that_outgrows_its_memory_is_as_if_it_had_had_it_from_the_start(engine: Engine, kv: str) -> None:
    ids = np.random.default_rng(2).integers(0, 512, 1100)

    def directly(n: int) -> np.ndarray:
        with engine.context(kv=kv, threads=1, max_tokens=n) as context:
            context.prefill(ids[:n])
            return context.logits()

    with engine.context(kv=kv, threads=2, max_tokens=1100, max_sequences=3) as context:
        for whole, then in ((500, 530), (1015, 1030)):  # memory is for 512, then for 1,024 tokens
            context.prefill(ids[context.length() : whole])
            for at in range(whole, then):
                context.decode([ids[at]])
            assert np.array_equal(context.logits(), directly(then))
        context.fork(0, 1, 1030)
        context.fork(0, 2, 20)
        context.rewind(700)
        context.prefill(ids[700:1030])
        context.decode([ids[1030], ids[1030], ids[20]], [0, 1, 2])
        for row, n in enumerate((1031, 1031, 21)):
            assert np.array_equal(context.logits(row), directly(n))
        context.fork(0, 2)  # into one that has memory, for fewer
        assert context.log_probs(ids[1031:], sequence=2).shape == (68,)
        assert context.length(2) == 1100


def test_log_probs_are_those_of_the_logits(engine: Engine, rows: np.ndarray, torch_model: LanguageModel) -> None:
    expected = torch.log_softmax(torch.from_numpy(rows).double(), -1).numpy()
    with engine.context(kv="f32", threads=1) as context:
        every = context.log_probs(IDS)
        assert context.length() == len(IDS)
        np.testing.assert_allclose(every, expected[np.arange(len(IDS) - 1), IDS[1:]], atol=1e-6)
        context.rewind(0)
        some = context.log_probs(IDS, [0, 4, 10], [3, 3, 511])
        np.testing.assert_allclose(some, expected[[0, 4, 10], [3, 3, 511]], atol=1e-6)


def test_logits_can_be_looked_at_without_a_copy(engine: Engine) -> None:
    with engine.context(threads=1) as context:
        context.prefill(IDS)
        view, copy = context.logits(copy=False), context.logits()
        assert np.array_equal(view, copy)
        context.prefill([1])
        assert not np.array_equal(context.logits(copy=False), copy)


@pytest.mark.parametrize(
    "settings",
    [Settings(temperature=0), Settings(seed=3), Settings(top_k=5, seed=2**64 - 1, repetition_penalty=1.4, num_ids=300)],
    ids=str,
)
def test_a_token_is_chosen_as_by_numpy(engine: Engine, rows: np.ndarray, settings: Settings) -> None:
    mask = np.isin(np.arange(512), IDS)
    expected = [choose(row, mask, settings, position) for position, row in enumerate(rows)]
    assert [sample(row, settings, at, np.array(IDS, np.int32)) for at, row in enumerate(rows)] == expected
    with engine.context(kv="f32", threads=1) as context:
        context.verify(IDS)
        assert [context.sample(settings, at, np.array(IDS, np.int32), at) for at in range(len(IDS))] == expected


def test_a_sampled_row_without_a_number_is_an_error() -> None:
    with pytest.raises(InputError, match="largest logit at position 4 is nan"):
        sample(np.full(9, np.nan, np.float32), Settings(), 4)


def test_progress_goes_from_0_to_1_and_its_error_comes_through(file: Path) -> None:
    shares: list[float] = []
    Engine.open(file, progress=shares.append).close()
    assert shares == sorted(shares)
    assert shares[-1] == 1.0

    def stop(_share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Engine.open(file, progress=stop)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda context: context.prefill([512]), "512"),
        (lambda context: context.prefill([-1]), "-1"),
        (lambda context: context.prefill([2**40]), "numbers below"),
        (lambda context: context.prefill([0.5]), "whole numbers"),
        (lambda context: context.prefill([[1, 2]]), "row of whole numbers"),
        (lambda context: context.prefill([1] * 129), "12[89]"),
        (lambda context: context.prefill([1], 2), "2"),
        (lambda context: context.decode([1, 2], [0]), "one id for each"),
        (lambda context: context.decode([1, 2], [0, 0]), "0"),
        (lambda context: context.verify([1] * 65), "65"),
        (lambda context: context.logits(1), "row 1"),
        (lambda context: context.length(2), "sequence 2"),
        (lambda context: context.rewind(5), "5"),
        (lambda context: context.fork(0, 1, 4), "4"),
        (lambda context: context.log_probs([1, 2], [1, 0], [5, 5]), "rising|0"),
        (lambda context: context.log_probs([1, 2], [0]), "both or neither"),
        (lambda context: context.log_probs([1, 2], [0], [1, 2]), "one for each"),
    ],
)
def test_what_does_not_fit_is_an_error_and_leaves_the_sequences_as_they_were(
    engine: Engine, call: object, message: str
) -> None:
    with engine.context(kv="f32", threads=1, max_sequences=2) as context:
        context.prefill([5, 6, 7])
        with pytest.raises(InputError, match=message):
            call(context)  # type: ignore[operator]
        assert [context.length(0), context.length(1)] == [3, 0]
        context.prefill([8])
        again = context.logits()
    with engine.context(kv="f32", threads=1) as context:
        context.prefill([5, 6, 7, 8])
        assert np.array_equal(context.logits(), again)


def test_an_unknown_kv_type_is_an_error(engine: Engine) -> None:
    with pytest.raises(InputError, match=r"kv='f64'; expected one of f16, int8, f32"):
        engine.context(kv="f64")  # type: ignore[arg-type]


def test_files_that_cannot_be_opened_are_errors(file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing.gguf is no file"):
        Engine.open(tmp_path / "nothing.gguf")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DamagedFileError, match=r"cut.gguf"):
        Engine.open(cut)
    text = tmp_path / "text.gguf"
    text.write_text("this is no such file, however it is called")
    with pytest.raises((DamagedFileError, InputError), match=r"text.gguf"):
        Engine.open(text)


def test_what_is_closed_is_said_to_be(file: Path) -> None:
    with Engine.open(file) as engine:
        context = engine.context()
    with pytest.raises(InputError, match=r"context of .* is closed"):
        context.prefill([1])
    with pytest.raises(InputError, match=r"model of .* is closed"):
        engine.context()
    context.close()
    engine.close()


def test_a_context_outlives_the_last_name_of_its_model(file: Path) -> None:
    context = Engine.open(file).context()
    gc.collect()
    context.prefill([1, 2])
    assert context.length() == 2


@pytest.fixture(scope="module")
def slow_engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A model that takes seconds over a long prompt."""
    out = tmp_path_factory.mktemp("slow") / "slow.gguf"
    recipe = out.with_suffix(".toml")
    recipe.write_text(
        "vocab_size = 512\nhidden_size = 256\nintermediate_size = 2048\nnum_hidden_layers = 40\n"
        "num_attention_heads = 8\nmax_position_embeddings = 4096\n"
    )
    quantize_model(str(recipe), out, "q8_0")
    return Engine.open(out)


def test_another_thread_is_refused_and_can_cancel(slow_engine: Engine) -> None:
    with slow_engine.context(threads=1) as context:
        context.prefill([1, 2, 3])
        seen: list[BaseException] = []

        def work() -> None:
            try:
                context.prefill([7] * 4000)
            except EngineError as error:
                seen.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(0.2)
        with pytest.raises(EngineError):
            context.decode([1])
        started = time.monotonic()
        context.cancel()
        thread.join()
        assert time.monotonic() - started < 2
        assert "cancel" in str(seen[0])
        assert context.length() == 3


def test_ctrl_c_ends_a_long_call_at_once(slow_engine: Engine) -> None:
    with slow_engine.context(threads=1) as context:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            context.prefill([7] * 4000)
        assert time.monotonic() - started < 3
        assert context.length() == 0
