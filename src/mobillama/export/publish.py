"""A run's published checkpoints as revisions of one model on the Hugging Face hub.

Each `RUN/published/ckpt_000` becomes a branch of that name in one commit, so that a revision is there whole or not at
all; `main` gets the newest. What is there already with the same digest is not sent again: after an interruption the
same command goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mobillama import manifest
from mobillama.errors import DamagedFileError, InputError, missing_extra

MAIN = "main"
OnRevision = Callable[[str], None]


def publish_run(
    run: Path, repo: str, *, dry_run: bool = False, hub: Any = None, on_revision: OnRevision = lambda words: None
) -> dict[str, Any]:
    """Upload what a run published to the hub model `repo` (owner/name), made if it is not there.

    hub: a client with the methods of huggingface_hub.HfApi; None = one that is logged in as the machine is.
    on_revision: told of each revision in words. Result: `repo`, and `revisions`, a list of {revision, digest, bytes,
    sent}; with `dry_run` nothing is sent, and `sent` says what would be.
    Errors: InputError for a run without published checkpoints, a revision that holds another one, or a hub that
    refuses; DamagedFileError for a folder that is not what its manifest says, or a file that arrived otherwise.
    """
    folders = sorted(path for path in (run / "published").glob("ckpt_*") if (path / manifest.FILE).is_file())
    if not folders:
        raise InputError(
            f"{run} has no published checkpoints; train with --set train.publish_chunks=true (one per chunk) or "
            "--set train.publish_tokens=N"
        )
    try:
        from httpx import HTTPError
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError
    except ImportError as error:
        raise missing_extra("hf", error) from None
    try:
        return _publish(folders, repo, dry_run, hub or HfApi(), on_revision)
    except (HTTPError, HFValidationError) as error:
        raise InputError(
            f"the hub did not take {repo} ({str(error).strip().splitlines()[0]}): is the name owner/name, may you "
            "write there (hf auth login), and does the network hold? The same command goes on where this one stopped"
        ) from None


def _publish(folders: list[Path], repo: str, dry_run: bool, hub: Any, on_revision: OnRevision) -> dict[str, Any]:
    there = _revisions(hub, repo)
    told = []
    for revision, folder in [*((folder.name, folder) for folder in folders), (MAIN, _newest(folders))]:
        found = manifest.read(folder)
        size = sum(int(entry["bytes"]) for entry in found.files.values())
        present = there.get(revision)
        if present not in (None, found.digest()) and revision != MAIN:
            raise InputError(
                f"revision {revision} of {repo} holds another checkpoint (digest {present}); this run's is "
                f"{found.digest()}: choose another --repo, or delete that branch"
            )
        sending = present != found.digest()
        verb = "is there" if not sending else "would be sent" if dry_run else "is being sent"
        on_revision(f"{revision}: {folder.name} (step {found.counts.get('step')}, {size / 1e6:.1f} MB) {verb}")
        if sending and not dry_run:
            manifest.check(folder)
            _send(hub, repo, revision, folder, found)
        told.append({"revision": revision, "digest": found.digest(), "bytes": size, "sent": sending})
    return {"repo": repo, "revisions": told}


def _newest(folders: list[Path]) -> Path:
    """The one of the most steps."""
    return max(folders, key=lambda folder: int(manifest.read(folder).counts["step"]))


def _revisions(hub: Any, repo: str) -> dict[str, str | None]:
    """Branch -> digest of the artefact in it; None for one that holds none (empty, or made by a kill)."""
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    found: dict[str, str | None] = {}
    try:
        branches = [branch.name for branch in hub.list_repo_refs(repo).branches]
    except RepositoryNotFoundError:
        return found
    for branch in branches:
        try:
            path = Path(hub.hf_hub_download(repo, manifest.FILE, revision=branch))
            found[branch] = manifest.read(path.parent).digest()
        except EntryNotFoundError:
            found[branch] = None
    return found


def _send(hub: Any, repo: str, revision: str, folder: Path, found: manifest.Manifest) -> None:
    """One folder in one commit, then every file's size, and the hash of the large ones, as the hub has them."""
    hub.create_repo(repo, exist_ok=True)
    if revision != MAIN:
        hub.create_branch(repo, branch=revision, exist_ok=True)
    words = f"step {found.counts.get('step')}, artefact {found.digest()}"
    hub.upload_folder(repo_id=repo, folder_path=folder, revision=revision, commit_message=words)
    arrived = {entry.path: entry for entry in hub.list_repo_tree(repo, recursive=True, revision=revision)}
    for name, promised in found.files.items():
        entry = arrived.get(name)
        size = getattr(entry, "size", None)
        sha256 = entry.lfs.sha256 if entry is not None and getattr(entry, "lfs", None) else promised["sha256"]
        if (size, sha256) != (promised["bytes"], promised["sha256"]):
            raise DamagedFileError(
                f"{name} of revision {revision} of {repo}: found {size} bytes, sha256 {sha256} after the upload; "
                f"expected {promised['bytes']} bytes, {promised['sha256']}: delete the branch and publish again"
            )
