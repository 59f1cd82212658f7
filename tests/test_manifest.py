"""Artefact folders: whole or not at all, and every changed byte is named."""

import json
import os
import signal
import subprocess
import sys

import pytest

from mobillama import manifest
from mobillama.errors import DamagedFileError, InputError


def make(out, text="one"):
    with manifest.building(out) as partial:
        (partial / "inner").mkdir(exist_ok=True)
        (partial / "inner" / "a.txt").write_text(text)
        return manifest.seal(partial, out, "corpus", counts={"documents": 1}, recipe={"seed": 1})


def test_a_sealed_folder_reads_back_and_is_as_promised(tmp_path):
    made = make(tmp_path / "a")
    assert manifest.read(tmp_path / "a", "corpus") == made
    assert manifest.differences(tmp_path / "a") == []
    assert not manifest.partial_path(tmp_path / "a").exists()


def test_the_digest_depends_on_bytes_and_not_on_circumstance(tmp_path):
    first, second, third = make(tmp_path / "a"), make(tmp_path / "b"), make(tmp_path / "c", "two")
    assert first.digest() == second.digest() != third.digest()
    tree = json.loads((tmp_path / "a" / "manifest.json").read_text())
    tree["circumstance"]["time"] = "another"
    (tmp_path / "a" / "manifest.json").write_text(json.dumps(tree))
    assert manifest.read(tmp_path / "a").digest() == first.digest()


def test_lineage_names_the_digest_of_the_origin(tmp_path):
    made = make(tmp_path / "a")
    assert manifest.origin(tmp_path / "a") == {"kind": "corpus", "name": "a", "digest": made.digest()}


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_names_the_file_and_both_values(tmp_path, damage):
    make(tmp_path / "a")
    path = tmp_path / "a" / "inner" / "a.txt"
    if damage == "flip":
        path.write_text("onf")
    elif damage == "truncate":
        path.write_text("on")
    else:
        path.unlink()
    with pytest.raises(DamagedFileError, match=r"inner/a\.txt.*expected"):
        manifest.check(tmp_path / "a")


def test_an_existing_artefact_is_never_overwritten(tmp_path):
    make(tmp_path / "a")
    with pytest.raises(InputError, match="exists already"):
        make(tmp_path / "a")


def test_a_failed_build_leaves_its_work_but_nothing_that_looks_whole(tmp_path):
    with pytest.raises(RuntimeError), manifest.building(tmp_path / "a") as partial:
        (partial / "half.txt").write_text("half")
        raise RuntimeError
    assert not (tmp_path / "a").exists()
    with pytest.raises(InputError, match="unfinished build"):
        manifest.read(tmp_path / "a")
    with manifest.building(tmp_path / "a") as partial:
        assert (partial / "half.txt").read_text() == "half"


def test_two_builders_of_one_folder_cannot_meet_and_a_killed_one_frees_the_place(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from mobillama import manifest\n"
        "with manifest.building(Path(sys.argv[1])): print('in', flush=True); time.sleep(60)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a")], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(InputError, match="another process"), manifest.building(tmp_path / "a"):
            pass
    finally:
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
    make(tmp_path / "a")


def test_newer_formats_other_kinds_and_garbage_are_refused(tmp_path):
    make(tmp_path / "a")
    path = tmp_path / "a" / "manifest.json"
    with pytest.raises(InputError, match="expected 'shards'"):
        manifest.read(tmp_path / "a", "shards")
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, "format_version": 99}))
    with pytest.raises(InputError, match=r"version 99.*up to 1"):
        manifest.read(tmp_path / "a")
    for text in ("{", "[]", json.dumps({**tree, "format": "other"}), json.dumps({**tree, "extra": 1})):
        path.write_text(text)
        with pytest.raises(DamagedFileError, match="not a manifest"):
            manifest.read(tmp_path / "a")


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    manifest.write_file(path, b"first")

    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        manifest.write_file(path, b"second")
    assert path.read_bytes() == b"first"
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


def test_removing_an_artefact_takes_its_name_away_first(tmp_path):
    make(tmp_path / "a")
    manifest.remove(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
