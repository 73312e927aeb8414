"""Entropy device (virtio 1.2, 5.4): the guest gives buffers, and gets them back full of random bytes."""

from __future__ import annotations

import os

from kvmpy.devices.virtio.device import VIRTIO_F_RING_RESET, VirtioDevice
from kvmpy.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kvmpy.devices.virtio.queue import Queue

QUEUE_SIZE = 64

# The most bytes that one buffer gets: drivers take fewer as well as many, and a guest could ask for all that RAM holds.
REQUEST_MAX = 64 << 10


class Rng(VirtioDevice):
    """An entropy device that gives what `source` gives, a function of the number of bytes.

    A kick serves no more than a ring full of buffers, each with `REQUEST_MAX` bytes at most.
    """

    DEVICE_ID = 4
    NAME = "rng"
    QUEUE_SIZES = (QUEUE_SIZE,)

    features = VIRTIO_F_RING_RESET

    def __init__(self, source: Callable[[int], bytes] = os.urandom) -> None:
        super().__init__()
        self._source = source
        self._queue: Queue | None = None

    def activate(self, queues: Sequence[Queue], features: int) -> None:
        """See `VirtioDevice`."""
        self._queue = queues[0]

    def reset(self) -> None:
        """See `VirtioDevice`; a request is over with its kick, so none is under way."""
        self._queue = None

    def kick(self, index: int) -> None:
        """Fills the buffers that wait."""
        queue = self._queue
        if queue is None:
            return
        # One more than there can be: a batch that is not full leaves the guest's notifications on.
        for chain in queue.pop_batch(QUEUE_SIZE + 1):
            wanted = min(chain.writable_length, REQUEST_MAX)
            try:
                data = self._source(wanted)
            except OSError as error:
                raise HostError("getrandom", error.errno or 0) from error
            written = chain.write(data)
            queue.push(chain, written)
            self.stats.requests += 1
            self.stats.bytes += written
        if queue.should_notify():
            self.notify(index)
