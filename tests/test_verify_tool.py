"""`mobillama verify` and tools/verify.py share no code: both pass what is intact and catch each planted change."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mobillama.train.check import check_run

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "tests" / "fixtures" / "format_1"
TOOL = ROOT / "tools" / "verify.py"


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """A corpus with its source files beside it, shards, and a run: everything at hand."""
    shutil.copytree(RECORDED, tmp_path / "chain")
    for path in (RECORDED / "source").iterdir():
        shutil.copy(path, tmp_path / "chain" / path.name)
    return tmp_path / "chain"


def tool(*paths: Path) -> tuple[int, str]:
    """Exit status and output of tools/verify.py, run by a Python that sees no packages."""
    done = subprocess.run([sys.executable, "-I", "-S", str(TOOL), *map(str, paths)], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout


def command(folder: Path) -> dict:
    """What `mobillama verify FOLDER --json` says; an error a user can mend counts as a difference."""
    run = [sys.executable, "-m", "mobillama.cli", "verify", str(folder), "--json"]
    done = subprocess.run(run, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    if done.returncode == 2:
        return {"ok": False, "differences": [done.stderr], "not_checked": [], "digest": "", "kind": ""}
    told = json.loads(done.stdout)
    assert done.returncode == (0 if told["ok"] else 1)
    assert set(told) == {"ok", "differences", "not_checked", "digest", "kind"}
    return told


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit_line(run: Path, number: int) -> None:
    lines = (run / "ledger.jsonl").read_text().splitlines(keepends=True)
    tree = json.loads(lines[number])
    tree["result"]["loss"] = 1.25
    lines[number] = json.dumps(tree, separators=(",", ":")) + "\n"
    (run / "ledger.jsonl").write_text("".join(lines))


def remove_lines(run: Path, *numbers: int) -> None:
    lines = (run / "ledger.jsonl").read_text().splitlines(keepends=True)
    gone = {number % len(lines) for number in numbers}
    (run / "ledger.jsonl").write_text("".join(line for number, line in enumerate(lines) if number not in gone))


def other_digest(path: Path, kind: str) -> None:
    tree = json.loads(path.read_text())
    next(entry for entry in tree["made_from"] if entry["kind"] == kind)["digest"] = "0" * 64
    path.write_text(json.dumps(tree))


# what is done, the artefact in which `mobillama verify` must see it, a word that both must say
PLANTED: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "byte of a chunk": (lambda c: flip(c / "shards/chunk_000.safetensors"), "shards", "chunk_000"),
    "byte of the corpus": (
        lambda c: flip(c / "shards-corpus/documents/part_00001.parquet"),
        "shards-corpus",
        "part_00001",
    ),
    "byte of a checkpoint": (
        lambda c: flip(c / "run/checkpoints/step_000003/optimizer.safetensors"),
        "run",
        "optimizer",
    ),
    "byte of the model": (lambda c: flip(c / "run/model/model.safetensors"), "run", "model.safetensors"),
    "byte of the shards' tokenizer": (
        lambda c: flip(c / "shards/tokenizer/tokenizer.json"),
        "shards",
        "tokenizer.json",
    ),
    "missing file": (lambda c: (c / "shards/validation.safetensors").unlink(), "shards", "missing"),
    "truncated file": (lambda c: (c / "shards/chunk_001.safetensors").write_bytes(b"a"), "shards", "chunk_001"),
    "extra file": (lambda c: (c / "shards/documents/new.parquet").write_bytes(b"a"), "shards", "not in the manifest"),
    "extra file in a checkpoint": (
        lambda c: (c / "run/checkpoints/step_000003/new").write_bytes(b"a"),
        *("run", "not in the manifest"),
    ),
    "edited size in a manifest": (
        lambda c: edit(c / "shards/manifest.json", '"bytes": 1457', '"bytes": 1458'),
        "shards",
        "chunk",
    ),
    "edited counts in the shards' manifest": (
        lambda c: edit(c / "shards/manifest.json", '"train_rows": 15', '"train_rows": 16'),
        *("run", "shards"),
    ),
    "edited counts in the corpus's manifest": (
        lambda c: edit(c / "shards-corpus/manifest.json", '"documents": 13', '"documents": 14'),
        *("shards", "corpus"),
    ),
    "manifest that is no JSON": (lambda c: edit(c / "shards/manifest.json", "{", "["), "shards", "manifest"),
    "lineage of the shards": (lambda c: other_digest(c / "shards/manifest.json", "corpus"), "shards", "0000"),
    "lineage of the tokenizer": (lambda c: other_digest(c / "shards/manifest.json", "tokenizer"), "shards", "0000"),
    "lineage of the corpus": (
        lambda c: other_digest(c / "shards-corpus/manifest.json", "source file"),
        *("shards-corpus", "book.jsonl"),
    ),
    "lineage of a checkpoint": (
        lambda c: other_digest(c / "run/checkpoints/step_000003/manifest.json", "shards"),
        *("run", "0000"),
    ),
    "changed source file": (lambda c: flip(c / "web.jsonl"), "shards-corpus", "web.jsonl"),
    "edited ledger line": (lambda c: edit_line(c / "run", 2), "run", "line"),
    "removed ledger line": (lambda c: remove_lines(c / "run", 3), "run", "line"),
    "removed first line": (lambda c: remove_lines(c / "run", 0), "run", "line 1"),
    "last lines removed": (lambda c: remove_lines(c / "run", -1, -2, -3, -4), "run", "lines were lost"),
    "missing ledger": (lambda c: (c / "run/ledger.jsonl").unlink(), "run", "ledger.jsonl"),
    "edited recipe of a run": (lambda c: edit(c / "run/run.json", '"seed": 11111', '"seed": 11112'), "run", "recipe"),
    "other shards in run.json": (lambda c: edit(c / "run/run.json", "2da913", "2da914"), "run", "shards"),
    "newer manifest": (
        lambda c: edit(c / "shards/manifest.json", '_version": 1', '_version": 9'),
        "shards",
        "version 9",
    ),
    "newer run": (lambda c: edit(c / "run/run.json", '_version": 1', '_version": 9'), "run", "version 9"),
}


def test_both_pass_an_intact_chain_and_give_the_same_root_digests(chain: Path):
    status, said = tool(chain)
    assert status == 0
    lines = [line for line in said.splitlines() if "not checked" not in line]
    digests = {Path(line.split()[3]).relative_to(chain).as_posix(): line.split()[2] for line in lines}
    assert set(digests) == {"shards", "shards-corpus", "run", "run/model", "run/checkpoints/step_000003"}
    for name, digest in digests.items():
        told = command(chain / name)
        assert (told["ok"], told["digest"]) == (True, digest)
        if name == "run":  # of a version whose ledger tells nothing of what lies beside the model's weights
            assert [text for text in told["not_checked"] if "weights alone" not in text] == []
        else:
            assert told["not_checked"] == []


@pytest.mark.parametrize("change", PLANTED)
def test_both_catch_a_planted_change(chain: Path, change: str):
    plant, seen_in, word = PLANTED[change]
    plant(chain)
    status, said = tool(chain)
    assert status == 1
    assert word in said
    told = command(chain / seen_in)
    assert not told["ok"]
    assert word in " ".join(told["differences"])


def reseal(folder: Path) -> None:
    """Make a changed artefact look whole: as a forger would who knows the format of manifests."""
    tree = json.loads((folder / "manifest.json").read_text())
    for name, entry in tree["files"].items():
        data = (folder / name).read_bytes()
        entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(tree))


def change_tensor(folder: Path, pattern: str) -> None:
    path = sorted(folder.glob(pattern))[0]
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    reseal(folder)


def forge_digests(folder: Path) -> None:
    """A changed tensor with digests, parts and manifest that fit it: only the ledger knows better."""
    from mobillama.train.digest import part_digests, stored_tensors, write_digests

    change_tensor(folder, "shard-*")
    tensors = {name: tensor.digest() for name, tensor in stored_tensors(folder).items()}
    write_digests(folder, tensors)
    reseal(folder)
    tree = json.loads((folder / "manifest.json").read_text())
    tree["counts"] |= part_digests(tensors)
    (folder / "manifest.json").write_text(json.dumps(tree))


def forge_recipe(run: Path) -> None:
    """Another seed, with a digest that fits: only the newest `resumed` line of the ledger knows better."""
    tree = json.loads((run / "run.json").read_text())
    tree["recipe"]["train"]["seed"] += 1
    text = json.dumps(tree["recipe"], sort_keys=True, separators=(",", ":"))
    tree["recipe_digest"] = hashlib.sha256(text.encode()).hexdigest()
    (run / "run.json").write_text(json.dumps(tree))


CHECKPOINT, PUBLISHED = "checkpoints/step_000006", "published/ckpt_000"
# A run of today, with sharded checkpoints and published models: what is done to it, a word that both must say
PLANTED_TODAY: dict[str, tuple[Callable[[Path], None], str]] = {
    "bit of a shard": (lambda run: flip(next((run / CHECKPOINT).glob("shard-*"))), "shard-"),
    "missing shard": (lambda run: next((run / CHECKPOINT).glob("shard-*")).unlink(), "missing"),
    "changed tensor, sealed again": (lambda run: change_tensor(run / CHECKPOINT, "shard-*"), "step_000006"),
    "changed tensor with digests that fit": (lambda run: forge_digests(run / CHECKPOINT), "digest of"),
    "edited count of tokens": (
        lambda run: edit(run / CHECKPOINT / "manifest.json", '"tokens": 384', '"tokens": 385'),
        "step_000006",
    ),
    "newer checkpoint": (lambda run: edit(run / CHECKPOINT / "manifest.json", '"form": 2', '"form": 9'), "version 9"),
    "bit of a published model": (lambda run: flip(run / PUBLISHED / "model.safetensors"), "model.safetensors"),
    "changed published model, sealed again": (
        lambda run: change_tensor(run / PUBLISHED, "model.safetensors"),
        "step_000006",
    ),
    "recipe of a changed run, with a digest that fits": (lambda run: forge_recipe(run), "recipe"),
    "steps of a changed run": (lambda run: edit(run / "run.json", '\n "steps": 7', '\n "steps": 8'), "steps"),
    "list of the code's files": (lambda run: edit(next((run / "code").iterdir()), '"', '"x'), "code/"),
    "lineage of a published model": (lambda run: other_digest(run / PUBLISHED / "manifest.json", "checkpoint"), "0000"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Shards and a run of today's version beside each other; the run went on once, with another recipe."""
    sys.path.insert(0, str(ROOT / "tests" / "train"))
    import tiny

    from mobillama.train.loop import train

    folder = tmp_path_factory.mktemp("today")
    tiny.make_shards(folder / "shards")

    def leave(shown: dict) -> None:
        if shown["step"] == 6:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(tiny.recipe(publish_chunks=True, steps=7), folder / "shards", folder / "run", on_progress=leave)
    train(tiny.recipe(publish_chunks=True, steps=7, validate_every=3), folder / "shards", folder / "run")
    return folder


def test_both_pass_a_run_with_sharded_checkpoints_and_published_models(trained: Path):
    status, said = tool(trained)
    assert status == 0, said
    digests = {Path(line.split()[3]).relative_to(trained).as_posix(): line.split()[2] for line in said.splitlines()}
    assert {"run", f"run/{CHECKPOINT}", f"run/{PUBLISHED}", "run/published/ckpt_001", "run/model"} <= digests.keys()
    for name in ("run", f"run/{PUBLISHED}"):
        told = command(trained / name)
        assert (told["ok"], told["not_checked"], told["digest"]) == (True, [], digests[name])


@pytest.mark.parametrize("change", PLANTED_TODAY)
def test_both_catch_a_change_planted_in_a_run_of_today(trained: Path, tmp_path: Path, change: str):
    shutil.copytree(trained, tmp_path / "today")
    plant, word = PLANTED_TODAY[change]
    plant(tmp_path / "today" / "run")
    status, said = tool(tmp_path / "today")
    assert status == 1
    assert word in said
    found = check_run(tmp_path / "today" / "run").differences
    assert word in " ".join(found)


def test_what_is_not_at_hand_is_said_and_is_no_difference(chain: Path):
    shutil.rmtree(chain / "shards-corpus")
    (chain / "web.jsonl").unlink()
    assert "corpus shards-corpus" in command(chain / "shards")["not_checked"][0]
    shutil.move(chain / "shards", chain / "elsewhere")
    told = command(chain / "run")
    assert told["ok"]
    assert "not at hand" in told["not_checked"][0]
    status, said = tool(chain / "run")
    assert status == 0
    assert said.count("not checked") == 4  # the shards of three, and the model of an older version


def test_a_line_that_a_kill_kept_from_being_written_is_no_difference(chain: Path):
    remove_lines(chain / "run", -1)
    with (chain / "run" / "ledger.jsonl").open("ab") as file:
        file.write(b'{"kind":"en')
    told = command(chain / "run")
    assert told["ok"]
    assert "'end'" in told["not_checked"][0]
    assert tool(chain / "run")[0] == 0


def test_the_tool_imports_nothing_but_the_standard_library_and_is_short():
    text = TOOL.read_text(encoding="utf-8")
    assert "mobillama import" not in text
    assert "import mobillama" not in text
    assert len(text.splitlines()) < 425


def test_the_tool_says_what_it_needs_and_what_it_did_not_find(tmp_path: Path):
    for arguments in ([], [str(tmp_path)]):
        done = subprocess.run([sys.executable, str(TOOL), *arguments], capture_output=True, text=True)
        assert done.returncode == 1
        assert "manifest.json" in done.stderr
