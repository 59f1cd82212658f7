"""Stop strings in text that arrives piece by piece: nothing of a stop string is ever let through."""

from __future__ import annotations

from collections.abc import Iterable

from mobillama.errors import InputError


class StopFilter:
    """Passes text on until it holds a stop string; what is passed does not depend on how the text was cut in pieces.

    The stop string that is complete first wins (of several that end there, the one that began first). Text that may
    still become a stop string is held back.

    >>> found = StopFilter(["END"])
    >>> found.push("the E"), found.push("N"), found.stopped, found.push("D of"), found.stopped
    ('the ', '', False, '', True)
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self.stops = (stops,) if isinstance(stops, str) else tuple(stops)
        if "" in self.stops:
            raise InputError("a stop string is empty, which would stop before the first character; leave it out")
        self.stopped = False
        self._held = ""

    def push(self, piece: str) -> str:
        """Take the next piece; give the text that can be shown now. Once stopped, nothing more is given."""
        if self.stopped or not piece:
            return ""
        self._held += piece
        if found := self._first_stop():
            self.stopped = True
            shown, self._held = self._held[: found[1]], ""
            return shown
        keep = self._open_length()
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(shown) :]
        return shown

    def flush(self) -> str:
        """The text held back, when no more will come."""
        shown, self._held = self._held, ""
        return shown

    def _first_stop(self) -> tuple[int, int] | None:
        """(end, start) of the stop string that is complete first."""
        starts = ((self._held.find(stop), stop) for stop in self.stops)
        return min(((start + len(stop), start) for start, stop in starts if start >= 0), default=None)

    def _open_length(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = min(len(self._held), max((len(stop) for stop in self.stops), default=0))
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self.stops):
                return length
        return 0
