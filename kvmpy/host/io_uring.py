"""io_uring: reads, writes, flushes and holes, handed to the kernel by batches and done while we go on."""

from __future__ import annotations

from kvmpy._kvm import ffi, lib
from kvmpy.errors import HostError
from kvmpy.host.files import address_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

IORING_OP_READV = 1
IORING_OP_WRITEV = 2
IORING_OP_FSYNC = 3
IORING_OP_FALLOCATE = 17

IORING_FSYNC_DATASYNC = 1

MAX_ENTRIES = 4096
IOV_MAX = 1024


class Ring:
    """A ring that holds up to `entries` (a power of two, at most 4096) requests at once.

    A request has an `id` of up to 64 bits, which comes back with its result.  `event_fd` counts up with completions.
    Nobody may have more than `entries` requests under way, and all of them are reaped before `close`.  One thread at
    a time uses a ring.  Raises `HostError` where the kernel has no io_uring, lacks something that is used here, or
    forbids it (sysctl kernel.io_uring_disabled, seccomp).
    """

    __slots__ = ("_completions", "_iovecs", "_ring", "entries")

    def __init__(self, entries: int, event_fd: int) -> None:
        if not 0 < entries <= MAX_ENTRIES or entries & (entries - 1):
            raise ValueError(f"{entries} is no power of two up to {MAX_ENTRIES}")
        error = ffi.new("int *")
        ring = lib.kvmpy_ring_open(entries, event_fd, error)
        if not ring:
            raise HostError("io_uring_setup", -error[0])
        self._ring = ring
        self._completions = ffi.new("struct kvmpy_completion[]", entries)
        self._iovecs: list[object] = []
        self.entries = entries

    def read(self, request: int, fd: int, buffers: Sequence[memoryview], offset: int) -> None:
        """Prepares a read into `buffers`, 1 to `IOV_MAX` of them, which stay until the request is reaped."""
        self._vector(IORING_OP_READV, request, fd, buffers, offset)

    def write(self, request: int, fd: int, buffers: Sequence[memoryview], offset: int) -> None:
        """Prepares a write of `buffers`, 1 to `IOV_MAX` of them, which stay until the request is reaped."""
        self._vector(IORING_OP_WRITEV, request, fd, buffers, offset)

    def sync(self, request: int, fd: int) -> None:
        """Prepares an fdatasync."""
        self._prepare(IORING_OP_FSYNC, fd, 0, 0, 0, IORING_FSYNC_DATASYNC, request)

    def fallocate(self, request: int, fd: int, mode: int, offset: int, length: int) -> None:
        """Prepares a fallocate with a `mode` of `kvmpy.host.files.FALLOC_FL_*`."""
        self._prepare(IORING_OP_FALLOCATE, fd, length, mode, offset, 0, request)

    def submit(self, wait_for: int = 0) -> None:
        """Hands all that is prepared to the kernel, and waits until `wait_for` completions are there.

        Raises `HostError` where the kernel took only a part; the rest goes with the next call.
        """
        result = lib.kvmpy_ring_submit(self._ring, wait_for)
        if result < 0:
            raise HostError("io_uring_enter", -result)
        self._iovecs.clear()  # The kernel has its own copy of them now.

    def reap(self) -> list[tuple[int, int]]:
        """The id and the result (bytes, 0, or -errno) of each request that was completed since the last call."""
        count = lib.kvmpy_ring_reap(self._ring, self._completions, self.entries)
        return [(self._completions[index].id, self._completions[index].result) for index in range(count)]

    def close(self) -> None:
        """Gives the ring back; twice is fine."""
        ring, self._ring = self._ring, None
        if ring is not None:
            lib.kvmpy_ring_close(ring)

    def _vector(self, opcode: int, request: int, fd: int, buffers: Sequence[memoryview], offset: int) -> None:
        if not 0 < len(buffers) <= IOV_MAX:
            raise ValueError(f"{len(buffers)} buffers are not 1 to {IOV_MAX}")
        # struct iovec: an address and a length, each as wide as a pointer.
        iovecs = ffi.new("uint64_t[]", [word for buffer in buffers for word in (address_of(buffer), len(buffer))])
        self._iovecs.append(iovecs)
        self._prepare(opcode, fd, int(ffi.cast("uintptr_t", iovecs)), len(buffers), offset, 0, request)

    def _prepare(self, opcode: int, fd: int, address: int, length: int, offset: int, flags: int, request: int) -> None:
        result = lib.kvmpy_ring_prepare(self._ring, opcode, fd, address, length, offset, flags, request)
        if result < 0:
            raise HostError("io_uring_enter", -result)
