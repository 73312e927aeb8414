"""Virtio devices of a machine: where their registers are, which interrupt they have, and how kicks reach them.

A kick is a guest's write that KVM turns into an eventfd, which the reactor waits for; an interrupt is an eventfd that
KVM waits for.  So neither is an exit to user space.
"""

from __future__ import annotations

import os
from functools import partial
from select import EPOLLIN

from kvmpy.devices.virtio.transport.mmio import MMIO_SIZE, QUEUE_NOTIFY, MmioTransport
from kvmpy.errors import ConfigError
from kvmpy.irq import EdgeLine
from kvmpy.units import MIB

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.boot import Kernel
    from kvmpy.devices.virtio.device import VirtioDevice
    from kvmpy.devices.virtio.transport.base import Transport
    from kvmpy.machine.machine import Machine
    from kvmpy.machine.reactor import Reactor
    from kvmpy.x86.acpi.gsi import GsiAllocator

# Register windows, one after the other, in the hole below 4 GiB: between PCI and the I/O APIC.
VIRTIO_MMIO = 0xE8000000
VIRTIO_MMIO_END = VIRTIO_MMIO + MIB

# The pins that MP tables tell of come first: a kernel without ACPI knows no others.
_PINS = (5, 10, 11, 3, 6, 7, 12, 14, 15)

_ACPI_ID = b"LNRO0005"


class Doorbells:
    """An eventfd for each of a device's `queues`, in `fds`.  Use it as a context manager, or call `close`."""

    __slots__ = ("_listening", "_reactor", "fds")

    def __init__(self, reactor: Reactor, queues: int) -> None:
        self._reactor = reactor
        self._listening: list[int] = []
        self.fds: list[int] = []
        try:
            for _ in range(queues):
                self.fds.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Doorbells:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def listen(self, kick: Callable[[int], object]) -> None:
        """Calls `kick` with the queue's index, in the reactor's thread, for each that rings."""
        for index, fd in enumerate(self.fds):
            self._reactor.add(fd, EPOLLIN, partial(_rung, fd, kick, index))
            self._listening.append(fd)

    def ring(self, index: int) -> None:
        """Kicks queue `index` as the guest would; from any thread."""
        os.eventfd_write(self.fds[index], 1)

    def close(self) -> None:
        """Takes them from the reactor and closes them; twice is fine."""
        while self._listening:
            self._reactor.remove(self._listening.pop())
        while self.fds:
            os.close(self.fds.pop())


def _rung(fd: int, kick: Callable[[int], object], index: int, _events: int) -> None:
    try:
        os.eventfd_read(fd)
    except BlockingIOError:
        return
    kick(index)


def add_virtio(machine: Machine, device: VirtioDevice) -> Transport:
    """Gives `machine` a virtio device over the transport of its configuration, before its ACPI tables are written.

    Raises `ConfigError` where there is no room for it.
    """
    transport: Transport
    if machine.config.virtio == "mmio":
        transport = add_virtio_mmio(machine, device)
    else:
        from kvmpy.machine.virtio_pci import add_virtio_pci

        transport = add_virtio_pci(machine, device)
    machine.virtio.append(transport)
    return transport


def add_virtio_mmio(machine: Machine, device: VirtioDevice) -> MmioTransport:
    """Gives `machine` a virtio device behind registers in memory; before its ACPI tables are written.

    `ConfigError` where no address or interrupt is left, or the machine is for a flat guest, which looks for none.
    """
    pc = machine.pc
    if pc is None:
        raise ConfigError(device.NAME, "a flat guest's machine has no virtio devices")
    number = len(pc.platform.virtio_mmio)
    address = VIRTIO_MMIO + number * MMIO_SIZE
    if address >= VIRTIO_MMIO_END:
        raise ConfigError(device.NAME, f"there are {number} virtio devices already, and no place for more")
    gsi = _take_pin(pc.gsis, f"{device.NAME} (virtio {number})")
    line = machine.stack.enter_context(EdgeLine(machine.vm, gsi))
    doorbells = machine.stack.enter_context(Doorbells(machine.reactor, len(device.QUEUE_SIZES)))
    transport = MmioTransport(device, machine.memory, line, doorbells.ring)
    for index, fd in enumerate(doorbells.fds):
        machine.vm.ioeventfd(fd, address + QUEUE_NOTIFY, 4, match=index)
    doorbells.listen(transport.kick)
    machine.mmio.add(address, MMIO_SIZE, transport, f"virtio-{device.NAME}")
    pc.platform.virtio_mmio += ((address, MMIO_SIZE, gsi),)
    return transport


def command_line_words(machine: Machine, kernel: Kernel) -> list[str]:
    """What a kernel that has no ACPI to ask is told of the machine's devices over MMIO, for its command line.

    A kernel that holds the ACPI driver would find each device twice: it is told nothing.  One that is compressed does
    not show what it holds, and is told.
    """
    pc = machine.pc
    if pc is None or not pc.platform.virtio_mmio or _ACPI_ID in bytes(kernel.image):
        return []
    return [f"virtio_mmio.device={size >> 10}K@{address:#x}:{gsi}" for address, size, gsi in pc.platform.virtio_mmio]


def _take_pin(gsis: GsiAllocator, owner: str) -> int:
    for pin in _PINS:
        try:
            return gsis.claim(pin, owner)
        except ConfigError:
            continue
    return gsis.take(owner)
