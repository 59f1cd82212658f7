"""One meaning of a GGUF vocabulary: the program and the package read it alike, whatever its pieces are called.

The oracles are the keys' meaning in llama.cpp (src/llama-vocab.cpp), written down in the table by hand, and
sentencepiece itself where it reads the same pieces.
"""

from __future__ import annotations

import json
import random
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import pytest
import sentencepiece
from tests.native.programs import run
from tests.native.tiny_models import write_tiny_model
from tests.tokenizer import conftest as tokenizers

from mobillama.errors import MobillamaError
from mobillama.runtime.engine_model import EngineModel
from mobillama.tokenizer.gguf_vocabulary import read_tokenizer
from mobillama.tokenizer.sentencepiece_model import Kind
from mobillama.tokenizer.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, DEFINED, UNUSED, BYTE = (Kind(number) for number in range(1, 7))
SPACE = "▁"
HEAD = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]
CHAT = [("[UNK]", UNKNOWN), ("<|im_start|>", CONTROL), ("<|im_end|>", CONTROL), ("[PAD]", CONTROL)]
ALL_BYTES = [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]
WORDS = [(piece, NORMAL) for piece in ["▁a", "ab", "▁ab", "abc", "b▁", "▁▁", "▁▁▁▁", "<|", "|>", "▁", *"abc<>|/s"]]
TOOLS = [(piece, DEFINED) for piece in ["<tool>", "<tool><tool>", "a b", "<|", "  ", "\n\n"]]
MANY = [*CHAT, *WORDS, *WORDS, *TOOLS, *ALL_BYTES[:0x80]]
library_texts, seed = tokenizers.library_texts, tokenizers.seed  # fixtures
SEPARATOR = b"\xff"  # in no UTF-8
Rows = list[tuple[Any, int]]


class Odd(NamedTuple):
    """A vocabulary: rows of (piece, kind), scores (falling, if None), further keys of tokenizer.ggml, merges."""

    rows: Rows
    scores: list[float] | None = None
    keys: dict[str, Any] = {}  # noqa: RUF012
    merges: list[str] = []  # noqa: RUF012


ODD = {
    "llama": Odd(HEAD + ALL_BYTES + WORDS),
    "other control names": Odd(CHAT + ALL_BYTES + WORDS),
    "no bytes": Odd(HEAD + WORDS),
    "some bytes": Odd(HEAD + ALL_BYTES[0x60:0xE5] + WORDS),
    "no bytes, no unknown id": Odd([("x", NORMAL), *HEAD[1:], *WORDS], keys={"unknown_token_id": None}),
    "doubled pieces": Odd(HEAD + ALL_BYTES + WORDS + [("ab", NORMAL), ("▁a", CONTROL), ("a", BYTE - 5)]),
    "equal scores": Odd(HEAD + ALL_BYTES + WORDS, [0.0] * (259 + len(WORDS))),
    "scores in pairs": Odd(HEAD + ALL_BYTES + WORDS, [-float(at // 2) for at in range(259 + len(WORDS))]),
    "pieces of characters that are none": Odd(HEAD + ALL_BYTES + [("xy", NORMAL), ("xyz", NORMAL), ("▁q", NORMAL)]),
    "an empty piece": Odd([*HEAD, *ALL_BYTES, *WORDS, ("", NORMAL), ("", DEFINED), ("z", NORMAL)]),
    "pieces that are no UTF-8": Odd([*HEAD, *ALL_BYTES, *WORDS, (b"\xe2\x96", NORMAL), (b"\xffa", DEFINED)]),
    "user-defined pieces": Odd(HEAD + ALL_BYTES + WORDS + TOOLS),
    "user-defined pieces, no space": Odd(HEAD + ALL_BYTES + WORDS + TOOLS, keys={"add_space_prefix": False}),
    **{
        f"user-defined pieces, space: {name}": Odd(HEAD + ALL_BYTES + WORDS + TOOLS, keys={"space_prefix": name})
        for name in ("start", "each", "first", "always")
    },
    "control pieces that text spells": Odd(HEAD + ALL_BYTES + WORDS + [("ab", CONTROL), ("a", CONTROL)]),
    "unused pieces": Odd([*HEAD, ("ab", UNUSED), *ALL_BYTES, *WORDS[2:], ("[PAD9]", UNUSED), ("[PAD10]", UNUSED)]),
    "merges": Odd(HEAD + ALL_BYTES + WORDS, merges=["a b", "▁ a", "▁a b", "ab c", "▁ ▁"]),
    "merges said twice": Odd(HEAD + ALL_BYTES + WORDS, merges=["▁ a", "a b", "▁a b", "a b", "▁ a"]),
    "merges of no pieces": Odd([*HEAD, *ALL_BYTES, ("xy", NORMAL), ("xyz", NORMAL)], merges=["x y", "xy z"]),
    "everything at once": Odd(MANY, [0.5] * len(MANY)),
    # Refused, by both in the same words.
    "a type there is not": Odd([*HEAD, ("a", 7)]),
    "a byte that is none": Odd([*HEAD, ("<0x1>", BYTE)]),
    "an id outside": Odd(HEAD + WORDS, keys={"bos_token_id": 900}),
    "an end outside": Odd(HEAD + WORDS, keys={"eot_token_id": 900}),
    "a merge that makes no piece": Odd(HEAD + ALL_BYTES + WORDS, merges=["a q"]),
    "too few scores": Odd(HEAD + WORDS, [0.0] * 3),
    "a space nowhere known": Odd(HEAD + WORDS, keys={"space_prefix": "behind"}),
}
REFUSED = tuple(ODD)[-7:]


def write(path: Path, odd: Odd, **more: Any) -> Path:
    """The vocabulary in a file without tensors."""
    writer = gguf.GGUFWriter(path, "mobillama")
    add_vocabulary(writer, odd, **more)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def add_vocabulary(writer: gguf.GGUFWriter, odd: Odd, **more: Any) -> None:
    writer.add_key_value("general.description", b"caf\xe9", gguf.GGUFValueType.STRING)  # Latin-1
    writer.add_tokenizer_model("llama")
    writer.add_token_list([piece for piece, _ in odd.rows])
    writer.add_token_scores(odd.scores or [-float(at) for at in range(len(odd.rows))])
    writer.add_token_types([int(kind) for _, kind in odd.rows])
    if odd.merges:
        writer.add_token_merges(odd.merges)
    keys = {"unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **odd.keys, **more}
    for name, value in keys.items():
        if name == "space_prefix":
            writer.add_string("tokenizer.mobillama.space_prefix", value)
        elif value is not None:
            (writer.add_bool if isinstance(value, bool) else writer.add_uint32)(f"tokenizer.ggml.{name}", value)


def texts(seed: int, count: int) -> list[str]:
    draw = random.Random(seed)
    marks = ["<tool>", "<s>", "</s>", "<|im_start|>", "<|", "\n\n", "a b"]
    parts = ["a", "b", "c", " ", "  ", "▁", "xyz", "é", "中", "�", *marks]
    return ["", *("".join(draw.choices(parts, k=draw.randint(1, 14))) for _ in range(count))]


def ours(call: Any) -> Any:
    """What a call gives, or its error's words."""
    try:
        return call()
    except MobillamaError as error:
        return str(error)


@pytest.mark.parametrize("name", ODD)
def test_program_and_package_give_the_same_ids_and_texts(name: str, tmp_path: Path, seed: int) -> None:
    file = write(tmp_path / "odd.gguf", ODD[name])
    tokenizer = ours(lambda: read_tokenizer(file))
    many = texts(seed, 150)
    covers = {*ALL_BYTES, (SPACE, NORMAL)} <= set(ODD[name].rows)  # no text needs the unknown id, a space is one byte
    if name in REFUSED:
        words = run(file, "--tokenize", stdin=b"a").stderr.decode().removeprefix("mobillama-run: ").strip()
        assert isinstance(tokenizer, str) and words and words in tokenizer
        return
    assert len(tokenizer.digest) == 64
    expected = [ours(lambda text=text: tokenizer.encode(text)) for text in many]
    if any(isinstance(ids, str) for ids in expected):  # some text has no ids: one at a time
        assert name == "no bytes, no unknown id"
        for text, ids in zip(many[:40], expected, strict=False):
            done = run(file, "--tokenize", stdin=text.encode())
            if isinstance(ids, str):
                words = ids.partition(":")[0].replace("\\n", "\\x0a")  # as the program escapes a new line
                assert words in done.stderr.decode()
            else:
                assert done.stdout.decode().split() == list(map(str, ids)), f"seed {seed}: {text!r}"
        return
    done = run(file, "--tokenize", "--split", SEPARATOR[0], stdin=b"".join(text.encode() + SEPARATOR for text in many))
    assert done.returncode == 0, done.stderr.decode()
    for text, ids, line in zip(many, expected, done.stdout.decode().splitlines(), strict=True):
        assert line.split() == list(map(str, ids)), f"seed {seed}: {text!r}"
        if covers:
            assert tokenizer.byte_lengths(text, ids).sum() == len(text.encode()), f"seed {seed}: {text!r}"
    draw = random.Random(seed)
    rows = [*expected, *([draw.randrange(tokenizer.vocab_size) for _ in range(9)] for _ in range(100))]
    stdin = "".join(" ".join(map(str, row)) + "\n" for row in rows).encode()
    done = run(file, "--detokenize", "--split", SEPARATOR[0], stdin=stdin)
    for row, text in zip(rows, done.stdout.split(SEPARATOR)[:-1], strict=True):
        assert text.decode() == tokenizer.decode(row), f"seed {seed}: {row}"


def test_control_pieces_are_never_in_the_ids_of_a_text(tmp_path: Path, seed: int) -> None:
    for name in ("llama", "other control names", "control pieces that text spells"):
        tokenizer = read_tokenizer(write(tmp_path / "odd.gguf", ODD[name]))
        controls = {id_ for id_, (_, kind) in enumerate(ODD[name].rows) if kind == CONTROL}
        for text in texts(seed, 200):
            assert not controls & set(tokenizer.encode(text)), f"seed {seed}: {text!r}"
    chat = read_tokenizer(write(tmp_path / "odd.gguf", ODD["other control names"]))
    assert [chat.control_id(name) for name in ("<|im_start|>", "<|im_end|>", "[PAD]")] == [1, 2, 3]
    with pytest.raises(MobillamaError, match=r"no control piece '<s>'; it has <\|im_end\|>, <\|im_start\|>, \[PAD\]"):
        chat.control_id("<s>")


def test_user_defined_pieces_match_as_llama_cpp_matches_them(tmp_path: Path) -> None:
    """By hand after llama-vocab.cpp: the pieces are cut out of the text, and each part between them gets a space."""
    rows = [*HEAD, ("▁", NORMAL), ("a", NORMAL), ("b", NORMAL), ("<tool>", DEFINED), ("<tool><tool>", DEFINED)]
    tokenizer = read_tokenizer(write(tmp_path / "odd.gguf", Odd(rows)))
    assert tokenizer.encode("a<tool>b") == [3, 4, 6, 3, 5]
    assert tokenizer.encode("<tool>b") == [6, 3, 5]
    assert tokenizer.encode("<tool><tool><tool>") == [7, 6]


def test_user_defined_pieces_match_as_sentencepiece_matches_them(
    library_texts: list[str], tmp_path: Path, seed: int
) -> None:
    symbols = ["<tool>", "<tool><tool>", "▁x", "self."]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(library_texts[0].split("\n")),
        model_prefix=str(tmp_path / "defined"),
        vocab_size=420,
        minloglevel=2,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=symbols,
    )
    found = Tokenizer.load(tmp_path / "defined.model")
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "defined.model"))
    draw = random.Random(seed)
    parts = [*symbols, "x", " ", " x", "<", "def ", "<tool", "é", "\n"]
    for _ in range(500):
        text = "".join(draw.choices(parts, k=draw.randint(0, 12)))
        ids = found.encode(text)
        assert ids == oracle.encode(text), f"seed {seed}: {text!r}"
        assert found.decode(ids) == oracle.decode(ids), f"seed {seed}: {text!r}"
        assert found.byte_lengths(text, ids).sum() == len(text.encode()), f"seed {seed}: {text!r}"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("tokens", value) for value in ([1, 2, 3], "abc")),
        *(("scores", value) for value in (["a", "b", "c"], [float("nan")] * 3, 0.5)),
        *(("token_type", value) for value in ([1.0, 2.0, 3.0], ["a", "b", "c"], 3)),
        ("merges", [1]),
        *(
            (f"{name}_token_id", value)
            for name in ("bos", "eos", "unknown", "eot", "eom")
            for value in ("x", 0.5, -1, 3)
        ),
        *((f"add_{name}", value) for name in ("bos_token", "eos_token", "space_prefix") for value in ("no", 0.5)),
        *(("more", value) for value in (["a"], [1.5], [3], 2)),
    ],
)
def test_a_value_of_another_kind_is_refused_by_both(key: str, value: Any, tmp_path: Path) -> None:
    name = "mobillama.end_token_ids" if key == "more" else f"tokenizer.ggml.{key}"
    given = {"tokens": ["a", "b", "c"], "scores": [0.0, -1.0, -2.0], "token_type": [1, 1, 1]}
    values = {"tokenizer.ggml.model": "llama", **{f"tokenizer.ggml.{one}": found for one, found in given.items()}}
    writer = gguf.GGUFWriter(tmp_path / "bad.gguf", "mobillama")
    for one, found in (values | {name: value}).items():
        add = {str: writer.add_string, float: writer.add_float32, int: writer.add_int32, list: writer.add_array}
        add[type(found)](one, found)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    done = run(tmp_path / "bad.gguf", "--tokenize", stdin=b"a")
    assert done.returncode == 1
    assert name in done.stderr.decode()
    with pytest.raises(MobillamaError, match=re.escape(name)):
        read_tokenizer(tmp_path / "bad.gguf")


# What sentencepiece reads too; of a GGUF file it is asked to put the space where sentencepiece does.
SHARED = {
    **{name: ODD[name] for name in ("llama", "other control names", "no bytes", "equal scores", "scores in pairs")},
    "user-defined pieces": Odd(HEAD + ALL_BYTES + WORDS + TOOLS[:2] + TOOLS[-1:]),
}


@pytest.mark.parametrize("name", SHARED)
def test_ids_and_texts_are_sentencepieces_where_it_reads_the_same_pieces(name: str, tmp_path: Path, seed: int) -> None:
    odd = SHARED[name]
    file = write(tmp_path / "odd.gguf", odd, space_prefix="start")
    oracle = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(odd))
    ours, many = read_tokenizer(file), texts(seed, 200)
    stdin = b"".join(text.encode() + SEPARATOR for text in many)
    lines = run(file, "--tokenize", "--split", SEPARATOR[0], stdin=stdin).stdout.decode().splitlines()
    for text, line in zip(many, lines, strict=True):
        ids = oracle.encode(text)
        assert ours.encode(text) == ids == [int(word) for word in line.split()], f"seed {seed}: {text!r}"
        assert ours.decode(ids) == oracle.decode(ids), f"seed {seed}: {text!r}"


def sentencepiece_model(odd: Odd) -> bytes:
    """The vocabulary as a BPE .model of sentencepiece, written by hand: see sentencepiece_model.proto."""

    def field(number: int, value: bytes | int) -> bytes:
        if isinstance(value, int):
            return bytes([*varint(number << 3), *varint(value)])
        return bytes([*varint(number << 3 | 2), *varint(len(value))]) + value

    def varint(value: int) -> list[int]:
        return [value] if value < 128 else [value & 127 | 128, *varint(value >> 7)]

    scores = odd.scores or [-float(at) for at in range(len(odd.rows))]
    pieces = [
        field(1, field(1, piece.encode()) + b"\x15" + struct.pack("<f", score) + field(3, int(kind)))
        for (piece, kind), score in zip(odd.rows, scores, strict=True)
    ]
    bytes_too = any(kind == BYTE for _, kind in odd.rows)
    trainer = field(3, 2) + field(35, int(bytes_too)) + field(45, odd.rows[0][0].encode())
    return (
        b"".join(pieces) + field(2, trainer) + field(3, field(1, b"identity") + field(3, 1) + field(4, 0) + field(5, 1))
    )


@pytest.mark.parametrize("adds_bos", [None, True, False])
@pytest.mark.parametrize("adds_eos", [None, True, False])
@pytest.mark.parametrize("named", [True, False])
def test_a_prompt_begins_and_ends_as_the_file_says(
    adds_bos: bool | None, adds_eos: bool | None, named: bool, tmp_path: Path
) -> None:
    """llama.cpp's defaults where the file is silent: ids 0, 1 and 2, the begin id in front, nothing behind."""
    ids = {} if named else {"bos_token_id": None, "eos_token_id": None, "unknown_token_id": None}
    odd, file = ODD["other control names"], tmp_path / "model.gguf"
    write_model(file, odd, add_bos_token=adds_bos, add_eos_token=adds_eos, **ids)
    prompt = "ab <|im_start|> a"
    with EngineModel.load(file, threads=1) as model:
        tokenizer = model.tokenizer
        assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.end_ids) == (0, 1, 2, {2})
        text = tokenizer.encode(prompt)
        expected = [1] * (adds_bos is not False) + text + [2] * (adds_eos is True)
        assert tokenizer.encode_prompt(prompt) == expected
        for seed in range(2):
            found = model.complete([prompt], max_new_tokens=40, temperature=3.0, top_p=1.0, seed=seed)[0]
            options = (file, "-p", prompt, "-n", "40", "--threads", "1", "--json")
            done = run(*options, "--temperature", "3.0", "--top-p", "1.0", "--seed", str(seed))
            theirs = json.loads(done.stdout)
            assert theirs["ids"] == list(found.ids)
            assert (theirs["ending"], theirs["text"]) == (found.ending, found.text)


def write_model(file: Path, odd: Odd, **keys: Any) -> None:
    """A tiny model with this vocabulary."""
    write_tiny_model(
        file,
        gguf.GGMLQuantizationType.F32,
        vocab_size=len(odd.rows),
        hidden_size=32,
        intermediate_size=32,
        heads=2,
        kv_heads=2,
        vocabulary=lambda writer: add_vocabulary(writer, odd, **keys),
    )
