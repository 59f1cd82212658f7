"""Quality filters, chosen per subset: which documents are dropped for what their text looks like, and why.

`gopher_repetition`, `gopher_quality`, `c4` and `fineweb` are datatrove's, at the defaults of their papers, made for web
pages. `code` and `light` are ours. Reasons are the filter's own, with its name before them where they do not say it:
gopher_repetition_dup_line_frac, gopher_short_doc, c4_curly_bracket, fineweb_short_line_ratio, code_long_line,
light_one_line, ... `c4` also removes lines; that is in the document's edits.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
)
from datatrove.pipeline.filters.c4_filters import CITATION_REGEX
from datatrove.utils.text import PUNCTUATION_SET, split_into_parts, split_into_words
from datatrove.utils.word_tokenizers import WordTokenizer

from mobillama.config import SubsetConfig
from mobillama.data.edits import Change, edit
from mobillama.data.repetition import Repetition

Judge = Callable[[Document], str | None]  # the reason to drop a document, or None; may change its text

SENTENCE = re.compile(r"[^.!?。！？]+(?:[.!?。！？]+[\"'”’)\]]*|$)|[.!?。！？]+")
LARGE = 1 << 20  # characters; datatrove keeps the words of its last five texts, which is too much of such
LETTERS = bytes(byte for byte in range(128) if chr(byte).isalnum())


class Words(WordTokenizer):  # type: ignore[misc]
    """Words and sentences where datatrove would ask for spaCy: no model has to be installed.

    A word is what stands between white space. spaCy makes words of punctuation marks too, which then count as words
    without a letter; Gopher's rule of 80 % of words with one would drop much good technical writing for its marks.
    """

    def word_tokenize(self, text: str) -> list[str]:
        """The words in order."""
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        """The sentences in order, each with its closing marks."""
        return [sentence for start, end in self.span_tokenize(text) if (sentence := text[start:end].strip())]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Where each sentence starts and ends, in characters. Closing marks end one only before a space or the end,
        Chinese ones anywhere.
        """
        spans: list[tuple[int, int]] = []
        start = 0
        for match in SENTENCE.finditer(text):
            end = match.end()
            if end == len(text) or text[end].isspace() or text[end - 1] in "。！？":
                spans.append((start, end))
                start = end
        if start < len(text) or not spans:
            spans.append((start, len(text)))
        return spans


WORDS = Words()


class Symbols(GopherQualityFilter):  # type: ignore[misc]
    """datatrove's Gopher quality filter; each different word is looked at once."""

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """True to keep, else False and the reason."""
        words = split_into_words(doc.text, self.language)
        counts = Counter(words)
        told = [
            (count, len(word) if any(c not in PUNCTUATION_SET for c in word) else 0) for word, count in counts.items()
        ]
        proper = sum(count for count, length in told if length)
        if proper < self.min_doc_words:
            return False, "gopher_short_doc"
        if proper > self.max_doc_words:
            return False, "gopher_long_doc"
        mean = sum(count * length for count, length in told) / proper
        if mean < self.min_avg_word_length:
            return False, "gopher_below_avg_threshold"
        if mean > self.max_avg_word_length:
            return False, "gopher_above_avg_threshold"
        text = doc.text
        if text.count("#") / len(words) > self.max_symbol_word_ratio:
            return False, "gopher_too_many_hashes"
        if (text.count("...") + text.count("…")) / len(words) > self.max_symbol_word_ratio:
            return False, "gopher_too_many_ellipsis"
        lines = text.splitlines()
        if sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines) > self.max_bullet_lines_ratio:
            return False, "gopher_too_many_bullets"
        if sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines) > self.max_ellipsis_lines_ratio:
            return False, "gopher_too_many_end_ellipsis"
        alphabetic = sum(count for word, count in counts.items() if any(map(str.isalpha, word)))
        if alphabetic / len(words) < self.max_non_alpha_words_ratio:
            return False, "gopher_below_alpha_threshold"
        if len(self.stop_words.intersection(counts)) < self.min_stop_words:
            return False, "gopher_enough_stop_words"
        return True


class Lines(C4QualityFilter):  # type: ignore[misc]
    """datatrove's C4 filter without its statistics of every line, which nothing here reads."""

    def stat_update(self, *labels: str, value: int = 1, unit: str | None = None) -> None:
        """Count nothing."""


def c4_changes(text: str, kept: str) -> list[Change]:
    """The changes that turn a text into what C4's filter left of it, which is `kept`.

    The filter keeps some lines, strips each, takes citation marks out, joins them by newlines and strips the whole.
    Error: ValueError if `kept` is not made like that.
    """
    changes: list[Change] = []
    wanted = kept.split("\n")
    found = at = done = 0  # lines found, start of the line, end of what is kept so far
    for line in text.splitlines(keepends=True):
        start, at = at, at + len(line)
        pieces = _pieces(line, first=not found)
        if found == len(wanted) or "".join(line[a:b] for a, b in pieces) != wanted[found]:
            continue
        between = "\n" if found else ""
        for a, b in pieces:
            if text[done : start + a] != between:
                changes.append((done, start + a, between))
            done, between = start + b, ""
        found += 1
    if done < len(text):
        changes.append((done, len(text), ""))
    if found < len(wanted):
        raise ValueError(f"line {found + 1} of the text that C4's filter left is none of the text it was given")
    return changes


def _pieces(line: str, *, first: bool) -> list[tuple[int, int]]:
    """What C4's filter keeps of a line: it stripped and without citation marks; of the first also without the space
    that a mark at its beginning leaves.
    """
    a, b = len(line) - len(line.lstrip()), len(line.rstrip())
    pieces = []
    for mark in CITATION_REGEX.finditer(line, a, b) if "[" in line else ():
        pieces.append((a, mark.start()))
        a = mark.end()
    pieces = [(a, b) for a, b in [*pieces, (a, b)] if a < b]
    if first:
        for number, (a, b) in enumerate(pieces):
            if left := line[a:b].lstrip():
                return [(b - len(left), b), *pieces[number + 1 :]]
        return []
    return pieces


class Code:
    """Which source files to leave out, after StarCoder (Li et al. 2023, arXiv 2305.06161)
    and CodeParrot for the words that tell a generated file.
    """

    longest_line, mean_line = 1000, 100  # characters
    alphanumeric = 0.25  # share of characters
    marker_lines = 5
    markers = ("auto-generated", "autogenerated", "automatically generated")
    generated, warning = "code generated ", " do not edit"  # one line with both, in this order

    def __call__(self, document: Document) -> str | None:
        """The reason to drop a file, or None."""
        text = document.text
        lines = text.splitlines()
        longest, total = max(map(len, lines), default=0), sum(map(len, lines))
        if "<?xml version=" in text[:100]:
            return "xml"
        if longest > self.longest_line:
            return "long_line"
        if total > self.mean_line * len(lines):
            return "mean_line"
        if letters(text) < self.alphanumeric * len(text):
            return "few_letters"
        # Only comments carry the marker; a license or a program may speak of generated files further down.
        if any(self._marked(line.lower()) for line in lines[: self.marker_lines]):
            return "generated"
        return None

    def _marked(self, line: str) -> bool:
        """Whether a line in lower case says that a program wrote the file."""
        if any(marker in line for marker in self.markers):
            return True
        at = line.find(self.generated)
        return at >= 0 and line.find(self.warning, at + len(self.generated)) >= 0


class Light:
    """What no real text of any genre looks like: decoding gone wrong, hardly a letter, one line over and over."""

    replacement_share = 0.001  # U+FFFD of all characters
    letter_share = 0.3  # letters and digits of all characters but white space
    line_share, line_repeats = 0.5, 10  # one line: of all characters, times

    def __call__(self, document: Document) -> str | None:
        """The reason to drop a document, or None."""
        text = document.text
        if text.count("\ufffd") > self.replacement_share * len(text):
            return "replacement_characters"
        if letters(text) < self.letter_share * sum(map(len, text.split())):
            return "few_letters"
        lines = Counter(line for line in text.split("\n") if line and not line.isspace())
        line, times = max(lines.items(), key=lambda item: len(item[0]) * (item[1] - 1), default=("", 0))
        if times >= self.line_repeats and len(line) * (times - 1) > self.line_share * len(text):
            return "one_line"
        return None


def letters(text: str) -> int:
    """How many characters of a text are letters or digits of any script."""
    if text.isascii():
        return len(text) - len(text.encode().translate(None, LETTERS))
    return sum(map(str.isalnum, text))


def judge(name: str) -> Judge:
    """The quality filter of one name: document -> reason to drop it, or None."""
    if name == "code":
        return _named(name, Code())
    if name == "light":
        return _named(name, Light())
    kinds = {"gopher_repetition": Repetition, "gopher_quality": Symbols, "c4": Lines, "fineweb": FineWebQualityFilter}
    filter_ = kinds[name](language=WORDS)

    def ask(document: Document) -> str | None:
        before = document.text
        answer = filter_.filter(document)
        after, document.text = document.text, before
        if answer is not True:
            return str(answer[1])
        if after != before:
            edit(document, c4_changes(before, after))
            if document.text != after:
                raise AssertionError(f"edits of document {document.id} do not give the text that filter {name!r} left")
        return None

    return _named(name, ask)


def _named(name: str, ask: Judge) -> Judge:
    family = name.partition("_")[0] + "_"

    def named(document: Document) -> str | None:
        reason = ask(document)
        return reason if reason is None or reason.startswith(family) else f"{name}_{reason}"

    return named


class Quality(PipelineStep):  # type: ignore[misc]
    """Applies to every document the filters of its subset in their order, up to the first that drops it."""

    name, type = "quality", "filter"

    def __init__(self, subsets: Mapping[str, SubsetConfig]) -> None:
        super().__init__()
        self.filters = {name: subset.quality for name, subset in subsets.items() if subset.quality}

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The same documents; `dropped` is added to the metadata of some, and `edits` where lines were removed."""
        judges = {name: [judge(one) for one in names] for name, names in self.filters.items()}
        for document in data:
            metadata = document.metadata
            if "dropped" not in metadata:
                for ask in judges.get(metadata["source"], ()):
                    if reason := ask(document):
                        metadata["dropped"] = reason
                        break
                if len(document.text) > LARGE:
                    split_into_parts.cache_clear()
            yield document
