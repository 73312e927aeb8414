"""What all transports share: device status, feature negotiation, queue set-up (virtio 1.2, chapters 2 and 3).

A driver that breaks a rule is not obeyed, and `VirtioStats.refused` counts it; none of it raises.
"""

from __future__ import annotations

from threading import Lock

from kvmpy.devices.virtio.device import (
    ACKNOWLEDGE,
    DEVICE_NEEDS_RESET,
    DRIVER,
    DRIVER_OK,
    FAILED,
    FEATURES_OK,
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_RING_RESET,
    VIRTIO_F_VERSION_1,
)
from kvmpy.devices.virtio.queue import Queue
from kvmpy.errors import KvmpyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.devices.virtio.device import VirtioDevice
    from kvmpy.memory import GuestMemory

# Bits of the interrupt status (4.1.4.5.1, 4.2.2).
INTERRUPT_QUEUE = 1
INTERRUPT_CONFIG = 2

_MASK32 = 0xFFFFFFFF
_STATUS_BITS = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED

# What has to be set before a bit of the status may be (3.1.1).
_BEFORE = {
    ACKNOWLEDGE: 0,
    DRIVER: ACKNOWLEDGE,
    FEATURES_OK: ACKNOWLEDGE | DRIVER,
    DRIVER_OK: ACKNOWLEDGE | DRIVER | FEATURES_OK,
}


class Transport:
    """One device as its driver sees it; a subclass gives it registers and interrupts.

    `doorbell` is told the queue that a notification is for when that comes as a write to a register, and calls
    `kick` in the reactor's thread; without one, `kick` is called at once.  `reason` says why the device needs a reset,
    or why it last did.
    """

    def __init__(
        self, device: VirtioDevice, memory: GuestMemory, doorbell: Callable[[int], object] | None = None
    ) -> None:
        self.device = device
        self.queues = [Queue(memory, size) for size in device.QUEUE_SIZES]
        self.offered = device.features | VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX
        self.features = 0
        self.status = 0
        self.reason: str | None = None
        self._doorbell = doorbell or self.kick
        self._lock = device.lock
        self._device_features_select = 0
        self._driver_features_select = 0
        self._queue_select = 0
        # Interrupts have a lock of their own: whoever acknowledges one need not wait for a device at work.
        self._interrupt_lock = Lock()
        self._interrupts = 0
        self._generation = 0
        device.connect(self)

    def describe(self) -> dict[str, object]:
        """The device's name, what it counted, why it last needed a reset, and what each queue counted; for reports."""
        queues = [{name: getattr(queue.stats, name) for name in queue.stats.__slots__} for queue in self.queues]
        return {"device": self.device.NAME, **self.device.stats.to_dict(), "reason": self.reason, "queues": queues}

    # What the device calls (`Driver`).

    def notify(self, index: int) -> None:
        """See `Driver`."""
        raise NotImplementedError

    def config_changed(self) -> None:
        """See `Driver`."""
        with self._interrupt_lock:
            self._generation += 1
        if self.status & DRIVER_OK:
            self._interrupt_config()

    def broken(self, reason: str) -> None:
        """See `Driver`; what a reset has overtaken is forgotten."""
        with self._lock:
            if not self.status & DRIVER_OK or self.status & DEVICE_NEEDS_RESET:
                return
            self.status |= DEVICE_NEEDS_RESET
            self.reason = reason
            self.device.stats.breaks += 1
            self._interrupt_config()  # 2.1.2

    # What the guest's notifications call.

    def kick(self, index: int) -> None:
        """Queue `index` has new buffers; nothing where there is no such queue, or no device that runs."""
        with self._lock:
            if not self._running or index >= len(self.queues) or not self.queues[index].ready:
                return
            self.device.stats.kicks += 1
            try:
                self.device.kick(index)
            except KvmpyError as error:
                self.broken(str(error))

    # For subclasses: registers, with the lock held.

    @property
    def _running(self) -> bool:
        return self.status & (DRIVER_OK | DEVICE_NEEDS_RESET | FAILED) == DRIVER_OK

    def _interrupt_config(self) -> None:
        raise NotImplementedError

    def _interrupts_reset(self) -> None:
        """Takes back what interrupts are pending."""
        raise NotImplementedError

    def _refuse(self) -> None:
        self.device.stats.refused += 1

    def _device_features(self) -> int:
        select = self._device_features_select
        return self.offered >> 32 * select & _MASK32 if select < 2 else 0

    def _driver_features(self) -> int:
        select = self._driver_features_select
        return self.features >> 32 * select & _MASK32 if select < 2 else 0

    def _set_driver_features(self, value: int) -> None:
        select = self._driver_features_select
        if self.status & FEATURES_OK or select > 1:
            # Words past the second have no features to accept; drivers may write their zeroes.
            if value or self.status & FEATURES_OK:
                self._refuse()
            return
        shift = 32 * select
        self.features = self.features & ~(_MASK32 << shift) | value << shift

    def _set_status(self, value: int) -> None:
        if value == 0:
            self._reset()
            return
        held = self.status & _STATUS_BITS
        new = value & _STATUS_BITS & ~held
        if held & ~value:  # 2.1.1: a driver clears no bit.
            self._refuse()
            return
        for bit, before in _BEFORE.items():
            if new & bit:
                if (self.status & before) != before or self.status & FAILED:
                    self._refuse()
                    return
                if bit == FEATURES_OK and not self._accept_features():
                    return  # The driver reads back that its choice is not to be (3.1.1, 6.).
                self.status |= bit
        self.status |= new & FAILED
        if new & DRIVER_OK:
            try:
                self.device.activate(self.queues, self.features)
            except KvmpyError as error:
                self.broken(str(error))

    def _accept_features(self) -> bool:
        if self.features & ~self.offered or not self.features & VIRTIO_F_VERSION_1:
            self._refuse()
            return False
        for queue in self.queues:
            self._negotiated(queue)
        return True

    def _negotiated(self, queue: Queue) -> None:
        queue.indirect = bool(self.features & VIRTIO_F_INDIRECT_DESC)
        queue.event_idx = bool(self.features & VIRTIO_F_EVENT_IDX)

    def _reset(self) -> None:
        self.device.reset()
        for queue in self.queues:
            queue.reset()
        self.features = self.status = 0
        self._device_features_select = self._driver_features_select = self._queue_select = 0
        self._interrupts_reset()

    # Queues.

    def _queue(self) -> Queue | None:
        """The queue that is selected."""
        return self.queues[self._queue_select] if self._queue_select < len(self.queues) else None

    def _settable(self) -> Queue | None:
        """The queue that is selected, where it may be set up now; else it counts as refused."""
        queue, status = self._queue(), self.status
        late = status & DRIVER_OK and not self.features & VIRTIO_F_RING_RESET
        if queue is None or queue.ready or not status & FEATURES_OK or status & FAILED or late:
            self._refuse()
            return None
        return queue

    def _set_queue_size(self, value: int) -> None:
        queue = self._settable()
        if queue is None:
            return
        if 0 < value <= queue.max_size and not value & value - 1:
            queue.size = value
        else:
            self._refuse()

    def _set_queue_address(self, name: str, shift: int, value: int) -> None:
        """Sets the 32 bits from `shift` on of the address `name` ("descriptors", "driver" or "device")."""
        queue = self._settable()
        if queue is not None:
            setattr(queue, name, getattr(queue, name) & ~(_MASK32 << shift) | value << shift)

    def _enable_queue(self) -> None:
        queue = self._settable()
        if queue is not None:
            queue.ready = True

    def _stop_queue(self) -> None:
        """Puts the selected queue back to how it began."""
        queue = self._queue()
        if queue is None:
            self._refuse()
            return
        self.device.reset_queue(self._queue_select)
        queue.reset()
        self._negotiated(queue)
