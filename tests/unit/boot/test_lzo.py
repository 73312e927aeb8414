from __future__ import annotations

import base64
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.boot.lzo import F_ADLER32_C, F_ADLER32_D, F_CRC32_D, F_H_FILTER, decompress_lzo1x, unpack_lzop
from kvmpy.errors import ImageError, KvmpyError

# What `lzop -9` makes of `plain()`.
LZOP_9 = base64.b64decode(
    "iUxaTwANChoKEEAgoAlAAwkDAAANAACBpGsEQ3EAAAAAADQbA74AAFkRAAACpTJR+g0ic2VnbWVudCBhIHRhYmxlIAAgBgAA2AUAA29mIGludGVy"
    "cnVwdCB0aGUgZ3Vlc6QBKDQAtQBhcAUBcGFnZbAAIAigAeQU/ABVCGEnSAFwDOADmAopNAKAFCg8AJgD/Aa8AChwAPgfMVQDnAYp8AFoDih0ACAO"
    "vAQgDpAFIBCQBPwYKRgGLTwAIAhIAS0FBGEgMtQCtBIgMV0BYSnwAiAOjAGUS1AASAAgCMwAIA08CyrJCmEu0ArgA7QW9AFoBisYCidBAGEpZAcu"
    "oAwxdgtoZScsAJgHYAIgC6QDTAX0CyAx1AYgElENYcgaIDNwCiAJEAJQAAAAGQECAwQGCAoMDxIVGBwgJCgtMjc8QkhOVFtiaXB4gIiQmaKrtL7I"
    "0tzn8v0IFCAsOEVSX2x6iJaks8LR4PAAECAxQlNkdoiarL/S5fgMIDRIXXKHnLLI3vQLIjlQaICYsMni+xQuSGJ8l7LN6AQgPFh1kq/M6ggmRGOC"
    "ocDgACBAYYKjxOYIKkxvkrXY/CBEaI2y1/wiSG6Uu+IJMFiAqND5Ikt0nsjyHEdyncj0IEx4pdL/LFqItuQTQnGg0AAwYJHC8yRWiLrsH1KFuOwg"
    "VIi98idcksj+NGui2RBIgLjwKWKb1A5Igrz3Mm2o5CBcmNUST4zKCEaEwwJBgMAAQIDBAkOExghKjM8SVZjcIGSo7TJ3vAJIjtQbYqnwOIDIEFmi"
    "6zR+yBJcp3ogAAAAAAAAAOYAACAAowAAIAA+BUAtIAAAAAAAAADmAAAgAAAAAAAAAOYAACAAAAAAAAAA5gAAIAAAAAAAAADmAAAgAAAAAAAAAOYA"
    "ACAAAAAAAAAA5gAAIAAAAAAAAADmAAAgAAAAAAAAAOYAACAAAAAAAAA0AAAQACSLX2VuZBEAAAAAAAA="
)

# The end of a block: a match at distance 0x4000 of length 3.
END = b"\x11\0\0"


def plain() -> bytes:
    """Text that lzop packs with short, long, near and far matches."""
    words = [b"segment", b"page", b"table", b"of", b"the", b"guest", b"a", bytes(40), b"interrupt"]
    number = 1
    parts = []
    for _ in range(120):
        number = (number * 1103515245 + 12345) & 0x7FFFFFFF
        parts.append(words[(number >> 12) % 9])
    text = b" ".join(parts) + bytes((i * i >> 3) & 255 for i in range(300))
    return text + b"z" * 2500 + text[50:400] + b"-" * 18000 + text[:300] + b"end"


def lzop(*blocks: tuple[int, bytes], flags: int = 0, version: int = 0x1030, name: bytes = b"") -> bytes:
    """A container of (unpacked size, the rest of the block) pairs."""
    header = b"\x89LZO\0\r\n\x1a\n" + struct.pack(">HHHB", version, 0x20A0, 0x0940, 3)
    header += b"\x09" if version >= 0x0940 else b""
    header += struct.pack(">I", flags) + (bytes(4) if flags & F_H_FILTER else b"") + bytes(8)
    header += bytes(4) if version >= 0x0940 else b""
    header += bytes([len(name)]) + name + bytes(4)
    return header + b"".join(struct.pack(">I", size) + rest for size, rest in blocks) + bytes(4)


def packed(data: bytes) -> bytes:
    """A block's packed size and packed bytes, without checksums."""
    return struct.pack(">I", len(data)) + data


def literals(data: bytes) -> bytes:
    """The instruction that a block starts with for 4 to 238 literals."""
    return bytes([17 + len(data)]) + data


def unpack(data: bytes, limit: int = 1 << 20) -> bytes:
    return unpack_lzop(memoryview(data), limit)


def test_what_lzop_packed_comes_back():
    assert unpack(LZOP_9) == plain()


def test_the_appended_size_is_left_alone():
    assert unpack(LZOP_9 + struct.pack("<I", len(plain()))) == plain()


@pytest.mark.parametrize(
    ("instructions", "expected"),
    [
        pytest.param(literals(b"abcd"), b"abcd", id="literals at the start"),
        pytest.param(b"\x01abcd", b"abcd", id="literal run of 4"),
        pytest.param(b"\0\1" + b"x" * 19, b"x" * 19, id="literal run of 18 and more"),
        pytest.param(b"\0\0\1" + b"x" * 274, b"x" * 274, id="literal run of 273 and more"),
        pytest.param(literals(b"abcd") + b"\x4c\0", b"abcdabc", id="match of 3"),
        pytest.param(literals(b"abcdefgh") + b"\xfc\0", b"abcdefgh" * 2, id="match of 8"),
        pytest.param(literals(b"abcd") + b"\x23\x0c\0", b"abcdabcda", id="match up to 16 KiB away"),
        pytest.param(literals(b"abcd") + b"\x20\1\0\0", b"abcd" + b"d" * 34, id="match over itself, long"),
        pytest.param(literals(b"abcd") + b"\x21\x0e\0xy", b"abcdabcxy", id="literals behind a match"),
        pytest.param(literals(b"abcd") + b"\x4e\0xy\x08\0", b"abcdabcxycx", id="match of 2 behind literals"),
        pytest.param(b"\x12a\x00\0", b"aaa", id="one literal at the start, match of 2"),
        pytest.param(b"\x14abc\x08\0", b"abcab", id="three literals at the start"),
    ],
)
def test_instructions(instructions, expected):
    assert decompress_lzo1x(instructions + END, len(expected)) == expected


def test_match_of_3_behind_a_literal_run_lies_over_2_kib_away():
    start = bytes(range(256)) * 8 + b"!"
    block = b"\0" + bytes(7) + struct.pack("B", len(start) - 18 - 7 * 255) + start + b"\0\0"
    assert decompress_lzo1x(block + END, len(start) + 3) == start + b"\0\1\2"


def test_match_over_32_kib_away():
    start = b"abc" + bytes(40000 - 3)
    count = 40000 - 18
    block = b"\0" + bytes(count // 255) + struct.pack("B", count % 255) + start
    # length 3, distance 0x4000 + 0x4000 + the rest
    block += b"\x19" + struct.pack("<H", (40000 - 0x8000) << 2)
    assert decompress_lzo1x(block + END, 40003) == start + b"abc"


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(b"", id="empty"),
        pytest.param(literals(b"abcd"), id="no end"),
        pytest.param(literals(b"abcd") + b"\x4c", id="cut in an instruction"),
        pytest.param(literals(b"abcd") + b"\x20\0\0", id="cut in a length"),
        pytest.param(b"\x20abc" + END, id="fewer literals than promised"),
        pytest.param(literals(b"abcd") + b"\x50\0" + END, id="match before the start"),
        pytest.param(literals(b"abcd") + b"\x2f\0\0" + END, id="match longer than the block"),
        pytest.param(literals(b"abcd") + b"\0\xff" + bytes(300) + END, id="literals longer than the block"),
        pytest.param(literals(b"abcd") + END, id="shorter than promised"),
        pytest.param(literals(b"abcdabc") + END + b"\0", id="bytes behind the end"),
    ],
)
def test_damaged_block(block):
    with pytest.raises(ImageError):
        decompress_lzo1x(block, 7)


def test_a_length_of_megabytes_allocates_nothing():
    with pytest.raises(ImageError, match="outside"):
        decompress_lzo1x(literals(b"abcd") + b"\x20" + bytes(100_000) + b"\1\0\0" + END, 1000)


def test_stored_block():
    assert unpack(lzop((4, packed(b"abcd")), (2, packed(b"ef")))) == b"abcdef"


@pytest.mark.parametrize("version", [0x0930, 0x1030])
@pytest.mark.parametrize("flags", [0, F_H_FILTER])
def test_header_of_each_length(version, flags):
    assert unpack(lzop((4, packed(b"abcd")), version=version, flags=flags, name=b"vmlinux")) == b"abcd"


def test_checksums():
    sums = struct.pack(">II", zlib.adler32(b"abcdabcdabcd"), zlib.crc32(b"abcdabcdabcd"))
    stored = struct.pack(">I", 12) + sums + b"abcdabcdabcd"
    assert unpack(lzop((12, stored), flags=F_ADLER32_D | F_CRC32_D)) == b"abcdabcdabcd"
    block = literals(b"abcd") + b"\x3f\x0c\0" + END
    data = b"abcd" + b"abcd" * 8 + b"a"
    rest = struct.pack(">III", len(block), zlib.adler32(data), 0) + block
    assert unpack(lzop((len(data), rest), flags=F_ADLER32_D | F_ADLER32_C)) == data


@pytest.mark.parametrize("flags", [F_ADLER32_D, F_CRC32_D])
def test_wrong_checksum(flags):
    with pytest.raises(ImageError, match="checksum"):
        unpack(lzop((4, struct.pack(">II", 4, 1) + b"abcd"), flags=flags))


def test_packed_larger_than_unpacked():
    with pytest.raises(ImageError, match="make no sense"):
        unpack(lzop((4, packed(b"abcde"))))


def test_more_than_the_limit():
    with pytest.raises(ImageError, match="larger than 7 bytes"):
        unpack(lzop((4, packed(b"abcd")), (4, packed(b"efgh"))), 7)


@pytest.mark.parametrize("length", range(0, len(LZOP_9), 7))
def test_cut_anywhere(length):
    with pytest.raises(ImageError):
        unpack(LZOP_9[:length])


@given(st.binary(max_size=200), st.integers(0, 5000))
def test_no_block_raises_anything_else_or_grows_past_its_size(data, size):
    try:
        assert len(decompress_lzo1x(data, size)) == size
    except KvmpyError:
        pass


@given(st.integers(0, len(LZOP_9) - 1), st.integers(1, 255))
def test_no_changed_byte_raises_anything_else(position, change):
    damaged = bytearray(LZOP_9)
    damaged[position] ^= change
    try:
        assert len(unpack(bytes(damaged), 30_000)) <= 30_000
    except KvmpyError:
        pass
