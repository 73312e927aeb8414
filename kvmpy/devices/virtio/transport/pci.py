"""Virtio over PCI, modern only (virtio 1.2, 4.1): capabilities that lead to registers behind one BAR, and MSI-X."""

from __future__ import annotations

import struct

from kvmpy.devices.pci.config import ConfigSpace
from kvmpy.devices.pci.function import MEMORY32, Bar, PciFunction
from kvmpy.devices.virtio.device import VIRTIO_F_RING_RESET
from kvmpy.devices.virtio.transport.base import INTERRUPT_CONFIG, INTERRUPT_QUEUE, Transport
from kvmpy.devices.virtio.transport.msix import PCI_CAP_ID_MSIX, Msix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.devices.pci.function import BarMapper
    from kvmpy.devices.virtio.device import VirtioDevice
    from kvmpy.irq import InterruptLine
    from kvmpy.memory import GuestMemory

PCI_VENDOR_ID_QUMRANET = 0x1AF4
PCI_DEVICE_ID_BASE = 0x1040
PCI_REVISION = 1  # 4.1.2.1: at least 1 for a device that is not transitional

# Class codes by device; the others have one that says nothing.
PCI_CLASSES = {1: 0x020000, 2: 0x018000, 3: 0x078000, 26: 0x018000}
PCI_CLASS_OTHERS = 0xFF0000

# Kinds of capability (4.1.4).
PCI_CAP_ID_VNDR = 0x09
VIRTIO_PCI_CAP_COMMON_CFG = 1
VIRTIO_PCI_CAP_NOTIFY_CFG = 2
VIRTIO_PCI_CAP_ISR_CFG = 3
VIRTIO_PCI_CAP_DEVICE_CFG = 4
VIRTIO_PCI_CAP_PCI_CFG = 5

# Where in the BAR is what; a page each.
BAR_SIZE = 0x10000
COMMON = 0x0000
ISR = 0x1000
DEVICE_CONFIG = 0x2000
NOTIFY = 0x3000
MSIX_PENDING = 0x4000
MSIX_TABLE = 0x8000
_PAGE = 0x1000
NOTIFY_MULTIPLIER = 4

# struct virtio_pci_common_cfg (4.1.4.3).
DEVICE_FEATURE_SELECT = 0x00
DEVICE_FEATURE = 0x04
DRIVER_FEATURE_SELECT = 0x08
DRIVER_FEATURE = 0x0C
CONFIG_MSIX_VECTOR = 0x10
NUM_QUEUES = 0x12
DEVICE_STATUS = 0x14
CONFIG_GENERATION = 0x15
QUEUE_SELECT = 0x16
QUEUE_SIZE = 0x18
QUEUE_MSIX_VECTOR = 0x1A
QUEUE_ENABLE = 0x1C
QUEUE_NOTIFY_OFF = 0x1E
QUEUE_DESC = 0x20
QUEUE_DRIVER = 0x28
QUEUE_DEVICE = 0x30
QUEUE_NOTIFY_DATA = 0x38
QUEUE_RESET = 0x3A
COMMON_SIZE = 0x3C

VIRTIO_MSI_NO_VECTOR = 0xFFFF

_WIDTHS = {
    DEVICE_FEATURE_SELECT: 4, DEVICE_FEATURE: 4, DRIVER_FEATURE_SELECT: 4, DRIVER_FEATURE: 4, CONFIG_MSIX_VECTOR: 2,
    NUM_QUEUES: 2, DEVICE_STATUS: 1, CONFIG_GENERATION: 1, QUEUE_SELECT: 2, QUEUE_SIZE: 2, QUEUE_MSIX_VECTOR: 2,
    QUEUE_ENABLE: 2, QUEUE_NOTIFY_OFF: 2, QUEUE_DESC: 4, QUEUE_DESC + 4: 4, QUEUE_DRIVER: 4, QUEUE_DRIVER + 4: 4,
    QUEUE_DEVICE: 4, QUEUE_DEVICE + 4: 4, QUEUE_NOTIFY_DATA: 2, QUEUE_RESET: 2,
}  # fmt: skip

_ADDRESSES = {
    QUEUE_DESC: ("descriptors", 0),
    QUEUE_DESC + 4: ("descriptors", 32),
    QUEUE_DRIVER: ("driver", 0),
    QUEUE_DRIVER + 4: ("driver", 32),
    QUEUE_DEVICE: ("device", 0),
    QUEUE_DEVICE + 4: ("device", 32),
}

# struct virtio_pci_cap without its first two bytes: length, type, bar, id, offset, length.
_CAPABILITY = struct.Struct("<BBBB2xII")
_WINDOW = struct.Struct("<B3xII")


class PciTransport(Transport):
    """`device` as the PCI function `function`, with its registers behind BAR 0.

    `mapper` shows the BAR; `send(vector, address, data)` sends a message; `intx` is the pin for guests without
    MSI-X, or None.
    """

    def __init__(
        self,
        device: VirtioDevice,
        memory: GuestMemory,
        *,
        mapper: BarMapper,
        send: Callable[[int, int, int], object],
        intx: InterruptLine | None = None,
        doorbell: Callable[[int], object] | None = None,
    ) -> None:
        super().__init__(device, memory, doorbell)
        self.msix = Msix(len(self.queues) + 1, send)
        self._config_vector = VIRTIO_MSI_NO_VECTOR
        self._vectors = [VIRTIO_MSI_NO_VECTOR] * len(self.queues)
        config = ConfigSpace(
            PCI_VENDOR_ID_QUMRANET,
            PCI_DEVICE_ID_BASE + device.DEVICE_ID,
            PCI_CLASSES.get(device.DEVICE_ID, PCI_CLASS_OTHERS),
            revision=PCI_REVISION,
            subsystem_vendor_id=PCI_VENDOR_ID_QUMRANET,
            subsystem_id=PCI_DEVICE_ID_BASE + device.DEVICE_ID,
        )
        self.function = _Function(self, config, mapper=mapper, intx=intx)
        self.function.add_bar(Bar(0, BAR_SIZE, self, kind=MEMORY32))

    # What the device calls.

    def notify(self, index: int) -> None:
        """See `Driver`."""
        self._interrupt(INTERRUPT_QUEUE, self._vectors[index])

    def _interrupt_config(self) -> None:
        self._interrupt(INTERRUPT_CONFIG, self._config_vector)

    def _interrupt(self, bits: int, vector: int) -> None:
        if self.msix.enabled:
            self.msix.trigger(vector)
            return
        with self._interrupt_lock:
            self._interrupts |= bits
            self.function.set_interrupt(True)

    def _take_interrupts(self) -> int:
        with self._interrupt_lock:
            taken, self._interrupts = self._interrupts, 0
            self.function.set_interrupt(False)
        return taken

    def _interrupts_reset(self) -> None:
        self._take_interrupts()
        self._config_vector = VIRTIO_MSI_NO_VECTOR
        self._vectors = [VIRTIO_MSI_NO_VECTOR] * len(self.queues)

    def message_control(self, control: int) -> None:
        """The guest wrote MSI-X's message control: with it on, the pin rests."""
        self.msix.set_control(control)
        if self.msix.enabled:
            self._take_interrupts()

    # The BAR, and what the guest's accesses to it call.

    def read(self, offset: int, data: memoryview) -> None:
        """Reads behind the BAR."""
        if offset >= MSIX_TABLE:
            self.msix.read_table(offset - MSIX_TABLE, data)
            return
        page, at = offset & -_PAGE, offset & _PAGE - 1
        if page == COMMON:
            with self._lock:
                self._read_common(at, data)
        elif page == DEVICE_CONFIG:
            with self._lock:
                self.device.read_config(at, data)
        elif page == MSIX_PENDING:
            self.msix.read_pending(at, data)
        else:
            data[:] = bytes(len(data))
            if page == ISR and at == 0:
                data[0] = self._take_interrupts()

    def write(self, offset: int, data: memoryview) -> None:
        """Writes behind the BAR."""
        if offset >= MSIX_TABLE:
            self.msix.write_table(offset - MSIX_TABLE, data)
            return
        page, at = offset & -_PAGE, offset & _PAGE - 1
        if page == COMMON:
            with self._lock:
                self._write_common(at, data)
        elif page == DEVICE_CONFIG:
            with self._lock:
                self.device.write_config(at, data)
        elif page == NOTIFY and not at % NOTIFY_MULTIPLIER and at // NOTIFY_MULTIPLIER < len(self.queues):
            self._doorbell(at // NOTIFY_MULTIPLIER)
        else:
            self._refuse()

    def _read_common(self, offset: int, data: memoryview) -> None:
        size = len(data)
        if size == 8 and offset in _ADDRESSES and offset + 4 in _ADDRESSES:
            self._read_common(offset, data[:4])
            self._read_common(offset + 4, data[4:])
        elif _WIDTHS.get(offset) == size:
            data[:] = self._common(offset).to_bytes(size, "little")
        else:
            data[:] = bytes(size)
            self._refuse()

    def _common(self, offset: int) -> int:
        queue = self._queue()
        if offset in _ADDRESSES:
            name, shift = _ADDRESSES[offset]
            return 0 if queue is None else getattr(queue, name) >> shift & 0xFFFFFFFF
        if offset == QUEUE_SIZE:
            return 0 if queue is None else queue.size
        if offset == QUEUE_ENABLE:
            return int(queue is not None and queue.ready)
        if offset == QUEUE_MSIX_VECTOR:
            return VIRTIO_MSI_NO_VECTOR if queue is None else self._vectors[self._queue_select]
        if offset == QUEUE_NOTIFY_OFF:
            return 0 if queue is None else self._queue_select
        if offset == DEVICE_FEATURE:
            return self._device_features()
        if offset == DRIVER_FEATURE:
            return self._driver_features()
        return {
            DEVICE_FEATURE_SELECT: self._device_features_select,
            DRIVER_FEATURE_SELECT: self._driver_features_select,
            CONFIG_MSIX_VECTOR: self._config_vector,
            NUM_QUEUES: len(self.queues),
            DEVICE_STATUS: self.status,
            CONFIG_GENERATION: self._generation & 0xFF,
            QUEUE_SELECT: self._queue_select,
        }.get(offset, 0)

    def _write_common(self, offset: int, data: memoryview) -> None:
        size = len(data)
        if size == 8 and offset in _ADDRESSES and offset + 4 in _ADDRESSES:
            self._write_common(offset, data[:4])
            self._write_common(offset + 4, data[4:])
        elif _WIDTHS.get(offset) == size:
            self._set_common(offset, int.from_bytes(data, "little"))
        else:
            self._refuse()

    def _set_common(self, offset: int, value: int) -> None:
        if offset == DEVICE_STATUS:
            self._set_status(value)
        elif offset == DEVICE_FEATURE_SELECT:
            self._device_features_select = value
        elif offset == DRIVER_FEATURE_SELECT:
            self._driver_features_select = value
        elif offset == DRIVER_FEATURE:
            self._set_driver_features(value)
        elif offset == CONFIG_MSIX_VECTOR:
            self._config_vector = self._vector(value)
        elif offset == QUEUE_SELECT:
            self._queue_select = value
        elif offset == QUEUE_SIZE:
            self._set_queue_size(value)
        elif offset in _ADDRESSES:
            name, shift = _ADDRESSES[offset]
            self._set_queue_address(name, shift, value)
        elif offset == QUEUE_MSIX_VECTOR and self._queue() is not None:
            self._vectors[self._queue_select] = self._vector(value)
        elif offset == QUEUE_ENABLE and value == 1:
            self._enable_queue()
        elif offset == QUEUE_RESET and value == 1 and self.features & VIRTIO_F_RING_RESET:
            self._stop_queue()
        else:
            self._refuse()

    def _vector(self, value: int) -> int:
        """What a vector's register holds after `value` was written: one that is not there is none (4.1.5.1.2.1)."""
        return value if value < self.msix.vectors else VIRTIO_MSI_NO_VECTOR


class _Function(PciFunction):
    """The function, with a window into its BAR for guests that cannot reach that (4.1.4.9)."""

    def __init__(
        self, transport: PciTransport, config: ConfigSpace, *, mapper: BarMapper, intx: InterruptLine | None
    ) -> None:
        super().__init__(config, mapper=mapper, intx=intx)
        self._transport = transport
        body, writable = transport.msix.capability(0, MSIX_TABLE, MSIX_PENDING)
        msix = config.add_capability(PCI_CAP_ID_MSIX, body, writable=writable)
        self.watch(msix + 2, 2, lambda: transport.message_control(config.get(msix + 2, 2)))
        for kind, offset, length in (
            (VIRTIO_PCI_CAP_COMMON_CFG, COMMON, COMMON_SIZE),
            (VIRTIO_PCI_CAP_ISR_CFG, ISR, 1),
            (VIRTIO_PCI_CAP_DEVICE_CFG, DEVICE_CONFIG, _PAGE),
        ):
            config.add_capability(PCI_CAP_ID_VNDR, _CAPABILITY.pack(16, kind, 0, 0, offset, length))
        size = NOTIFY_MULTIPLIER * len(transport.queues)
        notify = _CAPABILITY.pack(20, VIRTIO_PCI_CAP_NOTIFY_CFG, 0, 0, NOTIFY, size)
        config.add_capability(PCI_CAP_ID_VNDR, notify + struct.pack("<I", NOTIFY_MULTIPLIER))
        window = _CAPABILITY.pack(20, VIRTIO_PCI_CAP_PCI_CFG, 0, 0, 0, 0) + bytes(4)
        writable = bytes(2) + b"\xff" + bytes(3) + b"\xff" * 12
        self._window = config.add_capability(PCI_CAP_ID_VNDR, window, writable=writable) + 4
        self._data = self._window + _WINDOW.size
        self.watch(self._data, 4, self._write_window)

    def read_config(self, offset: int, data: memoryview) -> None:
        """See `PciFunction`."""
        if offset < self._data + 4 and offset + len(data) > self._data:
            place = self._place()
            if place is not None:
                found = memoryview(bytearray(place[1]))
                self._transport.read(place[0], found)
                self.config.bytes[self._data : self._data + place[1]] = found
        super().read_config(offset, data)

    def _write_window(self) -> None:
        place = self._place()
        if place is not None:
            at, size = place
            self._transport.write(at, memoryview(self.config.bytes[self._data : self._data + size]))

    def _place(self) -> tuple[int, int] | None:
        """Where in the BAR the window is, and how wide; None where the guest set up no access that can be."""
        bar, offset, size = _WINDOW.unpack_from(self.config.bytes, self._window)
        return (offset, size) if bar == 0 and size in (1, 2, 4) and not offset % size and offset < BAR_SIZE else None
