"""What a replay gave against what a run has: results field by field, states tensor by tensor, each bit for bit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mobillama.train.ledger import Line


@dataclass
class Comparison:
    """What was compared, and every difference: of each kind of line and field the first, and in how many lines."""

    compared: Counter[str] = field(default_factory=Counter)  # kind of line, or "states" -> how many
    differences: list[dict[str, Any]] = field(default_factory=list)  # in the order found: the first one comes first
    not_compared: list[str] = field(default_factory=list)

    def result(self, line: Line, found: Mapping[str, Any]) -> None:
        """Compare what the replay gave with a line of the ledger."""
        self.compared[line.kind] += 1
        # A field that only the replay has was not written yet when the run was trained; but `skipped` is there
        # only where it is true.
        for key in [*line.result, *({"skipped"} & (found.keys() - line.result.keys()))]:
            # As text: NaN equals itself, and 1 is not 1.0.
            ours, theirs = (repr(result.get(key)) for result in (found, line.result))
            if ours != theirs:
                self._note(line.step, line.kind, key, found=plain(found.get(key)), expected=line.result.get(key))

    def state(self, step: int, folder: str, difference: Mapping[str, Any] | None) -> None:
        """Note what `compare_states` gave for the checkpoint of a step."""
        self.compared["states"] += 1
        if difference:
            self._note(step, "state", folder, **difference)

    def _note(self, step: int, kind: str, name: str, **more: Any) -> None:
        for earlier in self.differences:
            if kind != "state" and (earlier["kind"], earlier["field"]) == (kind, name):
                earlier["lines"] += 1
                return
        self.differences.append({"step": step, "kind": kind, "field": name, "lines": 1, **more})


def compare_states(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """None if two states have the same tensors with the same bits; else what differs, the first tensor in detail.

    found: whole tensors. Gives `tensors` (how many differ), the first one's name as `tensor`, in how many of its
    `of` `elements` it differs, and `largest`, the largest difference (None where it is no number).
    """
    names = sorted({*found, *expected})
    different = [
        name
        for name in names
        if name not in found or name not in expected or not same_bits(found[name], expected[name])
    ]
    if not different:
        return None
    first = different[0]
    told: dict[str, Any] = {"tensors": len(different), "of_tensors": len(names), "tensor": first}
    if first not in found or first not in expected:
        return told | {"only_in": "the run" if first in expected else "the replay"}
    ours, theirs = found[first].detach().cpu(), expected[first]
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return told | {"found": f"{ours.dtype} {list(ours.shape)}", "expected": f"{theirs.dtype} {list(theirs.shape)}"}
    apart = (_bits(ours) != _bits(theirs)).any(-1)  # (numbers,)
    largest = float((ours.double() - theirs.double()).abs().max())
    return told | {"elements": int(apart.sum()), "of": ours.numel(), "largest": plain(largest)}


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have one type, one shape and the same bits (so 0 is not -0, and NaN can equal NaN)."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(_bits(one), _bits(other))


def plain(value: Any) -> Any:
    """A value for JSON, which knows no NaN or infinity: those in words.

    >>> plain(1.5), plain(float("nan"))
    (1.5, 'nan')
    """
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _bits(tensor: Tensor) -> Tensor:
    """The bytes of each number: uint8 (numbers, bytes)."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).view(flat.numel(), -1) if flat.numel() else flat.new_empty(0, 1, dtype=torch.uint8)
