"""Files behind an address (s3://, hf://, https://, memory://, ...) through fsspec: listing them and reading them once.

A file is known by its address, its size and a tag (a hash where the store has one, else its etag or time of change): a
file that is another when it is read than when it was listed is an error. Bytes are hashed while they are read, so that
no file is fetched twice. `file://` is a path of this machine and read as such.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import unquote, urlsplit

from mobillama.errors import InputError, MobillamaError, missing_extra

ATTEMPTS = 4
RETRY_SECONDS = 1.0  # doubled after every attempt
BUFFER = 1 << 20
ASKED_AT_ONCE = 16
# Where file systems keep what changes with a file's bytes, the best first.
TAGS = (
    "blob_id",
    "ETag",
    "etag",
    "e_tag",
    "Content-MD5",
    "md5Hash",
    "LastModified",
    "last_modified",
    "mtime",
    "created",
)
NETWORK = (
    "is it still there, does the network hold, and do you have access (for hf://: `hf auth login`, terms accepted)?"
)


@dataclass(frozen=True)
class RemoteFile:
    """One file as it was listed. `size` -1 = the server does not say."""

    address: str
    size: int
    tag: str

    def __str__(self) -> str:
        return self.address

    @property
    def name(self) -> str:
        """The last part of the address."""
        return urlsplit(self.address).path.rsplit("/", 1)[-1]


def is_remote(text: str) -> bool:
    """Whether `text` is an address and not a path of this machine."""
    return "://" in text and not text.startswith("file://")


def local_path(text: str) -> str:
    """`text` without a leading file://."""
    return unquote(urlsplit(text).path) if text.startswith("file://") else text


def open_file_system(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it. Error: InputError for a kind that is not installed."""
    try:
        import fsspec
    except ImportError as error:
        raise missing_extra("data", error) from None
    try:
        system, path = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise InputError(f"{address} cannot be opened ({error}); install what reads this kind of address") from None
    return system, str(path)


def list_files(root: str) -> list[tuple[RemoteFile, str]]:
    """Every file below an address, with its path relative to it, in the order of the paths. A file is below itself."""
    system, path = open_file_system(root)
    try:
        found: Mapping[str, Mapping[str, Any]] = system.find(path, detail=True)
    except Exception as error:  # every file system has errors of its own
        raise InputError(f"{root} cannot be listed ({_words(error)}); {NETWORK}") from None
    base = path.rstrip("/")
    files = []
    for where, info in found.items():
        inside = where[len(base) :].lstrip("/") if where.startswith(base) else where
        address = system.unstrip_protocol(where)
        file = _file(address, info if info.get("size") is not None else system.info(where))
        files.append((file, inside or where.rsplit("/", 1)[-1]))
    return sorted(files, key=lambda pair: pair[1].split("/"))


def look_up(addresses: Iterable[str]) -> list[RemoteFile]:
    """Size and tag of files by address, several asked for at once. Error: InputError naming one that is not there."""
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        return list(pool.map(_look_up, addresses))


def read_text(address: str) -> str:
    """A small text file behind an address."""
    return Reader(_look_up(address)).readall().decode("utf-8")


class Reader(io.RawIOBase):
    """The bytes of a remote file in order, hashed as they pass; after a broken connection it goes on where it was."""

    def __init__(self, file: RemoteFile) -> None:
        self.file, self.position = file, 0
        self._hash = hashlib.sha256()
        self._stream: Any = None

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as one read goes; 0 at the end. Error: InputError after several failed attempts."""
        data = self._next(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def digest(self) -> str:
        """sha256 (hex) of the whole file: reads what is left of it."""
        while self._next(BUFFER):
            pass
        return self._hash.hexdigest()

    def close(self) -> None:
        """Close the connection."""
        if self._stream is not None:
            self._stream.close()
        super().close()

    def _next(self, count: int) -> bytes:
        pause = RETRY_SECONDS
        for attempt in range(ATTEMPTS):
            try:
                if self._stream is None:
                    self._stream = self._open()
                data = bytes(self._stream.read(count))
                if not data and self.file.size not in (-1, self.position):
                    raise EOFError("the connection ended early")
                break
            except MobillamaError:
                raise
            except Exception as error:  # every file system has errors of its own
                self._stream = None
                if attempt == ATTEMPTS - 1 or isinstance(error, FileNotFoundError):
                    size = "" if self.file.size < 0 else f" of {self.file.size}"
                    raise InputError(
                        f"{self.file} cannot be read beyond byte {self.position}{size} ({_words(error)}); {NETWORK} "
                        "The same command goes on where this one stopped"
                    ) from None
                time.sleep(pause)
                pause *= 2
        self.position += len(data)
        self._hash.update(data)
        return data

    def _open(self) -> Any:
        """A stream that stands at `position`."""
        system, path = open_file_system(self.file.address)
        system.invalidate_cache()
        if _changed(self.file, now := _file(self.file.address, system.info(path))):
            raise InputError(
                f"{self.file} is not what it was when the build began (size {now.size}, tag {now.tag}; then "
                f"{self.file.size}, {self.file.tag}); run the same command again to read all of it anew"
            )
        stream = system.open(path, "rb", block_size=4 * BUFFER, cache_type="readahead")
        if self.position:
            try:
                stream.seek(self.position)
            except (ValueError, NotImplementedError, OSError):  # a server that gives no ranges
                left = self.position
                while left and (skipped := stream.read(min(left, BUFFER))):
                    left -= len(skipped)
        return stream


def _look_up(address: str) -> RemoteFile:
    system, path = open_file_system(address)
    try:
        return _file(address, system.info(path))
    except Exception as error:  # every file system has errors of its own
        raise InputError(f"{address} cannot be found ({_words(error)}); {NETWORK}") from None


def _file(address: str, info: Mapping[str, Any]) -> RemoteFile:
    large, size = info.get("lfs"), info.get("size")
    tags = {"sha256": large.get("sha256") if isinstance(large, Mapping) else None, **info}
    key = next((key for key in TAGS if tags.get(key)), "")
    value = tags.get(key, "")
    if isinstance(value, datetime):
        value = value.timestamp()
    return RemoteFile(address, -1 if size is None else int(size), f"{key}={str(value).strip(chr(34))}" if key else "")


def _changed(then: RemoteFile, now: RemoteFile) -> bool:
    """Whether what is known of a file at both times differs: a listing may tell less than a question for one file."""
    same_kind = then.tag.partition("=")[0] == now.tag.partition("=")[0]
    return (same_kind and then.tag != now.tag) or (-1 not in (then.size, now.size) and then.size != now.size)


def _words(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
