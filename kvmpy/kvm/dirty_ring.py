"""The ring in which KVM tells the pages that one vCPU wrote, as it writes them (api.rst 8.29)."""

from __future__ import annotations

import mmap
import struct

from kvmpy.kvm._ffi import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

# struct kvm_dirty_gfn: flags, slot (its upper half is the address space), page within the slot.
_ENTRY = struct.Struct("<IIQ")


class DirtyRing:
    """One vCPU's ring; `Vcpu.dirty_ring` makes it.  A context manager.

    What is taken is write-protected again by `Vm.reset_dirty_rings`; a ring that runs full ends the vCPU's run with
    `KVM_EXIT_DIRTY_RING_FULL`.
    """

    def __init__(self, fd: int, entries: int) -> None:
        self.entries = entries
        self._next = 0
        offset = lib.KVM_DIRTY_LOG_PAGE_OFFSET * mmap.PAGESIZE
        self._map = mmap.mmap(fd, entries * _ENTRY.size, flags=mmap.MAP_SHARED, offset=offset)
        self._mapping = ffi.from_buffer(self._map)
        self._ring = ffi.cast("struct kvm_dirty_gfn *", self._mapping)
        self._taken = ffi.new("struct kvm_dirty_gfn[]", entries)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Takes the mapping away; twice is fine."""
        if self._map.closed:
            return
        ffi.release(self._mapping)
        self._map.close()

    def take(self) -> list[tuple[int, int]]:
        """The pages written since the last call: (slot, page within the slot), oldest first."""
        if self._map.closed:
            return []
        count = lib.kvmpy_dirty_ring_take(self._ring, self.entries, self._next, self._taken, self.entries)
        self._next = (self._next + count) % self.entries
        rows = _ENTRY.iter_unpack(ffi.buffer(self._taken, count * _ENTRY.size))
        return [(slot, page) for _, slot, page in rows]
