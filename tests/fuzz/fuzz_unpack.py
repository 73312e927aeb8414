"""Fuzzes the unpacking of kernels, our own LZO above all: `python tests/fuzz/fuzz_unpack.py -runs=100000`."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct

from kvmpy.testing.fuzz import fuzz, instrumented

with instrumented():
    import kvmpy.boot.lzo  # noqa: F401  (imported later it would not be instrumented)
    from kvmpy.boot.unpack import unpack
    from kvmpy.errors import KvmpyError

LIMIT = 4096
TEXT = b"a kernel, " * 20

LZOP_HEADER = b"\x89LZO\0\r\n\x1a\n" + struct.pack(">HHHBBI", 0x1030, 0x20A0, 0x0940, 3, 9, 0) + bytes(12 + 1 + 4)
# 10 literals, a match of 190 at distance 10, the end.
LZO_BLOCK = bytes([17 + 10]) + TEXT[:10] + b"\x20" + bytes([190 - 33]) + struct.pack("<H", 9 << 2) + b"\x11\0\0"

CORPUS = [
    gzip.compress(TEXT),
    bz2.compress(TEXT),
    lzma.compress(TEXT),
    lzma.compress(TEXT, format=lzma.FORMAT_ALONE),
    b"\x02\x21\x4c\x18" + struct.pack("<I", 6) + b"\x50hello",
    b"\x28\xb5\x2f\xfd\x20\x05\x29\0\0hello",
    LZOP_HEADER + struct.pack(">II", len(TEXT), len(LZO_BLOCK)) + LZO_BLOCK + bytes(4),
    LZOP_HEADER + struct.pack(">II", 5, 5) + b"hello" + bytes(4),
]


def one_input(data: bytes) -> None:
    """Nothing raises anything but `KvmpyError`, and nothing comes out larger than the limit."""
    try:
        assert len(unpack(memoryview(data), LIMIT)) <= LIMIT
    except KvmpyError:
        pass


if __name__ == "__main__":
    fuzz(one_input, CORPUS)
