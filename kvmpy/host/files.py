"""Calls on open files that Python lacks: locks of an open file, holes, and what O_DIRECT wants."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from kvmpy._kvm import ffi, lib

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10

_FLOCK = struct.Struct("hh4xqqi4x")  # struct flock: type, whence, start, length (0: to the end), pid
_BLKSSZGET = 0x1268


def lock(fd: int, *, exclusive: bool) -> bool:
    """Locks the whole file for as long as this open file lives, for us alone or together with other such readers.

    False when somebody else's lock is in the way; `OSError` where there are no locks.  It belongs to the open file
    (fcntl(2), F_OFD_SETLK) and not to the process, so two machines in one process keep apart too.
    """
    kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def fallocate(fd: int, mode: int, offset: int, length: int) -> int:
    """fallocate(2) with a `mode` of `FALLOC_FL_*`: 0, or -errno."""
    return lib.kvmpy_fallocate(fd, mode, offset, length)


def direct_alignment(fd: int) -> int | None:
    """What offsets, lengths and addresses have to be multiples of for O_DIRECT, in bytes; None where none tells."""
    alignment = lib.kvmpy_direct_alignment(fd)
    return alignment if alignment > 0 else None


def logical_block_size(fd: int) -> int:
    """The smallest piece, in bytes, that the block device at `fd` reads or writes; `OSError` for what is none."""
    return struct.unpack("i", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))[0]


def address_of(buffer: memoryview) -> int:
    """Where `buffer` lies in our own address space, for as long as somebody holds it."""
    return int(ffi.cast("uintptr_t", ffi.from_buffer(buffer)))
