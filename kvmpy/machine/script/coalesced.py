"""Writes that KVM keeps in a ring instead of leaving the guest for each (api.rst 4.116): drained for all who look."""

from __future__ import annotations

import threading

from kvmpy.errors import KvmError
from kvmpy.kvm.capabilities import KVM_CAP_COALESCED_MMIO, KVM_CAP_COALESCED_PIO

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.machine.machine import Machine

    # Gets the address and the data of a write.
    Taker = Callable[[int, bytes], None]

DRAIN_SECONDS = 0.05


class CoalescedRing:
    """The ring of one machine.  It is drained when somebody says so, and every `DRAIN_SECONDS` while it is in use.

    `drain` hands writes on in their order, one thread at a time; a taker may call any method.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._page = machine.vm.check_extension(KVM_CAP_COALESCED_MMIO)
        self._has_ports = machine.vm.check_extension(KVM_CAP_COALESCED_PIO)
        self._takers: tuple[tuple[range, bool, Taker], ...] = ()
        self._changing = threading.Lock()
        self._draining = threading.RLock()
        self._drainer = 0
        self._stop: threading.Event | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        # Before the vCPUs are closed, in whose memory the ring lies.
        machine.stack.callback(self._close)

    def add(self, where: range, is_port: bool, taker: Taker) -> bool:
        """Has KVM keep the writes to `where` from now on, for `taker`; False where it cannot."""
        if not self._page or (is_port and not self._has_ports):
            return False
        with self._changing:
            try:
                self._machine.vm.register_coalesced(where.start, len(where), pio=is_port)
            except KvmError:
                return False  # There are at most some hundred such ranges.
            self._takers = (*self._takers, (where, is_port, taker))
            if self._thread is None:
                self._stop = threading.Event()
                self._thread = threading.Thread(
                    target=self._drain_often, args=(self._stop,), name="kvmpy-trace", daemon=True
                )
                self._thread.start()
        return True

    def release(self, where: range, is_port: bool) -> None:
        """Has writes to `where` leave the guest again; what is in the ring is handed on by `drain`."""
        try:
            self._machine.vm.unregister_coalesced(where.start, len(where), pio=is_port)
        except KvmError:
            pass  # The machine is closed.

    def remove(self, taker: Taker) -> None:
        """Hands nothing on to `taker` from now on."""
        with self._changing:
            self._takers = tuple(entry for entry in self._takers if entry[2] != taker)
            if self._takers or self._stop is None or self._thread is None:
                return
            thread, self._thread = self._thread, None
            self._stop.set()
        # Whoever drains at this moment may be the one that the thread waits for.
        if threading.get_ident() not in (self._drainer, thread.ident):
            thread.join()

    def drain(self) -> None:
        """Hands on what is in the ring."""
        if not self._takers:
            return
        with self._draining:
            if self._closed:
                return
            outer, self._drainer = self._drainer, threading.get_ident()
            try:
                for address, data, is_port in self._machine.vcpus[0].vcpu.drain_coalesced(self._page):
                    for where, for_ports, taker in self._takers:
                        if for_ports == is_port and where.start < address + len(data) and address < where.stop:
                            taker(address, data)
            finally:
                self._drainer = outer

    def _close(self) -> None:
        with self._draining:
            self._closed = True

    def _drain_often(self, stop: threading.Event) -> None:
        while not stop.wait(DRAIN_SECONDS):
            self.drain()
