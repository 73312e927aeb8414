"""The entropy device, through the queue, as a driver uses it."""

from __future__ import annotations

import struct

import pytest

from kvmpy.devices.virtio.device import (
    ACKNOWLEDGE,
    DEVICE_NEEDS_RESET,
    DRIVER,
    DRIVER_OK,
    FEATURES_OK,
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_VERSION_1,
)
from kvmpy.devices.virtio.rng import QUEUE_SIZE, REQUEST_MAX, Rng
from kvmpy.devices.virtio.transport import mmio
from kvmpy.devices.virtio.transport.mmio import MmioTransport
from kvmpy.memory import GuestMemory
from kvmpy.testing.fakes import FakeLine, Ports
from kvmpy.testing.virtio_driver import QueueDriver
from kvmpy.units import MIB

RINGS = 0x10000
BUFFER = 0x80000


class Guest:
    """A driver that has set the device up, `driver` its side of the queue."""

    def __init__(self, memory, source, features=VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC, rings=None):
        self.memory = memory
        self.features = features
        self.rings = rings
        self.line = FakeLine()
        self.device = Rng(source)
        self.ports = Ports(MmioTransport(self.device, memory, self.line))
        self.set_up()

    def set_up(self):
        event_idx = bool(self.features & VIRTIO_F_EVENT_IDX)
        self.driver = QueueDriver(self.memory, QUEUE_SIZE, RINGS, event_idx=event_idx)
        self.put(mmio.STATUS, ACKNOWLEDGE)
        self.put(mmio.STATUS, ACKNOWLEDGE | DRIVER)
        for select in (0, 1):
            self.put(mmio.DRIVER_FEATURES_SEL, select)
            self.put(mmio.DRIVER_FEATURES, (VIRTIO_F_VERSION_1 | self.features) >> 32 * select & 0xFFFFFFFF)
        self.put(mmio.STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK)
        self.put(mmio.QUEUE_DESC_LOW, self.driver.descriptors if self.rings is None else self.rings)
        self.put(mmio.QUEUE_DRIVER_LOW, self.driver.driver)
        self.put(mmio.QUEUE_DEVICE_LOW, self.driver.device)
        self.put(mmio.QUEUE_READY, 1)
        self.put(mmio.STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)

    def put(self, offset, value):
        self.ports.write(offset, struct.pack("<I", value))

    @property
    def status(self):
        return struct.unpack("<I", self.ports.read(mmio.STATUS, 4))[0]

    def kick(self):
        self.driver.kick()
        self.put(mmio.QUEUE_NOTIFY, 0)


@pytest.fixture
def memory():
    with GuestMemory(MIB) as memory:
        yield memory


@pytest.fixture
def guest(memory):
    return Guest(memory, lambda size: b"\x5a" * size)


def test_a_buffer_comes_back_full_of_what_the_source_gives(guest, memory):
    head = guest.driver.add([], [(BUFFER, 100)])
    guest.kick()
    assert guest.driver.reap() == [(head, 100)]
    assert memory.read(BUFFER, 101) == b"\x5a" * 100 + b"\0"
    assert guest.line.edges == 1


def test_a_buffer_in_pieces_is_filled_in_order(memory):
    guest = Guest(memory, lambda size: bytes(range(size)))
    guest.driver.add([], [(BUFFER, 3), (BUFFER + 100, 2)], indirect=True)
    guest.kick()
    assert memory.read(BUFFER, 4) == b"\0\1\2\0"
    assert memory.read(BUFFER + 100, 3) == b"\3\4\0"


def test_all_buffers_of_a_full_ring_are_served_by_one_kick(guest):
    for index in range(QUEUE_SIZE):
        guest.driver.add([], [(BUFFER + 16 * index, 16)])
    guest.kick()
    assert len(guest.driver.reap()) == QUEUE_SIZE
    assert (guest.device.stats.requests, guest.device.stats.bytes) == (QUEUE_SIZE, 16 * QUEUE_SIZE)
    # The next one is to be told of.
    guest.driver.add([], [(BUFFER, 1)])
    assert guest.driver.kick()


def test_a_request_is_bounded(memory):
    asked = []
    guest = Guest(memory, lambda size: asked.append(size) or bytes(size))
    guest.driver.add([], [(BUFFER, REQUEST_MAX), (BUFFER, REQUEST_MAX)])
    guest.kick()
    assert asked == [REQUEST_MAX]
    assert guest.driver.reap()[0][1] == REQUEST_MAX


def test_a_buffer_that_is_not_to_be_written_gets_nothing(guest, memory):
    head = guest.driver.add([(BUFFER, 8)])
    guest.kick()
    assert guest.driver.reap() == [(head, 0)]
    assert memory.read(BUFFER, 8) == bytes(8)


def test_a_driver_that_wants_no_interrupt_gets_none(memory):
    guest = Guest(memory, bytes, features=0)
    guest.driver.want_interrupts(False)
    guest.driver.add([], [(BUFFER, 8)])
    guest.kick()
    assert len(guest.driver.reap()) == 1
    assert guest.line.edges == 0


@pytest.mark.parametrize(("address", "length"), [(MIB, 8), (MIB - 4, 8), (2**64 - 8, 8), (BUFFER, 0)])
def test_a_buffer_that_is_no_memory_needs_a_reset(guest, address, length):
    head = guest.driver.add([], [(BUFFER, 8)])
    guest.driver.set_descriptor(head, address, length, 2)
    guest.kick()
    assert guest.status & DEVICE_NEEDS_RESET
    assert guest.device.stats.breaks == 1


def test_rings_that_are_no_memory_need_a_reset(memory):
    guest = Guest(memory, bytes, rings=MIB - 64)
    guest.put(mmio.QUEUE_NOTIFY, 0)
    assert guest.status & DEVICE_NEEDS_RESET


def test_a_source_that_fails_needs_a_reset_and_ends_nothing(memory):
    def source(size):
        raise OSError(5, "no entropy")

    guest = Guest(memory, source)
    guest.driver.add([], [(BUFFER, 8)])
    guest.kick()
    assert guest.status & DEVICE_NEEDS_RESET


def test_after_a_reset_it_serves_again(guest):
    guest.driver.set_available_index(1000)
    guest.put(mmio.QUEUE_NOTIFY, 0)
    assert guest.status & DEVICE_NEEDS_RESET
    guest.put(mmio.STATUS, 0)
    guest.set_up()
    head = guest.driver.add([], [(BUFFER, 8)])
    guest.kick()
    assert guest.driver.reap() == [(head, 8)]


def test_by_default_it_gives_the_hosts_randomness():
    assert Rng()._source(16) != Rng()._source(16)
