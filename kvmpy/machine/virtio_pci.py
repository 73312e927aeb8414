"""Virtio devices as PCI functions: their BARs with the ioeventfds in them, and their messages by irqfd."""

from __future__ import annotations

import os
from threading import Lock

from kvmpy.devices.pci.mapper import BusMapper
from kvmpy.devices.virtio.transport.pci import NOTIFY, NOTIFY_MULTIPLIER, PciTransport
from kvmpy.errors import ConfigError, KvmError
from kvmpy.irq import LevelLine
from kvmpy.kvm.vm_interrupts import KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE
from kvmpy.machine.virtio import Doorbells
from kvmpy.x86.acpi.gsi import IOAPIC_PINS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.devices.pci.function import Bar
    from kvmpy.devices.virtio.device import VirtioDevice
    from kvmpy.kvm import Vm
    from kvmpy.machine.machine import Machine

_NOTIFY_WIDTH = 2  # 4.1.5.2: a driver writes the queue's index, 16 bits.

# KVM's own table when it makes the controllers, which each change of ours has to repeat.
_PIC_PINS = 8
_CHIPS = [
    *((pin, KVM_IRQCHIP_PIC_MASTER, pin) for pin in range(_PIC_PINS)),
    *((_PIC_PINS + pin, KVM_IRQCHIP_PIC_SLAVE, pin) for pin in range(_PIC_PINS)),
    *((pin, KVM_IRQCHIP_IOAPIC, pin) for pin in range(IOAPIC_PINS)),
]


class MessageRoutes:
    """The messages of a VM's devices: each has an eventfd that KVM turns into the message that it is routed to.

    A route is made when its first message is sent, and changed when the guest changed that; `lost` counts messages
    that KVM would not route.  Use it as a context manager, or call `close`.
    """

    def __init__(self, vm: Vm) -> None:
        self.lost = 0
        self._vm = vm
        self._lock = Lock()
        self._fds: dict[object, tuple[int, int]] = {}  # (eventfd, GSI) by device and vector
        self._routes: dict[int, tuple[int, int]] = {}  # (address, data) by GSI

    def __enter__(self) -> MessageRoutes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, source: object, address: int, data: int) -> None:
        """Sends a message; `source` is who has it, and the same each time."""
        with self._lock:
            fd, gsi = self._fds.get(source) or self._open(source)
            if self._routes.get(gsi) != (address, data):
                routes = {**self._routes, gsi: (address, data)}
                try:
                    self._vm.set_gsi_routing(_CHIPS, [(number, *message) for number, message in routes.items()])
                except KvmError:
                    self.lost += 1
                    return
                self._routes = routes
            os.eventfd_write(fd, 1)

    def _open(self, source: object) -> tuple[int, int]:
        gsi = IOAPIC_PINS + len(self._fds)
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self._vm.irqfd(fd, gsi)
        except BaseException:
            os.close(fd)
            raise
        self._fds[source] = fd, gsi
        return fd, gsi

    def close(self) -> None:
        """Closes the eventfds; twice is fine."""
        while self._fds:
            os.close(self._fds.popitem()[1][0])


class NotifyMapper:
    """Shows a virtio device's BAR on the machine's buses, with the doorbells of its queues inside it."""

    def __init__(self, machine: Machine, doorbells: Doorbells) -> None:
        self._vm = machine.vm
        self._mmio = machine.mmio
        self._doorbells = doorbells
        self._buses = BusMapper(machine.pio, machine.mmio)
        self._assigned: list[tuple[int, int]] = []  # (eventfd, address)

    def map(self, bar: Bar, address: int, size: int) -> None:
        """See `BarMapper`."""
        self._buses.map(bar, address, size)
        place = self._mmio.find(address)
        # Where another device is, that one stays, and so do its registers.
        if place is None or place.device is not bar.device:
            return
        for index, fd in enumerate(self._doorbells.fds):
            at = address + NOTIFY + NOTIFY_MULTIPLIER * index
            try:
                self._vm.ioeventfd(fd, at, _NOTIFY_WIDTH)
            except KvmError:
                continue  # Kicks come as writes to the register, then.
            self._assigned.append((fd, at))

    def unmap(self, bar: Bar) -> None:
        """See `BarMapper`."""
        while self._assigned:
            fd, at = self._assigned.pop()
            self._vm.ioeventfd(fd, at, _NOTIFY_WIDTH, deassign=True)
        self._buses.unmap(bar)


def add_virtio_pci(machine: Machine, device: VirtioDevice) -> PciTransport:
    """Puts a virtio device into a free slot of `machine`'s PCI bus; before its ACPI tables are written.

    It has a pin for guests without MSI-X while there are any left.  `ConfigError` where no slot is, or the machine
    is for a flat guest, which has no PCI.
    """
    pc = machine.pc
    if pc is None or pc.platform.pci is None:
        raise ConfigError(device.NAME, "a flat guest's machine has no PCI")
    if pc.messages is None:
        pc.messages = machine.stack.enter_context(MessageRoutes(machine.vm))
    messages, slot = pc.messages, pc.pci.free_slot()
    line = None
    try:
        gsi = pc.gsis.take(f"{device.NAME} (PCI slot {slot})")
    except ConfigError:
        pass  # All guests of today have MSI-X.
    else:
        line = LevelLine(machine.vm, gsi)
        pc.platform.pci.routes += ((slot, 0, gsi),)
    doorbells = machine.stack.enter_context(Doorbells(machine.reactor, len(device.QUEUE_SIZES)))

    def send(vector: int, address: int, data: int) -> None:
        messages.send((slot, vector), address, data)

    transport = PciTransport(
        device,
        machine.memory,
        mapper=NotifyMapper(machine, doorbells),
        send=send,
        intx=line,
        doorbell=doorbells.ring,
    )
    doorbells.listen(transport.kick)
    pc.pci.add(slot, transport.function)
    return transport
