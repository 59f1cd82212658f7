"""The stand-alone program encodes and decodes as sentencepiece does, from the vocabulary inside a GGUF file."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import pytest
import sentencepiece
from tests.native.programs import output, run, write_vocabulary
from tests.tokenizer import conftest as tokenizers
from tests.tokenizer.strings import strings

from mobillama.tokenizer.gguf_vocabulary import write_tokenizer
from mobillama.tokenizer.sentencepiece_model import Kind, Piece, read_model
from mobillama.tokenizer.tokenizer import train

SEPARATOR = b"\xff"  # never in UTF-8

library_texts, small_model, seed = tokenizers.library_texts, tokenizers.small_model, tokenizers.seed  # fixtures


class Pair(NamedTuple):
    """A vocabulary file for the program, and sentencepiece's processor of the same model."""

    file: Path
    oracle: Any

    def encode(self, texts: list[bytes]) -> list[list[int]]:
        """The program's ids of many texts."""
        stdin = b"".join(text + SEPARATOR for text in texts)
        lines = output(self.file, "--tokenize", "--split", SEPARATOR[0], stdin=stdin).decode().splitlines()
        return [[int(word) for word in line.split()] for line in lines]

    def decode(self, rows: list[list[int]]) -> list[str]:
        """The program's texts of many rows of ids."""
        stdin = "".join(" ".join(map(str, row)) + "\n" for row in rows).encode()
        texts = output(self.file, "--detokenize", "--split", SEPARATOR[0], stdin=stdin).split(SEPARATOR)
        return [text.decode() for text in texts[:-1]]


@pytest.fixture(scope="module", params=["small", "llama"])
def pair(request: pytest.FixtureRequest, small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Each model in turn; LLaMA's only where MOBILLAMA_TOKENIZER names its folder."""
    model = small_model
    if request.param == "llama":
        model = request.getfixturevalue("shared_folder")("MOBILLAMA_TOKENIZER") / "tokenizer.model"
    file = write_vocabulary(tmp_path_factory.mktemp("vocabulary") / "tokenizer.gguf", read_model(model).pieces)
    return Pair(file, sentencepiece.SentencePieceProcessor(model_file=str(model)))


def test_ids_and_texts_equal_sentencepieces_on_2000_generated_strings(pair: Pair, seed: int) -> None:
    texts = list(strings(seed, 2000))
    rows = pair.encode([text.encode() for text in texts])
    assert len(rows) == len(texts)
    for text, row in zip(texts, rows, strict=True):
        assert row == pair.oracle.encode(text), f"seed {seed}: {text!r}"
    for row, text in zip(rows, pair.decode(rows), strict=True):
        assert text == pair.oracle.decode(row), f"seed {seed}: {row}"


def test_texts_equal_sentencepieces_on_random_ids(pair: Pair, seed: int) -> None:
    """Control pieces, the unknown one and bytes that form no character among them."""
    draw = random.Random(seed)
    size = pair.oracle.get_piece_size()
    rows = [[draw.randrange(draw.choice((3, 259, size))) for _ in range(draw.randint(0, 20))] for _ in range(500)]
    for row, text in zip(rows, pair.decode(rows), strict=True):
        assert text == pair.oracle.decode(row), f"seed {seed}: {row}"


def test_bytes_that_are_no_utf8_are_read_as_sentencepiece_reads_them(pair: Pair, seed: int) -> None:
    draw = random.Random(seed)
    parts = [
        b"a",
        b" the",
        b"\xc3",
        b"\xa9",
        b"\xe2\x82",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xc0\x80",
        b"\xf0\x9f",
    ]
    texts = [b"".join(draw.choices(parts, k=draw.randint(1, 12))) for _ in range(300)]
    for text, row in zip(texts, pair.encode(texts), strict=True):
        assert row == pair.oracle.encode(text), f"seed {seed}: {text!r}"


def test_long_text_and_long_runs_give_sentencepieces_ids(pair: Pair, library_texts: list[str]) -> None:
    """A search that is quadratic in the length would not end within the program's time."""
    text = "\n".join(library_texts)[:500_000] + " " * 20_000 + "z" * 20_000 + "\u2581=" * 5_000
    ids = [int(word) for word in output(pair.file, "--tokenize", stdin=text.encode()).split()]
    assert ids == pair.oracle.encode(text)


def test_a_vocabulary_trained_here_gives_our_own_ids(library_texts: list[str], tmp_path: Path, seed: int) -> None:
    """Its merges join pieces in fewer ways than scores alone would say; rows without a piece follow it."""
    ours = train(library_texts[:20], 900)
    writer = gguf.GGUFWriter(tmp_path / "trained.gguf", "mobillama")
    write_tokenizer(writer, ours, 960)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    pair = Pair(tmp_path / "trained.gguf", ours)
    texts = [*strings(seed, 1000), *library_texts[20:23]]
    rows = pair.encode([text.encode() for text in texts])
    for text, row in zip(texts, rows, strict=True):
        assert row == ours.encode(text), f"seed {seed}: {text!r}"
    assert pair.decode(rows) == [ours.decode(row) for row in rows]
    assert run(pair.file, "--detokenize", stdin=b"900").returncode == 1


def test_where_the_file_says_so_no_space_is_put_in_front(small_model: Path, tmp_path: Path) -> None:
    pieces = read_model(small_model).pieces
    file = write_vocabulary(tmp_path / "bare.gguf", pieces, add_space_prefix=False)
    spaced = write_vocabulary(tmp_path / "spaced.gguf", pieces, add_space_prefix=True)
    assert output(file, "--tokenize", stdin=b" def f") == output(spaced, "--tokenize", stdin=b"def f")
    assert output(file, "--detokenize", stdin=output(file, "--tokenize", stdin=b" def f")) == b" def f"


def test_of_pieces_with_equal_scores_the_leftmost_pair_merges_first(tmp_path: Path) -> None:
    special = [Piece("<unk>", 0, Kind.UNKNOWN), Piece("<s>", 0, Kind.CONTROL), Piece("</s>", 0, Kind.CONTROL)]
    normal = [Piece(text, score, Kind.NORMAL) for text, score in (("a", -9), ("aa", -1), ("aaa", -1), ("aaaa", -1))]
    file = write_vocabulary(tmp_path / "runs.gguf", special + normal, add_space_prefix=False)
    assert output(file, "--tokenize", stdin=b"a" * 7) == b"6 5\n"  # aa aaa aaaa from the left, then the rest


def test_characters_without_piece_or_bytes_are_one_unknown_id(tmp_path: Path) -> None:
    pieces = [Piece("<unk>", 0, Kind.UNKNOWN), Piece("<s>", 0, Kind.CONTROL), Piece("</s>", 0, Kind.CONTROL)]
    file = write_vocabulary(tmp_path / "a.gguf", [*pieces, Piece("a", -1, Kind.NORMAL)], add_space_prefix=False)
    assert output(file, "--tokenize", stdin=b"axyza") == b"3 0 3\n"


@pytest.mark.parametrize(
    ("keys", "words"),
    [({"eos_token_id": 4}, "tokenizer.ggml.eos_token_id is 4; expected 0 to 3"), ({"unknown_token_id": 9}, "is 9")],
)
def test_a_special_id_outside_the_vocabulary_is_an_error(tmp_path: Path, keys: dict[str, int], words: str) -> None:
    pieces = [Piece(text, 0, Kind.NORMAL) for text in "abcd"]
    done = run(write_vocabulary(tmp_path / "bad.gguf", pieces, **keys), "--tokenize", stdin=b"a")
    assert done.returncode == 1
    assert words in done.stderr.decode()


@pytest.mark.parametrize("text", ["<0x1>", "<0xGG>", "<0xff>", "x", "<0x0A> "])
def test_a_byte_piece_that_names_no_byte_is_an_error(tmp_path: Path, text: str) -> None:
    pieces = [*(Piece(letter, 0, Kind.NORMAL) for letter in "abc"), Piece(text, 0, Kind.BYTE)]
    done = run(write_vocabulary(tmp_path / "bad.gguf", pieces), "--tokenize", stdin=b"a")
    assert done.returncode == 1
    assert "token 3, a byte" in done.stderr.decode()


def test_an_id_outside_the_vocabulary_is_an_error(small_model: Path, tmp_path: Path) -> None:
    file = write_vocabulary(tmp_path / "small.gguf", read_model(small_model).pieces)
    done = run(file, "--detokenize", stdin=b"5 1500")
    assert done.returncode == 1
    assert done.stderr.decode() == "mobillama-run: id 1500 is outside the vocabulary; expected 0 to 1499\n"
