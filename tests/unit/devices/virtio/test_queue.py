"""kvmpy.devices.virtio.queue against a driver that keeps the rules."""

from __future__ import annotations

import pytest

from kvmpy.devices.virtio.queue import READ_LIMIT, Queue, QueueError, QueueState
from kvmpy.errors import ImageError, StateError
from kvmpy.memory import GuestMemory
from kvmpy.testing.virtio_driver import QueueDriver
from kvmpy.units import MIB, PAGE_SIZE

SIZE = 8
RINGS = 0x1000
BUFFER = 0x80000


@pytest.fixture
def memory():
    with GuestMemory(MIB) as memory:
        yield memory


def connected(memory, *, event_idx=False, size=SIZE):
    """A driver and a queue over the same rings."""
    driver = QueueDriver(memory, size, RINGS, event_idx=event_idx)
    queue = Queue(memory, size)
    queue.event_idx = event_idx
    queue.indirect = True
    queue.descriptors, queue.driver, queue.device = driver.descriptors, driver.driver, driver.device
    queue.ready = True
    return driver, queue


@pytest.fixture
def pair(memory):
    return connected(memory)


@pytest.fixture
def event_pair(memory):
    return connected(memory, event_idx=True)


def use_one(driver, queue):
    """One chain all the way."""
    driver.add([(BUFFER, 4)])
    driver.kick()
    queue.push(queue.pop(), 0)


def test_an_empty_queue_has_no_chain(pair):
    _, queue = pair
    assert queue.pop() is None


def test_a_queue_that_is_not_ready_has_no_chain(memory):
    assert Queue(memory, SIZE).pop() is None


@pytest.mark.parametrize("indirect", [False, True])
def test_a_chain_has_its_parts_in_order(pair, indirect):
    driver, queue = pair
    head = driver.add([(BUFFER, 16), (BUFFER + 64, 8)], [(BUFFER + 128, 4), (BUFFER + 256, 1)], indirect=indirect)
    driver.kick()
    chain = queue.pop()
    assert chain.index == head
    assert chain.readable == [(BUFFER, 16), (BUFFER + 64, 8)]
    assert chain.writable == [(BUFFER + 128, 4), (BUFFER + 256, 1)]
    assert (chain.readable_length, chain.writable_length) == (24, 5)


def test_an_indirect_table_may_follow_direct_parts(pair, memory):
    driver, queue = pair
    driver.add([(BUFFER, 16)], [(BUFFER + 64, 4)], indirect=True)
    table = BUFFER + 0x800
    memory.write(table, (BUFFER + 32).to_bytes(8, "little") + (7).to_bytes(8, "little"))
    driver.set_descriptor(5, BUFFER, 16, 1, 6)
    driver.set_descriptor(6, table, 16, 4)
    driver.set_available(0, 5)
    driver.kick()
    assert queue.pop().readable == [(BUFFER, 16), (BUFFER + 32, 7)]


def test_what_was_added_is_invisible_until_it_is_published(pair):
    driver, queue = pair
    driver.add([(BUFFER, 4)])
    assert queue.pop() is None


def test_reading_gathers(pair, memory):
    driver, queue = pair
    memory.write(BUFFER, b"abcd")
    memory.write(BUFFER + 64, b"efgh")
    driver.add([(BUFFER, 4), (BUFFER + 64, 4)])
    driver.kick()
    chain = queue.pop()
    assert chain.read() == b"abcdefgh"
    assert chain.read(5) == b"abcde"
    assert chain.read(3, offset=3) == b"def"
    assert chain.read(100, offset=6) == b"gh"
    assert chain.read(offset=8) == b""


def test_writing_scatters_and_says_how_much_had_room(pair, memory):
    driver, queue = pair
    driver.add([], [(BUFFER, 4), (BUFFER + 64, 4)])
    driver.kick()
    chain = queue.pop()
    assert chain.write(b"abcdef") == 6
    assert memory.read(BUFFER, 5) == b"abcd\0"
    assert memory.read(BUFFER + 64, 4) == b"ef\0\0"
    assert chain.write(b"123456", offset=3) == 5
    assert memory.read(BUFFER + 3, 1) + memory.read(BUFFER + 64, 4) == b"12345"


def test_a_read_without_end_is_refused(memory):
    driver, queue = connected(memory, size=64)
    driver.add([(0, MIB)] * (READ_LIMIT // MIB + 1))
    driver.kick()
    chain = queue.pop()
    with pytest.raises(QueueError):
        chain.read()
    assert len(chain.read(16)) == 16


def test_a_used_chain_comes_back_with_its_length(pair):
    driver, queue = pair
    head = driver.add([], [(BUFFER, 512)])
    driver.kick()
    queue.push(queue.pop(), 300)
    assert driver.reap() == [(head, 300)]


def test_chains_may_be_used_in_another_order(pair):
    driver, queue = pair
    first, second = driver.add([(BUFFER, 1)]), driver.add([(BUFFER, 2)])
    driver.kick()
    one, two = queue.pop(), queue.pop()
    queue.push(two, 0)
    queue.push(one, 0)
    assert driver.reap() == [(second, 0), (first, 0)]


def test_more_written_than_there_is_room_for_is_an_error_of_the_device(pair):
    driver, queue = pair
    driver.add([], [(BUFFER, 8)])
    driver.kick()
    with pytest.raises(ValueError, match="room for 8"):
        queue.push(queue.pop(), 9)


def test_a_batch_ends_at_its_limit_and_at_the_end(pair):
    driver, queue = pair
    heads = [driver.add([(BUFFER, 1)]) for _ in range(5)]
    driver.kick()
    assert [chain.index for chain in queue.pop_batch(3)] == heads[:3]
    assert [chain.index for chain in queue.pop_batch(3)] == heads[3:]


def test_the_indices_wrap(pair):
    driver, queue = pair
    for _ in range(0x10000 + 3):
        use_one(driver, queue)
        assert len(driver.reap()) == 1
    assert queue.stats.pushed == 0x10003


def test_pushing_marks_the_used_ring_dirty_and_nothing_else(pair, memory):
    driver, queue = pair
    driver.add([], [(BUFFER, 8)])
    driver.kick()
    chain = queue.pop()
    memory.clear_dirty()
    queue.push(chain, 0)
    assert list(memory.dirty_pages()) == [driver.device & -PAGE_SIZE]


def test_each_page_of_a_large_used_ring_is_marked_by_itself(memory):
    driver, queue = connected(memory, size=1024)
    for _ in range(1024):
        driver.add([(BUFFER, 1)])
    driver.kick()
    chains = queue.pop_batch(1024)
    queue.push_batch((chain, 0) for chain in chains[:-1])
    memory.clear_dirty()
    queue.push(chains[-1], 0)
    last = driver.device + 4 + 8 * 1023
    assert list(memory.dirty_pages()) == [driver.device & -PAGE_SIZE, last & -PAGE_SIZE]


def test_writing_marks_the_parts_dirty(pair, memory):
    driver, queue = pair
    driver.add([], [(BUFFER, 8), (BUFFER + 2 * PAGE_SIZE - 4, 8)])
    driver.kick()
    chain = queue.pop()
    memory.clear_dirty()
    chain.write(bytes(16))
    assert list(memory.dirty_pages()) == [BUFFER, BUFFER + PAGE_SIZE, BUFFER + 2 * PAGE_SIZE]


# --- notifications


def test_an_interrupt_is_wanted_once_for_each_push(pair):
    driver, queue = pair
    assert not queue.should_notify()
    use_one(driver, queue)
    assert queue.should_notify()
    assert not queue.should_notify()


def test_no_interrupt_where_the_driver_wants_none(pair):
    driver, queue = pair
    driver.want_interrupts(False)
    use_one(driver, queue)
    assert not queue.should_notify()
    assert (queue.stats.interrupts, queue.stats.interrupts_saved) == (0, 1)


def test_the_driver_need_not_notify_while_we_look_by_ourselves(pair):
    driver, queue = pair
    queue.disable_notifications()
    driver.add([(BUFFER, 1)])
    assert not driver.kick()
    assert queue.enable_notifications()
    queue.pop()
    assert not queue.enable_notifications()
    driver.add([(BUFFER, 1)])
    assert driver.kick()


def test_with_event_idx_the_interrupt_comes_when_the_driver_asked_for_it(event_pair):
    driver, queue = event_pair
    driver.want_interrupts(after=2)
    wanted = []
    for _ in range(4):
        use_one(driver, queue)
        wanted.append(queue.should_notify())
    assert wanted == [False, False, True, False]


def test_with_event_idx_a_batch_that_passes_the_event_interrupts(event_pair):
    driver, queue = event_pair
    driver.want_interrupts(after=1)
    for _ in range(3):
        use_one(driver, queue)
    assert queue.should_notify()


def test_with_event_idx_the_driver_notifies_only_of_a_queue_that_was_found_empty(event_pair):
    driver, queue = event_pair
    driver.add([(BUFFER, 1)])
    assert driver.kick()
    driver.add([(BUFFER, 1)])
    assert not driver.kick()
    assert len(queue.pop_batch(SIZE)) == 2
    driver.add([(BUFFER, 1)])
    assert driver.kick()


def test_with_event_idx_nothing_is_notified_while_disabled(event_pair):
    driver, queue = event_pair
    queue.disable_notifications()
    use_one(driver, queue)
    assert queue.pop() is None
    driver.add([(BUFFER, 1)])
    assert not driver.kick()
    assert queue.enable_notifications()
    assert queue.pop() is not None


# --- reset and snapshots


def test_a_reset_queue_begins_anew(memory, pair):
    driver, queue = pair
    use_one(driver, queue)
    queue.reset()
    assert (queue.ready, queue.size, queue.descriptors, queue.event_idx) == (False, SIZE, 0, False)
    assert queue.pop() is None
    fresh = QueueDriver(memory, 4, RINGS)
    queue.size = 4
    queue.descriptors, queue.driver, queue.device = fresh.descriptors, fresh.driver, fresh.device
    queue.ready = True
    use_one(fresh, queue)
    assert len(fresh.reap()) == 1


def test_guest_memory_is_held_while_the_queue_is_used_and_not_after_a_reset(pair, memory):
    driver, queue = pair
    use_one(driver, queue)
    memory.close()
    assert not memory.regions[0].buffer.closed
    queue.reset()
    memory.regions[0].buffer.close()
    assert memory.regions[0].buffer.closed


def test_a_chain_from_before_a_reset_is_dropped(memory, pair):
    driver, queue = pair
    driver.add([(BUFFER, 1)])
    driver.kick()
    old = queue.pop()
    queue.reset()
    queue.descriptors, queue.driver, queue.device = driver.descriptors, driver.driver, driver.device
    queue.ready = True
    new = queue.pop()
    queue.push(old, 0)
    assert driver.used_index == 0
    assert not queue.should_notify()
    queue.push(new, 0)
    assert driver.used_index == 1


def test_after_a_reset_the_driver_notifies_as_before(memory, event_pair):
    driver, queue = event_pair
    use_one(driver, queue)
    assert queue.pop() is None
    queue.reset()
    driver = QueueDriver(memory, SIZE, RINGS, event_idx=True)
    queue.event_idx = True
    queue.descriptors, queue.driver, queue.device = driver.descriptors, driver.driver, driver.device
    queue.ready = True
    use_one(driver, queue)
    assert queue.pop() is None
    driver.add([(BUFFER, 1)])
    assert driver.kick()


def test_a_restored_queue_goes_on(memory, event_pair):
    driver, queue = event_pair
    for _ in range(3):
        use_one(driver, queue)
        driver.reap()
    state = QueueState.from_dict(queue.save().to_dict())
    again = Queue(memory, SIZE)
    again.restore(state)
    head = driver.add([(BUFFER, 1)], [(BUFFER, 1)], indirect=True)
    driver.kick()
    again.push(again.pop(), 1)
    assert driver.reap() == [(head, 1)]


def test_nothing_is_saved_while_a_chain_is_in_flight(pair):
    driver, queue = pair
    driver.add([(BUFFER, 1)])
    driver.kick()
    queue.pop()
    with pytest.raises(StateError):
        queue.save()


def test_a_saved_queue_that_is_too_large_is_refused(memory, pair):
    _, queue = pair
    with pytest.raises(ImageError):
        Queue(memory, SIZE // 2).restore(queue.save())


@pytest.mark.parametrize("size", [0, 3, 65536])
def test_a_queue_has_a_power_of_two_of_descriptors(memory, size):
    with pytest.raises(ValueError, match="power of two"):
        Queue(memory, size)
