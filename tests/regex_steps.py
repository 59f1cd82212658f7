"""A backtracking matcher for Python's regular expressions that counts its steps, in place of a clock.

It runs the tree that Python's own parser makes of a pattern, tries what `re` tries in the same order, and counts every
instruction. `re` takes some of them many at a time, never more of them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

Test = Callable[[str], bool]

CATEGORIES: dict[Any, Test] = {
    sre.CATEGORY_DIGIT: lambda c: unicodedata.category(c) == "Nd",
    sre.CATEGORY_SPACE: str.isspace,
    sre.CATEGORY_WORD: lambda c: c.isalnum() or c == "_",
}
CATEGORIES |= {
    sre.CATEGORY_NOT_DIGIT: lambda c: not CATEGORIES[sre.CATEGORY_DIGIT](c),
    sre.CATEGORY_NOT_SPACE: lambda c: not c.isspace(),
    sre.CATEGORY_NOT_WORD: lambda c: not CATEGORIES[sre.CATEGORY_WORD](c),
}
UNBOUNDED = 1000  # a repetition of at least so many is one without end
CHARACTERS = (sre.LITERAL, sre.NOT_LITERAL, sre.ANY, sre.IN)


class TooManyStepsError(Exception):
    """More steps than were allowed."""


class Steps:
    """A pattern compiled to instructions: (char, test), (split, first, second), (jump, to), (at, test),
    (look, program, ahead, wanted), (atomic, program), (mark,), (progress,).
    """

    def __init__(self, pattern: str, flags: int = 0, most: int = 1 << 60) -> None:
        tree = parser.parse(pattern, flags)
        self.flags = tree.state.flags
        self.program: list[Any] = []
        self._sequence(tree, self.program)
        self.count = 0
        self.most = most  # steps; beyond: TooManyStepsError

    def finditer(self, text: str) -> Iterator[tuple[int, int]]:
        """The places of all matches, as `re.finditer` gives them."""
        at, least = 0, -1
        while at <= len(text):
            end = self._run(self.program, text, at, least)
            if end < 0:
                at, least = at + 1, -1
                continue
            yield at, end
            # What follows an empty match at its place is not empty.
            at, least = end, end if at == end else -1

    def match(self, text: str) -> int:
        """Where a match at the beginning ends, or -1."""
        return self._run(self.program, text, 0, -1)

    def _run(self, program: list[Any], text: str, start: int, least: int) -> int:
        """The end of the first match from `start` on that does not end at `least`, or -1."""
        waiting: list[tuple[int, int, Any]] = [(0, start, None)]
        while waiting:
            at, place, marks = waiting.pop()
            while True:
                self.count += 1
                if self.count > self.most:
                    raise TooManyStepsError
                if at == len(program):
                    if place == least:
                        break
                    return place
                name, *rest = program[at]
                at += 1
                if name == "char":
                    if place == len(text) or not rest[0](text[place]):
                        break
                    place += 1
                elif name == "split":
                    waiting.append((rest[1], place, marks))
                    at = rest[0]
                elif name == "jump":
                    at = rest[0]
                elif name == "at":
                    if not rest[0](text, place):
                        break
                elif name == "mark":
                    marks = (place, marks)
                elif name == "progress":
                    before, marks = marks
                    if place == before:
                        break
                elif name == "atomic":
                    place = self._run(rest[0], text, place, -1)
                    if place < 0:
                        break
                else:
                    inner, width, wanted = rest
                    begin = place - width
                    found = begin >= 0 and self._run(inner, text, begin, -1) >= 0
                    if found != wanted:
                        break
        return -1

    def _sequence(self, items: Any, out: list[Any]) -> None:
        for name, value in items:
            self._item(name, value, out)

    def _item(self, name: Any, value: Any, out: list[Any]) -> None:
        if name in CHARACTERS:
            out.append(("char", self._character(name, value)))
        elif name is sre.AT:
            out.append(("at", self._place(value)))
        elif name is sre.SUBPATTERN:
            assert not value[1] and not value[2], "flags of a group are not known here"
            self._sequence(value[3], out)
        elif name is sre.BRANCH:
            jumps = []
            for number, branch in enumerate(value[1]):
                if number < len(value[1]) - 1:
                    here = len(out)
                    out.append(None)
                    self._sequence(branch, out)
                    jumps.append(len(out))
                    out.append(None)
                    out[here] = ("split", here + 1, len(out))
                else:
                    self._sequence(branch, out)
            for jump in jumps:
                out[jump] = ("jump", len(out))
        elif name in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            self._repeat(value, out, greedy=name is sre.MAX_REPEAT)
        elif name is sre.POSSESSIVE_REPEAT:
            inner: list[Any] = []
            low, high, body = value
            one: list[Any] = []
            self._sequence(body, one)
            self._repeat((low, high, [("own", one)]), inner, greedy=True)
            out.append(("atomic", inner))
        elif name == "own":
            out.append(("atomic", value))
        elif name is sre.ATOMIC_GROUP:
            inner = []
            self._sequence(value, inner)
            out.append(("atomic", inner))
        elif name in (sre.ASSERT, sre.ASSERT_NOT):
            inner = []
            self._sequence(value[1], inner)
            width = 0 if value[0] > 0 else value[1].getwidth()[0]
            out.append(("look", inner, width, name is sre.ASSERT))
        else:
            raise NotImplementedError(f"{name}: teach the counter what it does")

    def _repeat(self, value: Any, out: list[Any], *, greedy: bool) -> None:
        low, high, body = value
        for _ in range(low):
            self._sequence(body, out)
        if high >= UNBOUNDED:
            here = len(out)
            out.append(None)
            out.append(("mark",))
            self._sequence(body, out)
            out += [("progress",), ("jump", here)]
            out[here] = ("split", here + 1, len(out)) if greedy else ("split", len(out), here + 1)
            return
        splits = []
        for _ in range(high - low):
            splits.append(len(out))
            out.append(None)
            self._sequence(body, out)
        for here in splits:
            out[here] = ("split", here + 1, len(out)) if greedy else ("split", len(out), here + 1)

    def _character(self, name: Any, value: Any) -> Test:
        if name is sre.ANY:
            return (lambda c: True) if self.flags & re.DOTALL else (lambda c: c != "\n")
        ignore = bool(self.flags & re.IGNORECASE)
        if name is sre.IN:
            negated = value[0][0] is sre.NEGATE
            tests = [self._member(*one, ignore) for one in value[negated:]]
            return lambda c: any(test(c) for test in tests) != negated
        test = self._member(sre.LITERAL, value, ignore)
        return test if name is sre.LITERAL else lambda c: not test(c)

    def _member(self, name: Any, value: Any, ignore: bool) -> Test:
        if name is sre.CATEGORY:
            return CATEGORIES[value]
        low, high = value if name is sre.RANGE else (value, value)
        if ignore:
            return lambda c: any(low <= ord(one) <= high for one in {c, c.lower(), c.upper()} if len(one) == 1)
        return lambda c: low <= ord(c) <= high

    def _place(self, value: Any) -> Callable[[str, int], bool]:
        if value is sre.AT_BEGINNING and self.flags & re.MULTILINE:
            return lambda text, place: place == 0 or text[place - 1] == "\n"
        if value in (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING):
            return lambda text, place: place == 0
        if value is sre.AT_END and self.flags & re.MULTILINE:
            return lambda text, place: place == len(text) or text[place] == "\n"
        if value is sre.AT_END:
            return lambda text, place: place == len(text) or (place == len(text) - 1 and text[place] == "\n")
        if value is sre.AT_END_STRING:
            return lambda text, place: place == len(text)
        word = CATEGORIES[sre.CATEGORY_WORD]
        return lambda text, place: (
            ((place > 0 and word(text[place - 1])) != (place < len(text) and word(text[place])))
            == (value is sre.AT_BOUNDARY)
        )
