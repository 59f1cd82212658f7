"""Text on stdout, whatever its encoding can show."""

from __future__ import annotations

import io
import json
import os
import sys
from typing import Any

STDOUT = "stdout"  # as errors name it


def replace_what_cannot_be_shown() -> None:
    """Let stdout show a replacement for a character that its encoding lacks; stderr does so already."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def to_json(result: dict[str, Any]) -> str:
    """JSON in one line, with escapes where stdout could not show the characters themselves."""
    return json.dumps(result, ensure_ascii=(sys.stdout.encoding or "").lower() not in ("utf-8", "utf8"))


def discard() -> None:
    """Drop what could not be written, so that nothing is flushed again when the interpreter ends."""
    own = sys.__stdout__
    if own is not None and sys.stdout is own:  # not one that a caller put in its place
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, own.fileno())
        os.close(nowhere)
