"""The header of a Zstandard frame (RFC 8878, 3.1.1.1), read without decompressing: what window it asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

MAGIC = b"\x28\xb5\x2f\xfd"
SKIPPABLE = b"\x2a\x4d\x18"  # behind a byte 0x50 to 0x5f: a frame that is passed over


@dataclass(frozen=True)
class FrameHeader:
    """`window`: bytes that the decoder must hold; `dictionary`: 0 = none; `raw`: the header as it stands, no magic."""

    window: int
    checksum: bool
    dictionary: int
    raw: bytes


def read_header(read: Callable[[int], bytes]) -> FrameHeader:
    """The header behind the magic; `read(n)` gives exactly n bytes, or raises what a file cut short is."""
    raw = bytearray(read(1))
    single, checksum = raw[0] >> 5 & 1, raw[0] >> 2 & 1
    window = 0
    if not single:
        raw += read(1)
        base = 1 << (10 + (raw[-1] >> 3))
        window = base + base // 8 * (raw[-1] & 7)
    number = read((0, 1, 2, 4)[raw[0] & 3])
    size = read((single, 2, 4, 8)[raw[0] >> 6])
    raw += number + size
    if single:  # the window is the content
        window = int.from_bytes(size, "little") + (256 if len(size) == 2 else 0)
    return FrameHeader(window, bool(checksum), int.from_bytes(number, "little"), bytes(raw))
