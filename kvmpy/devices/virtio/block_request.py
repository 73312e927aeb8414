"""Requests to a block device as its driver writes them (virtio 1.2, 5.2.6), taken apart and checked."""

from __future__ import annotations

import errno
import struct

from kvmpy.devices.virtio.queue import parts_within

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.devices.virtio.queue import Chain

# Features (5.2.3), as masks.
VIRTIO_BLK_F_SIZE_MAX = 1 << 1
VIRTIO_BLK_F_SEG_MAX = 1 << 2
VIRTIO_BLK_F_RO = 1 << 5
VIRTIO_BLK_F_BLK_SIZE = 1 << 6
VIRTIO_BLK_F_FLUSH = 1 << 9
VIRTIO_BLK_F_TOPOLOGY = 1 << 10
VIRTIO_BLK_F_CONFIG_WCE = 1 << 11
VIRTIO_BLK_F_MQ = 1 << 12
VIRTIO_BLK_F_DISCARD = 1 << 13
VIRTIO_BLK_F_WRITE_ZEROES = 1 << 14

# Types of requests (5.2.6).
VIRTIO_BLK_T_IN = 0
VIRTIO_BLK_T_OUT = 1
VIRTIO_BLK_T_FLUSH = 4
VIRTIO_BLK_T_GET_ID = 8
VIRTIO_BLK_T_DISCARD = 11
VIRTIO_BLK_T_WRITE_ZEROES = 13

VIRTIO_BLK_S_OK = 0
VIRTIO_BLK_S_IOERR = 1
VIRTIO_BLK_S_UNSUPP = 2

VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP = 1

SECTOR_SIZE = 512

QUEUE_SIZE = 256

# The longest data segment, in bytes, and the most of them: a header and a status take the other two descriptors.
SIZE_MAX = 1 << 20
SEG_MAX = QUEUE_SIZE - 2

# In sectors, of one segment.  Zeroes may have to be written one by one, so they are fewer.
MAX_DISCARD_SECTORS = 1 << 22
MAX_WRITE_ZEROES_SECTORS = 1 << 16
MAX_RANGES = 16

_HEADER = struct.Struct("<I4xQ")  # type, sector
_RANGE = struct.Struct("<QII")  # sector, sectors, flags

# What changes the disk.
ALTERING = (VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES)


class Refused(Exception):
    """A request that fails; `status` is what its driver is told."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Request:
    """A request that came by queue number `queue`, and what has become of it.

    After `parse`: its `kind`, and for data `offset` and `length` in bytes on the disk and `parts` as (guest address,
    length), for a discard or zeroes `ranges` as (offset, length, flags).  While under way: `left` answers of the disk
    are to come, `error` is the first errno that was not 0, `flushing` says that the last step has begun.
    """

    __slots__ = ("chain", "error", "flushing", "kind", "left", "length", "offset", "parts", "queue", "ranges")

    def __init__(self, queue: int, chain: Chain) -> None:
        self.queue = queue
        self.chain = chain
        self.kind = -1
        self.offset = 0
        self.length = 0
        self.parts: list[tuple[int, int]] = []
        self.ranges: list[tuple[int, int, int]] = []
        self.left = 0
        self.error = 0
        self.flushing = False

    def parse(self, size: int, *, read_only: bool, features: int) -> None:
        """Reads the request as it is made to a disk of `size` bytes; `Refused` where it cannot be.

        `features` are those negotiated.  A driver may lay out header, data and status over buffers as it likes.
        """
        chain = self.chain
        header = chain.read(_HEADER.size)
        if len(header) < _HEADER.size:
            raise Refused(VIRTIO_BLK_S_IOERR)
        kind, sector = _HEADER.unpack(header)
        if kind in ALTERING and read_only:
            raise Refused(VIRTIO_BLK_S_IOERR)
        if kind == VIRTIO_BLK_T_IN:
            self.length = chain.writable_length - 1
            self.parts = parts_within(chain.writable, 0, self.length)
        elif kind == VIRTIO_BLK_T_OUT:
            self.length = chain.readable_length - _HEADER.size
            self.parts = parts_within(chain.readable, _HEADER.size, self.length)
        elif kind == VIRTIO_BLK_T_DISCARD and features & VIRTIO_BLK_F_DISCARD:
            self.ranges = self._ranges(size, MAX_DISCARD_SECTORS, 0)
        elif kind == VIRTIO_BLK_T_WRITE_ZEROES and features & VIRTIO_BLK_F_WRITE_ZEROES:
            self.ranges = self._ranges(size, MAX_WRITE_ZEROES_SECTORS, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP)
        elif kind not in (VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID):
            raise Refused(VIRTIO_BLK_S_UNSUPP)
        if kind in (VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT):
            self.offset = _locate(sector, self.length, size)
            _check_limits(self.parts, features)
        self.kind = kind

    def _ranges(self, size: int, most: int, known_flags: int) -> list[tuple[int, int, int]]:
        length = self.chain.readable_length - _HEADER.size
        if length % _RANGE.size or not 0 < length <= MAX_RANGES * _RANGE.size:
            raise Refused(VIRTIO_BLK_S_IOERR)
        ranges = []
        for sector, sectors, flags in _RANGE.iter_unpack(self.chain.read(length, _HEADER.size)):
            if flags & ~known_flags:
                raise Refused(VIRTIO_BLK_S_UNSUPP)
            if sectors > most:
                raise Refused(VIRTIO_BLK_S_IOERR)
            offset = _locate(sector, sectors * SECTOR_SIZE, size)
            if sectors:
                ranges.append((offset, sectors * SECTOR_SIZE, flags))
        return ranges


def status_of(error: int) -> int:
    """The status of a request that ended with this errno."""
    if not error:
        return VIRTIO_BLK_S_OK
    return VIRTIO_BLK_S_UNSUPP if error == errno.EOPNOTSUPP else VIRTIO_BLK_S_IOERR


def _locate(sector: int, length: int, size: int) -> int:
    """Where `length` bytes at `sector` begin, in bytes; refused where a disk of `size` bytes has not all of them."""
    offset = sector * SECTOR_SIZE
    if length % SECTOR_SIZE or offset + length > size:
        raise Refused(VIRTIO_BLK_S_IOERR)
    return offset


def _check_limits(parts: list[tuple[int, int]], features: int) -> None:
    """Refuses data beyond the limits that the driver has agreed to."""
    if features & VIRTIO_BLK_F_SEG_MAX and len(parts) > SEG_MAX:
        raise Refused(VIRTIO_BLK_S_IOERR)
    if features & VIRTIO_BLK_F_SIZE_MAX and any(length > SIZE_MAX for _, length in parts):
        raise Refused(VIRTIO_BLK_S_IOERR)
