"""The stand-alone program as it is installed, and vocabularies for it to read."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import gguf

from mobillama.tokenizer.sentencepiece_model import Piece

PROGRAM = Path(sys.executable).parent / "mobillama-run"


def run(*arguments: object, stdin: bytes = b"", **settings: object) -> subprocess.CompletedProcess[bytes]:
    """Run the program. Error: AssertionError if it was not built."""
    assert PROGRAM.is_file(), f"{PROGRAM} is missing; make setup builds it"
    return subprocess.run([PROGRAM, *map(str, arguments)], input=stdin, capture_output=True, timeout=300, **settings)


def output(*arguments: object, stdin: bytes = b"") -> bytes:
    """What the program writes to stdout. Error: AssertionError, with its words, if it fails."""
    done = run(*arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def write_vocabulary(path: Path, pieces: Sequence[Piece], **keys: bool | int) -> Path:
    """A GGUF file without tensors that holds a vocabulary; `keys` are further keys of tokenizer.ggml."""
    writer = gguf.GGUFWriter(path, "mobillama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([piece.text for piece in pieces])
    writer.add_token_scores([piece.score for piece in pieces])
    writer.add_token_types([int(piece.kind) for piece in pieces])
    for name, value in {"unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **keys}.items():
        add = writer.add_bool if isinstance(value, bool) else writer.add_uint32
        add(f"tokenizer.ggml.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path
