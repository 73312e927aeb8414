"""The device's side of a split virtqueue (virtio 1.2, 2.7).

The driver owns the three rings and everything in them is untrusted: each address is checked to be RAM, each index to
be in its ring, each chain to end.  What no driver may do raises `QueueError`, and goes on doing so until `reset`.
"""

from __future__ import annotations

import struct

from kvmpy.devices.state import FLAG, State, integer
from kvmpy.errors import GuestMemoryError, ImageError, KvmpyError, StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from kvmpy.devices.state import Fields
    from kvmpy.memory import GuestMemory

VIRTQ_DESC_F_NEXT = 1
VIRTQ_DESC_F_WRITE = 2
VIRTQ_DESC_F_INDIRECT = 4
VIRTQ_AVAIL_F_NO_INTERRUPT = 1
VIRTQ_USED_F_NO_NOTIFY = 1

QUEUE_SIZE_MAX = 32768  # 2.7: the most descriptors that a split virtqueue may have.
CHAIN_LENGTH_MAX = 1 << 32  # 2.7.4.2: the most bytes in one chain.
READ_LIMIT = 16 << 20  # The most bytes that one `Chain.read` copies: a guest may name the same RAM many times.

_DESCRIPTOR = struct.Struct("<QIHH")
_USED_ELEMENT = struct.Struct("<II")
_U16 = struct.Struct("<H")


class QueueError(KvmpyError):
    """The driver broke the rules of the ring; the device has to set DEVICE_NEEDS_RESET."""


class Chain:
    """One buffer of the driver's: `readable` and `writable` parts as (guest address, length), all of them RAM.

    `index` names it in the used ring; `readable_length` and `writable_length` are sums in bytes.
    """

    __slots__ = ("_memory", "generation", "index", "readable", "readable_length", "writable", "writable_length")

    def __init__(
        self,
        memory: GuestMemory,
        index: int,
        generation: int,
        readable: list[tuple[int, int]],
        writable: list[tuple[int, int]],
    ) -> None:
        self._memory = memory
        self.index = index
        self.generation = generation
        self.readable = readable
        self.writable = writable
        self.readable_length = sum(length for _, length in readable)
        self.writable_length = sum(length for _, length in writable)

    def read(self, n: int | None = None, offset: int = 0) -> bytes:
        """A copy of `n` readable bytes from `offset` on, of all that follow by default; fewer where the chain ends.

        More than `READ_LIMIT` at once is a `QueueError`.
        """
        left = self.readable_length - offset if n is None else min(n, self.readable_length - offset)
        if left > READ_LIMIT:
            raise QueueError(f"the chain has {left} readable bytes, and no request is that long")
        return b"".join([self._memory.read(address, length) for address, length in _parts(self.readable, offset, left)])

    def write(self, data: bytes | bytearray | memoryview, offset: int = 0) -> int:
        """Copies `data` into the writable bytes from `offset` on; how many of its bytes had room."""
        source = memoryview(data).cast("B")
        done = 0
        for address, length in _parts(self.writable, offset, len(source)):
            self._memory.write(address, source[done : done + length])
            done += length
        return done


def _parts(parts: list[tuple[int, int]], offset: int, count: int) -> list[tuple[int, int]]:
    """What of `parts` the `count` bytes from `offset` on are."""
    found = []
    for address, length in parts:
        if count <= 0:
            break
        if offset >= length:
            offset -= length
            continue
        taken = min(length - offset, count)
        found.append((address + offset, taken))
        count -= taken
        offset = 0
    return found


class QueueStats:
    """What a queue did since it was made: chains popped and pushed, and the driver's interrupts sent and saved."""

    __slots__ = ("errors", "interrupts", "interrupts_saved", "popped", "pushed")

    def __init__(self) -> None:
        self.popped = 0
        self.pushed = 0
        self.interrupts = 0
        self.interrupts_saved = 0
        self.errors = 0


class QueueState(State):
    """What a queue has to remember in a snapshot."""

    FIELDS: ClassVar[Fields] = {
        "size": integer(0, QUEUE_SIZE_MAX),
        "ready": FLAG,
        "descriptors": integer(0, 2**64 - 1),
        "driver": integer(0, 2**64 - 1),
        "device": integer(0, 2**64 - 1),
        "event_idx": FLAG,
        "indirect": FLAG,
        "notifications": FLAG,
        "next_available": integer(0, 0xFFFF),
        "next_used": integer(0, 0xFFFF),
        "unsignalled": integer(0, 2**32 - 1),
    }
    __slots__ = tuple(FIELDS)

    def __init__(
        self,
        size: int = 0,
        ready: int = 0,
        descriptors: int = 0,
        driver: int = 0,
        device: int = 0,
        event_idx: int = 0,
        indirect: int = 0,
        notifications: int = 1,
        next_available: int = 0,
        next_used: int = 0,
        unsignalled: int = 0,
    ) -> None:
        self.size = size
        self.ready = ready
        self.descriptors = descriptors
        self.driver = driver
        self.device = device
        self.event_idx = event_idx
        self.indirect = indirect
        self.notifications = notifications
        self.next_available = next_available
        self.next_used = next_used
        self.unsignalled = unsignalled


class Queue:
    """A split virtqueue in `memory` of at most `max_size` descriptors, a power of two.

    The transport sets `size`, the guest addresses `descriptors`, `driver` (available ring) and `device` (used ring),
    `event_idx` and `indirect` (as negotiated), and `ready` last.  The rings are checked when they are first used.
    One thread at a time may call it.
    """

    def __init__(self, memory: GuestMemory, max_size: int) -> None:
        if not 0 < max_size <= QUEUE_SIZE_MAX or max_size & (max_size - 1):
            raise ValueError(f"a queue of {max_size} descriptors: not a power of two up to {QUEUE_SIZE_MAX}")
        self.memory = memory
        self.max_size = max_size
        self.stats = QueueStats()
        self._generation = 0
        self.reset()

    def reset(self) -> None:
        """Back to how a device begins (2.6.1): not ready, and what is still in flight is dropped when it is pushed."""
        self.size = self.max_size
        self.ready = False
        self.descriptors = 0
        self.driver = 0
        self.device = 0
        self.event_idx = False
        self.indirect = False
        self._notifications = True
        self._next_available = 0
        self._next_used = 0
        self._unsignalled = 0
        self._in_flight = 0
        self._broken: str | None = None
        self._generation += 1

    # --- chains

    def pop(self) -> Chain | None:
        """The next chain that the driver made available, or None."""
        chains = self.pop_batch(1)
        return chains[0] if chains else None

    def pop_batch(self, limit: int) -> list[Chain]:
        """The next chains that the driver made available, at most `limit`.

        A batch that is shorter means that the queue is empty, and that the driver will notify of what comes next
        unless notifications are disabled.
        """
        chains: list[Chain] = []
        if not self.ready:
            return chains
        self._check_rings()
        while len(chains) < limit:
            if not self._available():
                self._arm()
                if not self._available():
                    break
            try:
                chains.append(self._take())
            except QueueError:
                if chains:
                    self._broken = None  # These are well; the next call finds it again.
                    self.stats.errors -= 1
                    break
                raise
        return chains

    def push(self, chain: Chain, written: int) -> None:
        """Gives `chain` back to the driver with `written` bytes in its writable parts."""
        if not 0 <= written <= chain.writable_length:
            raise ValueError(f"{written} bytes written into a chain with room for {chain.writable_length}")
        if chain.generation != self._generation or not self.ready:
            return
        slot = self.device + 4 + 8 * (self._next_used & (self.size - 1))
        self.memory.write(slot, _USED_ELEMENT.pack(chain.index, written))
        self._next_used = self._next_used + 1 & 0xFFFF
        self.memory.write(self.device + 2, _U16.pack(self._next_used))
        self._unsignalled += 1
        self._in_flight -= 1
        self.stats.pushed += 1

    # --- notifications

    def should_notify(self) -> bool:
        """Whether the driver wants an interrupt for what was pushed since this was last asked (2.7.7, 2.7.8)."""
        count = self._unsignalled
        if not count or not self.ready:
            return False
        self._unsignalled = 0
        if self.event_idx:
            event = self._read16(self.driver + 4 + 2 * self.size)
            wanted = count > 0xFFFF or (self._next_used - event - 1) & 0xFFFF < count
        else:
            wanted = not self._read16(self.driver) & VIRTQ_AVAIL_F_NO_INTERRUPT
        if wanted:
            self.stats.interrupts += 1
        else:
            self.stats.interrupts_saved += 1
        return wanted

    def disable_notifications(self) -> None:
        """Asks the driver not to notify of new chains (2.7.10): we are going to look by ourselves."""
        self._notifications = False
        if self.ready:
            self._check_rings()
            if not self.event_idx:
                self.memory.write(self.device, _U16.pack(VIRTQ_USED_F_NO_NOTIFY))

    def enable_notifications(self) -> bool:
        """Asks the driver to notify of the next chain; True means that one came meanwhile and nobody will tell."""
        self._notifications = True
        if not self.ready:
            return False
        self._check_rings()
        if not self.event_idx:
            self.memory.write(self.device, bytes(2))
        self._arm()
        return self._available() > 0

    # --- snapshots

    def save(self) -> QueueState:
        """The state, when no chain is in flight; `StateError` while one is."""
        if self._in_flight:
            raise StateError(f"{self._in_flight} requests of a virtqueue are in flight; wait for them before saving")
        return QueueState(
            self.size,
            int(self.ready),
            self.descriptors,
            self.driver,
            self.device,
            int(self.event_idx),
            int(self.indirect),
            int(self._notifications),
            self._next_available,
            self._next_used,
            self._unsignalled,
        )

    def restore(self, state: QueueState) -> None:
        """Goes on from `state`; `ImageError` for a queue larger than this one can be."""
        if state.size > self.max_size:
            raise ImageError(f"a saved virtqueue has {state.size} descriptors where {self.max_size} are possible")
        self.reset()
        self.size = state.size
        self.ready = bool(state.ready)
        self.descriptors = state.descriptors
        self.driver = state.driver
        self.device = state.device
        self.event_idx = bool(state.event_idx)
        self.indirect = bool(state.indirect)
        self._notifications = bool(state.notifications)
        self._next_available = state.next_available
        self._next_used = state.next_used
        self._unsignalled = state.unsignalled

    # --- the rings

    def _fail(self, message: str) -> QueueError:
        self._broken = message
        self.stats.errors += 1
        return QueueError(message)

    def _check_rings(self) -> None:
        if self._broken is not None:
            raise QueueError(self._broken)
        size = self.size
        if not 0 < size <= self.max_size or size & (size - 1):
            raise self._fail(f"a queue size of {size} is not a power of two up to {self.max_size}")
        for name, address, alignment, length in (
            ("descriptor table", self.descriptors, 16, 16 * size),
            ("available ring", self.driver, 2, 6 + 2 * size),
            ("used ring", self.device, 4, 6 + 8 * size),
        ):
            if address % alignment:
                raise self._fail(f"the {name} at {address:#x} is not aligned to {alignment} bytes")
            try:
                self.memory.region_of(address, length)
            except GuestMemoryError as error:
                raise self._fail(f"the {name} at {address:#x} is not in RAM") from error

    def _read16(self, address: int) -> int:
        value: int = _U16.unpack(self.memory.read(address, 2))[0]
        return value

    def _available(self) -> int:
        """How many chains wait."""
        count = self._read16(self.driver + 2) - self._next_available & 0xFFFF
        if count + self._in_flight > self.size:
            raise self._fail(f"{count} chains are available and {self._in_flight} in flight in a queue of {self.size}")
        return count

    def _arm(self) -> None:
        if self.event_idx and self._notifications:
            self.memory.write(self.device + 4 + 8 * self.size, _U16.pack(self._next_available))

    def _take(self) -> Chain:
        index = self._read16(self.driver + 4 + 2 * (self._next_available & (self.size - 1)))
        readable: list[tuple[int, int]] = []
        writable: list[tuple[int, int]] = []
        self._walk(self.descriptors, self.size, index, readable, writable, nested=False)
        chain = Chain(self.memory, index, self._generation, readable, writable)
        if chain.readable_length + chain.writable_length > CHAIN_LENGTH_MAX:
            raise self._fail("a chain is longer than 4 GiB")
        self._next_available = self._next_available + 1 & 0xFFFF
        self._in_flight += 1
        self.stats.popped += 1
        return chain

    def _walk(
        self,
        table: int,
        entries: int,
        index: int,
        readable: list[tuple[int, int]],
        writable: list[tuple[int, int]],
        *,
        nested: bool,
    ) -> None:
        for _ in range(entries):
            if index >= entries:
                raise self._fail(f"descriptor {index} is not in its table of {entries}")
            address, length, flags, following = _DESCRIPTOR.unpack(self.memory.read(table + 16 * index, 16))
            if not length:
                raise self._fail(f"descriptor {index} has no length")
            try:
                self.memory.region_of(address, length)
            except GuestMemoryError as error:
                raise self._fail(f"descriptor {index}: {error}") from error
            if flags & VIRTQ_DESC_F_INDIRECT:
                if nested or not self.indirect or flags & VIRTQ_DESC_F_NEXT or length % 16:
                    raise self._fail(f"descriptor {index} is indirect where it must not be")
                self._walk(address, min(length // 16, 0x10000), 0, readable, writable, nested=True)
                return
            if len(readable) + len(writable) >= self.max_size:
                raise self._fail(f"a chain has more than {self.max_size} descriptors")
            if flags & VIRTQ_DESC_F_WRITE:
                writable.append((address, length))
            elif writable:
                raise self._fail(f"descriptor {index} is readable after a writable one")
            else:
                readable.append((address, length))
            if not flags & VIRTQ_DESC_F_NEXT:
                return
            index = following
        raise self._fail("a chain does not end")
