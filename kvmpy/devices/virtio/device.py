"""What a virtio device is to its transport, and what it has from it (virtio 1.2, chapter 2).

A device knows queues and requests; status, negotiation and registers are the transport's.  Locks: `VirtioDevice.lock`
is held while a transport calls into the device, whichever thread that is; a device takes it when a request's end
comes from elsewhere.  `notify`, `config_changed` and `broken` may be called with it held or not.
"""

from __future__ import annotations

from threading import RLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import ClassVar, Protocol

    from kvmpy.devices.virtio.queue import Queue

    class Driver(Protocol):
        """The guest's side, as the transport shows it to the device."""

        def notify(self, index: int) -> None:
            """Interrupts the guest: buffers of queue `index` are used."""

        def config_changed(self) -> None:
            """Interrupts the guest: the device's configuration is another one."""

        def broken(self, reason: str) -> None:
            """Tells the guest that only a reset helps."""


# Feature bits that are no device's own (chapter 6), as masks.
VIRTIO_F_INDIRECT_DESC = 1 << 28
VIRTIO_F_EVENT_IDX = 1 << 29
VIRTIO_F_VERSION_1 = 1 << 32
VIRTIO_F_RING_RESET = 1 << 40

# Device status (2.1).
ACKNOWLEDGE = 1
DRIVER = 2
DRIVER_OK = 4
FEATURES_OK = 8
DEVICE_NEEDS_RESET = 64
FAILED = 128


class VirtioStats:
    """What a device has counted since it was made.

    `kicks`: notifications by the guest; `interrupts`: those to it; `requests`, `bytes` and `errors`: of the device's
    own doing; `refused`: what the driver did to the registers against the rules; `breaks`: how often it needed a
    reset.
    """

    __slots__ = ("breaks", "bytes", "errors", "interrupts", "kicks", "refused", "requests")

    def __init__(self) -> None:
        self.kicks = 0
        self.interrupts = 0
        self.requests = 0
        self.bytes = 0
        self.errors = 0
        self.refused = 0
        self.breaks = 0

    def to_dict(self) -> dict[str, int]:
        """All counts by name."""
        return {name: getattr(self, name) for name in self.__slots__}


class VirtioDevice:
    """Base of all virtio devices; what a device has not, it leaves as it is here.

    `DEVICE_ID` is its number (chapter 5), `NAME` what messages call it, `QUEUE_SIZES` the most entries that each of
    its queues may have, powers of two.  `features` are the bits of its own that it offers; those of rings and
    transport are the transport's to offer, but for VIRTIO_F_RING_RESET: a device that has `reset_queue` offers it.
    """

    DEVICE_ID: ClassVar[int] = 0
    NAME: ClassVar[str] = "virtio"
    QUEUE_SIZES: Sequence[int] = ()

    features: int = 0

    def __init__(self) -> None:
        self.lock = RLock()
        self.stats = VirtioStats()
        self._driver: Driver | None = None

    # What a transport calls, with `lock` held.

    def connect(self, driver: Driver) -> None:
        """Gives the device its guest; once, before that runs."""
        self._driver = driver

    def read_config(self, offset: int, data: memoryview) -> None:
        """Fills `data` from the configuration; what lies past its end reads as zero."""
        data[:] = bytes(len(data))

    def write_config(self, offset: int, data: memoryview) -> None:
        """Takes the guest's write to the configuration; what is read-only, or past the end, stays."""

    def activate(self, queues: Sequence[Queue], features: int) -> None:
        """The driver is ready: from here on requests come.  `features` are those that both sides want."""

    def reset(self) -> None:
        """Back to how it began.  No request that is under way touches guest memory or queues when this returns."""

    def reset_queue(self, index: int) -> None:
        """As `reset`, for the requests of one queue (2.6.1)."""

    def kick(self, index: int) -> None:
        """The guest has put buffers into queue `index`.  In the reactor's thread; a `KvmpyError` breaks the device."""

    # What the device calls.

    def notify(self, index: int) -> None:
        """Interrupts the guest for queue `index`; whether it wants that, `Queue.should_notify` knows."""
        if self._driver is not None:
            self.stats.interrupts += 1
            self._driver.notify(index)

    def config_changed(self) -> None:
        """Tells the guest to read the configuration again."""
        if self._driver is not None:
            self._driver.config_changed()

    def broken(self, reason: str) -> None:
        """Does nothing more for the guest until it resets the device; `reason` is a sentence about what it did."""
        if self._driver is not None:
            self._driver.broken(reason)
