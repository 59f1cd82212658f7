"""Whether a GGUF file is what `quantize` makes of a model: the weights are rounded again, and bytes compared."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from numpy.typing import NDArray

from mobillama.errors import DamagedFileError, InputError
from mobillama.export.gguf_file import (
    Importance,
    Plan,
    encoded,
    importance_digest,
    without_own_parts,
    write_header,
)
from mobillama.export.gguf_layout import ARCHITECTURES, Entry, entries
from mobillama.export.gguf_round import FLOATS
from mobillama.export.gguf_source import Source, find_source
from mobillama.export.gguf_types import KINDS, TYPES, fitting_type, spell
from mobillama.tokenizer.gguf_keys import ALIGNMENT, Stored, read_header
from mobillama.tokenizer.tokenizer import Tokenizer

CALIBRATION = "mobillama.importance_digest"
NAMED = 5  # tensors that differ, by name; of more the count is told


@dataclass
class Checked:
    """What a comparison found. `whole`: the file is equal byte for byte."""

    differences: list[str]
    not_compared: list[str]
    keys: int  # compared
    tensors: int  # compared
    whole: bool


def check_gguf(
    path: Path,
    model: str | Path,
    *,
    importance: Importance | None = None,
    tokenizer: Path | None = None,
    threads: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Checked:
    """Round a model again, with the types that the file's tensors have, and compare every key's value and every byte.

    model, importance, tokenizer, threads: as `quantize_model` took them when it wrote the file. Without importance the
    tensors of a calibrated file that were rounded with it are not compared; nor are they where the digest of this
    importance is not the file's, which is a difference. One tensor is in memory at a time. progress: share, 0 to 1.
    Errors: InputError for a part of a split model, a file that `quantize` did not write, importance for a file without
    calibration, and those of `quantize_model`; DamagedFileError for a file that is not whole.
    """
    keys, stored = _own_header(path)
    if importance and CALIBRATION not in keys:
        raise InputError(
            f"{path} was rounded without calibration (it has no key {CALIBRATION}): leave --importance out"
        )
    architecture = next(name for name in ARCHITECTURES if name == keys["general.architecture"])
    source = without_own_parts(find_source(model), architecture, importance)
    if tokenizer is not None:
        source.tokenizer = Tokenizer.load(tokenizer)
    types = _types(keys["mobillama.types"], stored, list(entries(source.config, architecture)))
    plan = Plan(source.config, architecture, spell(types), importance)
    header, expected_keys, expected = _header(plan, source)

    unknown = CALIBRATION in keys and (not plan.importance or importance_digest(plan.importance) != keys[CALIBRATION])
    left_out = {entry.name for entry in plan.entries if unknown and _by_importance(plan, entry)}
    not_compared = []
    if left_out and importance is None:
        not_compared = [f"{len(left_out)} tensors were rounded with calibration; give --importance SHARDS"]
    elif left_out:
        not_compared = [
            f"{len(left_out)} tensors were rounded with another calibration: one of other shards, another model or "
            "another machine's arithmetic"
        ]
    if CALIBRATION in keys and importance is None:
        not_compared.append(f"key {CALIBRATION}")
        del keys[CALIBRATION]

    listed = _listed(stored, expected)
    chosen = [entry for entry in plan.entries if entry.name not in left_out and entry.name not in listed]
    changed = _changed(path, stored, encoded(plan, source, chosen, threads), plan, progress or (lambda _: None))
    told = [f"tensor {_plain(name)}: {what}" for name, what in {**listed, **changed}.items()]
    if len(told) > NAMED:
        told[NAMED:] = [f"and {len(told) - NAMED} more tensors: {len(told)} differ, the file holds {len(stored)}"]
    differences = [*_changed_keys(keys, expected_keys), *told]
    whole = not differences and not not_compared and _around(path, header, stored, plan)
    return Checked(differences, not_compared, len(keys), len(chosen), whole)


def _own_header(path: Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    keys, stored = read_header(path)
    if keys.get("split.count", 1) != 1:
        raise InputError(
            f"{path} is one part of a split model; `mobillama quantize` writes one file: "
            "join the parts (llama-gguf-split --merge) and check that file"
        )
    if not isinstance(keys.get("mobillama.types"), str) or keys.get("general.architecture") not in ARCHITECTURES:
        raise InputError(
            f"{path} was not written by `mobillama quantize` (it has no key mobillama.types, or an architecture that "
            f"is none of {', '.join(ARCHITECTURES)}); only files that it wrote can be rounded again and compared"
        )
    return keys, stored


def _types(named: str, stored: Mapping[str, Stored], planned: list[Entry]) -> dict[str, str]:
    """The type of each kind that gives most of its tensors the type they have; of equals, the one the key names."""
    by_key = dict(part.partition("=")[::2] for part in named.split(","))

    def fits(kind: str, name: str) -> int:
        found = (stored[entry.name] for entry in planned if entry.kind == kind and entry.name in stored)
        return sum(each.shape != () and TYPES[fitting_type(name, each.shape[-1])] == each.kind for each in found)

    return {
        kind: max(sorted(TYPES, key=lambda name: name != by_key.get(kind)), key=lambda name: fits(kind, name))
        for kind in KINDS
        if any(entry.kind == kind for entry in planned)
    }


def _header(plan: Plan, source: Source) -> tuple[bytes, dict[str, Any], dict[str, Stored]]:
    """What the file begins with if it was made from this source: bytes, keys, tensors."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "header.gguf"
        writer = GGUFWriter(path, plan.architecture)
        try:
            write_header(writer, plan, source)
        finally:
            writer.close()
        return path.read_bytes(), *read_header(path)


def _by_importance(plan: Plan, entry: Entry) -> bool:
    """Whether the calibration of `collect_importance` has a part in the bytes of a tensor."""
    return entry.kind in ("attention", "ffn", "head") and plan.type_of[entry.name] not in FLOATS


def _changed_keys(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    lines = [f"key {key}: missing; the model gives {_short(expected[key])}" for key in expected if key not in found]
    for key, value in found.items():
        if key not in expected:
            lines.append(f"key {_plain(key)}: found {_short(value)}; the model gives no such key")
        elif value != expected[key]:
            lines.append(f"key {key}: {_apart(value, expected[key])}")
    return lines


def _apart(found: Any, expected: Any) -> str:
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        at = next(at for at, (one, two) in enumerate(zip(found, expected, strict=True)) if one != two)
        return f"entry {at} is {_short(found[at])}; the model gives {_short(expected[at])}"
    return f"found {_short(found)}; the model gives {_short(expected)}"


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _plain(name: str) -> str:
    """A name out of a file, which may hold anything, so that a terminal shows it in one line."""
    return name if name.isprintable() else ascii(name)


def _listed(found: Mapping[str, Stored], expected: Mapping[str, Stored]) -> dict[str, str]:
    """Tensors that differ by what the file says of them already."""
    told = {name: "missing; the model has it" for name in expected if name not in found}
    for name, each in found.items():
        if name not in expected:
            told[name] = "the model has none of this name"
        elif each.shape != expected[name].shape:
            told[name] = f"found shape {each.shape}; the model gives {expected[name].shape}"
        elif each.kind != expected[name].kind:
            told[name] = f"found type {_type(each.kind)}; its kind is {_type(expected[name].kind)} in this file"
    return told


def _type(number: int) -> str:
    known = {int(each): each.name.lower() for each in GGMLQuantizationType}
    return known.get(number, f"number {number}")


def _changed(
    path: Path,
    stored: Mapping[str, Stored],
    expected: Iterable[tuple[Entry, NDArray[np.uint8]]],
    plan: Plan,
    progress: Callable[[float], None],
) -> dict[str, str]:
    """Tensors whose bytes differ, with how many do."""
    told, done = {}, 0
    size = path.stat().st_size
    for entry, data in expected:
        wanted = np.ascontiguousarray(data).reshape(-1)
        start = stored[entry.name].start
        if start + wanted.nbytes > size:
            raise DamagedFileError(
                f"{path} is not a whole GGUF file: tensor {entry.name} ends at byte {start + wanted.nbytes}, the file "
                f"at {size}; get it again"
            )
        found = np.fromfile(path, np.uint8, wanted.nbytes, offset=start)
        if count := int(np.count_nonzero(found != wanted)):
            at = start + int(np.argmax(found != wanted))
            told[entry.name] = f"{count} of {wanted.nbytes} bytes differ, the first at byte {at} of the file"
        done += plan.count(entry)
        progress(done / plan.weights)
    return told


def _around(path: Path, header: bytes, stored: Mapping[str, Stored], plan: Plan) -> bool:
    """Whether all bytes that belong to no tensor are those that `quantize` writes, too; the tensors' are."""
    with path.open("rb") as file:
        if file.read(len(header)) != header:
            return False
        at = len(header)
        for entry in plan.entries:  # in the order of the file, as the header is equal
            start = stored[entry.name].start
            if any(file.read(start - at)):
                return False
            at = start + plan.size(entry)
            file.seek(at)
        rest = file.read(ALIGNMENT)
    return not any(rest) and len(rest) == -at % ALIGNMENT
