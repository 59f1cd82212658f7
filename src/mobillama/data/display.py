"""What a person sees of a build, on stderr: a bar per stage on a terminal, a line per stage elsewhere."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from mobillama.data.executor import Progress


class Display:
    """Takes the progress of a build; `close` it at the end."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stderr)
        self._stage = ""
        self._bars: Bars | None = None
        if self._console.is_terminal:
            words = TextColumn("{task.fields[words]}")
            self._bars = Bars(
                TextColumn("{task.description:10}"), BarColumn(), words, TimeElapsedColumn(), console=self._console
            )
            self._bars.start()

    def __call__(self, progress: Progress) -> None:
        """Show one report."""
        words = f"{progress.tasks_done}/{progress.tasks} tasks"
        if progress.documents:
            words += f"  {progress.documents:,} documents"
        if progress.text_bytes:
            speed = progress.text_bytes / 1e6 / max(progress.seconds, 1e-3)
            words += f"  {progress.text_bytes / 1e6:,.1f} MB  {speed:.1f} MB/s"
        if self._bars:
            if progress.stage != self._stage:
                self._task = self._bars.add_task(progress.stage, total=progress.tasks, words=words)
            self._bars.update(self._task, completed=progress.tasks_done, words=words)
        elif progress.tasks_done == progress.tasks and progress.seconds:
            line = f"{progress.stage}: {words}  {progress.seconds:.1f} s"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._stage = progress.stage

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bars:
            self._bars.stop()
