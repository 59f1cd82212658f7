"""The command line: one verb per stage. The only reader of argv; every command imports what it needs when it runs.

Results go to stdout (with `--json` as one JSON object), progress and words to stderr. Errors of mobillama.errors are
printed without a traceback and exit with status 2.
"""

from __future__ import annotations

import errno
import os
import sys

from mobillama.cli.short import run_short
from mobillama.errors import MobillamaError, missing_extra

__all__ = ["fail", "main"]


def main() -> None:
    """Run the command line and turn errors a user can mend into one message and exit status 2."""
    try:
        if not run_short(sys.argv[1:]):
            from mobillama.cli.commands import app

            app()
    except MobillamaError as error:
        fail(str(error))
    except ModuleNotFoundError as error:
        extra = EXTRA_OF.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        fail(str(missing_extra(extra, error)))
    except BrokenPipeError:  # who read the output, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to be flushed at the end
        sys.exit(1)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            fail(
                f"no room to write {error.filename or 'a file'} ({error.strerror}); nothing finished was lost: "
                "free some space and run the same command again"
            )
        raise
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        sys.exit(130)


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
}


def fail(message: str) -> None:
    """Print an error in the user's words and exit with status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
