"""Programs that close, fork and end while the engine is in use: python lifetimes.py PROGRAM MODEL.gguf [SEED ORDERS].

Each is run by test_lifetimes.py in a process of its own, for what goes wrong here ends the process.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import gc
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from mobillama.errors import EngineError, InputError, MobillamaError
from mobillama.generation.sampling import Settings
from mobillama.runtime.engine import Context, Engine
from mobillama.runtime.engine_model import EngineModel

PROMPT = list(range(100))


def generate_until_closed(model: EngineModel, said: list[BaseException]) -> None:
    try:
        while True:
            model.generate("The quick brown fox " * 3, max_new_tokens=20, temperature=0.0)
    except BaseException as error:
        said.append(error)


def generating(path: str, leave: Callable[[EngineModel], None]) -> None:
    """A model that is left while two other threads generate: they are told so, whatever they were doing."""
    for moment in (0.0, 0.001, 0.01, 0.05, 0.1):
        model = EngineModel.load(path, threads=2)
        assert model.tokenizer.vocab_size > 0  # it has been read before the moment counts
        said: list[BaseException] = []
        threads = [threading.Thread(target=generate_until_closed, args=(model, said)) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(moment)
        leave(model)
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        assert len(said) == 2
        for found in said:
            assert isinstance(found, InputError), found
            assert "closed" in str(found), found


def leave_while_generating(path: str) -> None:
    def leave(model: EngineModel) -> None:
        with model:
            pass

    generating(path, leave)


def close_while_generating(path: str) -> None:
    generating(path, EngineModel.close)


def drop_while_generating(path: str) -> None:
    """Nobody closes anything: names go, and what is inside keeps what it needs."""
    context = Engine.open(path).context()
    seen: list[int] = []

    def work(context: Context) -> None:
        context.prefill(PROMPT)
        seen.append(context.length())

    thread = threading.Thread(target=work, args=(context,))
    thread.start()
    del context
    gc.collect()
    thread.join(30)
    assert seen == [len(PROMPT)]


class Order:
    """Threads that open, use, look at, cancel and close the same models and contexts as it comes."""

    def __init__(self, path: str, name: str) -> None:
        self.path, self.name = path, name
        self.engines = [Engine.open(path)]
        self.contexts = [self.engines[0].context(threads=2, max_sequences=2)]
        self.views: list[npt.NDArray[np.float32]] = []
        self.wrong: list[BaseException] = []

    def run(self) -> None:
        threads = [threading.Thread(target=self.work, args=(random.Random(f"{self.name} {i}"),)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), f"order {self.name} hangs"
        if self.wrong:
            raise self.wrong[0]

    def work(self, draw: random.Random) -> None:
        for _ in range(6):
            try:
                self.step(draw)
            except MobillamaError:
                pass  # closed, busy, cancelled or full, as it comes
            except BaseException as error:
                self.wrong.append(error)

    def step(self, draw: random.Random) -> None:
        engine, context = draw.choice(self.engines), draw.choice(self.contexts)
        match draw.randrange(14):
            case 0:
                self.engines.append(Engine.open(self.path, progress=draw.choice((None, lambda _share: None))))
            case 1 | 2:
                self.contexts.append(engine.context(threads=draw.randrange(1, 3), max_sequences=2))
            case 3 | 4:
                context.prefill(PROMPT[: draw.choice((3, 20, 100))], draw.randrange(2))
            case 5:
                context.decode([1])
            case 6:
                context.log_probs(PROMPT[:20])
            case 7:
                self.views.append(context.logits(copy=draw.random() < 0.5))
            case 8:
                context.sample(Settings(temperature=0), context.length())
            case 9:
                context.rewind(0)
                context.fork(0, 1)
            case 10:
                context.cancel()
            case 11:
                context.close()
            case 12:
                engine.close()
            case 13:
                for view in self.views[-4:]:
                    view.sum()


def any_order(path: str, seed: int, orders: int) -> None:
    for order in range(orders):
        Order(path, f"{seed} {order}").run()


def views_outlive_all(path: str) -> None:
    with Engine.open(path) as engine, engine.context() as context:
        context.prefill(PROMPT)
        copy, view = context.logits(), context.logits(copy=False)[1:]
    del context, engine
    gc.collect()
    Engine.open(path).context().prefill(PROMPT[:50])  # takes what was freed
    assert np.array_equal(view, copy[1:])


def compute_until_closed(engine: Engine) -> None:
    with contextlib.suppress(InputError):
        while True:
            engine.context(threads=2).prefill(PROMPT)


def fork(path: str) -> None:
    """In a child every call with what its parent opened is an error, freeing does nothing, and a new file works."""
    engine = Engine.open(path)
    context = engine.context(threads=3)
    context.prefill(PROMPT)
    expected, view = context.logits(), context.logits(copy=False)
    busy = threading.Thread(target=compute_until_closed, args=(engine,))
    busy.start()
    for _ in range(10):
        time.sleep(0.003)
        child = os.fork()
        if child == 0:
            faulthandler.dump_traceback_later(60, exit=True)
            calls: list[Callable[[], object]] = [
                lambda: context.prefill([1]),
                lambda: context.prefill(PROMPT),
                lambda: context.decode([1]),
                lambda: context.verify([1]),
                lambda: context.log_probs([1, 2]),
                lambda: context.length(),
                lambda: context.logits(),
                lambda: context.fork(0, 0, 1),
                lambda: context.rewind(0),
                lambda: engine.context(),
            ]
            for call in calls:
                try:
                    call()
                except InputError as error:
                    assert "fork" in str(error), error
                else:
                    raise AssertionError("a call in the child was no error")
            assert np.array_equal(view, expected)
            context.cancel()
            context.close()
            engine.close()
            gc.collect()
            with Engine.open(path) as own, own.context(threads=2) as other:
                other.prefill(PROMPT)
                assert np.array_equal(other.logits(), expected)
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
    engine.close()
    busy.join(30)


def end_while_computing(path: str) -> None:
    """The interpreter ends while a thread computes, with everything open."""
    global kept
    engine = Engine.open(path)
    context = engine.context(threads=2)
    context.prefill([1])

    def work() -> None:
        while True:
            context.rewind(0)
            context.prefill(PROMPT)

    kept = (engine, context, context.logits(copy=False))
    threading.Thread(target=work, daemon=True).start()
    time.sleep(0.05)


def end_while_opening(path: str) -> None:
    """The interpreter ends while a thread reports how far the opening of a file has come."""
    begun = threading.Event()

    def report(_share: float) -> None:
        begun.set()
        time.sleep(0.02)

    threading.Thread(target=lambda: Engine.open(path, progress=report), daemon=True).start()
    begun.wait()


def compute_at_the_end(path: str) -> None:
    """A long call in the main thread when no thread can be started any more."""
    context = Engine.open(path).context()
    atexit.register(lambda: (context.prefill(PROMPT), print(context.length())))


def interrupted(path: str) -> None:
    """A signal's handler raises in the main thread, again and again, while a long call reads and writes arrays."""

    def late(_signal: int, _frame: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    context = Engine.open(path).context(threads=1, max_tokens=20000)
    ended = 0
    for _ in range(20):
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.001)
            context.rewind(0)
            context.log_probs(np.full(19000, 7, np.int32))
        except (TimeoutError, EngineError):
            ended += 1
        while True:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0)
                break
            except TimeoutError:
                pass
        taken = [np.full(19000, 2**30, np.int32) for _ in range(20)]  # where arrays lay that were given up too early
        time.sleep(0.01)
        del taken
    assert ended == 20


def busy_and_cancelled(path: str) -> None:
    """A second thread is refused and a cancelled call ends, as ever."""
    context = Engine.open(path).context(threads=1)
    ended: list[str] = []

    def work() -> None:
        try:
            while True:
                context.rewind(0)
                context.prefill(PROMPT)
        except EngineError as error:
            ended.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        context.cancel()
    assert ended[0].startswith("cancelled")


if __name__ == "__main__":
    faulthandler.enable()
    globals()[sys.argv[1]](sys.argv[2], *map(int, sys.argv[3:]))
