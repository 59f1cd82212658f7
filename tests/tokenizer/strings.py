"""Random strings made of what tokenizers stumble over."""

from __future__ import annotations

import random
from collections.abc import Iterator

PARTS = [
    *(" ", "  ", " " * 7, " " * 17, " " * 40, "\u2581", "\u2581\u2581", "\n", "\n\n", "\t", "\r\n", "\0", "\x7f"),
    *(
        "a",
        "e",
        "t",
        "the",
        "ing",
        " the",
        "Hello",
        "self.",
        "def ",
        "return",
        "0",
        "12",
        "1999",
        ".",
        "=",
        "==",
        "===",
    ),
    *("<s>", "</s>", "<unk>", "<pad>", "<0x0A>", "<0xE2>", "_", "__", '"', "'", "(", ")", "[", "-", "--", "//", "\\"),
    *("é", "e\u0301", "ß", "İ", "я", "ера", "中文", "日本", "한", "ف", "नि", "😀", "👩‍👩‍👧", "🇫🇷", "²", "½", "Ⅷ", "٣"),
    *("\u00a0", "\u3000", "\u200b", "\ufeff", "\ufffd", "\ue000", "\uffff", "\U0010ffff", "\x85", "\u2028"),
]


def strings(seed: int, count: int) -> Iterator[str]:
    """`count` strings: half joined from PARTS, some of one repeated part, some of arbitrary code points."""
    draw = random.Random(seed)
    for number in range(count):
        kind = number % 4
        if kind < 2:
            yield "".join(draw.choices(PARTS, k=draw.randint(0, 40)))
        elif kind == 2:
            few = draw.sample(PARTS, 3)
            yield "".join(draw.choices(few, k=draw.randint(0, 60)))
        else:
            yield "".join(chr(code_point(draw)) for _ in range(draw.randint(0, 30)))


def code_point(draw: random.Random) -> int:
    """A code point of any width, no half of a surrogate pair."""
    while True:
        code = draw.randrange(draw.choice((0x80, 0x800, 0x10000, 0x110000)))
        if not 0xD800 <= code < 0xE000:
            return code
