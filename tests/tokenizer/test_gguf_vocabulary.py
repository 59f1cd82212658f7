"""The tokenizer inside a GGUF file gives the ids of the one that was put in: read back, and merged by score alone."""

from __future__ import annotations

import heapq
from dataclasses import replace
from pathlib import Path

import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from strings import strings

from mobillama.errors import DamagedFileError, InputError
from mobillama.tokenizer.gguf_keys import read_keys
from mobillama.tokenizer.gguf_vocabulary import GgufVocabulary, from_gguf, read_tokenizer, to_gguf, write_tokenizer
from mobillama.tokenizer.tokenizer import Tokenizer, train
from mobillama.tokenizer.vocabulary import Prefix


@pytest.fixture(scope="session")
def learned(library_texts: list[str]) -> Tokenizer:
    """A tokenizer of 1,200 pieces that was trained here."""
    return train(library_texts[:20], 1200)


@pytest.fixture(params=["learned", "small", "llama"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Ours, one converted from sentencepiece, and LLaMA's where MOBILLAMA_TOKENIZER names its folder."""
    if request.param == "llama":
        return Tokenizer.load(request.getfixturevalue("shared_folder")("MOBILLAMA_TOKENIZER"))
    return request.getfixturevalue(request.param)


def write(path: Path, tokenizer: Tokenizer, size: int) -> Path:
    writer = GGUFWriter(path, "mobillama")
    write_tokenizer(writer, tokenizer, size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path


def ids_by_score(values: GgufVocabulary, text: str) -> list[int]:
    """Independent of ours: always merge the two neighbours whose union has the highest score, leftmost first."""
    known = {token: id_ for id_, token in enumerate(values.tokens)}
    text = (" " if values.prefix is not Prefix.NONE and text else "") + text
    parts = list(text.replace(" ", "\u2581"))
    left, right = [at - 1 for at in range(len(parts))], [at + 1 for at in range(len(parts))]
    queue: list[tuple[float, int, int, str]] = []

    def offer(one: int, two: int) -> None:
        if one >= 0 and two < len(parts) and (id_ := known.get(parts[one] + parts[two])) is not None:
            heapq.heappush(queue, (-values.scores[id_], one, two, parts[one] + parts[two]))

    for at in range(len(parts) - 1):
        offer(at, at + 1)
    while queue:
        _, one, two, union = heapq.heappop(queue)
        if parts[one] and parts[two] and right[one] == two and parts[one] + parts[two] == union:
            parts[one], parts[two] = union, ""
            right[one] = right[two]
            if right[two] < len(parts):
                left[right[two]] = one
            offer(left[one], one)
            offer(one, right[one])
    ids = []
    for part in filter(None, parts):
        whole = known.get(part)
        ids += [whole] if whole is not None else [known[f"<0x{byte:02X}>"] for byte in part.encode()]
    return ids


def test_merging_by_score_gives_our_ids(tokenizer: Tokenizer, library_texts: list[str], seed: int) -> None:
    values = to_gguf(tokenizer.vocabulary, tokenizer.vocab_size)
    for text in [*strings(seed, 400), *(text[:1000] for text in library_texts[40:50])]:
        assert ids_by_score(values, text) == tokenizer.encode(text), repr(text)


def test_the_tokenizer_read_back_is_the_one_that_was_written(tokenizer: Tokenizer, tmp_path: Path, seed: int) -> None:
    path = write(tmp_path / "words.gguf", tokenizer, tokenizer.vocab_size + 5)
    found = read_tokenizer(path)
    assert found.digest == tokenizer.digest
    assert all(found.encode(text) == tokenizer.encode(text) for text in strings(seed, 100))


def test_the_keys_are_those_of_a_llama_tokenizer(learned: Tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "words.gguf", learned, 1202)
    fields = {name: field.contents() for name, field in GGUFReader(path).fields.items()}
    found = {name.removeprefix("tokenizer.ggml."): value for name, value in fields.items() if "ggml" in name}
    assert found["tokens"] == [*learned.vocabulary.pieces, "[PAD1200]", "[PAD1201]"]
    assert found["token_type"] == [2, 3, 3, *[6] * 256, *[1] * (1200 - 259), 5, 5]
    assert len(found["scores"]) == 1202
    names = ("model", "bos_token_id", "eos_token_id", "unknown_token_id", "add_bos_token", "add_space_prefix")
    assert [found[name] for name in names] == ["llama", 1, 2, 0, False, True]


def test_our_reader_of_keys_reads_what_the_gguf_package_reads(learned: Tokenizer, tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "keys.gguf", "mobillama")
    writer.add_uint8("a", 200)
    writer.add_int64("b", -(2**40))
    writer.add_float64("c", 0.1)
    writer.add_bool("d", True)
    writer.add_array("e", [1, -2, 3])
    writer.add_string("f", "▁é")
    write_tokenizer(writer, learned, 1200)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    reader = GGUFReader(tmp_path / "keys.gguf")
    expected = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert read_keys(tmp_path / "keys.gguf") == expected


def test_a_file_that_is_cut_anywhere_is_damaged(tmp_path: Path, learned: Tokenizer) -> None:
    data = write(tmp_path / "words.gguf", learned, 1200).read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in [*range(4, 200), *range(200, len(data), 997)]:
        cut.write_bytes(data[:size])
        with pytest.raises(DamagedFileError, match=r"cut\.gguf is not a whole GGUF file"):
            read_keys(cut)


def test_absurd_counts_are_damage_and_take_no_memory(tmp_path: Path) -> None:
    head = b"GGUF" + (3).to_bytes(4, "little") + bytes(8)
    one = (1).to_bytes(8, "little") + (1).to_bytes(8, "little") + b"k"
    numbers = (9).to_bytes(4, "little") + (4).to_bytes(4, "little") + (2**61).to_bytes(8, "little")
    for data in (head + (2**63).to_bytes(8, "little"), head + one + numbers, head + one + (77).to_bytes(4, "little")):
        (tmp_path / "bad.gguf").write_bytes(data)
        with pytest.raises(DamagedFileError):
            read_keys(tmp_path / "bad.gguf")


def test_files_without_such_a_tokenizer_are_refused(tmp_path: Path, learned: Tokenizer) -> None:
    (tmp_path / "text.gguf").write_text("no such file")
    with pytest.raises(InputError, match="is no GGUF file"):
        read_tokenizer(tmp_path / "text.gguf")
    with pytest.raises(InputError, match="is no file"):
        read_tokenizer(tmp_path / "nowhere.gguf")
    data = bytearray(write(tmp_path / "words.gguf", learned, 1200).read_bytes())
    data[4] = 9
    (tmp_path / "newer.gguf").write_bytes(data)
    with pytest.raises(InputError, match="is GGUF of version 9; this mobillama reads 2 and 3"):
        read_tokenizer(tmp_path / "newer.gguf")
    writer = GGUFWriter(tmp_path / "none.gguf", "mobillama")
    writer.add_tokenizer_model("none")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(InputError, match="tokenizer of kind 'none'; expected 'llama'"):
        read_tokenizer(tmp_path / "none.gguf")
    with pytest.raises(InputError, match="1200 pieces, the model only 1100 embeddings"):
        to_gguf(learned.vocabulary, 1100)


def test_lists_that_disagree_are_damage(learned: Tokenizer) -> None:
    values = to_gguf(learned.vocabulary, 1200)
    for wrong in (
        replace(values, scores=values.scores[1:]),
        replace(values, kinds=[9, *values.kinds[1:]]),
        replace(values, merges=["a zzzz"]),
        replace(values, tokens=["x" + token for token in values.tokens], merges=["xa xb"]),
    ):
        with pytest.raises(DamagedFileError, match="get the file again"):
            from_gguf(wrong, "words.gguf")


def test_a_text_ends_at_every_id_that_the_file_names(learned: Tokenizer, tmp_path: Path) -> None:
    def read(eot: int, more: list[int]) -> frozenset[int]:
        writer = GGUFWriter(tmp_path / "ends.gguf", "mobillama")
        write_tokenizer(writer, learned, 1200)
        writer.add_eot_token_id(eot)
        writer.add_uint32("tokenizer.ggml.eom_token_id", 301)
        writer.add_key_value("mobillama.end_token_ids", more, GGUFValueType.ARRAY, GGUFValueType.UINT32)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return read_tokenizer(tmp_path / "ends.gguf").end_ids

    assert learned.end_ids == {2}
    assert read(300, [302, 2, 303]) == {2, 300, 301, 302, 303}
    with pytest.raises(DamagedFileError, match=r"eot_token_id is 1200; expected 0 to 1199"):
        read(1200, [3])
    with pytest.raises(DamagedFileError, match=r"mobillama\.end_token_ids is 1200; expected 0 to 1199"):
        read(300, [3, 1200])
