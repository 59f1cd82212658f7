"""What the system, or a library in its name, could not do with a file: in one line, with the file and what to do."""

from __future__ import annotations

import errno
import json
import os

from mobillama.errors import system_number

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What to do about the errors that a user can meet; with any other, the system's own words have to do.
REMEDIES = {
    errno.EROFS: "its file system can only be read: choose another place to write to",
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path: a part of it is a file, not a folder",
    errno.EISDIR: "give a file, not a folder",
    errno.EEXIST: "choose another name, or remove it",
    errno.ENOTEMPTY: "choose another name, or remove it",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "check the symbolic links of the path",
    errno.EIO: "the disk failed: copy what can be read to another one, then run the same command again",
    errno.ESTALE: "the network file system lost it: mount it anew, then run the same command again",
    errno.ENXIO: "check that the device is there",
    errno.ENODEV: "check that the device is there",
    errno.ETXTBSY: "another program is running it: wait for it",
    errno.EBUSY: "another program is using it: wait for it",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine: end other programs",
    errno.ENOMEM: "end other programs, or use a machine with more memory",
    errno.ECONNREFUSED: "check the address and the network",
    errno.ETIMEDOUT: "check the network, then run the same command again",
}
LIBRARIES = ("pyarrow", "safetensors", "zstandard")


def words(error: Exception) -> str | None:
    """The message for an error of the system or of a library that reads files; None for a fault of the program."""
    if isinstance(error, OSError):
        return _system_words(error)
    if (number := system_number(error)) is not None:
        return _system_words(OSError(number, os.strerror(number), getattr(error, "filename", None)))
    library = type(error).__module__.partition(".")[0]
    if library in LIBRARIES or isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        what = f"{library}: " if library in LIBRARIES else ""
        return f"a file that this command reads is damaged ({what}{_line(str(error))}); restore it, or make it again"
    return None


def _system_words(error: OSError) -> str:
    named = [str(name) for name in (error.filename, error.filename2) if name is not None]
    where = " -> ".join(named) or "a file, or stdout"
    reason = _line(error.strerror or str(error) or type(error).__name__)
    if error.errno in NO_ROOM:
        return (
            f"no room to write {where} ({reason}); nothing finished was lost: free some space and run the same "
            "command again"
        )
    remedy = REMEDIES.get(error.errno or 0, "see to that, then run the same command again")
    return f"{where} cannot be used ({reason}); {remedy}"


def _line(text: str) -> str:
    """The first line of a text."""
    return text.strip().partition("\n")[0]
