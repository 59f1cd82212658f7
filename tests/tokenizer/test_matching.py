"""Law: pieces are found in time that grows with the text: what follows a piece is not copied for each of them."""

from __future__ import annotations

from typing import Any

from mobillama.tokenizer.matching import Matched, Matcher


class Copied(str):
    """A text that counts the characters that are taken out of it."""

    count = 0

    def __getitem__(self, place: Any) -> str:
        part = super().__getitem__(place)
        self.count += len(part)
        return part


def test_white_space_behind_a_piece_is_taken_without_copying_the_rest() -> None:
    matcher = Matcher([Matched(1, "<x>", lstrip=True, rstrip=True), Matched(2, " ", rstrip=True)])
    for unit in ("<x> a ", "a ", " ", "<x>"):
        text = Copied(unit * 500)
        parts = list(matcher.parts(text))
        assert parts[-1].end == len(text)
        assert text.count < 4 * len(text), unit
