"""Files as streams of bytes, decompressed by what their first bytes are, whatever their names end in.

gzip, Zstandard, bzip2 and xz, of any number of members. Whatever the input, at most `BUFFER` compressed and `BUFFER`
decompressed bytes are held beside the decoder's own window (`LARGEST_WINDOW` at most). Padding with zeros between and
after members is skipped; other bytes behind the last one are counted (`trailing`), and no error. A stream that is cut
short or damaged is one.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, Any

from mobillama.data.remote import Reader, RemoteFile
from mobillama.data.zstd_frame import MAGIC as ZSTD
from mobillama.data.zstd_frame import SKIPPABLE, read_header
from mobillama.errors import InputError, missing_extra

BUFFER = 1 << 20
LARGEST_WINDOW = 1 << 31  # of Zstandard (`zstd --long=31`), and memory of an xz decoder
GZIP, BZIP2, XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0"
BZIP2_BLOCKS = (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")  # behind BZh and a digit: a block, or the end of nothing
SUFFIXES = (".gz", ".tgz", ".zst", ".bz2", ".xz")
ZSTD_BLOCK = 128 << 10  # the most that a block decompresses to
LONGEST_MAGIC = 10
HEADER_BYTES = 64  # of a Zstandard frame or an xz block, and more
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
        """The file's bytes, decompressed. Reading may raise one of DAMAGE, and InputError for a window too large."""
        return decompressed(self.raw, self.where)


@contextmanager
def opened(file: Path | RemoteFile) -> Iterator[Opened]:
    """Open a file for reading. Error: InputError if it is gone or cannot be opened."""
    if isinstance(file, RemoteFile):
        with Reader(file) as reader, io.BufferedReader(reader, BUFFER) as raw:
            yield Opened(str(file), raw, reader=reader)
        return
    try:
        stream = file.open("rb", buffering=BUFFER)
    except FileNotFoundError:
        raise InputError(
            f"{printable(file)} was there when the build began and is gone; put it back: the same command goes on "
            "where this one stopped"
        ) from None
    except OSError as error:
        raise InputError(f"{printable(file)} cannot be opened ({error.strerror}); mend that and go on") from None
    with stream:
        yield Opened(printable(file), stream, path=file)


def open_bytes(path: Path) -> IO[bytes]:
    """A local file's bytes, decompressed; closing it closes the file. Reading may raise one of DAMAGE."""
    return decompressed(path.open("rb", buffering=BUFFER), str(path))


def printable(path: PurePath | str) -> str:
    r"""A path as text that can be printed and written as UTF-8: bytes of a name that are no UTF-8 stand as \xff."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def decompressed(raw: IO[bytes], where: str) -> IO[bytes]:
    """The bytes of a stream that stands at its beginning; as they are, if it is no compressed one.

    `raw` can be peeked into, `where` names it in errors. A name that promises compression, and bytes that are neither
    that nor text, is damage: EOFError.
    """
    head: bytes = raw.peek(LONGEST_MAGIC)[:512]  # type: ignore[attr-defined]
    if stream := _stream_of(head):
        return io.BufferedReader(stream(raw, where), BUFFER)
    if where.lower().endswith(SUFFIXES) and head:
        if len(head) < LONGEST_MAGIC and any(magic.startswith(head[: len(magic)]) for magic in (GZIP, ZSTD, BZIP2, XZ)):
            raise EOFError(f"it ends after {len(head)} bytes")
        if any(byte < 32 and byte not in b"\t\n\f\r" for byte in head):
            raise EOFError(f"it begins with {head[:8].hex(' ')}: neither a compressed file nor text")
    return raw


def trailing(stream: IO[bytes]) -> int:
    """Bytes behind the last member of a stream of `decompressed` that was read to its end."""
    return int(getattr(getattr(stream, "raw", None), "trailing", 0))


def window_bytes(path: Path) -> int:
    """The window that decompressing a local file's first member takes; 0 if it is not compressed.

    Error: InputError if the file cannot be opened. One that is damaged counts as 0: reading it says so.
    """
    with opened(path) as source:
        head: bytes = source.raw.peek(HEADER_BYTES)[:HEADER_BYTES]  # type: ignore[attr-defined]
    rest = io.BytesIO(head[4:])
    try:
        if head.startswith(ZSTD):
            return min(read_header(rest.read).window, LARGEST_WINDOW)
        if head.startswith(XZ):
            return xz_dictionary(head)
    except IndexError:  # shorter than a header
        return 0
    if head.startswith(BZIP2) and head.startswith(BZIP2_BLOCKS, 4):
        return (head[3] - ord("0")) * 900_000  # 100 kB of input a level, in 9 bytes each
    return 1 << 15 if head.startswith(GZIP) else 0


def xz_dictionary(head: bytes) -> int:
    """Bytes of the dictionary of an xz file that begins with `head` (xz-file-format 1.2.1, 3.1 and 5.3.1)."""
    place = 14
    for flag in (64, 128):  # the sizes of the block, where they are given
        place += _varint_bytes(head, place) if head[13] & flag else 0
    for _ in range((head[13] & 3) + 1):
        kind, size = head[place], head[place + 1]
        if kind == 0x21:
            bits = head[place + 2] & 63
            return LARGEST_WINDOW if bits >= 38 else (2 | bits & 1) << (bits // 2 + 11)
        place += 2 + size
    return 0


def _varint_bytes(head: bytes, place: int) -> int:
    """Bytes of the number that stands at `place`."""
    count = 1
    while head[place + count - 1] & 128:
        count += 1
    return count


def skip_line(lines: IO[bytes]) -> int:
    """Read to the end of a line piece by piece; the bytes it had."""
    size = 0
    while piece := lines.readline(BUFFER):
        size += len(piece)
        if piece.endswith(b"\n"):
            break
    return size


class _Compressed(io.RawIOBase):
    """The decompressed bytes of a file, piece by piece; `trailing` counts bytes behind the last member."""

    def __init__(self, file: IO[bytes], where: str) -> None:
        self._file, self.where, self.trailing = file, where, 0
        self._output = memoryview(b"")

    def readable(self) -> bool:
        """True."""
        return True

    def close(self) -> None:
        """Close the file too."""
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as one read goes; 0 at the end. Error: EOFError for a stream that is no whole one."""
        if not self._output:
            self._output = memoryview(self._next())
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

    def _next(self) -> bytes:
        """The next decompressed bytes, at most about BUFFER; b"" at the end."""
        raise NotImplementedError

    def _rest(self, head: bytes, *magics: bytes) -> None:
        """Count what lies behind the last member. Error: EOFError if another member is in it: then the file is
        damaged before that one, and what is behind must not be lost in silence."""
        before = b""
        while head:
            if any(magic in before + head for magic in magics):
                raise EOFError("bytes that are no compressed data stand before another member")
            self.trailing += len(head)
            before, head = head[-LONGEST_MAGIC:], self._file.read(BUFFER)


class _Members(_Compressed):
    """Members (streams) of gzip, bzip2 or xz, one after the other."""

    name: str
    magic: bytes
    starts: tuple[bytes, ...]  # what tells a member from other bytes

    def __init__(self, file: IO[bytes], where: str) -> None:
        super().__init__(file, where)
        self._member: Any = None
        self._input = b""

    def _new(self) -> Any:
        """A decoder of one member."""
        raise NotImplementedError

    def _next(self) -> bytes:
        while True:
            if self._member is None and not self._begin():
                return b""
            if not self._input and self._hungry():
                self._input = self._file.read(BUFFER)
                if not self._input:
                    raise EOFError(f"the last {self.name} member is not whole")
            try:
                output: bytes = self._member.decompress(self._input, BUFFER)
            except lzma.LZMAError as error:
                if "memory" not in str(error).lower():
                    raise EOFError(str(error)) from None
                raise InputError(
                    f"{self.where} needs more than {LARGEST_WINDOW >> 20} MiB of memory to be decompressed; compress "
                    "it with a smaller dictionary (xz -9 is small enough)"
                ) from None
            except (OSError, zlib.error) as error:  # bz2 has no error of its own
                raise EOFError(str(error)) from None
            self._input = self._left()
            if self._member.eof:
                self._input, self._member = self._member.unused_data, None
            if output:
                return output

    def _hungry(self) -> bool:
        """Whether the decoder can give nothing more without input."""
        return bool(self._member.needs_input)

    def _left(self) -> bytes:
        """What of the input the decoder did not take (bz2 and lzma keep it themselves)."""
        return b""

    def _begin(self) -> bool:
        """Begin the next member; False at the end of the file, or of all that is a member."""
        head = self._input.lstrip(b"\0")
        while not head:
            data = self._file.read(BUFFER)
            if not data:
                return False
            head = data.lstrip(b"\0")
        if len(head) < len(self.magic):
            head += self._file.read(BUFFER)
        if not (head.startswith(self.magic) or self.magic.startswith(head)):
            self._rest(head, *self.starts)
            return False
        self._input, self._member = head, self._new()
        return True


class Gzip(_Members):
    """gzip (RFC 1952), each member's length and checksum compared."""

    name, magic, starts = "gzip", GZIP, (b"\x1f\x8b\x08",)

    def _new(self) -> Any:
        return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    def _hungry(self) -> bool:
        return True

    def _left(self) -> bytes:
        return bytes(self._member.unconsumed_tail)


class Bzip2(_Members):
    """bzip2."""

    name, magic, starts = "bzip2", BZIP2, BZIP2_BLOCKS[:1]

    def _new(self) -> Any:
        return bz2.BZ2Decompressor()


class Xz(_Members):
    """xz."""

    name, magic, starts = "xz", XZ, (XZ,)

    def _new(self) -> Any:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=LARGEST_WINDOW)


class ZstdFrames(_Compressed):
    """Frames of Zstandard (RFC 8878).

    The decoder is fed block by block, since it gives all that its input becomes at once: 48 kB can be 1.5 GB.
    """

    def __init__(self, file: IO[bytes], where: str) -> None:
        super().__init__(file, where)
        try:
            import zstandard
        except ImportError as error:
            raise missing_extra("data", error) from None
        self._error = zstandard.ZstdError
        self._decoder = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW)
        self._frame: Any = None
        self._checksum = False
        self._begun = False

    def _next(self) -> bytes:
        while True:
            if self._frame is None and not self._begin():
                return b""
            pieces, size, last = [], 0, False
            while size < BUFFER and not last:
                head = self._exactly(3)
                word = int.from_bytes(head, "little")
                last, kind, length = bool(word & 1), word >> 1 & 3, word >> 3
                pieces += [head, self._exactly(1 if kind == 1 else length)]
                size += ZSTD_BLOCK
            if last and self._checksum:
                pieces.append(self._exactly(4))
            try:
                output: bytes = self._frame.decompress(b"".join(pieces))
            except self._error as error:
                raise EOFError(str(error)) from None
            if last:
                self._frame = None
            if output:
                return output

    def _begin(self) -> bool:
        """Begin the next frame; False at the end of the file, or of all that is a frame."""
        while True:
            magic = self._file.read(4)
            while magic[:1] == b"\0" and self._begun:  # padding
                magic = magic.lstrip(b"\0")
                magic += self._file.read(4 - len(magic))
            if not magic:
                return False
            if magic[1:] == SKIPPABLE and magic[0] >> 4 == 5:
                left = int.from_bytes(self._exactly(4), "little")
                while left:
                    left -= len(self._exactly(min(left, BUFFER)))
            elif magic == ZSTD:
                break
            elif ZSTD.startswith(magic):
                raise EOFError("the last zstd frame is not whole")
            else:
                self._rest(magic + self._file.read(BUFFER), ZSTD)
                return False
            self._begun = True
        header = read_header(self._exactly)
        if header.dictionary:
            raise InputError(
                f"{self.where} was compressed with a dictionary (number {header.dictionary}); decompress it with that "
                "first (zstd -d -D DICTIONARY)"
            )
        if header.window > LARGEST_WINDOW:
            raise InputError(
                f"{self.where} needs a window of {header.window} bytes; expected at most {LARGEST_WINDOW}: compress it "
                "again with zstd --long=31 or less"
            )
        self._frame, self._checksum, self._begun = self._decoder.decompressobj(), header.checksum, True
        try:
            self._frame.decompress(ZSTD + header.raw)
        except self._error as error:
            raise EOFError(str(error)) from None
        return True

    def _exactly(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) < count:
            raise EOFError("the last zstd frame is not whole")
        return data


def _stream_of(head: bytes) -> Callable[[IO[bytes], str], _Compressed] | None:
    """What reads a file that begins with these bytes; None if it is not compressed."""
    if head.startswith(GZIP):
        return Gzip
    if head.startswith(ZSTD) or (head.startswith(SKIPPABLE, 1) and head[0] >> 4 == 5):
        return ZstdFrames
    if head.startswith(BZIP2) and head.startswith(BZIP2_BLOCKS, 4):
        return Bzip2
    return Xz if head.startswith(XZ) else None
