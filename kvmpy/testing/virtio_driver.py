"""The guest's side of a split virtqueue (virtio 1.2, 2.7): a driver over `GuestMemory`, for tests and measurements.

It keeps the rules unless it is told not to: `set_descriptor`, `set_available` and `set_available_index` write what
they are given into the rings.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from kvmpy.memory import GuestMemory

VIRTQ_DESC_F_NEXT = 1
VIRTQ_DESC_F_WRITE = 2
VIRTQ_DESC_F_INDIRECT = 4
VIRTQ_AVAIL_F_NO_INTERRUPT = 1
VIRTQ_USED_F_NO_NOTIFY = 1

_DESCRIPTOR = struct.Struct("<QIHH")
_USED_ELEMENT = struct.Struct("<II")

Part = tuple[int, int]  # Guest address and length in bytes.


class QueueDriver:
    """A driver's queue of `size` descriptors whose rings begin at guest address `base` and end at `end`.

    With `event_idx` both sides say how far they have got instead of setting flags.  Each descriptor has a table of
    `table_entries` for indirect chains.  Both rings' indices begin at `first`, for a queue that has been in use.  What
    the driver writes is a guest's write: it leaves the dirty map alone.
    """

    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        base: int,
        *,
        event_idx: bool = False,
        table_entries: int = 16,
        first: int = 0,
    ) -> None:
        self.memory = memory
        self.size = size
        self.event_idx = event_idx
        self.table_entries = table_entries
        self.descriptors = base + 15 & ~15
        self.driver = self.descriptors + 16 * size
        self.device = self.driver + 6 + 2 * size + 3 & ~3
        self._tables = self.device + 6 + 8 * size + 15 & ~15
        self.end = self._tables + 16 * table_entries * size
        self._poke(self.descriptors, bytes(self.end - self.descriptors))
        self._free = list(range(size - 1, -1, -1))
        self._chains: dict[int, list[int]] = {}
        self._added = self._published = self._reaped = first
        self.set_available_index(first)
        self._poke16(self.device + 2, first)
        self._poke16(self.driver + 4 + 2 * size, first)

    # --- what a driver does

    def add(self, readable: Sequence[Part], writable: Sequence[Part] = (), *, indirect: bool = False) -> int:
        """Puts a chain of these parts into the available ring, unpublished until `kick`; the index of its head.

        `IndexError` when there are too few free descriptors or table entries.
        """
        parts = [(*part, 0) for part in readable] + [(*part, VIRTQ_DESC_F_WRITE) for part in writable]
        if indirect:
            if len(parts) > self.table_entries:
                raise IndexError(f"a table has {self.table_entries} entries, and the chain {len(parts)} parts")
            head = self._free.pop()
            table = self._tables + 16 * self.table_entries * head
            self._link(table, list(range(len(parts))), parts)
            self.set_descriptor(head, table, 16 * len(parts), VIRTQ_DESC_F_INDIRECT)
            self._chains[head] = [head]
        else:
            if len(parts) > len(self._free):
                raise IndexError(f"{len(self._free)} descriptors are free, and the chain has {len(parts)} parts")
            indices = [self._free.pop() for _ in parts]
            head = indices[0]
            self._link(self.descriptors, indices, parts)
            self._chains[head] = indices
        self.set_available(self._added, head)
        self._added += 1
        return head

    def kick(self) -> bool:
        """Publishes what was added; whether the device wants to be notified of it (2.7.13.4)."""
        old, self._published = self._published, self._added
        self.set_available_index(self._added)
        if self.event_idx:
            event = self.device_event
            return (self._added - event - 1) & 0xFFFF < self._added - old
        return not self._peek16(self.device) & VIRTQ_USED_F_NO_NOTIFY

    def reap(self) -> list[tuple[int, int]]:
        """Takes all used chains: (head, bytes written) of each, in the order of the used ring."""
        done = []
        while self._reaped & 0xFFFF != self.used_index:
            slot = self.device + 4 + 8 * (self._reaped % self.size)
            head, written = _USED_ELEMENT.unpack(self.memory.read(slot, 8))
            self._free.extend(reversed(self._chains.pop(head)))
            self._reaped += 1
            done.append((head, written))
        return done

    def want_interrupts(self, wanted: bool = True, *, after: int = 0) -> None:
        """Asks for an interrupt, or for none; with `event_idx`, after `after` more chains than the next (2.7.7)."""
        if self.event_idx:
            self._poke16(self.driver + 4 + 2 * self.size, self._reaped + (after if wanted else -1))
        else:
            self._poke16(self.driver, 0 if wanted else VIRTQ_AVAIL_F_NO_INTERRUPT)

    @property
    def free(self) -> int:
        """How many descriptors are free."""
        return len(self._free)

    @property
    def in_flight(self) -> int:
        """How many chains were added and not reaped."""
        return len(self._chains)

    @property
    def used_index(self) -> int:
        """The used ring's index: how many chains the device has used, to 16 bits."""
        return self._peek16(self.device + 2)

    @property
    def device_event(self) -> int:
        """The available index up to which the device wants no notification; only with `event_idx`."""
        return self._peek16(self.device + 4 + 8 * self.size)

    # --- what only a broken one does

    def set_descriptor(self, index: int, address: int, length: int, flags: int = 0, following: int = 0) -> None:
        """Writes descriptor `index` as given."""
        self._poke(self.descriptors + 16 * index, _DESCRIPTOR.pack(address, length, flags, following))

    def set_available(self, slot: int, head: int) -> None:
        """Writes slot `slot` (modulo the size) of the available ring as given."""
        self._poke16(self.driver + 4 + 2 * (slot % self.size), head)

    def set_available_index(self, index: int) -> None:
        """Writes the available ring's index as given."""
        self._poke16(self.driver + 2, index)

    # --- memory

    def _link(self, table: int, indices: list[int], parts: list[tuple[int, int, int]]) -> None:
        for place, (index, (address, length, flags)) in enumerate(zip(indices, parts, strict=True)):
            last = place == len(parts) - 1
            following = 0 if last else indices[place + 1]
            entry = _DESCRIPTOR.pack(address, length, flags | (0 if last else VIRTQ_DESC_F_NEXT), following)
            self._poke(table + 16 * index, entry)

    def _poke(self, address: int, data: bytes) -> None:
        region = self.memory.region_of(address, len(data))
        region.view[address - region.start : address - region.start + len(data)] = data

    def _poke16(self, address: int, value: int) -> None:
        self._poke(address, (value & 0xFFFF).to_bytes(2, "little"))

    def _peek16(self, address: int) -> int:
        return int.from_bytes(self.memory.read(address, 2), "little")
