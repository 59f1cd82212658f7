"""A damaged JSON file that a command reads is named, with what is wrong and what to do; there is no traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mobillama import manifest
from mobillama.errors import DamagedFileError
from mobillama.eval.results import read_items
from mobillama.eval.subject import _says_bos
from mobillama.model.config_file import read_tree
from mobillama.model.end_ids import GENERATION_FILE, read_end_ids
from mobillama.report.page import read_results
from mobillama.report.run import read_run

DAMAGED = [b"", b"{", b"[1]", b"7", b"null", b"\xff{}", b"[" * 200_000, b'{"a": ' * 200_000, b"{} {}"]


def reader_of_run(folder: Path) -> object:
    (folder / "ledger.jsonl").write_bytes(b"")
    return read_run(folder)


READERS: dict[str, Callable[[Path], object]] = {
    "config.json": read_tree,
    GENERATION_FILE: lambda folder: read_end_ids(folder, 9),
    "tokenizer_config.json": _says_bos,
    "results.json": read_results,
    "run.json": reader_of_run,
    "any.json": lambda folder: manifest.read_object(folder / "any.json", "do this"),
}


@pytest.mark.parametrize("data", DAMAGED, ids=lambda data: repr(data[:8]))
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_json_file_is_named(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DamagedFileError, match=rf"{name} (is not valid JSON|holds a)") as error:
        READERS[name](tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "line", [b"{", b"[1]", b"7", b'{"task": 1}', b"\xff", b"[" * 200_000], ids=lambda x: repr(x[:8])
)
def test_a_damaged_line_of_items_is_named(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "items.jsonl").write_bytes(b'{"task": "a", "item": 0}\n' + line + b"\n")
    with pytest.raises(DamagedFileError, match=r"items\.jsonl line 2 is no item"):
        read_items(tmp_path / "items.jsonl")
