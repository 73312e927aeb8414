"""The balloon, through its queues, as a driver uses it."""

from __future__ import annotations

import struct

import pytest

from kvmpy.devices.virtio.balloon import (
    DEFLATEQ,
    INFLATEQ,
    PAGES_MAX,
    QUEUE_SIZE,
    STATSQ,
    VIRTIO_BALLOON_F_REPORTING,
    VIRTIO_BALLOON_F_STATS_VQ,
    Balloon,
)
from kvmpy.devices.virtio.device import VIRTIO_F_VERSION_1
from kvmpy.devices.virtio.transport import mmio
from kvmpy.devices.virtio.transport.mmio import MmioTransport
from kvmpy.errors import GuestMemoryError
from kvmpy.machine.balloon import discard
from kvmpy.memory import ANONYMOUS, MEMFD, GuestMemory
from kvmpy.testing.fakes import FakeLine, Ports
from kvmpy.testing.virtio_driver import QueueDriver
from kvmpy.units import MIB, PAGE_SIZE

LIST = 0x80000
NEEDS_RESET = 64


class Guest:
    """A driver that has set the balloon up, with its side of each queue in `queues`."""

    def __init__(self, memory, features=VIRTIO_BALLOON_F_STATS_VQ | VIRTIO_BALLOON_F_REPORTING):
        self.memory = memory
        self.given = []
        self.balloon = Balloon(self.give)
        self.line = FakeLine()
        self.ports = Ports(MmioTransport(self.balloon, memory, self.line))
        self.queues = [QueueDriver(memory, QUEUE_SIZE, 0x10000 * (index + 1)) for index in range(4)]
        for status in (0, 1, 3):
            self.put(mmio.STATUS, status)
        for select in (0, 1):
            self.put(mmio.DRIVER_FEATURES_SEL, select)
            self.put(mmio.DRIVER_FEATURES, (VIRTIO_F_VERSION_1 | features) >> 32 * select & 0xFFFFFFFF)
        self.put(mmio.STATUS, 11)
        for index, queue in enumerate(self.queues):
            self.put(mmio.QUEUE_SEL, index)
            self.put(mmio.QUEUE_DESC_LOW, queue.descriptors)
            self.put(mmio.QUEUE_DRIVER_LOW, queue.driver)
            self.put(mmio.QUEUE_DEVICE_LOW, queue.device)
            self.put(mmio.QUEUE_READY, 1)
        self.put(mmio.STATUS, 15)

    def give(self, address, length):
        self.memory.region_of(address, length)
        self.given.append((address, length))

    def get(self, offset):
        return struct.unpack("<I", self.ports.read(offset, 4))[0]

    def put(self, offset, value):
        self.ports.write(offset, struct.pack("<I", value))

    def send(self, index, data=b"", writable=()):
        """Gives a queue a buffer with this in it, and notifies; what came back."""
        self.memory.write(LIST, data)
        self.queues[index].add([(LIST, len(data))] if data else [], writable)
        self.queues[index].kick()
        self.put(mmio.QUEUE_NOTIFY, index)
        return self.queues[index].reap()


def pages(*numbers):
    return struct.pack(f"<{len(numbers)}I", *numbers)


@pytest.fixture
def memory():
    with GuestMemory(2 * MIB) as memory:
        yield memory


@pytest.fixture
def guest(memory):
    return Guest(memory)


def test_the_guest_is_told_of_a_new_target(guest):
    guest.balloon.target = 3 * PAGE_SIZE
    assert guest.get(mmio.INTERRUPT_STATUS) == 2
    assert guest.get(mmio.CONFIG) == 3


@pytest.mark.parametrize("size", [-PAGE_SIZE, 1, 1 << 45])
def test_a_target_is_a_number_of_pages(guest, size):
    with pytest.raises(ValueError, match="number of pages"):
        guest.balloon.target = size


def test_the_guest_says_how_large_it_is(guest):
    guest.put(mmio.CONFIG + 4, 7)
    assert guest.balloon.actual == 7 * PAGE_SIZE
    guest.put(mmio.CONFIG, 9)
    assert guest.balloon.target == 0


def test_pages_go_back_in_runs(guest):
    assert len(guest.send(INFLATEQ, pages(0x105, 0x101, 0x100, 0x106, 0x106))) == 1
    assert guest.given == [(0x100000, 0x2000), (0x105000, 0x2000)]
    assert guest.balloon.stats.bytes == 0x4000


def test_pages_that_are_no_memory_are_counted_and_the_others_go(guest):
    guest.send(INFLATEQ, pages(0x100, 0xFFFFFFFF, 0x200))
    assert guest.given == [(0x100000, 0x1000)]
    assert guest.balloon.stats.errors == 2
    assert not guest.get(mmio.STATUS) & NEEDS_RESET


def test_a_list_is_bounded(guest):
    guest.send(INFLATEQ, pages(*[0x100 + number % 2 for number in range(PAGES_MAX)], 0x150))
    assert guest.given == [(0x100000, 0x2000)]


def test_a_list_that_ends_in_a_number_is_taken_up_to_it(guest):
    guest.send(INFLATEQ, pages(0x100) + b"\1\2")
    assert guest.given == [(0x100000, 0x1000)]


def test_deflating_gives_nothing_back(guest):
    assert len(guest.send(DEFLATEQ, pages(0x100))) == 1
    assert guest.given == []


def test_reported_pages_go_back_whole(guest):
    assert len(guest.send(3, writable=[(0x100000, 0x3000), (0x110800, 0x2000)])) == 1
    assert guest.given == [(0x100000, 0x3000), (0x111000, 0x1000)]


def test_without_statistics_the_reports_are_a_queue_earlier(memory):
    guest = Guest(memory, VIRTIO_BALLOON_F_REPORTING)
    guest.send(2, writable=[(0x100000, 0x1000)])
    assert guest.given == [(0x100000, 0x1000)]


def test_statistics_stay_until_new_ones_are_wanted(guest):
    said = struct.pack("<HQHQHQ", 4, 1234, 5, 5678, 99, 1)
    assert guest.send(STATSQ, said + b"cut") == []
    assert guest.balloon.statistics == {"free": 1234, "total": 5678}
    guest.balloon.ask_statistics()
    assert len(guest.queues[STATSQ].reap()) == 1
    guest.balloon.ask_statistics()
    assert guest.queues[STATSQ].reap() == []


def test_a_second_answer_gives_the_first_buffer_back(guest):
    guest.send(STATSQ, struct.pack("<HQ", 4, 1))
    assert len(guest.send(STATSQ, struct.pack("<HQ", 4, 2))) == 1
    assert guest.balloon.statistics == {"free": 2}


def test_after_a_reset_nothing_of_the_guest_is_kept(guest):
    guest.send(STATSQ, struct.pack("<HQ", 4, 1))
    guest.put(mmio.CONFIG + 4, 7)
    guest.put(mmio.STATUS, 0)
    guest.balloon.ask_statistics()
    assert guest.balloon.actual == 0
    assert guest.queues[STATSQ].reap() == []


@pytest.mark.parametrize("backing", [ANONYMOUS, MEMFD])
def test_what_went_back_reads_as_zeroes_and_is_dirty(backing):
    with GuestMemory(2 * MIB, backing=backing) as memory:
        memory.write(MIB - 1, b"\xff" * (PAGE_SIZE + 2))
        memory.clear_dirty()
        discard(memory, MIB, PAGE_SIZE)
        assert memory.read(MIB - 1, PAGE_SIZE + 2) == b"\xff" + bytes(PAGE_SIZE) + b"\xff"
        assert list(memory.dirty_pages()) == [MIB]
        with pytest.raises(GuestMemoryError):
            discard(memory, 2 * MIB - PAGE_SIZE, 2 * PAGE_SIZE)
