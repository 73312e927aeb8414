"""LZO1X in the container of lzop, the seventh compression format of Linux kernels.

No common Python package unpacks it.  The stream's format is in the kernel's Documentation/staging/lzo.rst (bitstream
version 0, the only one that lzop writes).
"""

from __future__ import annotations

import struct
import zlib

from kvmpy.errors import ImageError

LZOP_MAGIC = b"\x89LZO\0\r\n\x1a\n"

# Flags of the container's header.
F_ADLER32_D = 1 << 0
F_ADLER32_C = 1 << 1
F_CRC32_D = 1 << 8
F_CRC32_C = 1 << 9
F_H_FILTER = 1 << 11

# Since this version the header has the compression level and the upper half of the time.
_VERSION_LEVEL = 0x0940


def unpack_lzop(data: memoryview, limit: int) -> bytes:
    """What the lzop container `data` holds, at most `limit` bytes; `ImageError` when damaged or larger."""
    try:
        return _unpack_lzop(bytes(data), limit)
    except (struct.error, IndexError) as error:
        raise ImageError("the lzo data is cut short") from error


def _unpack_lzop(data: bytes, limit: int) -> bytes:
    if not data.startswith(LZOP_MAGIC):
        raise ImageError("the lzo data has no lzop header")
    flags, position = _parse_header(data)
    blocks: list[bytes] = []
    total = 0
    while True:
        (size,) = struct.unpack_from(">I", data, position)
        position += 4
        if not size:
            return b"".join(blocks)
        total += size
        if total > limit:
            raise ImageError(f"the lzo data is larger than {limit} bytes once unpacked")
        (packed_size,) = struct.unpack_from(">I", data, position)
        position += 4
        if packed_size > size or not packed_size:
            raise ImageError("a block of the lzo data has sizes that make no sense")
        adler = crc = None
        if flags & F_ADLER32_D:
            (adler,) = struct.unpack_from(">I", data, position)
            position += 4
        if flags & F_CRC32_D:
            (crc,) = struct.unpack_from(">I", data, position)
            position += 4
        if packed_size < size:
            # Checksums of the packed bytes, which those of the unpacked ones make superfluous.
            position += 4 * bool(flags & F_ADLER32_C) + 4 * bool(flags & F_CRC32_C)
        packed = data[position : position + packed_size]
        if len(packed) < packed_size:
            raise ImageError("the lzo data is cut short")
        position += packed_size
        block = packed if packed_size == size else decompress_lzo1x(packed, size)
        if (adler is not None and zlib.adler32(block) != adler) or (crc is not None and zlib.crc32(block) != crc):
            raise ImageError("a block of the lzo data does not match its checksum")
        blocks.append(block)


def _parse_header(data: bytes) -> tuple[int, int]:
    """The header's flags, and where the first block starts."""
    position = len(LZOP_MAGIC)
    (version,) = struct.unpack_from(">H", data, position)
    position += 7  # with the library's version, the version needed, and the method
    if version >= _VERSION_LEVEL:
        position += 1
    (flags,) = struct.unpack_from(">I", data, position)
    position += 4
    if flags & F_H_FILTER:
        position += 4
    position += 8  # mode, time
    if version >= _VERSION_LEVEL:
        position += 4
    return flags, position + 1 + data[position] + 4  # the name, and the header's checksum


def decompress_lzo1x(data: bytes, size: int) -> bytes:
    """Unpacks one LZO1X block that holds exactly `size` bytes; `ImageError` when it does not."""
    try:
        return _decompress(data, size)
    except IndexError as error:
        raise ImageError("an lzo block is cut short") from error


def _decompress(data: bytes, size: int) -> bytes:
    out = bytearray()
    position = 0
    # How many literals the last instruction copied: 0 to 3 behind a match, 4 after a run of its own.
    state = 0
    if data[0] > 17:
        count = data[0] - 17
        out += data[1 : 1 + count]
        position = 1 + count
        state = min(count, 4)
    while True:
        code = data[position]
        position += 1
        if code >= 64:
            length = (code >> 5) + 1
            distance = (data[position] << 3) + (code >> 2 & 7) + 1
            literals = code & 3
            position += 1
        elif code >= 16:
            mask = 31 if code >= 32 else 7
            length = code & mask
            if not length:
                position, length = _long_length(data, position, mask)
            length += 2
            pair = data[position] | data[position + 1] << 8
            position += 2
            distance = (pair >> 2) + 1
            literals = pair & 3
            if code < 32:
                distance += ((code & 8) << 11) + 0x3FFF
                if distance == 0x4000:
                    break
        elif state == 0:
            count = code
            if not count:
                position, count = _long_length(data, position, 15)
            count += 3
            if position + count > len(data) or len(out) + count > size:
                raise ImageError("a literal run of an lzo block is too long")
            out += data[position : position + count]
            position += count
            state = 4
            continue
        else:
            length = 2 if state < 4 else 3
            distance = (data[position] << 2) + (code >> 2) + (1 if state < 4 else 0x801)
            literals = code & 3
            position += 1
        start = len(out) - distance
        if start < 0 or len(out) + length > size:
            raise ImageError("a match of an lzo block lies outside of it")
        if distance >= length:
            out += out[start : start + length]
        else:
            pattern = out[start:]
            out += (pattern * (length // distance + 1))[:length]
        if literals:
            out += data[position : position + literals]
            position += literals
        state = literals
    if len(out) != size or position != len(data):
        raise ImageError(f"an lzo block unpacks to {len(out)} bytes, not to the {size} that it promises")
    return bytes(out)


def _long_length(data: bytes, position: int, base: int) -> tuple[int, int]:
    """A length in bytes of its own: each zero counts 255, the first other byte its value, on top of `base`."""
    first = position
    while not data[position]:
        position += 1
    return position + 1, base + 255 * (position - first) + data[position]
