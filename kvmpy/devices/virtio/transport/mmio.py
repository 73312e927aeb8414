"""Virtio over MMIO, version 2 (virtio 1.2, 4.2): a page of 32-bit registers, and the device's configuration behind."""

from __future__ import annotations

from kvmpy.devices.virtio.device import VIRTIO_F_RING_RESET
from kvmpy.devices.virtio.transport.base import INTERRUPT_CONFIG, INTERRUPT_QUEUE, Transport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.devices.virtio.device import VirtioDevice
    from kvmpy.irq import InterruptLine
    from kvmpy.memory import GuestMemory

MMIO_SIZE = 0x1000

MAGIC = 0x74726976  # "virt"
VERSION = 2
VENDOR_ID = 0x706D766B  # "kvmp"

MAGIC_VALUE = 0x000
VERSION_NUMBER = 0x004
DEVICE_ID = 0x008
VENDOR = 0x00C
DEVICE_FEATURES = 0x010
DEVICE_FEATURES_SEL = 0x014
DRIVER_FEATURES = 0x020
DRIVER_FEATURES_SEL = 0x024
QUEUE_SEL = 0x030
QUEUE_NUM_MAX = 0x034
QUEUE_NUM = 0x038
QUEUE_READY = 0x044
QUEUE_NOTIFY = 0x050
INTERRUPT_STATUS = 0x060
INTERRUPT_ACK = 0x064
STATUS = 0x070
QUEUE_DESC_LOW = 0x080
QUEUE_DESC_HIGH = 0x084
QUEUE_DRIVER_LOW = 0x090
QUEUE_DRIVER_HIGH = 0x094
QUEUE_DEVICE_LOW = 0x0A0
QUEUE_DEVICE_HIGH = 0x0A4
SHM_SEL = 0x0AC
SHM_LEN_LOW = 0x0B0
SHM_LEN_HIGH = 0x0B4
SHM_BASE_LOW = 0x0B8
SHM_BASE_HIGH = 0x0BC
QUEUE_RESET = 0x0C0
CONFIG_GENERATION = 0x0FC
CONFIG = 0x100

_ONES = 0xFFFFFFFF


class MmioTransport(Transport):
    """`device` behind `MMIO_SIZE` bytes of registers; `line` is its interrupt, which may be edge-triggered."""

    def __init__(
        self,
        device: VirtioDevice,
        memory: GuestMemory,
        line: InterruptLine,
        doorbell: Callable[[int], object] | None = None,
    ) -> None:
        super().__init__(device, memory, doorbell)
        self._line = line

    # What the device calls.

    def notify(self, index: int) -> None:
        """See `Driver`."""
        self._raise(INTERRUPT_QUEUE)

    def _interrupt_config(self) -> None:
        self._raise(INTERRUPT_CONFIG)

    def _raise(self, bits: int) -> None:
        with self._interrupt_lock:
            self._interrupts |= bits
            self._line.set(True)

    def _acknowledge(self, bits: int) -> None:
        with self._interrupt_lock:
            self._interrupts &= ~bits
            self._line.set(False)
            if self._interrupts:
                # What came between the guest's look and this write is an edge of its own.
                self._line.set(True)

    def _interrupts_reset(self) -> None:
        self._acknowledge(_ONES)

    # What the guest's accesses call.

    def read(self, offset: int, data: memoryview) -> None:
        """Reads a register, which is 32 bits wide, or the device's configuration, of any width."""
        if offset >= CONFIG:
            with self._lock:
                self.device.read_config(offset - CONFIG, data)
            return
        if len(data) != 4 or offset & 3:
            data[:] = bytes(len(data))
            self._refuse()
            return
        # These two without the device's lock: an interrupt's handler should not wait for a device at work.
        if offset == INTERRUPT_STATUS:
            value = self._interrupts
        elif offset == CONFIG_GENERATION:
            value = self._generation & _ONES
        else:
            with self._lock:
                value = self._read(offset)
        data[:] = value.to_bytes(4, "little")

    def _read(self, offset: int) -> int:
        if offset == STATUS:
            return self.status
        if offset == QUEUE_READY:
            queue = self._queue()
            return int(queue is not None and queue.ready)
        if offset == QUEUE_NUM_MAX:
            queue = self._queue()
            return 0 if queue is None else queue.max_size
        if offset == DEVICE_FEATURES:
            return self._device_features()
        if SHM_LEN_LOW <= offset <= SHM_BASE_HIGH:
            return _ONES  # 4.2.2: there is no such region.
        # What is write-only, or nothing at all, reads as zero, and QueueReset too: a reset is over with the write.
        return _CONSTANTS.get(offset, self.device.DEVICE_ID if offset == DEVICE_ID else 0)

    def write(self, offset: int, data: memoryview) -> None:
        """Writes a register, which is 32 bits wide, or the device's configuration, of any width."""
        if offset >= CONFIG:
            with self._lock:
                self.device.write_config(offset - CONFIG, data)
            return
        if len(data) != 4 or offset & 3:
            self._refuse()
            return
        value = int.from_bytes(data, "little")
        if offset == QUEUE_NOTIFY:
            if value < len(self.queues):
                self._doorbell(value)
            else:
                self._refuse()
        elif offset == INTERRUPT_ACK:
            self._acknowledge(value)
        else:
            with self._lock:
                self._write(offset, value)

    def _write(self, offset: int, value: int) -> None:
        if offset == STATUS:
            self._set_status(value)
        elif offset == DEVICE_FEATURES_SEL:
            self._device_features_select = value
        elif offset == DRIVER_FEATURES_SEL:
            self._driver_features_select = value
        elif offset == DRIVER_FEATURES:
            self._set_driver_features(value)
        elif offset == QUEUE_SEL:
            self._queue_select = value
        elif offset == QUEUE_NUM:
            self._set_queue_size(value)
        elif offset in _QUEUE_ADDRESSES:
            name, shift = _QUEUE_ADDRESSES[offset]
            self._set_queue_address(name, shift, value)
        elif offset == QUEUE_READY and value == 1:
            self._enable_queue()
        elif (offset == QUEUE_READY and value == 0) or (
            offset == QUEUE_RESET and value == 1 and self.features & VIRTIO_F_RING_RESET
        ):
            self._stop_queue()
        elif offset != SHM_SEL:
            self._refuse()


_CONSTANTS = {MAGIC_VALUE: MAGIC, VERSION_NUMBER: VERSION, VENDOR: VENDOR_ID}

_QUEUE_ADDRESSES = {
    QUEUE_DESC_LOW: ("descriptors", 0),
    QUEUE_DESC_HIGH: ("descriptors", 32),
    QUEUE_DRIVER_LOW: ("driver", 0),
    QUEUE_DRIVER_HIGH: ("driver", 32),
    QUEUE_DEVICE_LOW: ("device", 0),
    QUEUE_DEVICE_HIGH: ("device", 32),
}
