"""What a look-up reads without numpy equals what the arrays hold; and it needs no library that is slow to load."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from samples import make_documents, make_recipe, write_jsonl

from mobillama.cli import short
from mobillama.data import document_lines
from mobillama.data.build import build_shards
from mobillama.data.document_lines import DocumentLines, open_lines
from mobillama.data.documents import DocumentTable
from mobillama.data.plain_rows import PlainRows
from mobillama.data.shards import read_shards
from mobillama.errors import DamagedFileError, InputError
from mobillama.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    root = tmp_path_factory.mktemp("plain")
    records = make_documents("web", 40, seed=6)
    records[3]["url"] = 'https://example.org/"海🙂\\\n'
    write_jsonl(root / "web.jsonl", records)
    build_shards(make_recipe(root), root / "shards", workers=1, tokenizer=tokenizer, on_progress=lambda progress: None)
    return root / "shards"


def make_run(folder: Path, shards: Path) -> Path:
    """A folder that says of itself what a run over these shards would."""
    folder.mkdir(parents=True)
    train = {"seed": 4, "rows_per_step": 2}
    told = {"path": str(shards), "digest": read_shards(shards).digest}
    (folder / "run.json").write_text(json.dumps({"recipe": {"train": train}, "steps": 9, "shards": told}))
    return folder


def test_every_row_is_the_one_that_the_arrays_hold(shards: Path):
    plain, arrays = PlainRows(shards), read_shards(shards)
    assert plain.chunk_rows == arrays.chunk_rows
    assert plain.header == arrays.header
    assert arrays.num_rows > 20
    for number in range(arrays.num_rows):
        row = plain.row(number)
        assert row.ids == arrays.train_rows([number])[0].tolist()
        assert row.source == arrays.sources[int(arrays.row_sources([number])[0])]
        assert row.spans == arrays.spans(number)
        assert row.spans
    for number in (-1, arrays.num_rows):
        with pytest.raises(InputError, match=f"rows 0 to {arrays.num_rows - 1}"):
            plain.row(number)


def test_lines_of_documents_are_those_of_their_table(shards: Path):
    table = DocumentTable(shards / "documents", document_lines.COLUMNS)
    lines = open_lines(shards / "documents")
    assert isinstance(lines, DocumentLines)
    assert lines.lines(range(len(table))) == table.lines(range(len(table)))
    assert any("海🙂\\\n" in line["url"] for line in lines.lines(range(len(table))))
    for number in (-1, len(table)):
        with pytest.raises(DamagedFileError, match=f"no document {number}"):
            lines.lines([number])


def test_lines_over_several_parts_are_numbered_through(shards: Path, tmp_path: Path):
    import pyarrow

    from mobillama.data.encode import write_lines

    first = 0
    for part, count in enumerate((3, 1, 0, 4)):
        names = [f"{part}-{number}" for number in range(count)]
        write_lines(
            tmp_path / f"part_{part:05d}.safetensors",
            pyarrow.table({name: [f"{name} {of}" for of in names] for name in document_lines.COLUMNS}),
            first,
        )
        first += count
    found = DocumentLines(tmp_path).lines(range(first))
    assert [line["id"] for line in found] == [
        f"id {part}-{n}" for part, count in ((0, 3), (1, 1), (3, 4)) for n in range(count)
    ]


def test_shards_without_lines_are_told_from_their_table(shards: Path, tmp_path: Path):
    """Those that were built before there were any."""
    shutil.copytree(shards, tmp_path / "s")
    for path in (tmp_path / "s" / "documents").glob("*.safetensors"):
        path.unlink()
    assert isinstance(open_lines(tmp_path / "s" / "documents"), DocumentTable)
    assert PlainRows(tmp_path / "s").row(5).spans == PlainRows(shards).row(5).spans


def test_damage_is_named(shards: Path, tmp_path: Path):
    shutil.copytree(shards, tmp_path / "s")
    chunk = next((tmp_path / "s").glob("chunk_*.safetensors"))
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-1])
    with pytest.raises(DamagedFileError, match=chunk.name):
        PlainRows(tmp_path / "s")
    chunk.write_bytes(whole)
    (lines,) = (tmp_path / "s" / "documents").glob("*.safetensors")
    content = lines.read_bytes()
    lines.write_bytes(content.replace(b'["web', b"[web'"))
    row = PlainRows(tmp_path / "s").row
    with pytest.raises(DamagedFileError, match=lines.name):
        row(0)
    lines.write_bytes(content.replace(b'"format_version":"1"', b'"format_version":"9"'))
    with pytest.raises(InputError, match="format version 9"):
        PlainRows(tmp_path / "s").row(0)
    lines.write_bytes(
        content.replace(document_lines.FORMAT.encode(), b"mobillama.something_elsexx"[: len(document_lines.FORMAT)])
    )
    with pytest.raises(DamagedFileError, match="holds no lines"):
        PlainRows(tmp_path / "s").row(0)


def test_an_id_outside_the_vocabulary_is_refused(tmp_path: Path):
    from mobillama.data.chunk import open_chunk
    from mobillama.data.layout import read_layout
    from mobillama.data.shards import write_shards

    write_shards(tmp_path / "s", np.zeros((2, 5), int), np.zeros((1, 5), int), vocab_size=16)
    path = tmp_path / "s" / "chunk_000.safetensors"
    assert open_chunk(path)[0]["ids"].shape == (2, 5)
    data = bytearray(path.read_bytes())
    data[read_layout(path)[0]["ids"].start + 2 * 7] = 16
    path.write_bytes(data)
    assert PlainRows(tmp_path / "s").row(0).ids == [0] * 5
    with pytest.raises(InputError, match="holds id 16"):
        PlainRows(tmp_path / "s").row(1)


def test_showing_what_a_step_read_loads_nothing_slow(shards: Path, tmp_path: Path):
    run = make_run(tmp_path / "run", shards)
    code = (
        "import sys; sys.argv[1:] = ['data', 'show', sys.argv[1], '--step', '9', '--json']\n"
        "from mobillama.cli import main; main()\n"
        "slow = ('numpy', 'pyarrow', 'pydantic', 'typer', 'click', 'rich', 'tokenizers', 'torch', 'datatrove')\n"
        "print([name for name in slow if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True)
    shown, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    assert len(json.loads(shown)["rows"]) == 2


def test_the_short_way_prints_what_the_application_prints(shards: Path, tmp_path: Path, capsys):
    from typer.testing import CliRunner

    from mobillama.cli.commands import app

    run = str(make_run(tmp_path / "run", shards))
    for words in (
        ["data", "show", run, "--step", "3"],
        ["data", "show", "--json", "--row=1", "--step=9", run],
        ["data", "show", run, "--step", "2", "--row", "0"],
    ):
        assert short.run_short(words)
        assert capsys.readouterr().out == CliRunner().invoke(app, words, catch_exceptions=False).output


def test_a_reader_that_has_enough_is_no_error(shards: Path, tmp_path: Path):
    run = make_run(tmp_path / "run", shards)
    command = [sys.executable, "-m", "mobillama.cli", "data", "show", str(run), "--step", "1"]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=buffered) as shown:
        assert shown.stdout is not None
        assert shown.stderr is not None
        shown.stdout.close()
        assert shown.stderr.read() == b""
        assert shown.wait() == 1


@pytest.mark.parametrize(
    "words",
    [
        "data show",
        "data show RUN",
        "data show RUN --help",
        "data show RUN --step",
        "data show RUN --step 0",
        "data show RUN --step -1",
        "data show RUN --step x",
        "data show RUN --step 1 --row -1",
        "data show RUN --step 1 --rows 1",
        "data show RUN OTHER --step 1",
        "data show RUN --step 1 --json=yes",
        "data find RUN --step 1",
        "--version",
        "",
    ],
)
def test_every_other_command_line_goes_to_the_application(words: str):
    assert not short.run_short(words.split())
