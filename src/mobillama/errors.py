"""The errors a user can meet. Each message says what was found, what was expected and what to do next.

The command line prints them without a traceback and exits with status 2; in Python they are ordinary exceptions.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Collection, Iterator
from pathlib import Path


def printable(text: str, kept: str = "") -> str:
    r"""The text with what would steer a terminal escaped: control characters, half surrogates, marks that turn a line.

    kept: characters that stay all the same.

    >>> printable("key 'a\x1b[2Jb'")
    "key 'a\\x1b[2Jb'"
    """
    return "".join(one if one.isprintable() or one in kept else one.encode("unicode_escape").decode() for one in text)


class MobillamaError(Exception):
    """Base of every error that a user can mend; what its words quote from a file cannot steer a terminal."""

    kept = ""  # characters that its words may hold beside printable ones

    def __init__(self, *words: object) -> None:
        super().__init__(*(printable(one, self.kept) if isinstance(one, str) else one for one in words))


class MobillamaWarning(UserWarning):
    """Base of what a user should know of a result, though it was made; the command line prints it as a note."""

    def __init__(self, *words: object) -> None:
        super().__init__(*(printable(one) if isinstance(one, str) else one for one in words))


class RecipeError(MobillamaError, ValueError):
    """A recipe, preset or command-line setting cannot be carried out as written; a line for each fault."""

    kept = "\n"


class InputError(MobillamaError, ValueError):
    """Documents, token ids, weights or a tokenizer that do not fit what they are used with."""


class DamagedFileError(MobillamaError, OSError):
    """The bytes of a file are not those its manifest (or its own header) promises."""


class TrainingError(MobillamaError, RuntimeError):
    """A run cannot go on: the loss is not a number, or a repeated step does not repeat."""


class MeasurementError(MobillamaError, RuntimeError):
    """A bench cannot give a fair figure: a side ended, or too much else ran on the machine."""


class MissingExtraError(MobillamaError, ImportError):
    """A library that this command needs is not installed."""


class MissingLibraryError(MobillamaError, ImportError):
    """The engine's library was not built, or is of another version than this package."""


class OutOfMemoryError(MobillamaError, MemoryError):
    """The system gives the engine no more memory."""


class EngineError(MobillamaError, RuntimeError):
    """The engine cannot carry out a call now: it was cancelled, or another thread is inside the same context."""


# What only writing meets: of a block that also reads other files, these alone are surely of the file that is written.
WRITING = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS))
SYSTEM_NUMBER = re.compile(r"\(os error (\d+)\)")  # at the end of what libraries in Rust say of the system's errors


@contextlib.contextmanager
def naming(path: Path | str, numbers: Collection[int] | None = None) -> Iterator[None]:
    """Give an error of the system in the block a `filename` where it has none; numbers: those alone (None: any).

    The system knows no names of open files, and libraries in Rust raise errors that have no place for one.
    """
    try:
        yield
    except Exception as error:
        number = system_number(error)
        if number is not None and getattr(error, "filename", None) is None and (numbers is None or number in numbers):
            error.filename = str(path)  # type: ignore[attr-defined]
        raise


def system_number(error: Exception) -> int | None:
    """The system's number of an error (errno); None if it is another's."""
    if isinstance(error, OSError):
        return error.errno
    found = SYSTEM_NUMBER.search(str(error))
    return int(found[1]) if found else None


def missing_extra(extra: str, error: ImportError) -> MissingExtraError:
    """The error for a library of `extra` that could not be imported."""
    return MissingExtraError(
        f"{error.name or error} is not installed; this command needs the extra '{extra}': "
        f"pip install -c constraints.txt 'mobillama[{extra}]'"
    )
