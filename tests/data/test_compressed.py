"""Compressed files are read by what they are: every member, every padding, in bounded pieces; a cut one is an error."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from mobillama.data import compressed
from mobillama.data.compressed import (
    BUFFER,
    DAMAGE,
    LARGEST_WINDOW,
    decompressed,
    opened,
    printable,
    trailing,
    window_bytes,
)
from mobillama.errors import InputError

TEXT = b"".join(b'{"text": "line %d"}\n' % number for number in range(2000))


def zstd(data: bytes, *, window: int = 0, checksum: bool = True) -> bytes:
    settings = zstandard.ZstdCompressionParameters.from_level(3, window_log=window, write_checksum=checksum)
    return zstandard.ZstdCompressor(compression_params=settings).compress(data)


def streamed(data: bytes) -> bytes:
    """A frame without its size, as a pipe makes it."""
    made = zstandard.ZstdCompressor().compressobj()
    return made.compress(data) + made.flush()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "zst": zstd,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}


def read(data: bytes, name: str = "a.jsonl") -> tuple[bytes, int]:
    stream = decompressed(io.BufferedReader(io.BytesIO(data)), name)
    return stream.read(), trailing(stream)


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.ZST", "a.jsonl"])
def test_members_paddings_and_what_lies_behind_them_are_read_whatever_the_name(suffix: str, name: str):
    one, other = COMPRESS[suffix](TEXT), COMPRESS[suffix](b"more\n")
    assert read(one, name) == (TEXT, 0)
    assert read(one + other, name) == (TEXT + b"more\n", 0)
    assert read(one + bytes(8) + other + bytes(2048), name) == (TEXT + b"more\n", 0)
    assert read(one + b"\n", name) == (TEXT, 1)
    assert read(one + other + b"signature" * 300_000, name) == (TEXT + b"more\n", 9 * 300_000)
    assert read(COMPRESS[suffix](b""), name) == (b"", 0)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_stream_cut_anywhere_or_damaged_between_its_members_is_an_error(suffix: str):
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    choice = random.Random(seed)
    whole, second = COMPRESS[suffix](TEXT), COMPRESS[suffix](choice.randbytes(3000))
    for cut in {1, 2, 5, 9, len(whole) - 1, *(choice.randrange(1, len(whole)) for _ in range(40))}:
        with pytest.raises(DAMAGE):
            read(whole[:cut], "a.jsonl." + suffix)
        if suffix != "bz2" or cut > 3:
            with pytest.raises(DAMAGE):
                read(second + whole[:cut])
    with pytest.raises(DAMAGE, match="before another member"):
        read(whole + b"garbage" + second)
    with pytest.raises(DAMAGE, match="before another member"):
        read(whole + b"g" * (BUFFER - 3) + second)


@pytest.mark.parametrize("suffix", ["gz", "zst", "xz"])
def test_every_flipped_bit_of_the_content_is_an_error_or_gives_the_same(suffix: str):
    data = COMPRESS[suffix](TEXT[:2000])
    for place in range(len(data)):
        flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        try:
            found, behind = read(flipped)
        except (*DAMAGE, InputError):
            continue
        assert found == TEXT[:2000] or found == flipped, (place, behind)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.jsonl.bz2", "a.xz", "a.TGZ"])
def test_plain_text_with_the_name_of_a_compressed_file_is_read_and_other_bytes_are_not(name: str):
    assert read(TEXT, name) == (TEXT, 0)
    assert read("\ufeff文\n".encode("gb18030"), name)[0] == "\ufeff文\n".encode("gb18030")
    assert read(b"", name) == (b"", 0)
    with pytest.raises(EOFError, match="begins with 00 01 02 03: neither a compressed file nor text"):
        read(bytes(range(4)), name)


def test_text_that_looks_like_the_beginning_of_a_compressed_file_is_text():
    assert read(b"BZh9 is how bzip2 begins\n")[0] == b"BZh9 is how bzip2 begins\n"


@pytest.mark.parametrize("frame", [zstd(TEXT, checksum=False), streamed(TEXT), zstd(b"x" * 300), zstd(TEXT * 40)])
def test_every_form_of_a_zstd_frame_is_read(frame: bytes):
    skipped = b"\x5a\x2a\x4d\x18" + (70_000).to_bytes(4, "little") + bytes(70_000)
    expected = zstandard.ZstdDecompressor().decompressobj().decompress(frame)
    assert read(frame) == (expected, 0)
    assert read(skipped + frame + skipped + frame) == (expected * 2, 0)
    assert read(skipped) == (b"", 0)


@pytest.mark.parametrize("window", [27, 28, 31])
def test_long_windows_are_read(window: int):
    made = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters.from_level(1, window_log=27)
    ).compressobj()
    frame = bytearray(made.compress(TEXT) + made.flush())
    assert frame[4] & 32 == 0 and frame[5] >> 3 == 17
    frame[5] = (window - 10) << 3  # what zstd --long writes; a smaller window is a valid larger one
    assert read(bytes(frame)) == (TEXT, 0)


def test_a_window_above_the_bound_and_a_dictionary_are_named_as_what_they_are():
    made = zstandard.ZstdCompressor().compressobj()
    frame = bytearray(made.compress(TEXT) + made.flush())
    frame[5] = (32 - 10) << 3
    with pytest.raises(
        InputError, match=rf"a.jsonl needs a window of {1 << 32} bytes; expected at most {LARGEST_WINDOW}"
    ):
        read(bytes(frame))
    frame[4:6] = bytes([frame[4] | 1, frame[5], 7])
    with pytest.raises(InputError, match="compressed with a dictionary"):
        read(bytes(frame))
    data = lzma.compress(b"a", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}])
    assert read(data) == (b"a", 0)


class Counted(io.BytesIO):
    """A file that knows the largest read that was asked of it."""

    largest = 0

    def read(self, count: int | None = -1) -> bytes:
        assert count is not None and count >= 0, "the whole file was asked for"
        self.largest = max(self.largest, count)
        return super().read(count)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_pieces_in_and_out_are_bounded_however_much_a_file_becomes(suffix: str):
    """Counted: the sizes of reads and of pieces do not grow with the input."""
    for megabytes in (2, 4, 8):
        file = Counted(COMPRESS[suffix](b"\n" * (megabytes << 20)))
        stream = decompressed(io.BufferedReader(file), "a")
        pieces = []
        decode = stream.raw._next  # type: ignore[attr-defined]
        stream.raw._next = lambda decode=decode, pieces=pieces: (pieces.append(got := decode()), got)[1]  # type: ignore[attr-defined]
        size = 0
        while piece := stream.read(BUFFER):
            size += len(piece)
        assert size == megabytes << 20
        assert max(map(len, pieces)) <= BUFFER and len(pieces) <= (megabytes << 20) / BUFFER * 10 + 2
        assert file.largest <= BUFFER


def test_a_name_that_is_no_utf_8_can_be_printed():
    assert printable(Path("a\udcff/b")) == "a\\xff/b"


def test_the_window_of_a_file_is_known_from_its_beginning(tmp_path: Path):
    long = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters.from_level(1, window_log=27)
    ).compressobj()
    filters = [{"id": lzma.FILTER_DELTA, "dist": 4}, {"id": lzma.FILTER_LZMA2, "dict_size": 3 << 22}]
    made = {
        "zst": (long.compress(TEXT) + long.flush(), 1 << 27),
        "small.zst": (zstd(b"x" * 300), 300),
        "xz": (lzma.compress(TEXT, preset=9), 64 << 20),
        "delta.xz": (lzma.compress(TEXT, filters=filters), 12 << 20),
        "bz2": (bz2.compress(TEXT), 8_100_000),
        "gz": (gzip.compress(TEXT), 1 << 15),
        "txt": (TEXT, 0),
        "empty.zst": (b"", 0),
        "cut.zst": (zstd(TEXT)[:5], 0),
        "cut.xz": (lzma.compress(TEXT)[:13], 0),
    }
    for name, (data, window) in made.items():
        (tmp_path / name).write_bytes(data)
        assert window_bytes(tmp_path / name) == window, name


def test_memory_above_the_bound_of_xz_is_named_as_that(monkeypatch: pytest.MonkeyPatch):
    data = lzma.compress(TEXT, preset=9)
    monkeypatch.setattr(compressed, "LARGEST_WINDOW", 1 << 20)
    with pytest.raises(InputError, match=r"a\.jsonl needs more than 1 MiB of memory to be decompressed"):
        read(data)


@pytest.mark.parametrize(
    "error", [PermissionError(errno.EACCES, "Permission denied"), OSError(errno.EIO, "Input/output error")]
)
def test_a_file_that_cannot_be_opened_is_named_with_the_systems_words(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*arguments: object, **more: object) -> None:
        raise error

    monkeypatch.setattr(Path, "open", fail)
    with (
        pytest.raises(InputError, match=rf"a\.jsonl cannot be opened \({error.strerror}\)"),
        opened(tmp_path / "a.jsonl"),
    ):
        pass
