"""Oracle: signatures and clusters are datatrove's own. Law: the first document stays, however the work is shared."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupSignature,
)
from datatrove.utils.text import simplify_text
from datatrove.utils.word_tokenizers import WordTokenizer
from samples import make_text

from mobillama.config import CleanConfig
from mobillama.data import minhash, words
from mobillama.data.minhash import NO_SHINGLE, PRIME, MatchBuckets, MinHash, Signatures, body, cluster, signature_files
from mobillama.errors import DamagedFileError

SUBSETS = ("arxiv", "book", "c4", "refinedweb", "starcoder", "stackexchange", "wikipedia")
ODD = [
    *(chr(code) for code in range(0x250)),
    *(" \n\t.,’“”0123456789٣٫،⎖\u0301\u0316\u302e\U0001d165\u037e\u1fef\u226e\u2000\u3000\u00a0ΣσςİKÅ" * 8),
    *(chr(code) for code in range(0x370, 0x700)),
    *"他看海🙂가각",
]


class Split(WordTokenizer):
    """Words between spaces, in place of spaCy."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        raise NotImplementedError


def oracle(folder: Path) -> MinhashDedupSignature:
    """datatrove's step; its call of xxhash is given bytes, since xxhash 4 takes no str any more."""
    step = MinhashDedupSignature(str(folder), MinhashConfig(), language=Split())
    step._hash_func = lambda text: xxhash.xxh64_intdigest(text.encode())
    return step


def expected(step: MinhashDedupSignature, text: str) -> list[int]:
    shingles = step.get_shingles(body(text))
    if not len(shingles):
        return [int(NO_SHINGLE)] * step.num_hashes
    return [value for bucket in step.get_signature(shingles) for value in bucket]


def mini_amber(folder: Path, subset: str) -> Iterator[str]:
    with gzip.open(folder / f"{subset}.jsonl.gz", "rt", encoding="utf-8") as file:
        yield from (json.loads(line)["text"] for line in file)


def odd_texts(count: int) -> list[str]:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    return ["".join(chosen.choice(ODD) for _ in range(chosen.randrange(200))) for _ in range(count)]


def test_words_of_odd_texts_are_datatroves():
    for text in odd_texts(3000):
        assert words.simplified(text).decode().split() == simplify_text(text).split(), repr(text)


def test_words_around_every_character_are_datatroves():
    for code in (*range(0xD800), *range(0xE000, 0x20000)):
        text = f"a{chr(code)}b 1{chr(code)}2 "
        assert words.simplified(text).decode().split() == simplify_text(text).split(), hex(code)


def test_signatures_are_datatroves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(words, "PIECE_CHARACTERS", 500)  # so that shingles reach over pieces
    chosen = random.Random(7)
    texts = [*odd_texts(200), "", "four words are none", "but five words are one", make_text(chosen, 6000)]
    texts += [make_text(chosen, chosen.randrange(600)) for _ in range(50)]
    step, ours = oracle(tmp_path), MinHash(CleanConfig())
    signatures = ours.signatures([ours.shingles(text) for text in texts])
    for text, signature in zip(texts, signatures.T.tolist(), strict=True):
        assert signature == expected(step, text)


def test_signatures_of_real_texts_are_datatroves(tmp_path: Path, shared_folder: Callable[[str], Path]):
    folder = shared_folder("MOBILLAMA_CORPORA")
    step, ours = oracle(tmp_path), MinHash(CleanConfig())
    for subset in SUBSETS:
        texts = [text for _, text in zip(range(8), mini_amber(folder, subset), strict=False)]
        for text, signature in zip(
            texts, ours.signatures([ours.shingles(text) for text in texts]).T.tolist(), strict=True
        ):
            assert signature == expected(step, text)


def test_values_at_the_edge_of_the_modulus_are_exact():
    ours = MinHash(CleanConfig())
    prime = int(PRIME)
    for row in range(20):
        factor, offset = int(ours.factor[row, 0]), int(ours.offset[row, 0])
        if factor % 2:
            for value in (0, 1, prime - 1, prime, prime + 1, 2 * prime, 8 * prime, (1 << 64) - 1):
                shingle = (value - offset) * pow(factor, -1, 1 << 64) % (1 << 64)
                assert ours.signatures([np.array([shingle], np.uint64)])[row, 0] == value % prime


def test_a_licence_notice_at_the_head_counts_for_nothing():
    code = "int one(void) { return 1; }"
    for head in (
        "/* Copyright Someone.\n * All rights reserved. */\n",
        "#!/bin/sh\n# license: MIT\n# more\n",
        "// LICENCE\n",
    ):
        assert body(head + code).strip() == code
    assert body("/* what this file does */\n" + code).endswith("*/\n" + code)
    assert body(code + "/* Copyright */") == code + "/* Copyright */"


def documents(texts: list[str]) -> Iterator[Document]:
    for number, text in enumerate(texts):
        yield Document(text, str(number), [], {"dropped": "empty"} if text == "" else {})


def sign(folder: Path, tasks: list[list[str]], clean: CleanConfig) -> list[int]:
    step = Signatures(clean, folder)
    for task, texts in enumerate(tasks):
        assert [document.text for document in step.run(documents(texts), task)] == texts
    return [sum(text != "" for text in texts) for texts in tasks]


def matched(folder: Path, kept: list[int], shares: int = 1, duplicates: tuple[int, ...] = ()) -> list[list[int]]:
    """The clusters of the signatures in `folder`, each bucket shared out to `shares` tasks, run in reverse."""
    name, clean = f"{shares}-{len(duplicates)}", CleanConfig()
    np.save(folder / f"{name}.npy", np.array(duplicates, np.int64))
    step = MatchBuckets(clean, signature_files(folder, kept), folder / f"{name}.npy", folder / name)
    tasks = clean.minhash_buckets * shares
    for rank in reversed(range(tasks)):
        list(step.run(None, rank, tasks))
    cluster(folder / name, folder / f"{name}-clusters.npy")
    return np.load(folder / f"{name}-clusters.npy").tolist()


def near(text: str, changes: int) -> str:
    parts = text.split(" ")
    for change in range(changes):
        parts[change * len(parts) // changes] = f"changed{change}"
    return " ".join(parts)


def test_near_duplicates_go_and_the_first_stays_whatever_the_shares(tmp_path: Path):
    chosen = random.Random(3)
    texts = [make_text(chosen, 400) for _ in range(8)]
    tasks = [[texts[0], "", texts[1], texts[2]], [near(texts[1], 2), texts[3], near(texts[0], 2)], [near(texts[1], 3)]]
    kept = sign(tmp_path, tasks, CleanConfig())
    assert kept == [3, 3, 1]
    found = matched(tmp_path, kept)
    assert found == [[3, 1], [5, 0], [6, 1]]
    assert matched(tmp_path, kept, shares=2) == matched(tmp_path, kept, shares=7) == found


def test_documents_without_shingles_match_nothing(tmp_path: Path):
    assert matched(tmp_path, sign(tmp_path, [["three short words"] * 4, []], CleanConfig())) == []


def test_exact_duplicates_do_not_count_twice(tmp_path: Path):
    text = make_text(random.Random(4), 300)
    kept = sign(tmp_path, [[text, text, near(text, 2)]], CleanConfig())
    assert matched(tmp_path, kept, duplicates=(1,)) == [[2, 0]]
    assert matched(tmp_path, kept) == [[1, 0], [2, 0]]


def test_likeness_is_handed_on(tmp_path: Path):
    clean = CleanConfig()
    signature = np.random.default_rng(0).integers(0, PRIME, (14, 8, 5), dtype=np.uint64)
    signature[2, :, 4] = signature[2, :, 1]  # 4 is like 1 in one bucket, 1 like 3 in another, 3 like 0 in a third
    signature[5, :, 3] = signature[5, :, 1]
    signature[9, :, 3] = signature[9, :, 0]
    signature[7, :7, 2] = signature[7, :7, 0]  # seven hashes of eight are not enough
    signature.tofile(tmp_path / "00000.minhash")
    assert matched(tmp_path, [5]) == [[1, 0], [3, 0], [4, 0]]
    assert clean.minhash_buckets == 14


def test_a_file_that_was_cut_is_named(tmp_path: Path):
    kept = sign(tmp_path, [["some words that are enough for one", "and others that are enough too"]], CleanConfig())
    path = tmp_path / "00000.minhash"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DamagedFileError, match=r"00000\.minhash: found 1784 bytes; expected 1792"):
        matched(tmp_path, kept)


def test_a_step_that_ends_early_leaves_no_file(tmp_path: Path):
    def broken() -> Iterator[Document]:
        yield from documents(["words that are more than enough for one shingle"])
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(Signatures(CleanConfig(), tmp_path).run(broken()))
    assert list(tmp_path.iterdir()) == []


def test_memory_for_signatures_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    texts = [make_text(random.Random(number), 50) for number in range(40)]
    sign(tmp_path / "one", [texts], CleanConfig())
    monkeypatch.setattr(minhash, "KEPT_DOCUMENTS", 3)
    sign(tmp_path / "many", [texts], CleanConfig())
    assert (tmp_path / "one/00000.minhash").read_bytes() == (tmp_path / "many/00000.minhash").read_bytes()


@pytest.mark.slow
def test_clusters_of_mini_amber_are_datatroves(tmp_path: Path, shared_folder: Callable[[str], Path]):
    folder = shared_folder("MOBILLAMA_CORPORA")
    config, theirs = MinhashConfig(), oracle(tmp_path / "signatures")
    kept = []
    for task, subset in enumerate(SUBSETS):
        texts = list(mini_amber(folder, subset))
        theirs.run((Document(body(text), str(number)) for number, text in enumerate(texts)), task, len(SUBSETS))
        kept += sign_task(tmp_path, task, texts)
    buckets = MinhashDedupBuckets(str(tmp_path / "signatures"), str(tmp_path / "buckets"), config=config)
    for rank in range(config.num_buckets):
        buckets.run(None, rank, config.num_buckets)
    clusters = MinhashDedupCluster(str(tmp_path / "buckets"), str(tmp_path / "clusters"), config, save_cluster_id=True)
    clusters.run(None, 0, 1)
    firsts = np.cumsum([0, *kept])
    members: dict[int, list[int]] = {}
    removed = 0
    for task in range(len(SUBSETS)):
        path = tmp_path / f"clusters/{task:06d}"
        for document, number in np.fromfile(f"{path}.clusters", "<u4").reshape(-1, 2).tolist() if told(path) else []:
            members.setdefault(number, []).append(int(firsts[task]) + document)
        removed += path.with_suffix(".remove").stat().st_size // 4 if path.with_suffix(".remove").exists() else 0
    wanted = sorted([other, min(group)] for group in members.values() for other in group if other != min(group))
    assert removed == len(wanted) > 200
    assert matched(tmp_path, kept) == wanted


def told(path: Path) -> bool:
    return path.with_suffix(".clusters").exists()


def sign_task(folder: Path, task: int, texts: list[str]) -> list[int]:
    step: Any = Signatures(CleanConfig(), folder)
    return [sum(1 for _ in step.run(documents(texts), task))]


LANGUAGES = {
    "Chinese": (range(0x4E00, 0x4E00 + 3000), "，。"),
    "Japanese": ([*range(0x3041, 0x3096), *range(0x30A1, 0x30FA), *range(0x4E00, 0x4E00 + 800)], "、。"),
    "Thai": (range(0x0E01, 0x0E2F), " "),
    "Lao": (range(0x0E94, 0x0EA0), " "),
    "Khmer": (range(0x1780, 0x17B3), "។ "),
}


def unspaced_text(chance: random.Random, language: str, size: int) -> str:
    letters, marks = LANGUAGES[language]
    words = ["".join(map(chr, chance.choices(list(letters), k=chance.randint(1, 3)))) for _ in range(3000)]
    text = ""
    while len(text) < size:
        text += "".join(chance.choices(words, k=8)) + chance.choice(marks)
    return text


@pytest.mark.parametrize("language", LANGUAGES)
def test_near_copies_without_spaces_go_and_other_texts_stay(tmp_path: Path, language: str):
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    texts = [unspaced_text(chance, language, 600) for _ in range(30)]
    copies = []
    for text in texts:
        characters = list(text)
        for place in chance.sample(range(len(characters)), 6):  # one in a hundred
            characters[place] = chance.choice(text)
        copies.append("".join(characters))
    found = matched(tmp_path, sign(tmp_path, [texts, copies], CleanConfig()))
    assert all(copy - 30 == first for copy, first in found)
    assert len(found) >= 29


def test_a_text_with_few_characters_of_other_scripts_has_datatroves_words(tmp_path: Path):
    text = "The character 海 means sea, and 看海 to look at it; 他们在海边看见了一艘船 is a sentence in English."
    spaced = "한국어 문장은 낱말 사이에 공백이 있고 그래서 낱말은 공백으로 나뉜다"
    step, ours = oracle(tmp_path), MinHash(CleanConfig())
    for one in (text, spaced):
        assert ours.signatures([ours.shingles(one)])[:, 0].tolist() == expected(step, one)
    assert len(ours.shingles("他们在海边看见了一艘船")) == 7
