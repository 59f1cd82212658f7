"""Law: both verifiers say the same of damaged JSON and of what a forger who knows the formats does to a run."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mobillama import manifest
from mobillama.errors import MobillamaError
from mobillama.train.check import check_run
from mobillama.train.ledger import read_ledger

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("verify_tool", ROOT / "tools" / "verify.py")
assert SPEC is not None
tool = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tool)
CHECKPOINT, PUBLISHED = "checkpoints/step_000004", "published/ckpt_000"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Shards, and a run of two published models and three checkpoints that are kept."""
    sys.path.insert(0, str(ROOT / "tests" / "train"))
    import tiny

    from mobillama.train.loop import train

    folder = tmp_path_factory.mktemp("forged")
    tiny.make_shards(folder / "shards")
    recipe = tiny.recipe(steps=6, publish_tokens=4 * 64, checkpoint_every=1, validate_every=3)
    train(recipe, folder / "shards", folder / "run", on_progress=lambda _: None)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy" / "run"


def tool_refuses(folder: Path) -> bool:
    """Whether tools/verify.py finds a difference; an exception that leaves it fails the test."""
    return tool.main([folder]) != 0


def package_refuses(folder: Path) -> bool:
    """Whether `mobillama verify` finds a difference or ends with an error that names what it is of."""
    try:
        if (folder / "run.json").exists():
            return bool(check_run(folder).differences)
        return bool(manifest.verified(folder) + manifest.lineage(folder)[0])
    except MobillamaError:
        return True


def reseal(folder: Path) -> None:
    """Make a changed artefact look whole."""
    tree = json.loads((folder / "manifest.json").read_text())
    for name, entry in tree["files"].items():
        data = (folder / name).read_bytes()
        entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(tree))


def rechain(run: Path, change: Callable[[list[dict]], list[dict]]) -> None:
    """Change the lines of a ledger, and chain them anew."""
    lines = change([json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()])
    previous, whole = "0" * 64, b""
    for line in lines:
        line["circumstance"]["previous"] = previous
        raw = json.dumps(line, separators=(",", ":")).encode()
        previous, whole = hashlib.sha256(raw).hexdigest(), whole + raw + b"\n"
    (run / "ledger.jsonl").write_bytes(whole)


def replace(folder: Path, other: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(other, folder)


def append(path: Path, text: str = "\n") -> None:
    path.write_text(path.read_text() + text)
    reseal(path.parent)


def rename_file(folder: Path, name: str) -> None:
    """Give the first file of an artefact another name in its manifest."""
    tree = json.loads((folder / "manifest.json").read_text())
    first = next(iter(tree["files"]))
    tree["files"][name] = tree["files"].pop(first)
    (folder / "manifest.json").write_text(json.dumps(tree))


def link(path: Path) -> None:
    """Move a file or folder away and leave a link to it."""
    away = path.parents[1] / f"away-{path.name}"
    path.rename(away)
    path.symlink_to(away)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def cut_first_line(run: Path) -> None:
    (run / "ledger.jsonl").write_bytes((run / "ledger.jsonl").read_bytes().splitlines()[0][:-5])


def without_steps(*gone: int) -> Callable[[list[dict]], list[dict]]:
    return lambda lines: [line for line in lines if line["kind"] != "step" or line["result"]["step"] not in gone]


def doubled(lines: list[dict]) -> list[dict]:
    steps = [line for line in lines if line["kind"] == "step"]
    return [*lines[:-1], copy.deepcopy(steps[-1]), lines[-1]]


def beyond(lines: list[dict]) -> list[dict]:
    line = next(line for line in lines if line["kind"] == "step")
    result = {"step": 9, "checkpoint": None, "steps": 6, "changed": {}}
    return [*lines, {"kind": "resumed", "result": result, "circumstance": dict(line["circumstance"])}]


FORGED: dict[str, Callable[[Path], Any]] = {
    "emptied ledger": lambda run: (run / "ledger.jsonl").write_bytes(b""),
    "first line cut": cut_first_line,
    "ledger gone": lambda run: (run / "ledger.jsonl").unlink(),
    "checkpoint replaced by an older one": lambda run: replace(
        run / "checkpoints/step_000006", run / "checkpoints/step_000005"
    ),
    "checkpoint under another name": lambda run: replace(
        run / "checkpoints/step_000099", run / "checkpoints/step_000005"
    ),
    "checkpoint under a name that is none": lambda run: replace(run / "checkpoints/best", run / CHECKPOINT),
    "published model under another name": lambda run: replace(run / "published/ckpt_007", run / PUBLISHED),
    "published model replaced by another": lambda run: replace(run / "published/ckpt_001", run / PUBLISHED),
    "model replaced by a published one": lambda run: replace(run / "model", run / PUBLISHED),
    "config of the model": lambda run: append(run / "model/config.json"),
    "code of the model": lambda run: append(run / "model/modeling_mobillama.py"),
    "config of a published model": lambda run: append(run / PUBLISHED / "config.json"),
    "code of a published model": lambda run: append(run / PUBLISHED / "modeling_mobillama.py"),
    "model gone": lambda run: shutil.rmtree(run / "model"),
    "newest checkpoint gone": lambda run: shutil.rmtree(run / "checkpoints/step_000006"),
    "published checkpoint gone": lambda run: shutil.rmtree(run / CHECKPOINT),
    "published model gone": lambda run: shutil.rmtree(run / PUBLISHED),
    "a step missing": lambda run: rechain(run, without_steps(2)),
    "the first steps missing": lambda run: rechain(run, without_steps(1, 2)),
    "a step twice": lambda run: rechain(run, doubled),
    "a step beyond what was reached": lambda run: rechain(run, beyond),
    "a name that leaves": lambda run: rename_file(run / "model", "../model/config.json"),
    "an absolute name": lambda run: rename_file(run / "model", str(run / "model/config.json")),
    "a name with a backslash": lambda run: rename_file(run / "model", "a\\b"),
    "a name that is too long": lambda run: rename_file(run / "model", "x" * 5000),
    "a link to a file": lambda run: link(run / "model/config.json"),
    "a link to a folder": lambda run: (run / "model/more").symlink_to(run),
    "a model that is a link": lambda run: link(run / "model"),
    "a checkpoint that is a link": lambda run: link(run / CHECKPOINT),
    "a pipe for a file": lambda run: pipe(run / "model/config.json"),
    "a pipe for a manifest": lambda run: pipe(run / "model/manifest.json"),
    "a pipe beside the files": lambda run: os.mkfifo(run / "model/pipe"),
    "a pipe for a ledger": lambda run: pipe(run / "ledger.jsonl"),
}


def test_both_pass_the_run_and_every_publication_has_a_line(trained: Path):
    assert not tool_refuses(trained)
    found = check_run(trained / "run")
    assert (found.differences, found.not_checked) == ([], [])
    lines = read_ledger(trained / "run")
    roots = {line.circumstance["number"]: line.circumstance["manifest"] for line in lines if line.kind == "published"}
    assert roots == {n: manifest.read(trained / f"run/published/ckpt_00{n}").digest() for n in (0, 1)}
    assert lines[-1].circumstance["manifest"] == manifest.read(trained / "run/model").digest()


@pytest.mark.parametrize("change", FORGED)
def test_both_refuse_what_a_forger_does(run: Path, change: str):
    FORGED[change](run)
    assert (tool_refuses(run.parent), package_refuses(run)) == (True, True)


def test_a_published_model_that_was_changed_is_written_again_with_a_line_of_its_own(run: Path):
    import tiny

    from mobillama.train.loop import train

    append(run / PUBLISHED / "config.json")
    shutil.rmtree(run / "model")
    recipe = tiny.recipe(steps=6, publish_tokens=4 * 64, checkpoint_every=1, validate_every=3)
    assert train(recipe, run.parent / "shards", run, on_progress=lambda _: None)["finished"]
    assert [line.kind for line in read_ledger(run)][-3:] == ["resumed", "published", "end"]
    assert check_run(run).differences == []
    assert not tool_refuses(run.parent)


# text put for a value; the first are read as other types
VALUES = [
    *("null", "true", "-1", "0", "1", "2.5", "9" * 30, "1e999", "NaN", "-Infinity", "{}", "[]", '""'),
    *(
        '"\\ud800"',
        '"' + "x" * 5000 + '"',
        "[" * 100 + "]" * 100,
        "[" * 100_000,
        '{"a":1,"a":2}',
        '"\\u0000"',
        "\udcff",
    ),
]
MARK = "the value that is put here"


def places(tree: Any, path: tuple = ()) -> Iterator[tuple]:
    """Where a key or an entry of a list stands in a tree."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def mutated(text: str, dice: random.Random) -> bytes:
    """A JSON text with one key changed: taken away, renamed, doubled, or with another value."""
    tree = json.loads(text)
    *path, key = dice.choice([*places(tree)])
    inner = tree
    for part in path:
        inner = inner[part]
    how = dice.choice(["value", "value", "value", "value", "gone", "renamed", "doubled"])
    if how == "gone" or (isinstance(inner, list) and how != "value"):
        del inner[key]
        return json.dumps(tree).encode()
    if how == "renamed":
        inner[f"{key}x"] = inner.pop(key)
        return json.dumps(tree).encode()
    if how == "doubled":
        value = json.dumps(inner[key])
        inner[key] = MARK
        put = f"{value},{json.dumps(key)}:{value}"
    else:
        inner[key], put = MARK, dice.choice(VALUES)
    return json.dumps(tree).replace(json.dumps(MARK), put, 1).encode(errors="surrogateescape")


def mutate(run: Path, dice: random.Random) -> tuple[str, dict[Path, bytes]]:
    """Change one JSON artefact of a run, often so that hashes around it fit; what is said of it, and what was there."""
    files = [
        *run.rglob("*.json"),
        *run.rglob("*.safetensors"),
        *[run / "ledger.jsonl"] * 12,
    ]
    path = dice.choice(sorted(file for file in files if file.parent.name != "code"))
    before = {path: path.read_bytes()}
    if path.name == "ledger.jsonl":
        lines = before[path].decode().splitlines()
        number = dice.randrange(len(lines))
        raw = [line.encode() for line in lines]
        raw[number] = mutated(lines[number], dice)
        if dice.random() < 0.7:  # chained anew
            for place in range(number, len(raw) - 1):
                tree = json.loads(lines[place + 1])
                tree["circumstance"]["previous"] = hashlib.sha256(raw[place]).hexdigest()
                raw[place + 1] = json.dumps(tree).encode()
        path.write_bytes(b"\n".join(raw) + b"\n")
    elif path.suffix == ".safetensors":
        data = before[path]
        size = int.from_bytes(data[:8], "little")
        header = mutated(data[8 : 8 + size].decode(), dice)
        path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
    else:
        path.write_bytes(mutated(before[path].decode(), dice))
    seal = path.parent / "manifest.json"
    if path not in (seal, run / "run.json", run / "ledger.jsonl") and dice.random() < 0.7:
        before[seal] = seal.read_bytes()
        reseal(path.parent)
    return path.relative_to(run).as_posix(), before


def agree_on(count: int, run: Path) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    dice, refused = random.Random(seed), 0
    for number in range(count):
        said, before = mutate(run, dice)
        ours, theirs = package_refuses(run), tool_refuses(run.parent)
        assert ours == theirs, f"seed {seed}, number {number}, {said}: package {ours}, tool {theirs}"
        refused += ours
        for path, data in before.items():
            path.write_bytes(data)
    assert not package_refuses(run)
    assert count / 2 < refused < count  # what is circumstance may change


def test_both_agree_on_mutated_artefacts(run: Path):
    agree_on(40, run)


@pytest.mark.slow
def test_both_agree_on_a_tenth_of_the_mutated_artefacts(run: Path):
    agree_on(500, run)


@pytest.mark.long
def test_both_agree_on_5000_mutated_artefacts(run: Path):
    agree_on(5000, run)
