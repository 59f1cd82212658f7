"""What a person sees of a run, on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

WINDOW = 50  # steps that the speed is averaged over
EVERY_SECONDS = 10.0  # between lines where stderr is not a terminal


class Display:
    """Loss, tokens/s and time left. `quiet` shows nothing (the caller shows progress of its own)."""

    def __init__(self, done: int, steps: int, tokens_per_step: int, *, quiet: bool, what: str = "training") -> None:
        self.quiet = quiet
        self._steps, self._tokens_per_step = steps, tokens_per_step
        self._seconds: deque[float] = deque(maxlen=WINDOW)
        self._first, self._said = done + 1, 0.0
        self._console = Console(file=sys.stderr)
        self._bar: Progress | None = None
        if self._console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[words]}"), console=self._console
            )
            self._task = self._bar.add_task(what, total=steps, completed=done, words="first step")

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Print one line, above the bar."""
        if not self.quiet:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, step: int, loss: float, seconds: float) -> dict[str, Any]:
        """Show one step that took `seconds`; gives speed and time left for whoever shows them elsewhere."""
        if step > self._first:  # the first step compiles and warms up: it says nothing of the speed
            self._seconds.append(seconds)
        mean = sum(self._seconds) / len(self._seconds) if self._seconds else seconds
        speed, left = self._tokens_per_step / mean, (self._steps - step) * mean
        words = f"step {step}/{self._steps}  loss {loss:.4f}  {speed:,.0f} tokens/s  {_clock(left)} left"
        if self._bar:
            self._bar.update(self._task, completed=step, words=words)
        elif time.monotonic() - self._said >= EVERY_SECONDS or step == self._steps:
            self._said = time.monotonic()
            self.say(words)
        return {"step": step, "steps": self._steps, "loss": loss, "tokens_per_second": speed, "seconds_left": left}


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
