"""The command line: one verb per stage. The only reader of argv; every command imports what it needs when it runs.

Results go to stdout (with `--json` as one JSON object), progress and words to stderr. Errors of mobillama.errors are
printed without a traceback and exit with status 2.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any, NoReturn

from mobillama.cli.output import STDOUT, discard, replace_what_cannot_be_shown
from mobillama.cli.short import run_short
from mobillama.errors import MobillamaError, MobillamaWarning, missing_extra, naming, printable

__all__ = ["fail", "main"]


def main() -> None:
    """Run the command line and turn errors a user can mend into one message and exit status 2."""
    replace_what_cannot_be_shown()
    warnings.showwarning = show_warning
    try:
        try:
            _run()
        finally:
            with naming(STDOUT):
                sys.stdout.flush()
    except BrokenPipeError:  # who read the output, such as `head`, has enough
        discard()
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        _fail_in_words(error)


def _run() -> None:
    if not run_short(sys.argv[1:]):
        from mobillama.cli.commands import app

        app()


def _fail_in_words(error: Exception) -> NoReturn:
    """End with status 2 and the error's words; a fault of the program is raised again, with its traceback."""
    if isinstance(error, MobillamaError):
        fail(str(error))
    if isinstance(error, ModuleNotFoundError) and (extra := EXTRA_OF.get((error.name or "").partition(".")[0])):
        fail(str(missing_extra(extra, error)))
    from mobillama.cli import system_errors

    if isinstance(error, OSError) and error.filename in (None, STDOUT):
        discard()
    found = system_errors.words(error)
    if found is None:
        raise error
    fail(found)


EXTRA_OF = {
    "torch": "train",
    "safetensors": "train",
    "tensorboard": "train",
    "datatrove": "data",
    "orjson": "data",
    "pyarrow": "data",
    "sentencepiece": "data",
    "zstandard": "data",
    "transformers": "hf",
    "huggingface_hub": "hf",
    "jinja2": "report",
    "lm_eval": "eval",
    "datasets": "eval",
    "yaml": "eval",
}


PYTHONS_OWN = warnings.showwarning


def show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """Print our own warnings as a note, without the place in the code; others as Python does."""
    if issubclass(category, MobillamaWarning):
        print(f"note: {message}", file=sys.stderr)
    else:
        PYTHONS_OWN(message, category, *where, **more)


def fail(message: str) -> NoReturn:
    """Print an error in the user's words and exit with status 2."""
    lines = printable(message, kept="\n")
    print(f"error: {lines}", file=sys.stderr)
    sys.exit(2)
