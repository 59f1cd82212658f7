"""Prompts as a command line gives them: as words, from stdin, a line each or a whole file as one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mobillama.errors import InputError, naming

STDIN = "-"


def read_prompts(words: Sequence[str], prompt_file: str | None, text_file: str | None) -> list[str]:
    """The prompts: `words` (`-`: all of stdin is one), one a line of `prompt_file`, or the whole of `text_file`.

    Either file may be `-`, stdin. What is read is UTF-8; a byte order mark and one newline at the end are left out,
    lines end with LF or CR LF, and nothing else is changed.
    Errors: InputError if there is none, more than one way was taken, stdin is asked for twice, or it is not UTF-8.
    """
    given = [bool(words), prompt_file is not None, text_file is not None]
    if not any(given):
        raise InputError(
            "no prompt; give one after the model (- reads it from stdin), --text-file FILE for a whole file, or "
            "--prompt-file FILE with one a line"
        )
    if sum(given) > 1:
        raise InputError("prompts were given in more than one way; expected PROMPT, --prompt-file or --text-file alone")
    if prompt_file is not None:
        return [line.removesuffix("\r") for line in _read(prompt_file).split("\n")]
    if text_file is not None:
        return [_read(text_file)]
    if list(words).count(STDIN) > 1:
        raise InputError("stdin (-) was given as more than one prompt; expected it once")
    return [_read(STDIN) if word == STDIN else word for word in words]


def _read(name: str) -> str:
    """The text of a file, or of stdin for `-`."""
    shown = "stdin" if name == STDIN else name
    with naming(shown):
        data = sys.stdin.buffer.read() if name == STDIN else Path(name).read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{shown} is not UTF-8 text (byte {error.start}: {error.reason}); convert it first, for example with "
            "iconv -f latin1 -t utf-8"
        ) from None
    text = text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")
    if not text:
        raise InputError(f"{shown} is empty; expected the text of a prompt")
    return text
