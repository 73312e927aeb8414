"""Memory balloon (virtio 1.2, 5.5): pages that the guest does without are given back to the host.

The balloon takes as much as `target` says and gives it up again when that falls, or when the guest runs out of
memory.  Apart from that the guest reports pages that it has freed; those it takes back whenever it likes.
"""

from __future__ import annotations

import struct

from kvmpy.devices.virtio.device import VIRTIO_F_RING_RESET, VirtioDevice
from kvmpy.errors import KvmpyError
from kvmpy.units import PAGE_SHIFT, PAGE_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kvmpy.devices.virtio.queue import Chain, Queue

QUEUE_SIZE = 128

VIRTIO_BALLOON_F_STATS_VQ = 1 << 1
VIRTIO_BALLOON_F_DEFLATE_ON_OOM = 1 << 2
VIRTIO_BALLOON_F_REPORTING = 1 << 5

# 5.5.2, without the queues of features that are not offered here.
INFLATEQ, DEFLATEQ, STATSQ, REPORTINGQ = range(4)

_CONFIG = struct.Struct("<II")  # what is wanted, and what is, in pages
_ACTUAL = 4

# Drivers name 256 pages at a time.  What a longer list names from here on stays where it is.
PAGES_MAX = 4096

_STATISTIC = struct.Struct("<HQ")
STATISTICS_MAX = 64
# 5.5.6.3, by tag; in bytes but for the faults and allocations, which are numbers of them.
STATISTICS = (
    "swapped_in", "swapped_out", "major_faults", "minor_faults", "free", "total", "available", "disk_caches",
    "huge_page_allocations", "huge_page_failures",
)  # fmt: skip


class Balloon(VirtioDevice):
    """A balloon that gives pages back by `discard(address, length)`, which may raise `KvmpyError` for what is no RAM.

    `stats.bytes` counts what was given back; `stats.errors`, what the guest named that it has not.
    """

    DEVICE_ID = 5
    NAME = "balloon"
    QUEUE_SIZES = (QUEUE_SIZE,) * 4

    features = (
        VIRTIO_F_RING_RESET | VIRTIO_BALLOON_F_STATS_VQ | VIRTIO_BALLOON_F_DEFLATE_ON_OOM | VIRTIO_BALLOON_F_REPORTING
    )

    def __init__(self, discard: Callable[[int, int], object]) -> None:
        super().__init__()
        self.statistics: dict[str, int] = {}
        """What the guest last said of its memory, by the names in `STATISTICS`."""
        self._discard = discard
        self._target = 0
        self._actual = 0
        self._queues: Sequence[Queue] = ()
        self._handlers: dict[int, Callable[[Chain], None]] = {}
        self._statistics_chain: Chain | None = None

    @property
    def target(self) -> int:
        """How many bytes the balloon should take, a multiple of 4 KiB; the guest follows when and as far as it can."""
        return self._target << PAGE_SHIFT

    @target.setter
    def target(self, size: int) -> None:
        if size < 0 or size % PAGE_SIZE or size >> PAGE_SHIFT > 0xFFFFFFFF:
            raise ValueError(f"a balloon of {size} bytes is not a number of pages")
        with self.lock:
            self._target = size >> PAGE_SHIFT
        self.config_changed()

    @property
    def actual(self) -> int:
        """How many bytes the balloon has taken, as the guest says."""
        return self._actual << PAGE_SHIFT

    def ask_statistics(self) -> None:
        """Asks the guest for new `statistics`; nothing where it has not answered the last time."""
        with self.lock:
            chain, self._statistics_chain = self._statistics_chain, None
            if chain is not None:
                try:
                    self._push(STATSQ, chain)
                except KvmpyError as error:
                    self.broken(str(error))

    # What the transport calls.

    def read_config(self, offset: int, data: memoryview) -> None:
        """See `VirtioDevice`."""
        found = _CONFIG.pack(self._target, self._actual)[offset : offset + len(data)]
        data[:] = found.ljust(len(data), b"\0")

    def write_config(self, offset: int, data: memoryview) -> None:
        """See `VirtioDevice`: the guest says how large the balloon is."""
        if offset == _ACTUAL and len(data) == 4:
            self._actual = int.from_bytes(data, "little")

    def activate(self, queues: Sequence[Queue], features: int) -> None:
        """See `VirtioDevice`."""
        self._queues = queues
        kinds = [self._inflate, self._deflate]
        # A queue that was not negotiated has no number, and those behind it move up.
        if features & VIRTIO_BALLOON_F_STATS_VQ:
            kinds.append(self._take_statistics)
        if features & VIRTIO_BALLOON_F_REPORTING:
            kinds.append(self._report)
        self._handlers = dict(enumerate(kinds))

    def reset(self) -> None:
        """See `VirtioDevice`; the guest has all its pages again."""
        self._queues = ()
        self._handlers = {}
        self._statistics_chain = None
        self._actual = 0

    def reset_queue(self, index: int) -> None:
        """See `VirtioDevice`."""
        if self._handlers.get(index) == self._take_statistics:
            self._statistics_chain = None

    def kick(self, index: int) -> None:
        """Takes what the guest put into a queue."""
        handler = self._handlers.get(index)
        if handler is None:
            return
        # One more than there can be: a batch that is not full leaves the guest's notifications on.
        for chain in self._queues[index].pop_batch(QUEUE_SIZE + 1):
            self.stats.requests += 1
            handler(chain)
            if chain is not self._statistics_chain:
                self._queues[index].push(chain, 0)
        if self._queues[index].should_notify():
            self.notify(index)

    # One buffer each.

    def _inflate(self, chain: Chain) -> None:
        numbers = chain.read(min(chain.readable_length, 4 * PAGES_MAX) & ~3)
        for first, count in _runs(sorted(set(memoryview(numbers).cast("I")))):
            self._give_back(first << PAGE_SHIFT, count << PAGE_SHIFT)

    def _deflate(self, chain: Chain) -> None:
        """The guest may use these pages again: they are there as soon as it touches them."""

    def _report(self, chain: Chain) -> None:
        for address, length in chain.writable:
            first, last = address + PAGE_SIZE - 1 >> PAGE_SHIFT, address + length >> PAGE_SHIFT
            if first < last:
                self._give_back(first << PAGE_SHIFT, last - first << PAGE_SHIFT)

    def _take_statistics(self, chain: Chain) -> None:
        if self._statistics_chain is not None:
            self._push(STATSQ, self._statistics_chain)
        said = chain.read(min(chain.readable_length, _STATISTIC.size * STATISTICS_MAX))
        whole = len(said) - len(said) % _STATISTIC.size
        self.statistics = {
            STATISTICS[tag]: value for tag, value in _STATISTIC.iter_unpack(said[:whole]) if tag < len(STATISTICS)
        }
        # It stays here until new ones are wanted.
        self._statistics_chain = chain

    def _give_back(self, address: int, length: int) -> None:
        try:
            self._discard(address, length)
        except KvmpyError:
            self.stats.errors += 1
        else:
            self.stats.bytes += length

    def _push(self, index: int, chain: Chain) -> None:
        queue = self._queues[index]
        queue.push(chain, 0)
        if queue.should_notify():
            self.notify(index)


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The runs in rising `numbers`, as (first, count)."""
    first = count = 0
    for number in numbers:
        if count and number == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = number, 1
    if count:
        yield first, count
