"""Files: what is saved loads again, here and in transformers; what is damaged or of another kind says so."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from tests.tokenizer.conftest import Pair
from tests.tokenizer.strings import strings

from mobillama.errors import DamagedFileError, InputError
from mobillama.tokenizer.sentencepiece_model import read_model
from mobillama.tokenizer.tokenizer import Tokenizer, convert


def test_what_is_saved_loads_as_the_same_tokenizer(pair: Pair, tmp_path: Path, seed: int) -> None:
    pair.ours.save(tmp_path)
    for again in (Tokenizer.load(tmp_path), Tokenizer.load(str(tmp_path / "tokenizer.json"))):
        assert again.digest == pair.ours.digest
        for text in strings(seed, 100):
            assert again.encode(text) == pair.ours.encode(text)


def test_the_digest_is_the_sha256_of_the_saved_file(small: Tokenizer, tmp_path: Path) -> None:
    small.save(tmp_path)
    assert hashlib.sha256((tmp_path / "tokenizer.json").read_bytes()).hexdigest() == small.digest


def test_the_digest_of_llamas_tokenizer_stays(shared_folder: Any) -> None:
    tokenizer = Tokenizer.load(shared_folder("MOBILLAMA_TOKENIZER"))
    assert tokenizer.digest == "330fda3c04205f6f6037e443996f534428b18a2dd9f22a9242770f576875f94b"


def test_the_model_file_is_read_as_sentencepiece_reads_it(pair: Pair) -> None:
    pieces = pair.ours.vocabulary.pieces
    assert pieces == [pair.oracle.id_to_piece(id_) for id_ in range(pair.oracle.get_piece_size())]
    assert (pair.ours.unk_id, pair.ours.bos_id, pair.ours.eos_id) == (0, 1, 2)


def test_transformers_loads_the_folder_and_gives_the_same_ids(pair: Pair, tmp_path: Path, seed: int) -> None:
    transformers = pytest.importorskip("transformers")
    pair.ours.save(tmp_path)
    for loaded in (
        transformers.AutoTokenizer.from_pretrained(tmp_path),
        transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path),
    ):
        assert (loaded.bos_token_id, loaded.eos_token_id, loaded.unk_token_id) == (1, 2, 0)
        assert len(loaded) == pair.ours.vocab_size
        for text in ["", "<s>a</s>", "  lead", *strings(seed, 500)]:
            found = loaded(text, split_special_tokens=True)["input_ids"]
            assert found == pair.ours.encode(text), f"seed {seed}: {text!r}"
            if not any(mark in text for mark in ("<s>", "</s>", "<unk>")):
                assert loaded(text)["input_ids"] == found, f"seed {seed}: {text!r}"
        # A chat template writes control pieces as text; in our own code they are asked for by name.
        spelt = loaded("<s>USER</s>")["input_ids"]
        assert spelt == [pair.ours.control_id("<s>"), *pair.ours.encode("USER"), pair.ours.control_id("</s>")]
        assert loaded.decode(pair.ours.encode(" Hello  world é😀")) == " Hello  world é😀"


def test_the_tokenizers_library_alone_gives_the_same_ids(small: Tokenizer, tmp_path: Path, seed: int) -> None:
    small.save(tmp_path)
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in strings(seed, 500):
        assert plain.encode(text).ids == small.encode(text), f"seed {seed}: {text!r}"


def test_a_tokenizer_json_from_elsewhere_loads(small: Tokenizer, tmp_path: Path) -> None:
    """The forms in circulation: control pieces added, a begin id put before, merges as strings, Metaspace."""
    tree = small.tree
    tree["added_tokens"] = [{"id": 1, "content": "<s>", "special": True}]
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    tree["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    tree["model"]["merges"] = [" ".join(merge) for merge in tree["model"]["merges"]]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tree))
    assert Tokenizer.load(path).text_digest == small.digest
    assert Tokenizer.load(path).encode_prompt("a") == [1, *small.encode("a")]
    tree["normalizer"] = None
    tree["pre_tokenizer"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}
    path.write_text(json.dumps(tree))
    assert Tokenizer.load(path).encode("a  b") == small.encode("a  b")


def test_a_tokenizer_survives_pickling(small: Tokenizer) -> None:
    again = pickle.loads(pickle.dumps(small))
    assert again.digest == small.digest
    assert again.encode("some text") == small.encode("some text")


def test_a_folder_without_tokenizer_is_an_error_that_names_the_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        Tokenizer.load(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        Tokenizer.load(tmp_path / "nothing")
    with pytest.raises(InputError, match="does not exist"):
        convert(tmp_path / "nothing.model")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_tokenizer_json_is_an_error_that_names_its_size(
    small: Tokenizer, tmp_path: Path, share: float
) -> None:
    small.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DamagedFileError, match=rf"\({int(len(data) * share)} bytes\) is not whole JSON"):
        Tokenizer.load(tmp_path)


def test_a_truncated_model_file_is_an_error_wherever_it_ends(small_model: Path, tmp_path: Path) -> None:
    data = small_model.read_bytes()
    path = tmp_path / "tokenizer.model"
    for size in (0, 1, *range(2, len(data) - 60, 997), *range(len(data) - 60, len(data), 7)):
        path.write_bytes(data[:size])
        with pytest.raises(DamagedFileError, match=rf"\({size} bytes\).*restore"):
            convert(path)


def test_a_file_of_something_else_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    for data in (b"just text", b"\x00" * 100, b"\xff" * 100, bytes(range(256))):
        path.write_bytes(data)
        with pytest.raises(DamagedFileError, match="restore"):
            convert(path)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"model_type": "unigram", "byte_fallback": True}, "model_type=unigram"),
        ({"byte_fallback": False}, "byte_fallback=False"),
        ({"normalization_rule_name": "nmt_nfkc"}, "precompiled_charsmap"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces=True"),
        ({"user_defined_symbols": ["<tool>"]}, "<tool>"),
    ],
)
def test_a_model_that_cannot_be_converted_exactly_is_refused(
    change: dict[str, Any], found: str, library_texts: list[str], tmp_path: Path
) -> None:
    settings = {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        **change,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(library_texts[0].split("\n")),
        model_prefix=str(tmp_path / "other"),
        vocab_size=400,
        minloglevel=2,
        hard_vocab_limit=False,
        **settings,
    )
    with pytest.raises(InputError, match=found):
        convert(tmp_path / "other.model")


def test_a_model_without_dummy_prefix_is_converted_exactly(library_texts: list[str], tmp_path: Path, seed: int) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(library_texts[0].split("\n")),
        model_prefix=str(tmp_path / "bare"),
        vocab_size=500,
        minloglevel=2,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
    )
    ours = convert(tmp_path / "bare.model")
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "bare.model"))
    assert not read_model(tmp_path / "bare.model").dummy_prefix
    for text in strings(seed, 500):
        ids = ours.encode(text)
        assert ids == oracle.encode(text), f"seed {seed}: {text!r}"
        assert ours.decode(ids) == oracle.decode(ids)
        assert ours.byte_lengths(text, ids).sum() == len(text.encode())
    ours.save(tmp_path)
    assert Tokenizer.load(tmp_path).digest == ours.digest


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"model": {"type": "WordPiece", "vocab": {}}}, "no tokenizer.json with a BPE model"),
        ({"pre_tokenizer": {"type": "ByteLevel"}}, "another kind"),
        ({"added_tokens": [{"id": 1500, "content": "<|tool|>"}]}, r"<\|tool\|>"),
    ],
)
def test_a_tokenizer_json_of_another_kind_is_refused(
    change: dict[str, Any], found: str, small: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({**small.tree, **change}))
    with pytest.raises(InputError, match=found):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"model": 3}'])
def test_json_of_something_else_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_vocabularies_with_holes_or_wrong_merges_are_refused(small: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tree = small.tree
    tree["model"]["vocab"]["<s>"] = 7000
    path.write_text(json.dumps(tree))
    with pytest.raises(InputError, match="ids of its 1500 pieces"):
        Tokenizer.load(path)
    tree = small.tree
    tree["model"]["merges"][0] = ["a", "nowhere-to-be-found"]
    path.write_text(json.dumps(tree))
    with pytest.raises(InputError, match="merge"):
        Tokenizer.load(path)
