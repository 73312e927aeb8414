"""A virtio device as a PCI function: capabilities, registers behind the BAR, MSI-X and the pin."""

from __future__ import annotations

import struct

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvmpy.devices.pci import config as header
from kvmpy.devices.virtio.device import (
    ACKNOWLEDGE,
    DEVICE_NEEDS_RESET,
    DRIVER,
    DRIVER_OK,
    FEATURES_OK,
    VIRTIO_F_RING_RESET,
    VIRTIO_F_VERSION_1,
    VirtioDevice,
)
from kvmpy.devices.virtio.transport import pci
from kvmpy.devices.virtio.transport.msix import MSIX_ENABLE, MSIX_MASK_ALL, PCI_CAP_ID_MSIX
from kvmpy.devices.virtio.transport.pci import PciTransport
from kvmpy.memory import GuestMemory
from kvmpy.testing.fakes import FakeLine, Ports
from kvmpy.units import MIB

READY = ACKNOWLEDGE | DRIVER | FEATURES_OK
LIVE = READY | DRIVER_OK
BAR = 0xC0000000


class Recorder(VirtioDevice):
    """A device with two queues that keeps what was done to it."""

    DEVICE_ID = 4
    QUEUE_SIZES = (8, 16)
    features = VIRTIO_F_RING_RESET

    def __init__(self):
        super().__init__()
        self.config = bytearray(range(8))
        self.calls = []

    def read_config(self, offset, data):
        data[:] = bytes(self.config[offset : offset + len(data)]).ljust(len(data), b"\0")

    def write_config(self, offset, data):
        if offset + len(data) <= len(self.config):
            self.config[offset : offset + len(data)] = data

    def kick(self, index):
        self.calls.append(index)


class Mapper:
    """Keeps where the BAR is."""

    def __init__(self):
        self.place = None

    def map(self, bar, address, size):
        self.place = address, size

    def unmap(self, bar):
        self.place = None


class Guest:
    """The guest's accesses: to configuration space, and behind the BAR."""

    def __init__(self, memory):
        self.device = Recorder()
        self.line = FakeLine()
        self.mapper = Mapper()
        self.sent = []
        self.transport = PciTransport(
            self.device, memory, mapper=self.mapper, send=lambda *message: self.sent.append(message), intx=self.line
        )
        self.function = self.transport.function
        self.bar = Ports(self.transport)

    def config(self, offset, size):
        data = memoryview(bytearray(size))
        self.function.read_config(offset, data)
        return int.from_bytes(data, "little")

    def set_config(self, offset, size, value):
        self.function.write_config(offset, memoryview(bytearray(value.to_bytes(size, "little"))))

    def get(self, offset, size):
        return int.from_bytes(self.bar.read(offset, size), "little")

    def put(self, offset, size, value):
        self.bar.write(offset, value.to_bytes(size, "little"))

    def capabilities(self):
        """(id, offset) of each."""
        found, at = [], self.config(header.CAPABILITIES, 1)
        while at:
            found.append((self.config(at, 1), at))
            at = self.config(at + 1, 1)
        return found

    def structure(self, kind):
        """The capability of this kind: where it is, and (bar, offset, length) of what it leads to."""
        for identity, at in self.capabilities():
            if identity == pci.PCI_CAP_ID_VNDR and self.config(at + 3, 1) == kind:
                return at, (self.config(at + 4, 1), self.config(at + 8, 4), self.config(at + 12, 4))
        raise AssertionError(f"there is no capability {kind}")

    @property
    def msix(self):
        return dict(self.capabilities())[PCI_CAP_ID_MSIX]

    def enable_msix(self, control=MSIX_ENABLE):
        self.set_config(self.msix + 2, 2, control)

    def set_message(self, vector, address, data, masked=0):
        at = pci.MSIX_TABLE + 16 * vector
        for number, word in enumerate((address & 0xFFFFFFFF, address >> 32, data, masked)):
            self.put(at + 4 * number, 4, word)

    def go_live(self):
        self.put(pci.DEVICE_STATUS, 1, 0)
        self.put(pci.DEVICE_STATUS, 1, ACKNOWLEDGE)
        self.put(pci.DEVICE_STATUS, 1, ACKNOWLEDGE | DRIVER)
        self.put(pci.DRIVER_FEATURE_SELECT, 4, 1)
        self.put(pci.DRIVER_FEATURE, 4, (VIRTIO_F_VERSION_1 | VIRTIO_F_RING_RESET) >> 32)
        self.put(pci.DEVICE_STATUS, 1, READY)
        for index in range(2):
            self.put(pci.QUEUE_SELECT, 2, index)
            self.put(pci.QUEUE_SIZE, 2, 8)
            for number, offset in enumerate((pci.QUEUE_DESC, pci.QUEUE_DRIVER, pci.QUEUE_DEVICE)):
                self.put(offset, 4, 0x1000 * (number + 3 * index))
                self.put(offset + 4, 4, 0)
            self.put(pci.QUEUE_ENABLE, 2, 1)
        self.put(pci.DEVICE_STATUS, 1, LIVE)


@pytest.fixture(scope="module")
def memory():
    with GuestMemory(MIB) as memory:
        yield memory


@pytest.fixture
def guest(memory):
    return Guest(memory)


def test_ids_say_what_it_is(guest):
    assert guest.config(header.VENDOR_ID, 2) == 0x1AF4
    assert guest.config(header.DEVICE_ID, 2) == 0x1044
    assert guest.config(header.REVISION_ID, 1) >= 1
    assert guest.config(header.INTERRUPT_PIN, 1) == 1


def test_capabilities_lead_to_structures_inside_the_bar(guest):
    kinds = range(pci.VIRTIO_PCI_CAP_COMMON_CFG, pci.VIRTIO_PCI_CAP_DEVICE_CFG + 1)
    places = [guest.structure(kind)[1] for kind in kinds]
    taken = set()
    for bar, offset, length in places:
        assert bar == 0
        assert length
        assert offset + length <= pci.BAR_SIZE
        assert not taken & set(range(offset, offset + length))
        taken |= set(range(offset, offset + length))


def test_notifications_are_as_far_apart_as_the_capability_says(guest):
    at, (_, offset, length) = guest.structure(pci.VIRTIO_PCI_CAP_NOTIFY_CFG)
    multiplier = guest.config(at + 16, 4)
    guest.go_live()
    for index in range(2):
        guest.put(pci.QUEUE_SELECT, 2, index)
        place = guest.get(pci.QUEUE_NOTIFY_OFF, 2) * multiplier
        assert place + 2 <= length
        guest.put(offset + place, 2, index)
    assert guest.device.calls == [0, 1]


def test_the_bar_appears_where_the_guest_puts_it(guest):
    guest.set_config(header.BAR0, 4, 0xFFFFFFFF)
    assert guest.config(header.BAR0, 4) == (1 << 32) - pci.BAR_SIZE
    guest.set_config(header.BAR0, 4, BAR)
    guest.set_config(header.COMMAND, 2, header.COMMAND_MEMORY)
    assert guest.mapper.place == (BAR, pci.BAR_SIZE)


def test_a_driver_that_keeps_the_rules_gets_a_device_that_runs(guest):
    guest.go_live()
    assert guest.get(pci.DEVICE_STATUS, 1) == LIVE
    assert guest.get(pci.NUM_QUEUES, 2) == 2
    assert [queue.ready for queue in guest.transport.queues] == [True, True]
    assert guest.transport.queues[1].driver == 0x4000


def test_what_was_written_is_read_back(guest):
    guest.go_live()
    guest.put(pci.QUEUE_SELECT, 2, 1)
    assert guest.get(pci.QUEUE_SELECT, 2) == 1
    assert guest.get(pci.QUEUE_SIZE, 2) == 8
    assert guest.get(pci.QUEUE_ENABLE, 2) == 1
    assert guest.get(pci.QUEUE_DEVICE, 8) == guest.get(pci.QUEUE_DEVICE, 4) == 0x5000
    assert guest.get(pci.DRIVER_FEATURE, 4) == (VIRTIO_F_VERSION_1 | VIRTIO_F_RING_RESET) >> 32


def test_no_queue_has_no_size(guest):
    guest.put(pci.QUEUE_SELECT, 2, 2)
    assert guest.get(pci.QUEUE_SIZE, 2) == 0


def test_addresses_may_be_written_whole(guest):
    guest.go_live()
    guest.put(pci.QUEUE_SELECT, 2, 1)
    guest.put(pci.QUEUE_RESET, 2, 1)
    assert (guest.get(pci.QUEUE_RESET, 2), guest.get(pci.QUEUE_ENABLE, 2)) == (0, 0)
    guest.put(pci.QUEUE_DESC, 8, 0x123456780)
    assert guest.transport.queues[1].descriptors == 0x123456780


@pytest.mark.parametrize(("offset", "size"), [(pci.DEVICE_STATUS, 4), (pci.QUEUE_SELECT, 1), (1, 4), (0x100, 4)])
def test_a_register_has_one_width(guest, offset, size):
    assert guest.get(offset, size) == 0
    guest.put(offset, size, 1)
    assert guest.device.stats.refused == 2
    assert guest.transport.status == 0


def test_the_devices_configuration_is_there(guest):
    _, (_, offset, _) = guest.structure(pci.VIRTIO_PCI_CAP_DEVICE_CFG)
    assert guest.get(offset + 2, 2) == 0x0302
    guest.put(offset + 1, 1, 0x77)
    assert guest.device.config[1] == 0x77


def test_without_msix_the_pin_rises_until_the_status_is_read(guest):
    guest.go_live()
    guest.device.notify(1)
    assert guest.line.level
    assert guest.config(header.STATUS, 2) & header.STATUS_INTERRUPT
    assert guest.get(pci.ISR, 1) == 1
    assert not guest.line.level
    assert guest.get(pci.ISR, 1) == 0


def test_a_changed_configuration_is_another_bit(guest):
    guest.go_live()
    generation = guest.get(pci.CONFIG_GENERATION, 1)
    guest.device.config_changed()
    assert guest.get(pci.ISR, 1) == 2
    assert guest.get(pci.CONFIG_GENERATION, 1) != generation


def test_with_msix_each_queue_sends_its_message(guest):
    guest.go_live()
    guest.enable_msix()
    for vector in range(3):
        guest.set_message(vector, 0xFEE00000 + 0x1000 * vector, 0x40 + vector)
    guest.put(pci.CONFIG_MSIX_VECTOR, 2, 0)
    for index in range(2):
        guest.put(pci.QUEUE_SELECT, 2, index)
        guest.put(pci.QUEUE_MSIX_VECTOR, 2, index + 1)
    guest.device.notify(1)
    guest.device.notify(0)
    guest.device.config_changed()
    assert guest.sent == [(2, 0xFEE02000, 0x42), (1, 0xFEE01000, 0x41), (0, 0xFEE00000, 0x40)]
    assert guest.line.edges == 0


def test_a_vector_that_is_not_there_is_none(guest):
    guest.put(pci.CONFIG_MSIX_VECTOR, 2, 3)
    assert guest.get(pci.CONFIG_MSIX_VECTOR, 2) == 0xFFFF
    guest.put(pci.CONFIG_MSIX_VECTOR, 2, 2)
    assert guest.get(pci.CONFIG_MSIX_VECTOR, 2) == 2


def test_a_queue_without_a_vector_sends_nothing(guest):
    guest.go_live()
    guest.enable_msix()
    guest.device.notify(0)
    assert guest.sent == []


@pytest.mark.parametrize("how", ["entry", "function"])
def test_a_masked_message_waits(guest, how):
    guest.go_live()
    guest.put(pci.CONFIG_MSIX_VECTOR, 2, 1)
    guest.set_message(1, 0xFEE00000, 0x41, masked=int(how == "entry"))
    guest.enable_msix(MSIX_ENABLE | (MSIX_MASK_ALL if how == "function" else 0))
    guest.device.config_changed()
    guest.device.config_changed()
    assert guest.sent == []
    assert guest.get(pci.MSIX_PENDING, 8) == 1 << 1
    if how == "entry":
        guest.put(pci.MSIX_TABLE + 16 + 12, 4, 0)
    else:
        guest.enable_msix()
    assert guest.sent == [(1, 0xFEE00000, 0x41)]
    assert guest.get(pci.MSIX_PENDING, 8) == 0


def test_messages_are_masked_at_first(guest):
    assert [guest.get(pci.MSIX_TABLE + 16 * vector + 12, 4) for vector in range(3)] == [1, 1, 1]
    assert guest.config(guest.msix + 2, 2) == 2  # three, and off
    assert guest.config(guest.msix + 4, 4) == pci.MSIX_TABLE
    assert guest.config(guest.msix + 8, 4) == pci.MSIX_PENDING


def test_switching_to_msix_lets_the_pin_rest(guest):
    guest.go_live()
    guest.device.notify(0)
    guest.enable_msix()
    assert not guest.line.level


def test_a_reset_takes_back_interrupts_and_vectors(guest):
    guest.go_live()
    guest.put(pci.CONFIG_MSIX_VECTOR, 2, 1)
    guest.device.notify(0)
    guest.put(pci.DEVICE_STATUS, 1, 0)
    assert not guest.line.level
    assert guest.get(pci.CONFIG_MSIX_VECTOR, 2) == 0xFFFF


def test_the_window_in_configuration_space_reaches_the_registers(guest):
    at, _ = guest.structure(pci.VIRTIO_PCI_CAP_PCI_CFG)
    guest.set_config(at + 8, 4, pci.NUM_QUEUES)
    guest.set_config(at + 12, 4, 2)
    assert guest.config(at + 16, 2) == 2
    guest.set_config(at + 8, 4, pci.DEVICE_STATUS)
    guest.set_config(at + 12, 4, 1)
    guest.set_config(at + 16, 1, ACKNOWLEDGE)
    assert guest.transport.status == ACKNOWLEDGE


@pytest.mark.parametrize(
    ("bar", "offset", "length"),
    [(1, 0x14, 1), (0, pci.BAR_SIZE, 1), (0, 0x14, 3), (0, 0x12, 4), (0, 0xFFFFFFFF, 1), (0, 0x14, 0)],
)
def test_a_window_to_nowhere_does_nothing(guest, bar, offset, length):
    at, _ = guest.structure(pci.VIRTIO_PCI_CAP_PCI_CFG)
    guest.set_config(at + 4, 1, bar)
    guest.set_config(at + 8, 4, offset)
    guest.set_config(at + 12, 4, length)
    guest.set_config(at + 16, 4, 1)
    assert guest.config(at + 16, 4) == 1
    assert (guest.transport.status, guest.device.stats.refused) == (0, 0)


class Hostile(RuleBasedStateMachine):
    """A driver that writes whatever it likes, and often what makes sense."""

    memory = GuestMemory(MIB)

    def __init__(self):
        super().__init__()
        self.guest = Guest(self.memory)

    @rule(
        offset=st.one_of(
            st.integers(0, 0x40),
            st.integers(0, pci.BAR_SIZE - 1),
            st.integers(0, 15).map(lambda word: pci.MSIX_TABLE + 4 * word),
            st.sampled_from((pci.NOTIFY, pci.NOTIFY + 4, pci.NOTIFY + 8)),
        ),
        data=st.one_of(
            st.tuples(st.sampled_from((1, 2, 4, 8)), st.integers(0, 255)).map(
                lambda pair: pair[1].to_bytes(pair[0], "little")
            ),
            st.binary(min_size=1, max_size=8),
        ),
    )
    def write(self, offset, data):
        self.guest.bar.write(offset, data)

    @rule(offset=st.integers(0, pci.BAR_SIZE - 1), size=st.sampled_from((1, 2, 4, 8)))
    def read(self, offset, size):
        assert len(self.guest.bar.read(offset, size)) == size

    @rule(offset=st.integers(0, 0x110), data=st.binary(min_size=1, max_size=4))
    def configure(self, offset, data):
        self.guest.function.write_config(offset, memoryview(bytearray(data)))
        self.guest.config(offset, len(data))

    @rule(control=st.sampled_from((0, MSIX_ENABLE, MSIX_ENABLE | MSIX_MASK_ALL)))
    def message_control(self, control):
        self.guest.enable_msix(control)

    @rule()
    def go_live(self):
        self.guest.go_live()

    @rule(index=st.integers(0, 1))
    def notify(self, index):
        self.guest.device.notify(index)

    @rule()
    def break_it(self):
        self.guest.device.broken("it is")

    @invariant()
    def the_status_is_in_order(self):
        status = self.guest.transport.status
        assert not status & DRIVER_OK or status & READY == READY
        assert not status & DEVICE_NEEDS_RESET or status & DRIVER_OK

    @invariant()
    def vectors_exist_or_are_none(self):
        transport = self.guest.transport
        for vector in (transport._config_vector, *transport._vectors):
            assert vector < transport.msix.vectors or vector == pci.VIRTIO_MSI_NO_VECTOR

    @invariant()
    def what_it_is_stays(self):
        assert struct.pack("<I", self.guest.config(0, 4)) == b"\xf4\x1a\x44\x10"
        assert [identity for identity, _ in self.guest.capabilities()] == [0x11, 9, 9, 9, 9, 9]


Hostile.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestHostile = Hostile.TestCase
