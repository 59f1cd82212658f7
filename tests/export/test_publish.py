import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import errors

from mobillama import manifest
from mobillama.errors import DamagedFileError, InputError
from mobillama.export.publish import publish_run


class Hub:
    """A stand-in of huggingface_hub's client: branches are folders below `root`; large files are those of weights."""

    def __init__(self, root: Path):
        self.root, self.sent, self.fails_after = root, [], None

    def list_repo_refs(self, repo):
        if not (self.root / repo).is_dir():
            raise errors.RepositoryNotFoundError("no such model", response=SimpleNamespace(headers={}, request=None))
        return SimpleNamespace(branches=[SimpleNamespace(name=path.name) for path in (self.root / repo).iterdir()])

    def hf_hub_download(self, repo, name, *, revision):
        path = self.root / repo / revision / name
        if not path.is_file():
            raise errors.EntryNotFoundError(name)
        return str(path)

    def create_repo(self, repo, *, exist_ok):
        assert exist_ok
        (self.root / repo / "main").mkdir(parents=True, exist_ok=True)

    def create_branch(self, repo, *, branch, exist_ok):
        assert exist_ok
        (self.root / repo / branch).mkdir(exist_ok=True)

    def upload_folder(self, *, repo_id, folder_path, revision, commit_message):
        assert commit_message
        if self.fails_after == len(self.sent):
            raise errors.HfHubHTTPError("the line went dead", response=SimpleNamespace(headers={}, request=None))
        shutil.copytree(folder_path, self.root / repo_id / revision, dirs_exist_ok=True)
        self.sent.append(revision)

    def list_repo_tree(self, repo, *, recursive, revision):
        assert recursive
        folder = self.root / repo / revision
        for path in (path for path in folder.rglob("*") if path.is_file()):
            large = path.suffix == ".safetensors"
            lfs = SimpleNamespace(sha256=manifest.sha256_file(path)) if large else None
            name = path.relative_to(folder).as_posix()
            yield SimpleNamespace(path=name, size=path.stat().st_size, lfs=lfs)


@pytest.fixture
def hub(tmp_path):
    return Hub(tmp_path / "hub")


@pytest.fixture
def run(tmp_path):
    """A run that published three models."""
    for number in range(3):
        out = tmp_path / "run" / "published" / f"ckpt_{number:03d}"
        with manifest.building(out) as partial:
            (partial / "model.safetensors").write_bytes(bytes([number]) * 100)
            (partial / "config.json").write_text("{}")
            manifest.seal(partial, out, "model", counts={"step": 10 * number, "published": number})
    return tmp_path / "run"


def sent(told):
    return [entry["revision"] for entry in told["revisions"] if entry["sent"]]


def test_each_checkpoint_becomes_a_branch_and_main_is_the_newest(run, hub):
    told = publish_run(run, "a/b", hub=hub)
    assert sent(told) == hub.sent == ["ckpt_000", "ckpt_001", "ckpt_002", "main"]
    for name in hub.sent:
        assert manifest.differences(hub.root / "a/b" / name) == []
    assert (hub.root / "a/b/main/model.safetensors").read_bytes() == bytes([2]) * 100


def test_what_is_there_is_not_sent_again_and_main_follows(run, hub):
    publish_run(run, "a/b", hub=hub)
    hub.sent.clear()
    assert sent(publish_run(run, "a/b", hub=hub)) == hub.sent == []
    out = run / "published" / "ckpt_003"
    with manifest.building(out) as partial:
        (partial / "model.safetensors").write_bytes(b"new")
        manifest.seal(partial, out, "model", counts={"step": 99, "published": 3})
    assert sent(publish_run(run, "a/b", hub=hub)) == hub.sent == ["ckpt_003", "main"]


def test_an_interrupted_upload_goes_on_where_it_stopped(run, hub):
    hub.fails_after = 1
    with pytest.raises(InputError, match=r"did not take a/b \(the line went dead\).*same command goes on"):
        publish_run(run, "a/b", hub=hub)
    hub.fails_after = None
    assert sent(publish_run(run, "a/b", hub=hub)) == ["ckpt_001", "ckpt_002", "main"]
    assert hub.sent == ["ckpt_000", "ckpt_001", "ckpt_002", "main"]


def test_a_dry_run_sends_nothing_and_says_what_it_would(run, hub):
    words = []
    told = publish_run(run, "a/b", dry_run=True, hub=hub, on_revision=words.append)
    assert sent(told) == ["ckpt_000", "ckpt_001", "ckpt_002", "main"]
    assert hub.sent == []
    assert not hub.root.exists()
    assert words[0].startswith("ckpt_000: ckpt_000 (step 0")


def test_a_revision_that_holds_another_checkpoint_is_not_overwritten(run, hub, tmp_path):
    publish_run(run, "a/b", hub=hub)
    shutil.rmtree(run / "published" / "ckpt_001")
    (run / "published" / "ckpt_002").rename(run / "published" / "ckpt_001")
    with pytest.raises(InputError, match="revision ckpt_001 of a/b holds another checkpoint"):
        publish_run(run, "a/b", hub=hub)


def test_a_damaged_folder_is_not_sent(run, hub):
    (run / "published" / "ckpt_000" / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(DamagedFileError, match="ckpt_000 is damaged"):
        publish_run(run, "a/b", hub=hub)
    assert hub.sent == []


def test_a_file_that_arrives_otherwise_is_noticed(run, hub, monkeypatch):
    whole = hub.list_repo_tree
    monkeypatch.setattr(hub, "list_repo_tree", lambda *a, **k: list(whole(*a, **k))[1:])
    with pytest.raises(DamagedFileError, match="of revision ckpt_000 of a/b: found"):
        publish_run(run, "a/b", hub=hub)


def test_a_run_that_published_nothing_is_told_how(tmp_path, hub):
    with pytest.raises(InputError, match=r"no published checkpoints.*publish_chunks=true"):
        publish_run(tmp_path, "a/b", hub=hub)
