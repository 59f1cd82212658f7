"""Files as streams of bytes, decompressed where their name ends in .gz or .zst; one that is cut short is an error."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import IO, Any

from mobillama.errors import missing_extra

BUFFER = 1 << 20
# What reading a damaged stream raises.
DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile)


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading. Reading may raise one of DAMAGE."""
    if path.suffix == ".gz":
        return io.BufferedReader(gzip.open(path), BUFFER)
    if path.suffix == ".zst":
        return io.BufferedReader(ZstdFrames(path), BUFFER)
    return path.open("rb", buffering=BUFFER)


class ZstdFrames(io.RawIOBase):
    """The decompressed bytes of a file of zstd frames (zstandard's own reader takes a cut frame for the end)."""

    def __init__(self, path: Path) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise missing_extra("data", error) from None
        self._error = zstandard.ZstdError
        self._new = zstandard.ZstdDecompressor().decompressobj
        self._file = path.open("rb")
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

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()
