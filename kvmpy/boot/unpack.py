"""Compressed kernels: which format, and the kernel out of it, never larger than a bound.

Formats are the seven of the boot protocol's payload.  All but gzip have the size of the result appended in four
bytes; each decoder stops at the end of its stream and leaves them alone.
"""

from __future__ import annotations

import struct

from kvmpy.errors import ImageError
from kvmpy.units import KIB, MIB, format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MAGICS = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x5d\0\0", "lzma"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x89LZO\0\r\n\x1a\n", "lzo"),
)

# xz of a kernel uses a dictionary of up to 128 MiB.
_LZMA_MEMORY = 256 * MIB
_ZSTD_WINDOW = 128 * MIB

# Four bytes can stand for 128 KiB, so this is what one step can allocate: 32 MiB.
_ZSTD_CHUNK = 1 * KIB

# Block size of the legacy container that `lz4 -l` writes.
_LZ4_BLOCK = 8 * MIB
_LZ4_BLOCKS_MAX = 1024
_LZ4_MAGIC = 0x184C2102


class MissingLibraryError(ImageError):
    """The format needs a library that is not installed; `format` names the one, `library` the other."""

    def __init__(self, format: str, library: str) -> None:
        super().__init__(f"unpacking {format} needs the Python package {library}: pip install 'kvmpy[images]'")
        self.format = format
        self.library = library


def recognise(data: memoryview) -> str | None:
    """The compression format that `data` begins with, or None."""
    head = bytes(data[:16])
    for magic, name in MAGICS:
        if head.startswith(magic):
            return name
    return None


def unpack(data: memoryview, limit: int) -> bytes:
    """What the compressed `data` holds, at most `limit` bytes.

    Raises `ImageError` when the data is damaged, cut short, of no known format or larger than `limit` once
    unpacked, and `MissingLibraryError` when only the library is missing.
    """
    name = recognise(data)
    if name is None:
        raise ImageError("the kernel's payload is in no compression format that is known here")
    result = _UNPACKERS[name](data, limit)
    if len(result) > limit:
        raise _too_large(limit)
    return result


def _too_large(limit: int) -> ImageError:
    return ImageError(f"the kernel's payload is larger than {format_size(limit)} once unpacked")


def _damaged(name: str, error: Exception | None = None) -> ImageError:
    return ImageError(f"the kernel's {name} payload is damaged" + (f": {error}" if error else " or cut short"))


def _gzip(data: memoryview, limit: int) -> bytes:
    import zlib

    decoder = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        result = decoder.decompress(data, limit + 1)
    except zlib.error as error:
        raise _damaged("gzip", error) from error
    if not decoder.eof and len(result) <= limit:
        raise _damaged("gzip")
    return result


def _bzip2(data: memoryview, limit: int) -> bytes:
    import bz2

    decoder = bz2.BZ2Decompressor()
    try:
        result = decoder.decompress(data, limit + 1)
    except (OSError, ValueError) as error:
        raise _damaged("bzip2", error) from error
    if not decoder.eof and len(result) <= limit:
        raise _damaged("bzip2")
    return result


def _xz(data: memoryview, limit: int) -> bytes:
    import lzma

    decoder = lzma.LZMADecompressor(memlimit=_LZMA_MEMORY)
    try:
        result = decoder.decompress(data, limit + 1)
    except lzma.LZMAError as error:
        raise _damaged("xz", error) from error
    if not decoder.eof and len(result) <= limit:
        raise _damaged("xz")
    return result


def _lz4(data: memoryview, limit: int) -> bytes:
    try:
        import lz4.block
    except ImportError as error:
        raise MissingLibraryError("lz4", "lz4") from error
    blocks: list[bytes] = []
    total = 0
    position = 4
    # What is left at the end and too short for a block is the appended size.
    while position + 4 < len(data):
        (size,) = struct.unpack_from("<I", data, position)
        position += 4
        if size == _LZ4_MAGIC:  # archives may be concatenated
            continue
        if size > len(data) - position or len(blocks) == _LZ4_BLOCKS_MAX:
            raise _damaged("lz4")
        try:
            block = lz4.block.decompress(data[position : position + size], uncompressed_size=_LZ4_BLOCK)
        except (lz4.block.LZ4BlockError, ValueError, OverflowError) as error:
            raise _damaged("lz4", error) from error
        position += size
        total += len(block)
        if total > limit:
            raise _too_large(limit)
        blocks.append(block)
    return b"".join(blocks)


def _zstd(data: memoryview, limit: int) -> bytes:
    try:
        import zstandard
    except ImportError as error:
        raise MissingLibraryError("zstd", "zstandard") from error
    decoder = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
    parts = []
    total = 0
    position = 0
    try:
        while not decoder.eof and total <= limit:
            chunk = data[position : position + _ZSTD_CHUNK]
            if not chunk:
                raise _damaged("zstd")
            part: bytes = decoder.decompress(chunk)
            parts.append(part)
            total += len(part)
            position += len(chunk)
    except zstandard.ZstdError as error:
        raise _damaged("zstd", error) from error
    return b"".join(parts)


def _lzo(data: memoryview, limit: int) -> bytes:
    from kvmpy.boot.lzo import unpack_lzop

    return unpack_lzop(data, limit)


_UNPACKERS: dict[str, Callable[[memoryview, int], bytes]] = {
    "gzip": _gzip,
    "bzip2": _bzip2,
    "xz": _xz,
    "lzma": _xz,
    "lz4": _lz4,
    "zstd": _zstd,
    "lzo": _lzo,
}
