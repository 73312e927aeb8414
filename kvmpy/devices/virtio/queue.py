"""The device's side of a split virtqueue (virtio 1.2, 2.7).

The driver owns the three rings and everything in them is untrusted: each address is checked to be RAM, each index to
be in its ring, each chain to end.  What no driver may do raises `QueueError`, and goes on doing so until `reset`.
The rings are walked in C (`kvmpy.host.virtqueue`).
"""

from __future__ import annotations

from kvmpy.devices.state import FLAG, State, integer
from kvmpy.errors import ImageError, StateError
from kvmpy.host.virtqueue import QueueError, Virtqueue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import ClassVar

    from kvmpy.devices.state import Fields
    from kvmpy.memory import GuestMemory

__all__ = ["QUEUE_SIZE_MAX", "READ_LIMIT", "Chain", "Queue", "QueueError", "QueueState", "QueueStats"]

QUEUE_SIZE_MAX = 32768  # 2.7: the most descriptors that a split virtqueue may have.
READ_LIMIT = 16 << 20  # The most bytes that one `Chain.read` copies: a guest may name the same RAM many times.


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
        readable_length: int,
        writable_length: int,
    ) -> None:
        self._memory = memory
        self.index = index
        self.generation = generation
        self.readable = readable
        self.writable = writable
        self.readable_length = readable_length
        self.writable_length = writable_length

    def read(self, n: int | None = None, offset: int = 0) -> bytes:
        """A copy of `n` readable bytes from `offset` on, of all that follow by default; fewer where the chain ends.

        More than `READ_LIMIT` at once is a `QueueError`.
        """
        left = self.readable_length - offset if n is None else min(n, self.readable_length - offset)
        if left > READ_LIMIT:
            raise QueueError(f"the chain has {left} readable bytes, and no request is that long")
        return b"".join(
            [self._memory.read(address, length) for address, length in parts_within(self.readable, offset, left)]
        )

    def write(self, data: bytes | bytearray | memoryview, offset: int = 0) -> int:
        """Copies `data` into the writable bytes from `offset` on; how many of its bytes had room."""
        source = memoryview(data).cast("B")
        done = 0
        for address, length in parts_within(self.writable, offset, len(source)):
            self._memory.write(address, source[done : done + length])
            done += length
        return done


def parts_within(parts: list[tuple[int, int]], offset: int, count: int) -> list[tuple[int, int]]:
    """What of `parts`, each (guest address, length), the `count` bytes from `offset` on are."""
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
    """What a queue did since it was made.

    Chains `popped` and `pushed`, `interrupts` that the driver wanted and those that it did not (`interrupts_saved`),
    and `errors`: how often it broke the rules.
    """

    __slots__ = ("errors", "interrupts", "interrupts_saved", "popped", "pushed")

    def __init__(self, popped: int, pushed: int, interrupts: int, interrupts_saved: int, errors: int) -> None:
        self.popped = popped
        self.pushed = pushed
        self.interrupts = interrupts
        self.interrupts_saved = interrupts_saved
        self.errors = errors


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
    `event_idx` and `indirect` (as negotiated), and `ready`.  They are looked at when the queue is first used after
    `ready` was set, and not again.  One thread at a time may call it.
    """

    __slots__ = (
        "_core", "_ready", "_started", "descriptors", "device", "driver", "event_idx", "indirect", "max_size", "memory",
        "size",
    )  # fmt: skip

    def __init__(self, memory: GuestMemory, max_size: int) -> None:
        if not 0 < max_size <= QUEUE_SIZE_MAX or max_size & (max_size - 1):
            raise ValueError(f"a queue of {max_size} descriptors: not a power of two up to {QUEUE_SIZE_MAX}")
        self.memory = memory
        self.max_size = max_size
        self._core = Virtqueue(memory.regions, max_size)
        self.reset()

    def reset(self) -> None:
        """Back to how a device begins (2.6.1): not ready, and what is still in flight is dropped when it is pushed.

        A queue that was used keeps guest RAM mapped until then, so it is also how one is closed.
        """
        self.size = self.max_size
        self.ready = False
        self.descriptors = 0
        self.driver = 0
        self.device = 0
        self.event_idx = False
        self.indirect = False
        self._core.reset()

    @property
    def ready(self) -> bool:
        """Whether the driver has set the queue up."""
        return self._ready

    @ready.setter
    def ready(self, ready: bool) -> None:
        self._ready = ready
        self._started = False

    @property
    def in_flight(self) -> int:
        """How many chains were popped and not pushed."""
        return int(self._core.pointer.in_flight)

    @property
    def stats(self) -> QueueStats:
        """What the queue did until now; a reset leaves the numbers alone."""
        core = self._core.pointer
        return QueueStats(core.popped, core.pushed, core.interrupts, core.interrupts_saved, core.errors)

    # --- chains

    def pop(self) -> Chain | None:
        """The next chain that the driver made available, or None."""
        chains = self.pop_batch(1)
        return chains[0] if chains else None

    def pop_batch(self, limit: int) -> list[Chain]:
        """The next chains that the driver made available, at most `limit`.

        A batch that is shorter means that the queue is empty, or broken behind these, and that the driver will notify
        of what comes next unless notifications are disabled.
        """
        if not self._use():
            return []
        return [Chain(self.memory, *chain) for chain in self._core.pop(limit)]

    def push(self, chain: Chain, written: int) -> None:
        """Gives `chain` back to the driver with `written` bytes in its writable parts."""
        self.push_batch(((chain, written),))

    def push_batch(self, chains: Iterable[tuple[Chain, int]]) -> None:
        """Gives chains back to the driver, each with how many bytes were written into it, and shows them together.

        A chain from before the last reset is left out.
        """
        used = []
        for chain, written in chains:
            if not 0 <= written <= chain.writable_length:
                raise ValueError(f"{written} bytes written into a chain with room for {chain.writable_length}")
            # What has no room in the used ring's 32 bits is exactly the longest chain.
            used.append((chain.index, chain.generation, min(written, 0xFFFFFFFF)))
        if self._ready:
            self._core.push(used)

    # --- notifications

    def should_notify(self) -> bool:
        """Whether the driver wants an interrupt for what was pushed since this was last asked (2.7.7, 2.7.8)."""
        return self._ready and self._core.wants_interrupt()

    def disable_notifications(self) -> None:
        """Asks the driver not to notify of new chains (2.7.10): we are going to look by ourselves."""
        if self._use():
            self._core.disable_notifications()

    def enable_notifications(self) -> bool:
        """Asks the driver to notify of the next chain; True means that one came meanwhile and nobody will tell."""
        return self._use() and self._core.enable_notifications()

    def _use(self) -> bool:
        """Whether the queue is ready; finds its rings when it has just become so."""
        if self._started or not self._ready:
            return self._started
        self._core.start(self.size, self.descriptors, self.driver, self.device, self.event_idx, self.indirect)
        self._started = True
        return True

    # --- snapshots

    def save(self) -> QueueState:
        """The state, when no chain is in flight; `StateError` while one is."""
        core = self._core.pointer
        if core.in_flight:
            raise StateError(f"{core.in_flight} requests of a virtqueue are in flight; wait for them before saving")
        return QueueState(
            size=self.size,
            ready=int(self.ready),
            descriptors=self.descriptors,
            driver=self.driver,
            device=self.device,
            event_idx=int(self.event_idx),
            indirect=int(self.indirect),
            notifications=core.notifications,
            next_available=core.next_available,
            next_used=core.next_used,
            unsignalled=core.unsignalled,
        )

    def restore(self, state: QueueState) -> None:
        """Goes on from `state`; `ImageError` for a queue larger than this one can be."""
        if state.size > self.max_size:
            raise ImageError(f"a saved virtqueue has {state.size} descriptors where {self.max_size} are possible")
        self.reset()
        self.size = state.size
        self.descriptors = state.descriptors
        self.driver = state.driver
        self.device = state.device
        self.event_idx = bool(state.event_idx)
        self.indirect = bool(state.indirect)
        self.ready = bool(state.ready)
        core = self._core.pointer
        core.notifications = state.notifications
        core.next_available = state.next_available
        core.next_used = state.next_used
        core.unsignalled = state.unsignalled
