"""Learn a byte-fallback BPE from text, with the trainer of the `tokenizers` library.

Words are runs of letters or of other signs with at most one space before them; digits stand alone and runs of spaces
are pieces of their own, as in LLaMA's vocabulary, so that the fast way of encoding applies to what is learned here.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from mobillama.errors import InputError
from mobillama.tokenizer.vocabulary import BEGIN, BYTES, END, LONGEST_RUN, SPACE, UNKNOWN, Vocabulary, run_merges

WORD = re.compile(r" ?[^\W\d_]+| ?(?:[^\w\s]|_)+|\d")
# A word of so many characters is none: a merge in it costs time for all of it. It is taken in parts.
LONGEST_WORD, WORD_PART = 2048, 64
LONGEST_PIECE = 16  # characters, as in LLaMA's vocabulary
COVERAGE = 0.9995  # share of the characters of the text that become pieces; the rest are written as bytes
WORDS_COUNTED = 2_000_000  # different words counted at once; beyond, those seen once are forgotten
CHARACTERS_COUNTED = 1 << 28  # as many are read before those of the words are looked at, a quarter of them may stay
FIXED = (UNKNOWN, BEGIN, END, *BYTES)
RUNS = tuple(SPACE * size for size in range(2, LONGEST_RUN + 1))


def learn(texts: Iterable[str], vocab_size: int) -> Vocabulary:
    """A vocabulary of exactly `vocab_size` pieces. Texts are read once; the same texts give the same vocabulary.

    Error: InputError if `vocab_size` leaves no room beside the fixed pieces, or the texts are too few to fill it.
    """
    room = vocab_size - len(FIXED) - len(RUNS)
    if room < 2:
        raise InputError(
            f"vocab_size={vocab_size}: {len(FIXED) + len(RUNS)} pieces are fixed (3 controls, 256 bytes, "
            f"{len(RUNS)} runs of spaces); choose at least 512"
        )
    words = count_words(texts)
    alphabet = choose_alphabet(words, room // 2)
    learned, merges = _learn_merges(words, alphabet, room)
    pieces = [*FIXED, *learned, *RUNS, *alphabet]
    if len(pieces) != vocab_size:
        raise InputError(
            f"the texts ({len(words)} different words) give {len(pieces)} pieces; expected vocab_size={vocab_size}: "
            "train on more text or choose a smaller vocabulary"
        )
    return Vocabulary(pieces, [*merges, *run_merges(LONGEST_RUN)])


def count_words(texts: Iterable[str]) -> Counter[str]:
    """How often each word (with plain spaces) stands in the texts."""
    words: Counter[str] = Counter()
    held, most = 0, CHARACTERS_COUNTED  # characters in all words, at most, and when they are counted
    for text in texts:
        words.update(WORD.findall(" " + text.replace(SPACE, " ")))
        held += len(text) + 1
        full = len(words) > WORDS_COUNTED
        if held > most:
            _cut(words)
            held = sum(map(len, words))
            full |= held > CHARACTERS_COUNTED // 4
            most = max(CHARACTERS_COUNTED, 2 * held)
        if full:
            words = Counter({word: count for word, count in words.items() if count > 1})
    _cut(words)
    return words


def _cut(words: Counter[str]) -> None:
    """Put in the place of every word longer than LONGEST_WORD its parts of WORD_PART."""
    for word in [word for word in words if len(word) > LONGEST_WORD]:
        count = words.pop(word)
        for start in range(0, len(word), WORD_PART):
            words[word[start : start + WORD_PART]] += count


def choose_alphabet(words: Counter[str], most: int) -> list[str]:
    """The commonest characters that cover the texts, the space always among them; ties in order of code point."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    counts.pop(" ", None)
    needed = COVERAGE * counts.total()
    alphabet, covered = [SPACE], 0
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if covered >= needed or len(alphabet) >= most:
            break
        alphabet.append(character)
        covered += count
    return alphabet


def _learn_merges(words: Counter[str], alphabet: list[str], room: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Pieces and merges in the order learned, for `room` pieces together with the alphabet."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit("\n")
    trainer = trainers.BpeTrainer(
        vocab_size=room, min_frequency=1, initial_alphabet=alphabet, max_token_length=LONGEST_PIECE, show_progress=False
    )
    tokenizer.train_from_iterator(_lines(words, alphabet), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [(left, right) for left, right in model["merges"]]
    return list(dict.fromkeys(left + right for left, right in merges)), merges


def _lines(words: Counter[str], alphabet: list[str]) -> Iterator[str]:
    """Every word as often as it was counted, one a line; it ends and begins anew at characters without a piece."""
    known = set(alphabet)
    for word, count in words.items():
        spaced = word.replace(" ", SPACE)
        if not known.issuperset(spaced):
            spaced = "".join(character if character in known else "\n" for character in spaced)
        line = spaced + "\n"
        yield from itertools.repeat(line * 1000, count // 1000)
        yield line * (count % 1000)
