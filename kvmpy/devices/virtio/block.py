"""Block device (virtio 1.2, 5.2): requests from queues to a disk of the host, and their status back.

A request is a header, data and one byte of status.  It is taken apart here, checked against the disk's size and the
features that were negotiated, and handed to the disk in batches; how the disk carries it out is no matter of ours.
"""

from __future__ import annotations

from kvmpy.devices.virtio.block_config import CONFIG_SIZE, WRITEBACK_OFFSET, config_space
from kvmpy.devices.virtio.block_request import (
    ALTERING,
    MAX_DISCARD_SECTORS,
    MAX_RANGES,
    MAX_WRITE_ZEROES_SECTORS,
    QUEUE_SIZE,
    SECTOR_SIZE,
    SEG_MAX,
    SIZE_MAX,
    VIRTIO_BLK_F_BLK_SIZE,
    VIRTIO_BLK_F_CONFIG_WCE,
    VIRTIO_BLK_F_DISCARD,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    Refused,
    Request,
    status_of,
)
from kvmpy.devices.virtio.device import VIRTIO_F_RING_RESET, VirtioDevice
from kvmpy.devices.virtio.queue import QueueError
from kvmpy.errors import GuestMemoryError, KvmpyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from kvmpy.devices.virtio.queue import Chain, Queue

    class Disk(Protocol):
        """The host's side: requests are queued, begun together by `submit`, and come back by `completed`.

        Sizes and offsets are in bytes.  A token comes back with 0 or an errno.  What a flush covers is on stable
        storage when it comes back.
        """

        size: int
        block_size: int
        read_only: bool

        def read(self, token: object, offset: int, buffers: Sequence[memoryview], length: int) -> None:
            """Queues a read into `buffers`, `length` bytes together."""

        def write(self, token: object, offset: int, buffers: Sequence[memoryview], length: int) -> None:
            """Queues a write of `buffers`, `length` bytes together."""

        def flush(self, token: object) -> None:
            """Queues a flush of every write that was back before."""

        def discard(self, token: object, offset: int, length: int) -> None:
            """Queues the loss of what is there."""

        def write_zeroes(self, token: object, offset: int, length: int, *, unmap: bool) -> None:
            """Queues zeroes, whose space may be given back with `unmap`."""

        def submit(self) -> None:
            """Begins all that was queued."""

        def completed(self) -> list[tuple[object, int]]:
            """What was completed since the last call; never waits."""

        def wait(self) -> None:
            """Waits until all that was begun is complete."""

        def resize(self, size: int | None = None) -> int:
            """Grows to `size`, or looks how large it became; the new size."""


ID_SIZE = 20

MAX_QUEUES = 16


class Block(VirtioDevice):
    """A disk of the guest's on `disk`, with `queues` queues; `identity` is what the guest reads as its serial number.

    Whoever makes it calls `complete` when the disk has completed something.
    """

    DEVICE_ID = 2
    NAME = "block"

    def __init__(self, disk: Disk, *, queues: int = 1, identity: bytes = b"") -> None:
        super().__init__()
        if not 0 < queues <= MAX_QUEUES:
            raise ValueError(f"{queues} queues are not 1 to {MAX_QUEUES}")
        self.QUEUE_SIZES = (QUEUE_SIZE,) * queues
        self.features = (
            VIRTIO_F_RING_RESET
            | VIRTIO_BLK_F_SIZE_MAX
            | VIRTIO_BLK_F_SEG_MAX
            | VIRTIO_BLK_F_BLK_SIZE
            | VIRTIO_BLK_F_FLUSH
            | VIRTIO_BLK_F_TOPOLOGY
            | VIRTIO_BLK_F_CONFIG_WCE
        )
        if queues > 1:
            self.features |= VIRTIO_BLK_F_MQ
        if disk.read_only:
            self.features |= VIRTIO_BLK_F_RO
        else:
            self.features |= VIRTIO_BLK_F_DISCARD | VIRTIO_BLK_F_WRITE_ZEROES
        self._disk = disk
        self._identity = identity[:ID_SIZE].ljust(ID_SIZE, b"\0")
        self._queues: Sequence[Queue] = ()
        self._negotiated = 0
        self._write_back = True
        self._finished: dict[int, list[tuple[Chain, int]]] = {}

    # --- what the transport calls

    def read_config(self, offset: int, data: memoryview) -> None:
        """See `VirtioDevice`."""
        config = config_space(
            capacity=self._disk.size // SECTOR_SIZE,
            size_max=SIZE_MAX,
            seg_max=SEG_MAX,
            block_size=self._disk.block_size,
            write_back=self._is_write_back,
            queues=len(self.QUEUE_SIZES),
            max_discard_sectors=MAX_DISCARD_SECTORS,
            max_write_zeroes_sectors=MAX_WRITE_ZEROES_SECTORS,
            max_ranges=MAX_RANGES,
        )
        part = config[offset : offset + len(data)] if 0 <= offset < CONFIG_SIZE else b""
        data[:] = part.ljust(len(data), b"\0")

    def write_config(self, offset: int, data: memoryview) -> None:
        """See `VirtioDevice`; the driver may choose between write-back and write-through, and nothing else."""
        if offset == WRITEBACK_OFFSET and len(data) == 1 and self._negotiated & VIRTIO_BLK_F_CONFIG_WCE:
            self._write_back = bool(data[0] & 1)

    def activate(self, queues: Sequence[Queue], features: int) -> None:
        """See `VirtioDevice`."""
        self._queues = queues
        self._negotiated = features

    def reset(self) -> None:
        """See `VirtioDevice`; waits for what the disk has begun."""
        self._disk.wait()
        self._disk.completed()
        self._finished.clear()
        self._queues = ()
        self._negotiated = 0
        self._write_back = True

    def reset_queue(self, index: int) -> None:
        """See `VirtioDevice`; what is under way is finished first."""
        self.drain()

    def kick(self, index: int) -> None:
        """Begins what waits in queue `index`."""
        if index >= len(self._queues):
            return
        try:
            # One more than there can be: a batch that is not full leaves the guest's notifications on.
            for chain in self._queues[index].pop_batch(QUEUE_SIZE + 1):
                self._begin(Request(index, chain))
        finally:
            # What came before a broken chain is as good as ever.
            self._disk.submit()
            self._give_back()

    # --- what the host calls

    def complete(self) -> None:
        """Gives the guest what the disk has completed; the disk's event calls it, in the reactor's thread."""
        with self.lock:
            try:
                self._complete()
            except KvmpyError as error:
                self.broken(str(error))

    def drain(self) -> None:
        """Waits until nothing is under way, and has given it all back to the guest."""
        with self.lock:
            self._disk.wait()
            while self._complete():
                self._disk.wait()

    def resize(self, size: int | None = None) -> int:
        """Has the disk grow to `size` bytes, or looks how large it became, and tells the guest; the new size.

        Raises what the disk raises.
        """
        with self.lock:
            size = self._disk.resize(size)
        self.config_changed()
        return size

    # --- requests

    @property
    def _is_write_back(self) -> bool:
        """Whether a write may be answered before it is on stable storage (5.2.5, 5.2.6.2)."""
        if self._negotiated & VIRTIO_BLK_F_CONFIG_WCE or not self._negotiated:
            return self._write_back
        return bool(self._negotiated & VIRTIO_BLK_F_FLUSH)

    def _begin(self, request: Request) -> None:
        """Hands `request` to the disk, or finishes it at once."""
        chain = request.chain
        if not chain.writable_length:
            raise QueueError(f"the block request at descriptor {chain.index} has no room for a status")
        self.stats.requests += 1
        try:
            request.parse(self._disk.size, read_only=self._disk.read_only, features=self._negotiated)
            self._dispatch(request)
        except Refused as refusal:
            self._finish(request, refusal.status)
        except GuestMemoryError:
            self._finish(request, VIRTIO_BLK_S_IOERR)
        else:
            if not request.left:
                self._finish(request, VIRTIO_BLK_S_OK)

    def _dispatch(self, request: Request) -> None:
        disk, kind = self._disk, request.kind
        memory = self._queues[request.queue].memory
        if kind == VIRTIO_BLK_T_IN:
            if request.length:
                buffers = [memory.writable(*part) for part in request.parts]
                request.left = 1
                disk.read(request, request.offset, buffers, request.length)
        elif kind == VIRTIO_BLK_T_OUT:
            if request.length:
                buffers = [memory.view(*part) for part in request.parts]
                request.left = 1
                disk.write(request, request.offset, buffers, request.length)
        elif kind == VIRTIO_BLK_T_FLUSH:
            request.left = 1
            disk.flush(request)
        elif kind == VIRTIO_BLK_T_GET_ID:
            request.length = request.chain.write(self._identity[: request.chain.writable_length - 1])
        else:
            request.left = len(request.ranges)
            for offset, length, flags in request.ranges:
                if kind == VIRTIO_BLK_T_DISCARD:
                    disk.discard(request, offset, length)
                else:
                    disk.write_zeroes(request, offset, length, unmap=bool(flags))

    def _complete(self) -> bool:
        """Takes what the disk has completed; whether something new was begun for that."""
        more = False
        for token, error in self._disk.completed():
            request: Request = token  # type: ignore[assignment]
            request.left -= 1
            request.error = request.error or error
            if request.left:
                continue
            if not (request.error or request.flushing or self._is_write_back) and request.kind in ALTERING:
                request.flushing = more = True
                request.left = 1
                self._disk.flush(request)
                continue
            self._finish(request, status_of(request.error))
        if more:
            self._disk.submit()
        self._give_back()
        return more

    def _finish(self, request: Request, status: int) -> None:
        chain = request.chain
        room = chain.writable_length - 1
        chain.write(bytes((status,)), room)
        filled = 0
        if status != VIRTIO_BLK_S_OK:
            self.stats.errors += 1
        else:
            if request.kind in (VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT):
                self.stats.bytes += request.length
            if request.kind in (VIRTIO_BLK_T_IN, VIRTIO_BLK_T_GET_ID):
                filled = request.length
        # The driver may rely on so many bytes from the first on (2.7.8.2), and the status is the last.
        written = filled + 1 if filled == room else filled
        self._finished.setdefault(request.queue, []).append((chain, written))

    def _give_back(self) -> None:
        """Pushes what is finished, and interrupts once a queue."""
        finished, self._finished = self._finished, {}
        for index, chains in finished.items():
            queue = self._queues[index]
            queue.push_batch(chains)
            if queue.should_notify():
                self.notify(index)
