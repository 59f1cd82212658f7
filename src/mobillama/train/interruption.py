"""Ctrl-C and SIGTERM end a run between two steps, with its state saved, instead of in the middle of one."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """`wanted` turns true when the process is asked to stop; asked a second time, it stops at once."""

    wanted = False

    def ask(self, number: int, _: FrameType | None) -> None:
        """The signal handler."""
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True


@contextlib.contextmanager
def interruption() -> Iterator[Interruption]:
    """Listen for ctrl-C and SIGTERM during a block (only the main thread of a process can)."""
    asked = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.signal(number, asked.ask) for number in SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
