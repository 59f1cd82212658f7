"""A tokenizer.json from elsewhere gives the ids of the tokenizers library, or is refused for what it is."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from gguf import GGUFWriter
from tests.native.programs import output
from tests.tokenizer.strings import PARTS

from mobillama.data.encode import load_tokenizer
from mobillama.errors import InputError
from mobillama.tokenizer.gguf_vocabulary import read_tokenizer, to_gguf, write_tokenizer
from mobillama.tokenizer.pieces import Pieces
from mobillama.tokenizer.tokenizer import Tokenizer

SPACE = "▁"
PREPEND = {"type": "Prepend", "prepend": SPACE}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


def metaspace(scheme: str, split: bool) -> dict[str, Any]:
    space = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": split}
    return {"normalizer": None, "pre_tokenizer": space}


SPACINGS: dict[str, dict[str, Any]] = {
    "prepend": {"normalizer": {"type": "Sequence", "normalizers": [PREPEND, REPLACE]}},
    "no prefix": {"normalizer": REPLACE},
    **{
        f"metaspace {scheme}{' split' * split}": metaspace(scheme, split)
        for scheme in ("first", "always", "never")
        for split in (False, True)
    },
}


def token(content: str, special: bool, **flags: bool) -> dict[str, Any]:
    off = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"content": content, "special": special, **off, **flags}


SPECIAL = [token("<s>", True), token("<|im_start|>", True), token("[PAD]", True, normalized=True, rstrip=True)]
ADDED: dict[str, list[dict[str, Any]]] = {
    "special": SPECIAL,
    "in text": [*SPECIAL, token("<|user|>", False), token("<|user|><|user|>", False), token("<|", False)],
    "user": [*SPECIAL, token("<|user|>", False), token("a b", False)],
    "normalized": [*SPECIAL, token("<|user|>", False, normalized=True), token("a b", False, normalized=True)],
    "both": [token("<|user|>", False, normalized=True), token("<|", False), token("a b", False)],
    "stripping": [
        token("<|user|>", False, lstrip=True),
        token("<|", False, rstrip=True),
        token("a b", False, lstrip=True, rstrip=True),
    ],
}


@pytest.fixture(scope="module")
def tree(small: Tokenizer) -> dict[str, Any]:
    """The small model's tokenizer.json with further pieces in its vocabulary."""
    tree = copy.deepcopy(small.tree)
    for piece in ("<|im_start|>", "[PAD]", "<|user|>", "<|user|><|user|>", "<|", "a b"):
        tree["model"]["vocab"][piece] = len(tree["model"]["vocab"])
    return tree


def changed(tree: dict[str, Any], spacing: str, added: str) -> dict[str, Any]:
    ids = tree["model"]["vocab"]
    tokens = sorted(({"id": ids[one["content"]], **one} for one in ADDED[added]), key=lambda one: one["id"])
    return {**tree, **SPACINGS[spacing], "added_tokens": tokens}


def texts(seed: int, count: int) -> list[str]:
    draw = random.Random(seed)
    parts = [*PARTS, *["<s>", "<|im_start|>", "[PAD]", "<|user|>", "<|user|>", "<|", "a b", " ", "  ", "\n", "a"] * 4]
    return ["", *("".join(draw.choices(parts, k=draw.randint(1, 12))) for _ in range(count - 1))]


def load(tree: dict[str, Any], folder: Path, **config: Any) -> Tokenizer:
    (folder / "tokenizer.json").write_text(json.dumps(tree), encoding="utf-8")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return Tokenizer.load(folder)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_ids_equal_those_of_the_tokenizers_library(
    spacing: str, tree: dict[str, Any], tmp_path: Path, seed: int
) -> None:
    """Typed special tokens stay text, as where `encode_special_tokens` is set. In all 2,400 strings."""
    for number, added in enumerate(ADDED):
        given = changed(tree, spacing, added)
        ours = load(given, tmp_path)
        oracle = tokenizers.Tokenizer.from_str(json.dumps(given))
        oracle.encode_special_tokens = True
        ours.save(tmp_path / "saved")
        again = Tokenizer.load(tmp_path / "saved")
        other = tokenizers.Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json"))
        other.encode_special_tokens = True
        assert again.digest == ours.digest
        for text in texts(seed + number, 50):
            ids = ours.encode(text)
            assert ids == oracle.encode(text, add_special_tokens=False).ids, f"seed {seed}, {added}: {text!r}"
            assert ids == again.encode(text) == other.encode(text).ids, f"seed {seed}, {added}: {text!r}"
            assert ours.byte_lengths(text, ids).sum() == len(text.encode()), f"seed {seed}, {added}: {text!r}"


def test_special_tokens_are_asked_for_by_name(tree: dict[str, Any], tmp_path: Path) -> None:
    ours = load(changed(tree, "prepend", "in text"), tmp_path)
    assert [ours.control_id(name) for name in ("<s>", "</s>", "<|im_start|>", "[PAD]")] == [1, 2, 1500, 1501]
    assert ours.decode([ours.control_id("<|im_start|>"), *ours.encode("a")]) == "a"
    with pytest.raises(InputError, match=r"no control piece '<\|user\|>'"):
        ours.control_id("<|user|>")
    assert ours.encode("<|im_start|>")[0] != 1500
    assert Pieces.of(ours).parts([1500, 1502]) == [b"", b"<|user|>"]
    ours.save(tmp_path / "saved")
    assert Pieces.load(tmp_path / "saved", ours.digest) is None  # a reader that knows LLaMA's control pieces alone


@pytest.mark.parametrize(
    ("before", "after"), [([], []), (["<s>"], []), ([], ["</s>"]), (["<s>"], ["</s>"])], ids=["", "s", "e", "se"]
)
def test_a_prompt_has_what_the_post_processor_puts_around_it(
    before: list[str], after: list[str], tree: dict[str, Any], tmp_path: Path, seed: int
) -> None:
    given = {**changed(tree, "prepend", "in text"), "post_processor": template(before, after)}
    ours, oracle = load(given, tmp_path), tokenizers.Tokenizer.from_str(json.dumps(given))
    oracle.encode_special_tokens = True
    for text in texts(seed, 200):
        assert ours.encode_prompt(text) == oracle.encode(text).ids, f"seed {seed}: {text!r}"
    ours.save(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    assert again.encode_prompt("a") == ours.encode_prompt("a")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in texts(seed, 50):
        assert theirs(text, split_special_tokens=True)["input_ids"] == ours.encode_prompt(text), (
            f"seed {seed}: {text!r}"
        )
    plain = ours.for_documents()
    assert plain.encode_prompt("a") == ours.encode("a")
    assert plain.digest == plain.text_digest == ours.text_digest
    assert (plain is ours) == (plain.digest == ours.digest) == (not before and not after)


def template(before: list[str], after: list[str]) -> dict[str, Any]:
    ids = {"<s>": 1, "</s>": 2, "<|im_start|>": 1500, "[PAD]": 1501}
    special = [[{"SpecialToken": {"id": name, "type_id": 0}} for name in names] for names in (before, after)]
    return {
        "type": "TemplateProcessing",
        "single": [*special[0], {"Sequence": {"id": "A", "type_id": 0}}, *special[1]],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in (*before, *after)},
    }


def test_begin_and_end_have_the_names_that_the_config_gives(tree: dict[str, Any], tmp_path: Path) -> None:
    names = {"bos_token": "<|im_start|>", "eos_token": {"content": "[PAD]"}}
    given = {**changed(tree, "prepend", "in text"), "post_processor": template(["<|im_start|>"], [])}
    ours = load(given, tmp_path, **names)
    assert (ours.bos_id, ours.eos_id, ours.end_ids) == (1500, 1501, {1501})
    assert ours.encode_prompt("a") == [1500, *ours.encode("a")]
    ours.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").encode_prompt("a") == ours.encode_prompt("a")
    with pytest.raises(InputError, match="'<nowhere>' is no piece of its vocabulary"):
        load(tree, tmp_path, eos_token="<nowhere>")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"added_tokens": [{"id": 1502, **token("<|user|>", False, single_word=True)}]}, "single_word"),
        ({"added_tokens": [{"id": 7, **token("<|user|>", False)}]}, "as id 7, which is 1502 in its vocabulary"),
        ({"added_tokens": [{"id": 1502, **token("<|user|>", False, lstrip=True, normalized=True)}]}, "lstrip, rstrip"),
        ({"added_tokens": [3]}, "adds None"),
        ({"post_processor": {"type": "ByteLevel"}}, "post_processor 'ByteLevel' is not known here"),
        ({"post_processor": template(["[PAD]"], [])}, r"puts the ids \[1501\] before a text and \[\] behind it"),
        ({"post_processor": template(["<s>", "<s>"], [])}, r"puts the ids \[1, 1\]"),
        ({"normalizer": {"type": "NFKC"}}, "another kind"),
        ({"normalizer": {"type": "Sequence", "normalizers": [PREPEND, REPLACE, {"type": "NFKC"}]}}, "another kind"),
        ({"normalizer": {"type": "Prepend", "prepend": "x"}}, "another kind"),
        (metaspace("sometimes", False), "another kind"),
    ],
)
def test_what_changes_ids_and_is_not_known_is_refused(
    change: dict[str, Any], words: str, tree: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        load({**tree, **change}, tmp_path)


@pytest.mark.parametrize("spacing", ["prepend", "no prefix", "metaspace first", "metaspace always split"])
def test_a_gguf_file_keeps_what_the_folder_says(spacing: str, tree: dict[str, Any], tmp_path: Path, seed: int) -> None:
    given = {**changed(tree, spacing, "user"), "post_processor": template(["<s>"], ["</s>"])}
    ours = load(given, tmp_path)
    writer = GGUFWriter(tmp_path / "words.gguf", "mobillama")
    write_tokenizer(writer, ours, ours.vocab_size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    found = read_tokenizer(tmp_path / "words.gguf")
    assert (found.bos_id, found.eos_id, found.control_id("<|im_start|>")) == (1, 2, 1500)
    many = texts(seed, 200)
    for text in many:
        assert found.encode_prompt(text) == ours.encode_prompt(text), f"seed {seed}: {text!r}"
    stdin = b"".join(text.encode() + b"\xff" for text in many)
    lines = output(tmp_path / "words.gguf", "--tokenize", "--split", 255, stdin=stdin).decode().splitlines()
    assert [[*map(int, line.split())] for line in lines] == [ours.encode(text) for text in many], f"seed {seed}"


@pytest.mark.parametrize(
    ("added", "words"), [("stripping", "takes spaces"), ("in text", "part of a special one's name")]
)
def test_what_no_gguf_file_can_say_is_refused(added: str, words: str, tree: dict[str, Any], tmp_path: Path) -> None:
    ours = load(changed(tree, "prepend", added), tmp_path)
    with pytest.raises(InputError, match=words):
        to_gguf(ours.vocabulary, ours.vocab_size)


def test_documents_are_not_encoded_where_ids_do_not_spell_them(tree: dict[str, Any], tmp_path: Path) -> None:
    load(changed(tree, "prepend", "user"), tmp_path)
    with pytest.raises(InputError, match="do not spell a document"):
        load_tokenizer(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    load(changed(tree, "metaspace first", "user"), other)
    assert load_tokenizer(other).vocab_size == 1506


@pytest.mark.parametrize("change", [{"dropout": 0.1}, {"ignore_merges": True}, {"end_of_word_suffix": "</w>"}])
def test_settings_of_the_model_that_change_ids_are_refused(
    change: dict[str, Any], tree: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"{next(iter(change))}=.*not known here"):
        load({**tree, "model": {**tree["model"], **change}}, tmp_path)
