"""One request to a disk, and how far it has come: engines do attempts, and a request goes on where one ended."""

from __future__ import annotations

import errno
import mmap

from kvmpy.host.files import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE, address_of
from kvmpy.host.io_uring import IOV_MAX
from kvmpy.units import MIB

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

READ = 0
WRITE = 1
SYNC = 2
DISCARD = 3
ZERO = 4

PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
ZERO_RANGE = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE

BOUNCE_SIZE = MIB

# Page-aligned, so that it goes through O_DIRECT.
_ZEROES = memoryview(mmap.mmap(-1, MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)).toreadonly()


class Request:
    """`operation` on the `length` bytes at `offset` of a disk, from or into `buffers`, which are as long together.

    `mode` is fallocate's, for `DISCARD` and `ZERO`.  `token` is the asker's own.  `error` is an errno, or 0 while all
    is well.  An attempt transfers a part or all of it: `attempt` gives the buffers of the next one, and `settle`
    takes what became of it.
    """

    __slots__ = ("_bounce", "buffers", "error", "length", "mode", "offset", "operation", "token")

    def __init__(
        self,
        token: object,
        operation: int,
        offset: int = 0,
        length: int = 0,
        buffers: Sequence[memoryview] = (),
        mode: int = 0,
    ) -> None:
        self.token = token
        self.operation = operation
        self.offset = offset
        self.length = length
        self.buffers = list(buffers)
        self.mode = mode
        self.error = 0
        self._bounce: memoryview | None = None

    def attempt(self, alignment: int) -> list[memoryview]:
        """The buffers of the next attempt; what O_DIRECT would refuse goes by way of one aligned to `alignment`."""
        buffers = self.buffers[:IOV_MAX] if len(self.buffers) > IOV_MAX else self.buffers
        if alignment == 1 or all(not (address_of(part) | len(part)) % alignment for part in buffers):
            return buffers
        size = min(self.length, BOUNCE_SIZE)
        self._bounce = bounce = memoryview(mmap.mmap(-1, BOUNCE_SIZE))[:size]
        if self.operation == WRITE:
            start = 0
            for part in self.buffers:
                piece = part[: size - start]
                bounce[start : start + len(piece)] = piece
                start += len(piece)
                if start == size:
                    break
        return [bounce]

    def settle(self, result: int) -> bool:
        """Takes the result of an attempt, bytes, 0 or -errno; whether the request is done, well or not."""
        bounce, self._bounce = self._bounce, None
        if result == -errno.EINTR:
            return False
        if self.operation == ZERO and result in (-errno.EOPNOTSUPP, -errno.EINVAL):
            self._write_zeroes()  # Not every file system does it, and a block device only for whole blocks.
            return False
        if result < 0:
            self.error = -result
        elif self.operation in (READ, WRITE) and self.length:
            if result == 0:
                self.error = errno.EIO  # The file is shorter than it was.
            else:
                self._advance(result, bounce)
                return self.length == 0
        return True

    def _write_zeroes(self) -> None:
        self.operation = WRITE
        whole, rest = divmod(self.length, len(_ZEROES))
        self.buffers = [_ZEROES] * whole + ([_ZEROES[:rest]] if rest else [])

    def _advance(self, count: int, bounce: memoryview | None) -> None:
        self.offset += count
        self.length -= count
        copied = done = 0
        for part in self.buffers:
            piece = part[: count - copied]
            if bounce is not None and self.operation == READ:
                piece[:] = bounce[copied : copied + len(piece)]
            copied += len(piece)
            if len(piece) < len(part):
                break
            done += 1
        rest = self.buffers[done:]
        if rest:
            rest[0] = part[len(piece) :]
        self.buffers = rest
