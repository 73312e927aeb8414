"""virtio-mmio's registers, as a driver finds them; and what comes of one that lies."""

from __future__ import annotations

import struct

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

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
    VirtioDevice,
)
from kvmpy.devices.virtio.queue import QueueError
from kvmpy.devices.virtio.transport import mmio
from kvmpy.devices.virtio.transport.mmio import MmioTransport
from kvmpy.memory import GuestMemory
from kvmpy.testing.fakes import FakeLine, Ports
from kvmpy.units import MIB

OWN_FEATURE = 1 << 3
READY = ACKNOWLEDGE | DRIVER | FEATURES_OK
LIVE = READY | DRIVER_OK


class Recorder(VirtioDevice):
    """A device with three queues that keeps what was done to it."""

    DEVICE_ID = 42
    QUEUE_SIZES = (8, 16, 256)

    def __init__(self, features=OWN_FEATURE | VIRTIO_F_RING_RESET):
        super().__init__()
        self.features = features
        self.config = bytearray(range(16))
        self.calls = []
        self.error = None

    def read_config(self, offset, data):
        found = self.config[offset : offset + len(data)]
        data[:] = bytes(found) + bytes(len(data) - len(found))

    def write_config(self, offset, data):
        self.config[offset : min(offset + len(data), 16)] = data[: max(0, 16 - offset)]

    def activate(self, queues, features):
        self.calls.append(("activate", len(queues), features))

    def reset(self):
        self.calls.append("reset")

    def reset_queue(self, index):
        self.calls.append(("reset_queue", index))

    def kick(self, index):
        self.calls.append(("kick", index))
        if self.error is not None:
            raise self.error


class Guest(Ports):
    """A driver's accesses."""

    def get(self, offset):
        return struct.unpack("<I", self.read(offset, 4))[0]

    def put(self, offset, value):
        self.write(offset, struct.pack("<I", value))

    def negotiate(self, features=VIRTIO_F_VERSION_1):
        self.put(mmio.STATUS, 0)
        self.put(mmio.STATUS, ACKNOWLEDGE)
        self.put(mmio.STATUS, ACKNOWLEDGE | DRIVER)
        for select in (0, 1):
            self.put(mmio.DRIVER_FEATURES_SEL, select)
            self.put(mmio.DRIVER_FEATURES, features >> 32 * select & 0xFFFFFFFF)
        self.put(mmio.STATUS, READY)
        return self.get(mmio.STATUS)

    def set_up_queue(self, index, size=8, base=0x10000):
        self.put(mmio.QUEUE_SEL, index)
        self.put(mmio.QUEUE_NUM, size)
        for number, low in enumerate((mmio.QUEUE_DESC_LOW, mmio.QUEUE_DRIVER_LOW, mmio.QUEUE_DEVICE_LOW)):
            self.put(low, base + 0x1000 * number)
            self.put(low + 4, 0)
        self.put(mmio.QUEUE_READY, 1)

    def go_live(self, features=VIRTIO_F_VERSION_1):
        self.negotiate(features)
        for index in range(3):
            self.set_up_queue(index, base=0x10000 * (index + 1))
        self.put(mmio.STATUS, LIVE)


@pytest.fixture(scope="module")
def memory():
    with GuestMemory(MIB) as memory:
        yield memory


@pytest.fixture
def device():
    return Recorder()


@pytest.fixture
def line():
    return FakeLine()


@pytest.fixture
def transport(device, memory, line):
    return MmioTransport(device, memory, line)


@pytest.fixture
def guest(transport):
    return Guest(transport)


def test_the_first_registers_say_what_it_is(guest):
    assert guest.read(0, 4) == b"virt"
    assert guest.get(mmio.VERSION_NUMBER) == 2
    assert guest.get(mmio.DEVICE_ID) == 42
    assert guest.get(mmio.VENDOR) != 0


def test_features_are_offered_in_two_words_and_none_behind_them(guest):
    words = []
    for select in (0, 1, 2, 0xFFFFFFFF):
        guest.put(mmio.DEVICE_FEATURES_SEL, select)
        words.append(guest.get(mmio.DEVICE_FEATURES))
    assert words[0] | words[1] << 32 == (
        OWN_FEATURE | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX | VIRTIO_F_VERSION_1 | VIRTIO_F_RING_RESET
    )
    assert words[2:] == [0, 0]


def test_a_driver_that_keeps_the_rules_activates_the_device(guest, device):
    guest.go_live(VIRTIO_F_VERSION_1 | OWN_FEATURE)
    assert guest.get(mmio.STATUS) == LIVE
    assert device.calls[-1] == ("activate", 3, VIRTIO_F_VERSION_1 | OWN_FEATURE)
    assert device.stats.refused == 0


@pytest.mark.parametrize("features", [0, OWN_FEATURE, VIRTIO_F_VERSION_1 | 1 << 50, VIRTIO_F_VERSION_1 | 1])
def test_features_without_version_1_or_not_offered_are_not_ok(guest, features):
    assert guest.negotiate(features) == ACKNOWLEDGE | DRIVER


def test_a_second_choice_of_features_may_be_ok(guest):
    guest.negotiate(0)
    assert guest.negotiate(VIRTIO_F_VERSION_1) == READY


def test_features_stay_as_they_were_when_they_became_ok(guest, transport):
    guest.negotiate()
    guest.put(mmio.DRIVER_FEATURES_SEL, 0)
    guest.put(mmio.DRIVER_FEATURES, OWN_FEATURE)
    assert transport.features == VIRTIO_F_VERSION_1


@pytest.mark.parametrize(("feature", "name"), [(VIRTIO_F_INDIRECT_DESC, "indirect"), (VIRTIO_F_EVENT_IDX, "event_idx")])
def test_a_ring_feature_reaches_the_queues(guest, transport, feature, name):
    guest.negotiate(VIRTIO_F_VERSION_1 | feature)
    assert [getattr(queue, name) for queue in transport.queues] == [True] * 3
    guest.negotiate()
    assert [getattr(queue, name) for queue in transport.queues] == [False] * 3


@pytest.mark.parametrize(
    "status", [DRIVER, FEATURES_OK, DRIVER_OK, ACKNOWLEDGE | DRIVER | DRIVER_OK, ACKNOWLEDGE | DRIVER_OK]
)
def test_a_status_bit_before_its_turn_is_not_set(guest, device, status):
    guest.put(mmio.STATUS, status)
    assert not guest.get(mmio.STATUS) & (FEATURES_OK | DRIVER_OK)
    assert device.stats.refused == 1


def test_a_status_bit_is_cleared_by_nothing_but_a_reset(guest, device):
    guest.go_live()
    guest.put(mmio.STATUS, ACKNOWLEDGE)
    assert guest.get(mmio.STATUS) == LIVE
    guest.put(mmio.STATUS, 0)
    assert guest.get(mmio.STATUS) == 0
    assert device.calls[-1] == "reset"


def test_the_driver_cannot_set_needs_reset(guest):
    guest.put(mmio.STATUS, ACKNOWLEDGE | DEVICE_NEEDS_RESET)
    assert guest.get(mmio.STATUS) == ACKNOWLEDGE


def test_a_driver_that_gave_up_is_heard_no_more(guest, device):
    guest.go_live()
    guest.put(mmio.STATUS, LIVE | FAILED)
    guest.put(mmio.QUEUE_NOTIFY, 0)
    assert guest.get(mmio.STATUS) == LIVE | FAILED
    assert ("kick", 0) not in device.calls


def test_a_queue_has_its_largest_size_and_others_have_none(guest):
    sizes = []
    for index in (0, 1, 2, 3, 0xFFFFFFFF):
        guest.put(mmio.QUEUE_SEL, index)
        sizes.append(guest.get(mmio.QUEUE_NUM_MAX))
    assert sizes == [8, 16, 256, 0, 0]


def test_a_queue_is_where_the_driver_says(guest, transport):
    guest.negotiate()
    guest.put(mmio.QUEUE_SEL, 2)
    guest.put(mmio.QUEUE_NUM, 64)
    for number, low in enumerate((mmio.QUEUE_DESC_LOW, mmio.QUEUE_DRIVER_LOW, mmio.QUEUE_DEVICE_LOW)):
        guest.put(low, 0x1000 * number)
        guest.put(low + 4, number)
    guest.put(mmio.QUEUE_READY, 1)
    queue = transport.queues[2]
    assert guest.get(mmio.QUEUE_READY) == 1
    assert (queue.size, queue.descriptors, queue.driver, queue.device) == (64, 0, 0x100001000, 0x200002000)


@pytest.mark.parametrize("size", [0, 3, 16, 0x80000000])
def test_a_size_that_a_queue_cannot_have_is_not_taken(guest, transport, size):
    guest.negotiate()
    guest.put(mmio.QUEUE_SEL, 0)
    guest.put(mmio.QUEUE_NUM, size)
    assert transport.queues[0].size == 8


def test_a_ready_queue_cannot_be_moved(guest, transport):
    guest.go_live()
    guest.put(mmio.QUEUE_SEL, 0)
    guest.put(mmio.QUEUE_DESC_LOW, 0)
    assert transport.queues[0].descriptors == 0x10000


def test_no_queue_is_set_up_before_features_are(guest, transport):
    guest.set_up_queue(0)
    assert not transport.queues[0].ready


def test_ready_written_as_zero_stops_a_queue(guest, transport, device):
    guest.go_live()
    guest.put(mmio.QUEUE_SEL, 1)
    guest.put(mmio.QUEUE_READY, 0)
    assert guest.get(mmio.QUEUE_READY) == 0
    assert device.calls[-1] == ("reset_queue", 1)


def test_a_queue_that_was_reset_can_be_used_again(guest, transport, device):
    guest.go_live(VIRTIO_F_VERSION_1 | VIRTIO_F_RING_RESET | VIRTIO_F_EVENT_IDX)
    guest.put(mmio.QUEUE_SEL, 1)
    guest.put(mmio.QUEUE_RESET, 1)
    assert (guest.get(mmio.QUEUE_RESET), guest.get(mmio.QUEUE_READY)) == (0, 0)
    guest.set_up_queue(1, size=4, base=0x40000)
    queue = transport.queues[1]
    assert (queue.ready, queue.size, queue.event_idx) == (True, 4, True)
    guest.put(mmio.QUEUE_NOTIFY, 1)
    assert device.calls[-2:] == [("reset_queue", 1), ("kick", 1)]


def test_no_queue_is_reset_or_added_later_without_the_feature(guest, transport, device):
    guest.go_live()
    guest.put(mmio.QUEUE_SEL, 1)
    guest.put(mmio.QUEUE_RESET, 1)
    assert transport.queues[1].ready
    guest.put(mmio.QUEUE_READY, 0)
    guest.put(mmio.QUEUE_READY, 1)
    assert not transport.queues[1].ready
    assert device.stats.refused == 2


def test_a_notification_kicks_a_queue_that_is_ready(guest, device):
    guest.go_live()
    guest.put(mmio.QUEUE_NOTIFY, 2)
    assert device.calls[-1] == ("kick", 2)
    assert device.stats.kicks == 1


def test_a_notification_before_the_driver_is_ready_is_nothing(guest, device):
    guest.negotiate()
    guest.set_up_queue(0)
    guest.put(mmio.QUEUE_NOTIFY, 0)
    assert device.stats.kicks == 0


@pytest.mark.parametrize("index", [3, 0x10000, 0xFFFFFFFF])
def test_a_notification_for_no_queue_is_refused(guest, device, index):
    guest.go_live()
    guest.put(mmio.QUEUE_NOTIFY, index)
    assert (device.stats.kicks, device.stats.refused) == (0, 1)


def test_a_doorbell_takes_the_notifications(device, memory, line):
    rung = []
    guest = Guest(MmioTransport(device, memory, line, rung.append))
    guest.go_live()
    guest.put(mmio.QUEUE_NOTIFY, 1)
    assert rung == [1]
    assert device.stats.kicks == 0


def test_used_buffers_raise_the_line_until_the_driver_acknowledges(guest, device, line):
    guest.go_live()
    device.notify(0)
    assert (line.level, guest.get(mmio.INTERRUPT_STATUS)) == (True, 1)
    guest.put(mmio.INTERRUPT_ACK, 1)
    assert (line.level, guest.get(mmio.INTERRUPT_STATUS)) == (False, 0)


def test_what_comes_between_a_look_and_its_acknowledgement_is_another_edge(guest, device, line):
    guest.go_live()
    device.notify(0)
    device.config_changed()
    guest.put(mmio.INTERRUPT_ACK, 1)
    assert guest.get(mmio.INTERRUPT_STATUS) == 2
    assert line.edges == 2


def test_a_reset_takes_the_interrupt_back(guest, device, line):
    guest.go_live()
    device.notify(0)
    guest.put(mmio.STATUS, 0)
    assert (line.level, guest.get(mmio.INTERRUPT_STATUS)) == (False, 0)


def test_the_configuration_is_read_and_written_in_any_width(guest, device):
    assert guest.read(mmio.CONFIG + 1, 1) == b"\x01"
    assert guest.read(mmio.CONFIG + 4, 8) == bytes(range(4, 12))
    guest.write(mmio.CONFIG + 2, b"ab")
    assert device.config[2:4] == b"ab"


def test_the_generation_tells_of_a_changed_configuration(guest, device):
    guest.go_live()
    before = guest.get(mmio.CONFIG_GENERATION)
    device.config_changed()
    assert guest.get(mmio.CONFIG_GENERATION) != before
    assert guest.get(mmio.INTERRUPT_STATUS) == 2


def test_no_interrupt_tells_a_driver_that_is_not_there(guest, device, line):
    device.config_changed()
    assert line.edges == 0


@pytest.mark.parametrize("register", [mmio.SHM_LEN_LOW, mmio.SHM_LEN_HIGH, mmio.SHM_BASE_LOW, mmio.SHM_BASE_HIGH])
def test_there_are_no_shared_memory_regions(guest, register):
    guest.put(mmio.SHM_SEL, 0)
    assert guest.get(register) == 0xFFFFFFFF


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (0, 2), (0, 8), (2, 4), (0x70, 1)])
def test_registers_are_32_bits_wide_and_nothing_else(guest, device, offset, size):
    assert guest.read(offset, size) == bytes(size)
    guest.write(offset, b"\1" * size)
    assert device.stats.refused == 2
    assert guest.get(mmio.STATUS) == 0


def test_a_broken_ring_needs_a_reset_and_the_driver_is_told(guest, device, line, transport):
    guest.go_live()
    device.error = QueueError("the ring is broken")
    guest.put(mmio.QUEUE_NOTIFY, 0)
    assert guest.get(mmio.STATUS) == LIVE | DEVICE_NEEDS_RESET
    assert guest.get(mmio.INTERRUPT_STATUS) == 2
    assert (transport.reason, device.stats.breaks) == ("the ring is broken", 1)


def test_a_broken_device_does_nothing_until_it_is_reset(guest, device):
    guest.go_live()
    device.broken("it is")
    guest.put(mmio.QUEUE_NOTIFY, 0)
    assert device.stats.kicks == 0
    guest.go_live()
    guest.put(mmio.QUEUE_NOTIFY, 0)
    assert device.stats.kicks == 1
    assert guest.get(mmio.STATUS) == LIVE


def test_a_device_breaks_once(guest, device):
    guest.go_live()
    device.broken("first")
    device.broken("second")
    assert device.stats.breaks == 1


def test_a_device_that_was_reset_meanwhile_is_not_broken(guest, device):
    guest.go_live()
    guest.put(mmio.STATUS, 0)
    device.broken("late news")
    assert guest.get(mmio.STATUS) == 0


def test_a_report_has_its_counts_and_why_it_broke(guest, device, transport):
    guest.go_live()
    guest.put(mmio.QUEUE_NOTIFY, 0)
    device.broken("it is")
    told = transport.describe()
    assert (told["device"], told["kicks"], told["breaks"], told["reason"]) == ("virtio", 1, 1, "it is")
    assert [queue["popped"] for queue in told["queues"]] == [0, 0, 0]


class Hostile(RuleBasedStateMachine):
    """A driver that writes whatever it likes, and often what makes sense."""

    memory = GuestMemory(MIB)

    def __init__(self):
        super().__init__()
        self.device = Recorder()
        self.line = FakeLine()
        self.transport = MmioTransport(self.device, self.memory, self.line)
        self.guest = Guest(self.transport)

    @rule(
        offset=st.one_of(st.integers(0, 0x3F).map(lambda word: 4 * word), st.integers(0, 0x1000)),
        data=st.one_of(
            st.integers(0, 255).map(lambda value: struct.pack("<I", value)),
            st.binary(min_size=4, max_size=4),
            st.binary(min_size=1, max_size=8),
        ),
    )
    def write(self, offset, data):
        self.guest.write(offset, data)

    @rule(offset=st.integers(0, 0x1000), size=st.sampled_from((1, 2, 4, 8)))
    def read(self, offset, size):
        assert len(self.guest.read(offset, size)) == size

    @rule(features=st.sampled_from((0, VIRTIO_F_VERSION_1, VIRTIO_F_VERSION_1 | VIRTIO_F_RING_RESET, 1 << 63)))
    def go_live(self, features):
        self.guest.go_live(features)

    @rule(error=st.sampled_from((None, QueueError("broken"))))
    def kick(self, error):
        self.device.error = error
        self.guest.put(mmio.QUEUE_NOTIFY, 0)

    @rule()
    def change(self):
        self.device.config_changed()

    @rule()
    def notify(self):
        self.device.notify(0)

    @invariant()
    def the_status_is_in_order(self):
        status = self.guest.get(mmio.STATUS)
        assert not status & DRIVER_OK or status & FEATURES_OK
        assert not status & FEATURES_OK or status & DRIVER
        assert not status & DRIVER or status & ACKNOWLEDGE
        assert not status & DEVICE_NEEDS_RESET or status & DRIVER_OK

    @invariant()
    def accepted_features_were_offered(self):
        if self.guest.get(mmio.STATUS) & FEATURES_OK:
            assert not self.transport.features & ~self.transport.offered
            assert self.transport.features & VIRTIO_F_VERSION_1

    @invariant()
    def queues_have_sizes_that_are_possible(self):
        for queue in self.transport.queues:
            assert 0 < queue.size <= queue.max_size
            assert not queue.size & queue.size - 1
            assert not queue.ready or self.transport.status & FEATURES_OK

    @invariant()
    def the_line_is_high_while_something_is_pending(self):
        assert self.line.level == bool(self.guest.get(mmio.INTERRUPT_STATUS))


Hostile.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestHostile = Hostile.TestCase
