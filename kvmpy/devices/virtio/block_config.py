"""The configuration of a block device as its driver reads it (virtio 1.2, 5.2.4: struct virtio_blk_config)."""

from __future__ import annotations

import struct

_CONFIG = struct.Struct(
    "<QII"  # capacity in sectors, size_max, seg_max
    "HBB"  # geometry: cylinders, heads, sectors
    "I"  # blk_size
    "BBHI"  # topology: physical_block_exp, alignment_offset, min_io_size, opt_io_size
    "BxH"  # writeback, num_queues
    "III"  # discard: max sectors, max segments, sector alignment
    "IIB3x"  # write zeroes: max sectors, max segments, may unmap
)
CONFIG_SIZE = _CONFIG.size
WRITEBACK_OFFSET = 32

# What the host's file systems and page cache work with; smaller writes make them read first.
PHYSICAL_BLOCK = 4096


def config_space(
    *,
    capacity: int,
    size_max: int,
    seg_max: int,
    block_size: int,
    write_back: bool,
    queues: int,
    max_discard_sectors: int,
    max_write_zeroes_sectors: int,
    max_ranges: int,
) -> bytes:
    """The bytes of the configuration.

    `capacity` and the two maxima are in sectors of 512 bytes, `size_max` and `block_size` in bytes.
    """
    physical = max(PHYSICAL_BLOCK, block_size)
    return _CONFIG.pack(
        capacity,
        size_max,
        seg_max,
        0,
        0,
        0,
        block_size,
        (physical // block_size).bit_length() - 1,
        0,
        physical // block_size,
        0,
        int(write_back),
        queues,
        max_discard_sectors,
        max_ranges,
        physical // 512,
        max_write_zeroes_sectors,
        max_ranges,
        1,
    )
