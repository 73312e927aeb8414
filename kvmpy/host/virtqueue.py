"""The C core of a split virtqueue: a table of guest RAM, and a queue that takes chains and gives them back.

Policy and the names of the specification are `kvmpy.devices.virtio.queue`'s; this is the way to cdefs/virtqueue.c.
"""

from __future__ import annotations

import struct

from kvmpy._kvm import ffi, lib
from kvmpy.errors import KvmpyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterable, Sequence
    from typing import Any, Protocol

    class Region(Protocol):
        """A run of guest RAM, as `kvmpy.memory` has it."""

        start: int
        size: int
        buffer: mmap.mmap
        dirty: bytearray

    Part = tuple[int, int]
    RawChain = tuple[int, int, list[Part], list[Part], int, int]

# Address and length of a struct kvmpy_segment; all of a kvmpy_chain and a kvmpy_used.
_SEGMENT = struct.Struct("=QI12x")
_CHAIN = struct.Struct("=IIIIQQ")
_USED = struct.Struct("=III")

_BATCH = 256  # Chains that cross into Python, or back, in one call.
_SEGMENTS = 1024  # Room for the segments of such a batch, where a single chain may not have more.

_WRONG = {
    lib.KVMPY_VIRTQUEUE_SIZE: "a queue of {0} descriptors is not possible",
    lib.KVMPY_VIRTQUEUE_DESCRIPTORS_PLACE: "the descriptor table cannot be at {0:#x}",
    lib.KVMPY_VIRTQUEUE_DRIVER_PLACE: "the available ring cannot be at {0:#x}",
    lib.KVMPY_VIRTQUEUE_DEVICE_PLACE: "the used ring cannot be at {0:#x}",
    lib.KVMPY_VIRTQUEUE_AHEAD: "the available index {0} is further ahead than there are descriptors",
    lib.KVMPY_VIRTQUEUE_INDEX: "descriptor {0} is not in its table",
    lib.KVMPY_VIRTQUEUE_EMPTY_PART: "descriptor {0} has no length",
    lib.KVMPY_VIRTQUEUE_PART_PLACE: "a descriptor names {0:#x}, which is not RAM as far as it says",
    lib.KVMPY_VIRTQUEUE_INDIRECT: "descriptor {0} cannot be an indirect one",
    lib.KVMPY_VIRTQUEUE_ORDER: "descriptor {0} is to be read and follows one to be written",
    lib.KVMPY_VIRTQUEUE_PARTS: "a chain has {0} descriptors or more, or goes round in a circle",
    lib.KVMPY_VIRTQUEUE_LENGTH: "a chain of {0} bytes is longer than 4 GiB",
}


class QueueError(KvmpyError):
    """The driver broke the rules of a virtqueue; its device has to set DEVICE_NEEDS_RESET."""


class RegionTable:
    """Guest RAM as C sees it: `pointer` to an array of `count` struct kvmpy_region.  It holds the mappings."""

    __slots__ = ("_held", "count", "pointer")

    def __init__(self, regions: Sequence[Region]) -> None:
        self.count = len(regions)
        self.pointer = ffi.new("struct kvmpy_region[]", self.count)
        self._held = []
        for entry, region in zip(self.pointer, regions, strict=True):
            host = ffi.from_buffer("uint8_t[]", region.buffer, require_writable=True)
            dirty = ffi.from_buffer("uint8_t[]", region.dirty, require_writable=True)
            entry.start, entry.size, entry.host, entry.dirty = region.start, region.size, host, dirty
            self._held += [host, dirty]


class Virtqueue:
    """A queue of at most `max_size` descriptors, a power of two, over guest RAM.

    `pointer` is the struct kvmpy_virtqueue, for C that takes chains without Python.  One thread at a time may call.
    """

    __slots__ = (
        "_chains",
        "_chains_bytes",
        "_regions",
        "_segments",
        "_segments_bytes",
        "_table",
        "_used",
        "_used_bytes",
        "pointer",
    )

    def __init__(self, regions: Sequence[Region], max_size: int) -> None:
        self._regions = regions
        self._table: RegionTable | None = None
        self.pointer: Any = ffi.new("struct kvmpy_virtqueue *")
        self.pointer.chain_limit = max_size
        self._chains = ffi.new("struct kvmpy_chain[]", min(max_size, _BATCH))
        self._segments = ffi.new("struct kvmpy_segment[]", max(max_size, _SEGMENTS))
        self._used = ffi.new("struct kvmpy_used[]", _BATCH)
        self._chains_bytes = memoryview(ffi.buffer(self._chains))
        self._segments_bytes = memoryview(ffi.buffer(self._segments))
        self._used_bytes = memoryview(ffi.buffer(self._used))
        self.reset()

    def reset(self) -> None:
        """Back to the beginning: chains that were taken before are no longer this queue's, and guest RAM is let go."""
        lib.kvmpy_virtqueue_reset(self.pointer)
        self.pointer.regions, self.pointer.region_count = ffi.NULL, 0
        self._table = None

    def start(self, size: int, descriptors: int, driver: int, device: int, event_idx: bool, indirect: bool) -> None:
        """Takes what was negotiated and finds the rings at these guest addresses; holds guest RAM until `reset`."""
        queue = self.pointer
        self._table = RegionTable(self._regions)
        queue.regions, queue.region_count = self._table.pointer, self._table.count
        queue.size = size
        queue.descriptors, queue.driver, queue.device = descriptors, driver, device
        queue.event_idx, queue.indirect = event_idx, indirect
        self._check(lib.kvmpy_virtqueue_start(queue))

    def pop(self, limit: int) -> list[RawChain]:
        """The next chains, at most `limit`: index, generation, readable and writable parts, and both sums of bytes."""
        taken: list[RawChain] = []
        queue = self.pointer
        while len(taken) < limit:
            room = min(limit - len(taken), len(self._chains))
            count = lib.kvmpy_virtqueue_pop(queue, self._chains, room, self._segments, len(self._segments))
            if count <= 0:
                if count < 0 and not taken:
                    self._check(count)
                break
            at = 0
            for index, generation, readable, writable, read_length, write_length in _CHAIN.iter_unpack(
                self._chains_bytes[: _CHAIN.size * count]
            ):
                end = at + _SEGMENT.size * (readable + writable)
                parts: list[Part] = list(_SEGMENT.iter_unpack(self._segments_bytes[at:end]))
                taken.append((index, generation, parts[:readable], parts[readable:], read_length, write_length))
                at = end
            if queue.drained:
                break
        return taken

    def push(self, chains: Iterable[tuple[int, int, int]]) -> int:
        """Gives chains back: (index, generation, bytes written) of each; how many were still this queue's."""
        done = count = 0
        for chain in chains:
            if count == _BATCH:
                done += lib.kvmpy_virtqueue_push(self.pointer, self._used, count)
                count = 0
            _USED.pack_into(self._used_bytes, _USED.size * count, *chain)
            count += 1
        return done + int(lib.kvmpy_virtqueue_push(self.pointer, self._used, count))

    def wants_interrupt(self) -> bool:
        """Whether the driver wants an interrupt for what was pushed since this was last asked."""
        return lib.kvmpy_virtqueue_wants_interrupt(self.pointer) != 0

    def disable_notifications(self) -> None:
        """Asks the driver not to notify of new chains."""
        lib.kvmpy_virtqueue_disable_notifications(self.pointer)

    def enable_notifications(self) -> bool:
        """Asks the driver to notify of the next chain; whether one is there already."""
        return self._check(lib.kvmpy_virtqueue_enable_notifications(self.pointer)) > 0

    def _check(self, result: int) -> int:
        """`result`, or the `QueueError` that a negative one stands for."""
        if result < 0:
            raise QueueError(_WRONG[-result].format(self.pointer.wrong_at))
        return result
