"""Files as streams of bytes, decompressed where their name ends in .gz or .zst; one that is cut short is an error."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mobillama.data.remote import Reader, RemoteFile
from mobillama.errors import InputError, missing_extra

BUFFER = 1 << 20
# What reading a damaged stream raises.
DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile)


@dataclass(frozen=True)
class Opened:
    """A file that is being read. `path` if it is a local one, `reader` (which hashes what it reads) if it is remote."""

    where: str
    raw: IO[bytes]
    path: Path | None = None
    reader: Reader | None = None

    def bytes(self) -> IO[bytes]:
        """The file's bytes, decompressed. Reading may raise one of DAMAGE."""
        if self.where.endswith((".gz", ".tgz")):
            return io.BufferedReader(gzip.GzipFile(fileobj=self.raw), BUFFER)
        if self.where.endswith(".zst"):
            return io.BufferedReader(ZstdFrames(self.raw), BUFFER)
        return self.raw


@contextmanager
def opened(file: Path | RemoteFile) -> Iterator[Opened]:
    """Open a file for reading. Error: InputError if it is gone."""
    if isinstance(file, RemoteFile):
        with Reader(file) as reader, io.BufferedReader(reader, BUFFER) as raw:
            yield Opened(str(file), raw, reader=reader)
        return
    try:
        stream = file.open("rb", buffering=BUFFER)
    except FileNotFoundError:
        raise InputError(
            f"{file} was there when the build began and is gone; put it back: the same command goes on where this one "
            "stopped"
        ) from None
    with stream:
        yield Opened(str(file), stream, path=file)


def open_bytes(path: Path) -> IO[bytes]:
    """A local file's bytes, decompressed; closing it closes the file. Reading may raise one of DAMAGE."""
    if path.suffix == ".gz":
        return io.BufferedReader(gzip.open(path), BUFFER)
    return Opened(str(path), path.open("rb", buffering=BUFFER)).bytes()


class ZstdFrames(io.RawIOBase):
    """The decompressed bytes of a file of zstd frames (zstandard's own reader takes a cut frame for the end)."""

    def __init__(self, file: IO[bytes]) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise missing_extra("data", error) from None
        self._error = zstandard.ZstdError
        self._new = zstandard.ZstdDecompressor().decompressobj
        self._file = file
        self._frame: Any = None
        self._input, self._output = b"", memoryview(b"")

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as one read goes; 0 at the end. Error: EOFError for bytes that are no whole frames."""
        while not self._output:
            self._input = self._input or self._file.read(BUFFER)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("the last zstd frame is not whole")
                return 0
            if self._frame is None:
                self._frame = self._new()
            try:
                self._output = memoryview(self._frame.decompress(self._input))
            except self._error as error:
                raise EOFError(str(error)) from None
            self._input = b""
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count
