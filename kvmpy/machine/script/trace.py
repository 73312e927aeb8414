"""Traces: a record of each access to a range, at a low cost.

Where neither a device nor a hook looks at the range, KVM keeps the guest's writes in a ring and the guest runs on
(coalesced I/O); it is drained before each access that does leave the guest, by `take`, twenty times a second, and at
the end.  Everywhere else the access leaves the guest as ever, and is noted on its way.
"""

from __future__ import annotations

import threading
from collections import deque, namedtuple

from kvmpy.machine.script.failure import failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kvmpy.machine.machine import Machine
    from kvmpy.machine.outcome import Outcome
    from kvmpy.machine.script.bus_hooks import BusHooks
    from kvmpy.machine.vcpu_thread import VcpuThread

KEPT = 1 << 16


class Record(namedtuple("Record", ("vcpu", "is_port", "address", "size", "is_write", "value"))):
    """One access; `vcpu` is None where KVM kept it, since it does not say whose it was."""

    __slots__ = ()

    vcpu: int | None
    is_port: bool
    address: int
    size: int
    is_write: bool
    value: int

    def __str__(self) -> str:
        place = f"port {self.address:#x}" if self.is_port else f"{self.address:#x}"
        return f"{'write' if self.is_write else 'read '} {place} {self.value:#0{2 * self.size + 2}x}"


class Trace:
    """The accesses to `where`, ports or (with `mmio`) guest-physical addresses, as `Record`s in their order.

    With a `function` it is called with each, in whichever thread comes upon it.  Without one they are kept, the newest
    `KEPT` of them, to be iterated over: the iteration waits for more, until the machine ends or `close`.  `lost` counts
    those that were not kept.  `is_coalesced` says whether KVM keeps the writes.  A context manager.
    """

    def __init__(
        self, machine: Machine, where: range, function: Callable[[Record], object] | None = None, *, mmio: bool = False
    ) -> None:
        self.lost = 0
        self.is_coalesced = False
        self._machine = machine
        self._where = where
        self._is_port = not mmio
        self._function = function
        self._kept: deque[Record] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._hooks = hooks = machine.hooks
        self._bus: BusHooks = hooks.mmio if mmio else hooks.pio
        hooks.check_range("trace", where, mmio=mmio)
        with hooks.lock:
            is_free = self._bus.is_free(where)
            self._bus.add_observer(where, self._on_access)
            if is_free:
                self.is_coalesced = hooks.ring.add(where, self._is_port, self._on_coalesced)
                self._bus.on_add.append(self._on_hook)
        machine.on_end.append(self._on_end)
        if machine.outcome is not None:
            self.close()

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """No more records from now on; an iteration ends when it has had those that are kept.  Twice is fine."""
        with self._hooks.lock:
            if self._closed:
                return
            self._release()
            self._bus.remove_observer(self._on_access)
            if self._on_hook in self._bus.on_add:
                self._bus.on_add.remove(self._on_hook)
        # The ring calls functions of the script: no lock is held for that.
        self._hooks.ring.drain()
        self._hooks.ring.remove(self._on_coalesced)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._on_end in self._machine.on_end:
            self._machine.on_end.remove(self._on_end)

    def take(self) -> list[Record]:
        """The records that are kept, which then are no longer, without waiting: all, if the machine stands still."""
        self._hooks.ring.drain()
        with self._changed:
            records = list(self._kept)
            self._kept.clear()
        return records

    def __iter__(self) -> Iterator[Record]:
        while True:
            with self._changed:
                while not self._kept:
                    if self._closed:
                        return
                    self._changed.wait()
                record = self._kept.popleft()
            yield record

    def _on_access(self, thread: VcpuThread, address: int, data: memoryview, is_write: bool) -> None:
        self._hooks.ring.drain()
        value = int.from_bytes(data, "little")
        self._deliver(Record(thread.vcpu.id, self._is_port, address, len(data), is_write, value))

    def _on_coalesced(self, address: int, data: bytes) -> None:
        self._deliver(Record(None, self._is_port, address, len(data), True, int.from_bytes(data, "little")))

    def _deliver(self, record: Record) -> None:
        if self._function is not None:
            try:
                self._function(record)
            except BaseException as error:
                name = getattr(self._function, "__name__", repr(self._function))
                self._machine.end(failure(f"<trace: {name}>", error))
            return
        with self._changed:
            if len(self._kept) >= KEPT:
                self._kept.popleft()
                self.lost += 1
            self._kept.append(record)
            self._changed.notify_all()

    def _on_hook(self, where: range) -> None:
        if where.start < self._where.stop and self._where.start < where.stop:
            self._release()  # It is to see each write when it happens.

    def _release(self) -> None:
        if self.is_coalesced:
            self.is_coalesced = False
            self._hooks.ring.release(self._where, self._is_port)

    def _on_end(self, _outcome: Outcome) -> None:
        self.close()
