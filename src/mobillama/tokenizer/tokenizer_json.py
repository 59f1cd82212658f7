"""Read the `tokenizer.json` of a LLaMA-style tokenizer, from wherever it comes, as the tokenizers library reads it.

What changes ids is reproduced or refused: where a space is put, added tokens, what belongs before and behind a prompt.
`tokenizer_config.json` beside it names the begin and the end piece.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mobillama.errors import DamagedFileError, InputError
from mobillama.tokenizer.matching import Matched
from mobillama.tokenizer.sentencepiece_model import Kind
from mobillama.tokenizer.vocabulary import BEGIN, BYTES, END, KINDS, SPACE, Prefix, Specials, Vocabulary, check_pieces

CONFIG_FILE = "tokenizer_config.json"
NEUTRAL = {"dropout": (None, 0), "continuing_subword_prefix": (None, ""), "end_of_word_suffix": (None, "")}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
PREPEND = {"type": "Prepend", "prepend": SPACE}


def read_tokenizer_json(path: Path) -> Vocabulary:
    """The vocabulary in a `tokenizer.json`: one written here, or one of a LLaMA model from elsewhere.

    Errors: DamagedFileError if it is no JSON, InputError if it is a tokenizer of another kind.
    """
    tree = _read(path)
    model = tree.get("model") if isinstance(tree, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict) or "merges" not in model:
        raise InputError(f"{path} is no tokenizer.json with a BPE model; give the file of a LLaMA-style tokenizer")
    spacing = _spacing(tree)
    if model.get("type", "BPE") != "BPE" or not model.get("byte_fallback") or spacing is None:
        raise InputError(
            f"{path} is a tokenizer of another kind (model {model.get('type')!r}, byte_fallback="
            f"{model.get('byte_fallback')!r}); expected a byte-fallback BPE that writes spaces as {SPACE!r}, such as "
            "LLaMA's: train one with `mobillama tokenizer train` or convert a tokenizer.model"
        )
    for name, neutral in {**NEUTRAL, "ignore_merges": (None, False)}.items():
        if model.get(name) not in neutral:
            raise InputError(f"{path}: {name}={model[name]!r}, which is not known here; expected {neutral[-1]!r}")
    pieces = _pieces(model["vocab"], path)
    config = _read(path.with_name(CONFIG_FILE)) if path.with_name(CONFIG_FILE).is_file() else {}
    named = Specials(
        _id_of(model.get("unk_token"), model["vocab"], path),
        _id_of(_name(config, "bos_token", BEGIN, model["vocab"]), model["vocab"], path),
        _id_of(_name(config, "eos_token", END, model["vocab"]), model["vocab"], path),
    )
    adds_bos, adds_eos = _frame(tree.get("post_processor"), named, path)
    prefix, split = spacing
    kinds = [KINDS.get(piece, Kind.NORMAL) for piece in pieces]
    for id_, kind in zip(named, (Kind.UNKNOWN, Kind.CONTROL, Kind.CONTROL), strict=True):
        if id_ is not None:
            kinds[id_] = kind
    added = list(_added(tree.get("added_tokens") or [], model["vocab"], path))
    for piece in added:
        if not piece.special:
            kinds[piece.id] = Kind.USER_DEFINED
        elif kinds[piece.id] is not Kind.UNKNOWN:
            kinds[piece.id] = Kind.CONTROL
    _check_strips(added, prefix, path)
    merges = _merges(model["merges"], model["vocab"], path)
    if split:  # each U+2581 begins a word, and no merge reaches from one word into the next
        merges = [(left, right) for left, right in merges if SPACE not in (left + right)[1:]]
    vocab = Vocabulary(
        pieces,
        merges,
        prefix,
        kinds,
        matched=() if all(piece.special for piece in added) else tuple(added),
        named=named,
        adds_bos=adds_bos and named.bos is not None,
        adds_eos=adds_eos and named.eos is not None,
    )
    check_pieces(pieces, str(path), BYTES)
    if not vocab.ranked:
        raise InputError(f"{path}: a merge of a control or added piece, or one listed twice; expected neither")
    return vocab


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(
            f"{path} ({path.stat().st_size} bytes) is not whole JSON ({error}); restore it or make it again"
        ) from None


def _pieces(vocab: dict[str, Any], path: Path) -> list[str]:
    by_id = {id_: piece for piece, id_ in vocab.items() if type(id_) is int}
    if sorted(by_id) != list(range(len(vocab))):
        raise InputError(f"{path}: the ids of its {len(vocab)} pieces are not 0 to {len(vocab) - 1}")
    return [by_id[id_] for id_ in range(len(by_id))]


def _name(config: Any, key: str, usual: str, vocab: dict[str, int]) -> str | None:
    """The name of a piece in `tokenizer_config.json`; where that is silent LLaMA's, if there is such a piece."""
    if not isinstance(config, dict) or key not in config:
        return usual if usual in vocab else None
    found = config[key]
    name = found.get("content") if isinstance(found, dict) else found
    return name if isinstance(name, str) else None


def _id_of(name: Any, vocab: dict[str, int], path: Path) -> int | None:
    if name is None:
        return None
    if name not in vocab:
        raise InputError(f"{path}: {name!r} is no piece of its vocabulary; expected one: use the model's own tokenizer")
    return vocab[name]


def _added(tokens: Any, vocab: dict[str, int], path: Path) -> Iterator[Matched]:
    """The added tokens."""
    for token in tokens:
        content, id_ = (token.get("content"), token.get("id")) if isinstance(token, dict) else (None, None)
        if content not in vocab:
            raise InputError(
                f"{path} adds {content!r} (id {id_}) to its vocabulary of {len(vocab)} pieces; "
                "expected added tokens that are pieces: use the tokenizer of the base model"
            )
        if id_ != vocab[content]:
            raise InputError(f"{path} adds {content!r} as id {id_}, which is {vocab[content]} in its vocabulary")
        if token.get("single_word") and not token.get("special"):
            raise InputError(
                f"{path}: the added token {content!r} is found between words only (single_word), which is not known "
                "here; expected false: use the tokenizer of the base model"
            )
        flags = {name: bool(token.get(name)) for name in ("normalized", "lstrip", "rstrip", "special")}
        yield Matched(id_, content, **flags)


def _check_strips(matched: Iterable[Matched], prefix: Prefix, path: Path) -> None:
    for piece in matched:
        if (
            not piece.special
            and piece.normalized
            and (piece.lstrip or piece.rstrip)
            and prefix in (Prefix.NONE, Prefix.EACH)
        ):
            raise InputError(
                f"{path}: the added token {piece.content!r} takes white space with it (lstrip, rstrip) after spaces "
                'became U+2581, which is not known here; expected "normalized": false'
            )


def _frame(processor: Any, named: Specials, path: Path) -> tuple[bool, bool]:
    """Whether the begin id stands before a prompt and the end id behind it."""
    if processor is None:
        return False, False
    found = _template(processor)
    if found is None:
        kind = processor.get("type") if isinstance(processor, dict) else processor
        raise InputError(
            f"{path}: its post_processor {kind!r} is not known here; expected none, or a TemplateProcessing that puts "
            "the begin id before a text or the end id behind it"
        )
    for first in (False, True):
        for last in (False, True):
            if found == ([named.bos] * first, [named.eos] * last):
                return first, last
    raise InputError(
        f"{path}: its post_processor puts the ids {found[0]} before a text and {found[1]} behind it; expected the "
        f"begin id ({named.bos}) before it, the end id ({named.eos}) behind it, or nothing"
    )


def _template(processor: Any) -> tuple[list[int | None], list[int | None]] | None:
    """The ids that a TemplateProcessing puts before and behind a text; None if it is none."""
    try:
        if processor["type"] != "TemplateProcessing":
            return None
        ids: list[list[int | None]] = [[]]
        for step in processor["single"]:
            if "Sequence" in step:
                ids.append([])
            else:
                ids[-1] += processor["special_tokens"][step["SpecialToken"]["id"]]["ids"]
    except (KeyError, TypeError):
        return None
    return (ids[0], ids[1]) if len(ids) == 2 else None


def _merges(found: Any, vocab: dict[str, int], path: Path) -> list[tuple[str, str]]:
    merges = []
    for merge in found if isinstance(found, list) else [found]:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        whole = isinstance(parts, list) and len(parts) == 2 and all(isinstance(part, str) for part in parts)
        if not whole or not all(part in vocab for part in (*parts, "".join(parts))):
            raise InputError(f"{path}: merge {merge!r} does not join two pieces of the vocabulary into a third")
        merges.append((parts[0], parts[1]))
    return merges


def _spacing(tree: dict[str, Any]) -> tuple[Prefix, bool] | None:
    """Where a space is put before text, and whether each space begins a word; None for what is not known here."""
    normalizer, pre = tree.get("normalizer"), tree.get("pre_tokenizer")
    steps = [] if normalizer is None else [normalizer]
    if isinstance(normalizer, dict) and normalizer.get("type") == "Sequence":
        steps = normalizer.get("normalizers") or []
    if not pre:
        if steps == [PREPEND, REPLACE]:
            return Prefix.EACH, False
        return (Prefix.NONE, False) if steps == [REPLACE] else None
    if steps or not isinstance(pre, dict) or pre.get("type") != "Metaspace" or pre.get("replacement") != SPACE:
        return None
    scheme = pre.get("prepend_scheme", "always" if pre.get("add_prefix_space", True) else "never")
    prefixes = {"first": Prefix.FIRST, "always": Prefix.ALWAYS, "never": Prefix.NONE}
    return (prefixes[scheme], bool(pre.get("split", True))) if scheme in prefixes else None
