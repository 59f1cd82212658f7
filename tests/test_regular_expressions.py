"""Law: every regular expression of the package takes steps in proportion to the text, however hostile.

The expressions are found in the package's source, so that a new one is looked at too. Steps are counted by a matcher of
our own (regex_steps.py), which is compared with `re`.
"""

from __future__ import annotations

import ast
import contextlib
import html
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

import pytest
from datatrove.pipeline.filters import GopherRepetitionFilter
from datatrove.pipeline.filters.c4_filters import CITATION_REGEX
from tests.regex_steps import UNBOUNDED, Steps, TooManyStepsError

import mobillama
from mobillama.data.latex import PUT_IN

PACKAGE = Path(mobillama.__file__).parent
FUNCTIONS = {"compile", "search", "match", "fullmatch", "split", "findall", "finditer", "sub", "subn"}
FIRST_SIZE = 40  # characters of every hostile text
SIZE = 200  # of the worst of them; twice and four times as many are tried too
MOST_STEPS = 60  # for each character of a text
MOST_GROWTH = 2.3  # of the steps, where the text doubles
# An expression that is put together when the package runs -> one like it.
MADE = {"tokenizer/matching.py": "aaab|aab|<end>|ab"}
gopher = GopherRepetitionFilter()
LIBRARIES = {
    "datatrove CITATION_REGEX": CITATION_REGEX.pattern,
    "datatrove paragraph_exp": gopher.paragraph_exp.pattern,
    "datatrove _line_splitter": gopher._line_splitter.pattern,
    "datatrove NUMBERS_PATTERN": r"\d+([.,،٫⎖⎗⎘]{1}\d+)?",  # its \p{Nd} is \d in `re`
    "html unescape": html._charref.pattern,  # type: ignore[attr-defined]
}
# Forms that the package had, and textbook ones: what the counter must tell.
STEEP = [
    r"\\(?:input|include|subfile)\s*\{\s*([^{}\n]+?)\s*\}|\\input\s+([^\s{}\\%]+)",
    r"\s*(?:#![^\n]*\n)?(?:(?:[ \t]*//[^\n]*(?:\n|$))+|(?:[ \t]*#[^\n]*(?:\n|$))+)",
    r"code generated .* do not edit",
    r"(?:a+)+$",
    r"\s+$",
]


@dataclass(frozen=True)
class Expression:
    """One regular expression and whether it is only ever tried at the beginning of a text."""

    where: str
    pattern: str
    flags: int = 0
    anchored: bool = False

    def steps(self, text: str) -> int:
        """Steps to find all matches in a text, or the one at its beginning; at most MOST_STEPS a character."""
        counter = Steps(self.pattern, self.flags, MOST_STEPS * max(len(text), 100))
        with contextlib.suppress(TooManyStepsError):
            if self.anchored:
                counter.match(text)
            else:
                for _ in counter.finditer(text):
                    pass
        return counter.count

    def is_steep(self, counts: list[int]) -> bool:
        """Whether steps for a text, one of twice and one of four times the length are more than in proportion."""
        return counts[2] > MOST_GROWTH * counts[1] or counts[2] > MOST_STEPS * 4 * SIZE


def expressions() -> list[Expression]:
    """Every expression in the package's source. AssertionError for one that cannot be read there."""
    trees = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}
    uses: dict[str, set[str]] = {}
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in FUNCTIONS:
                uses.setdefault(ast.unparse(node.value).rpartition(".")[2], set()).add(node.attr)
    found = []
    for name, tree in sorted(trees.items()):
        given = {
            id(node.value): ast.unparse(target).rpartition(".")[2]
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert all(one.asname is None for one in node.names if one.name == "re"), f"{name}: re by another name"
                assert "regex" not in [one.name for one in node.names], f"{name}: regex, whose steps nothing counts"
            assert not (isinstance(node, ast.ImportFrom) and node.module in ("re", "regex")), f"{name}: import re whole"
            if not (
                isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in FUNCTIONS
            ):
                continue
            if ast.unparse(node.func.value) != "re":
                continue
            found.append(_expression(name, node, uses.get(given.get(id(node), ""), {"search"})))
    return found


def _expression(name: str, call: ast.Call, uses: set[str]) -> Expression:
    function = call.func.attr  # type: ignore[attr-defined]
    where = f"{name}:{call.lineno}"
    try:
        value = ast.literal_eval(call.args[0])
    except ValueError:
        assert name in MADE, f"{where}: an expression that is put together; write it out, or one like it into MADE"
        value = MADE[name]
    pattern = value.decode("latin-1") if isinstance(value, bytes) else value
    flags = 0
    for given in [*call.args[1:], *(keyword.value for keyword in call.keywords)]:
        if (text := ast.unparse(given)).startswith("re."):
            flags |= eval(text, {"re": re})
    uses = uses if function == "compile" else {function}
    if uses == {"fullmatch"}:
        pattern = rf"(?:{pattern})\Z"
    return Expression(where, pattern, flags, anchored=uses <= {"match", "fullmatch"})


def characters(tree: Any) -> Iterator[str]:
    """Characters that the parts of an expression tell apart."""
    for name, value in tree:
        if name in (sre.LITERAL, sre.NOT_LITERAL):
            yield chr(value)
        elif name is sre.RANGE:
            yield chr(value[0])
        elif name is sre.CATEGORY:
            yield {sre.CATEGORY_DIGIT: "7", sre.CATEGORY_SPACE: " ", sre.CATEGORY_WORD: "w"}.get(value, "~")
        elif name is sre.BRANCH:
            for branch in value[1]:
                yield from characters(branch)
        elif isinstance(value, list | parser.SubPattern):
            yield from characters(value)
        elif isinstance(value, tuple):
            yield from characters([(None, part) for part in value if isinstance(part, parser.SubPattern)])


def sample(tree: Any, chance: random.Random, text: str = "", cuts: set[str] | None = None) -> str:
    """`text` and what an expression may match behind it; `cuts` gets what stands before and in each repetition."""
    cuts = set() if cuts is None else cuts
    for name, value in tree:
        if name is sre.LITERAL:
            text += chr(value)
        elif name is sre.NOT_LITERAL or name is sre.ANY:
            text += "x"
        elif name is sre.IN:
            text += "~" if value[0][0] is sre.NEGATE else chance.choice(list(characters(value)))
        elif name is sre.BRANCH:
            text = sample(chance.choice(value[1]), chance, text, cuts)
        elif name is sre.SUBPATTERN:
            text = sample(value[3], chance, text, cuts)
        elif name is sre.ATOMIC_GROUP:
            text = sample(value, chance, text, cuts)
        elif name in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
            low, high, body = value
            cuts.add(text)
            for _ in range(chance.randint(low, low + 1 if high >= UNBOUNDED else min(high, low + 2))):
                text = sample(body, chance, text, cuts)
            cuts.add(text)
    return text


def attacks(expression: Expression, chance: random.Random) -> list[tuple[str, str, str]]:
    """Hostile texts as (beginning, what is repeated, end)."""
    tree = parser.parse(expression.pattern, expression.flags)
    beginnings: set[str] = {""}
    samples = [sample(tree, chance, "", beginnings) for _ in range(6)]
    alphabet = sorted({*characters(tree), "x"} - {" ", "\n"})
    letters = [" ", "\n", *chance.sample(alphabet, min(5, len(alphabet)))]
    shortest = sorted(beginnings, key=lambda text: (len(text), text))[:12]
    repeated = [*letters, *shortest, *samples, *(text[:-1] for text in samples)]
    every = [("", one, end) for one in repeated for end in ("", "\0")]
    every += [(one, letter, end) for one in shortest for letter in letters for end in ("", "\0")]
    return [one for one in dict.fromkeys(every) if one[1]]


def hostile(attack: tuple[str, str, str], size: int) -> str:
    beginning, repeated, end = attack
    return beginning + (repeated * (size // len(repeated) + 1))[:size] + end


def worst(expression: Expression, chance: random.Random) -> tuple[tuple[str, str, str], list[int]]:
    """The attack whose steps grow most, and the steps for a text, one twice and one four times as long."""
    tried = attacks(expression, chance)
    chosen = []
    for size, group in (
        (FIRST_SIZE, [one for one in tried if len(one[1]) <= 2]),
        (4 * FIRST_SIZE, [one for one in tried if len(one[1]) > 2]),
    ):
        group.sort(key=lambda one: expression.steps(hostile(one, size)), reverse=True)
        chosen += group[:2]
    told = [(one, [expression.steps(hostile(one, SIZE * times)) for times in (1, 2, 4)]) for one in chosen]
    return max(told, key=lambda pair: (expression.is_steep(pair[1]), pair[1][2] / pair[1][1]))


def seeded() -> random.Random:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    return random.Random(seed)


def found_and_used() -> list[Expression]:
    return [*expressions(), *(Expression(name, pattern) for name, pattern in LIBRARIES.items())]


@pytest.mark.slow
def test_steps_of_every_expression_grow_with_the_text() -> None:
    chance = seeded()
    steep = []
    for expression in found_and_used():
        attack, counts = worst(expression, chance)
        one, two, four = counts
        print(f"{expression.where:34} {expression.pattern[:60]!r:64} {one:6} {two:6} {four:6}  {attack}")
        if expression.is_steep(counts):
            steep.append(f"{expression.where}: {expression.pattern!r} takes {one}, {two}, {four} steps for {attack!r}")
    assert steep == []


@pytest.mark.parametrize("pattern", STEEP)
def test_a_steep_expression_is_told(pattern: str) -> None:
    expression = Expression("", pattern)
    attack, counts = worst(expression, seeded())
    print(f"{pattern!r:64} {counts} {attack}")
    assert expression.is_steep(counts)


def test_the_counter_matches_what_python_matches() -> None:
    chance = seeded()
    for expression in [*found_and_used(), Expression("", r"a*?b|(?<=x)\b|x*|^$"), Expression("", r"(?:a{2,3}?|b)+\d*")]:
        compiled = re.compile(expression.pattern, expression.flags)
        texts = [hostile(attack, chance.randrange(30)) for attack in chance.choices(attacks(expression, chance), k=8)]
        for text in texts:
            expected = [match.span() for match in compiled.finditer(text)]
            assert list(Steps(expression.pattern, expression.flags).finditer(text)) == expected, (expression, text)


def test_the_linear_form_of_a_file_put_in_finds_what_the_plain_form_finds() -> None:
    plain = re.compile(STEEP[0])
    chance = seeded()
    parts = ["\\input", "\\include", "\\subfile", "{", "}", " ", "\n", "\t", "a", "b/c.tex", "%", "\\", "  x y "]
    for _ in range(20_000):
        text = "".join(chance.choice(parts) for _ in range(chance.randrange(12)))
        before = [(match.span(), match[1] or match[2]) for match in plain.finditer(text)]
        after = [(match.span(), match[1] or match[2]) for match in PUT_IN.finditer(text)]
        # The plain form took braces with nothing but white space for the name of a file.
        assert [one for one in before if one[1].strip()] == after, repr(text)
