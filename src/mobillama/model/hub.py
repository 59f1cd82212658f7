"""From what a user calls a model to the folder that holds it: a folder, a run, or a name on the Hugging Face hub."""

from __future__ import annotations

import errno
import re
from pathlib import Path

from mobillama.errors import InputError, missing_extra

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SMALL_FILES = ["*.json", "tokenizer.model"]
SUBFOLDERS = "*/*"  # other forms of the same weights live there


def find_folder(name: str | Path, revision: str | None = None) -> Path:
    """The folder of a model: `name` itself, the `model` folder of a run, or a snapshot of the hub's `owner/name`.

    A snapshot is taken from the local cache where there is no network (or HF_HUB_OFFLINE=1). Errors: InputError says
    where was looked.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if revision is not None:
            raise InputError(f"revision={revision!r} was given, but {path} is a folder; leave the revision out")
        inside = path / "model"
        return inside if not (path / "config.json").is_file() and (inside / "config.json").is_file() else path
    if path.exists():
        raise InputError(f"{path} is a file; expected the folder that holds config.json and the weights")
    if HUB_NAME.fullmatch(str(name)):
        return download(str(name), revision)
    raise InputError(f"there is no folder {path}; expected a model folder, a run, or a hub name such as 'owner/name'")


def download(name: str, revision: str | None = None) -> Path:
    """A hub model's snapshot in the local cache: safetensors where the model has them, else the pickled weights."""
    folder = snapshot(name, revision, [*SMALL_FILES, "*.safetensors"])
    if not any(folder.glob("*.safetensors")):
        folder = snapshot(name, revision, [*SMALL_FILES, "pytorch_model*.bin"])
    return folder


def snapshot(name: str, revision: str | None, patterns: list[str]) -> Path:
    """The hub's files that match, from the network or else from the cache alone. Errors: InputError."""
    try:
        import httpx
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        raise missing_extra("hf", error) from error

    def take(*, cached: bool) -> Path:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=SUBFOLDERS,
                local_files_only=cached,
            )
        )

    wanted = f"the hub model {name!r}" + (f" at revision {revision!r}" if revision else "")
    try:
        return take(cached=False)
    except errors.RevisionNotFoundError:
        raise InputError(f"{wanted} was not found: the model is there, the revision is not; check --revision") from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise InputError(
            f"{wanted} was not found: there is no folder of that name here and no such public model on the hub;"
            " check the name, or log in with `hf auth login` if the model is private"
        ) from None
    except (httpx.HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        reason = str(error).splitlines()[0]
    try:
        return take(cached=True)
    except errors.LocalEntryNotFoundError as error:
        problem = "is not whole in" if isinstance(error, errors.IncompleteSnapshotError) else "is not in"
        from huggingface_hub import constants

        raise InputError(
            f"{wanted} was not found: there is no folder of that name here, the hub could not be asked ({reason}), and"
            f" it {problem} the local cache {constants.HF_HUB_CACHE}; connect to the network once, or set HF_HUB_CACHE"
        ) from None
