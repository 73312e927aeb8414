"""The exit loop: one thread runs one vCPU, and takes each exit to the device that answers it.

The way of an exit is `KVM_RUN` → `_loop` → `Bus.find` → the device's `read` or `write`.  All that is not an access
to a port or to memory-mapped I/O goes to `exits.handle_exit`, which says how the machine ends, or None to go on.
"""

from __future__ import annotations

import struct
import threading
from functools import partial

from kvmpy.kvm.exits import EXIT_NAMES, KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_MMIO
from kvmpy.machine.exits import handle_exit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.bus import Bus
    from kvmpy.kvm import Vcpu
    from kvmpy.machine.exits import ExitContext
    from kvmpy.machine.outcome import Outcome

# A guest can touch as many addresses as it likes; so many are counted by themselves, the others together.
COUNTED_ADDRESSES = 4096
OTHER = -1

# struct kvm_run: exit data starts at byte 32; for a port it is direction, size, port, count, offset of the data.
_EXIT_DATA = 32
_IO = struct.Struct("<BBHIQ")
_MMIO = struct.Struct("<Q8xIB")
_MMIO_DATA = _EXIT_DATA + 8


class VcpuStats:
    """What one vCPU left the guest for: `ports` and `mmio` count accesses by address, `others` the rest by reason."""

    __slots__ = ("mmio", "others", "ports")

    def __init__(self) -> None:
        self.ports: dict[int, int] = {}
        self.mmio: dict[int, int] = {}
        self.others: dict[int, int] = {}

    def exits(self) -> dict[str, int]:
        """Exits by KVM's name of their reason."""
        counts = {EXIT_NAMES.get(reason, str(reason)): count for reason, count in self.others.items()}
        for name, table in (("io", self.ports), ("mmio", self.mmio)):
            if table:
                counts[name] = sum(table.values())
        return counts


class VcpuThread:
    """Runs `vcpu` until an exit ends the machine, `stop` is called, or something fails.

    `on_end` gets the `Outcome` of an exit that ends the machine, `on_error` an exception; both are called in this
    vCPU's thread, which then ends.
    """

    def __init__(
        self,
        vcpu: Vcpu,
        pio: Bus,
        mmio: Bus,
        context: ExitContext,
        on_end: Callable[[Outcome], None],
        on_error: Callable[[BaseException], None],
    ) -> None:
        self.vcpu = vcpu
        self.stats = VcpuStats()
        self._pio = pio
        self._mmio = mmio
        self._context = context
        self._on_end = on_end
        self._on_error = on_error
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name=f"kvmpy-vcpu{vcpu.id}", daemon=True)

    def start(self) -> None:
        """Lets the guest run."""
        self._thread.start()

    def stop(self) -> None:
        """Asks the thread to end; `join` waits for it.  From any thread, its own included."""
        self._stopping = True
        self.vcpu.kick()

    def join(self) -> None:
        """Waits for the thread's end; from the thread itself, or before `start`, returns at once."""
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _main(self) -> None:
        vcpu = self.vcpu
        try:
            vcpu.adopt_thread(threading.get_native_id())
            outcome = self._loop()
            if outcome is not None:
                self._on_end(outcome)
        except Exception as error:
            self._on_error(error)
        finally:
            vcpu.adopt_thread(0)

    def _loop(self) -> Outcome | None:
        """The thin loop; the `Outcome` that the guest came to, or None when stopped."""
        vcpu = self.vcpu
        enter = vcpu.enter
        memory = vcpu.memory
        io = partial(_IO.unpack_from, memory, _EXIT_DATA)
        mmio = partial(_MMIO.unpack_from, memory, _EXIT_DATA)
        find_port = self._pio.find
        find_address = self._mmio.find
        ports = self.stats.ports
        addresses = self.stats.mmio
        others = self.stats.others
        while True:
            reason = enter()
            if reason == KVM_EXIT_IO:
                is_write, size, port, count, start = io()
                try:
                    ports[port] += 1
                except KeyError:
                    ports[port] = 1
                mapping = find_port(port)
                # A string instruction (rep outsb) brings many elements at once, all for the same port.
                for at in range(start, start + size * count, size) if count > 1 else (start,):
                    data = memory[at : at + size]
                    if mapping is None:
                        if not is_write:
                            data[:] = b"\xff" * size
                    elif is_write:
                        mapping.write(port - mapping.start, data)
                    else:
                        mapping.read(port - mapping.start, data)
            elif reason == KVM_EXIT_MMIO:
                address, size, is_write = mmio()
                try:
                    addresses[address] += 1
                except KeyError:
                    _count_first(addresses, address)
                data = memory[_MMIO_DATA : _MMIO_DATA + min(size, 8)]
                mapping = find_address(address)
                if mapping is None:
                    if not is_write:
                        data[:] = b"\xff" * len(data)
                elif is_write:
                    mapping.write(address - mapping.start, data)
                else:
                    mapping.read(address - mapping.start, data)
            else:
                others[reason] = others.get(reason, 0) + 1
                if reason == KVM_EXIT_INTR:
                    vcpu.immediate_exit = False
                    if self._stopping:
                        return None
                    continue
                outcome = handle_exit(reason, vcpu, self._context)
                if outcome is not None:
                    return outcome


def _count_first(addresses: dict[int, int], address: int) -> None:
    if len(addresses) < COUNTED_ADDRESSES:
        addresses[address] = 1
    else:
        addresses[OTHER] = addresses.get(OTHER, 0) + 1
