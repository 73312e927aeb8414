"""kvmpy.devices.virtio.queue against drivers that lie: QueueError each time, and nothing worse."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmpy.devices.virtio.queue import Queue, QueueError
from kvmpy.memory import HOLE_END, HOLE_START, GuestMemory
from kvmpy.testing.virtio_driver import QueueDriver
from kvmpy.units import GIB, MIB

SIZE = 8
RINGS = 0x1000
BUFFER = 0x10000
TABLE = 0x20000

NEXT, WRITE, INDIRECT = 1, 2, 4


@pytest.fixture
def memory():
    with GuestMemory(MIB) as memory:
        yield memory


def connected(memory, size=SIZE, max_size=SIZE, **settings):
    driver = QueueDriver(memory, size, RINGS)
    queue = Queue(memory, max_size)
    queue.size = size
    queue.indirect = True
    queue.descriptors, queue.driver, queue.device = driver.descriptors, driver.driver, driver.device
    for name, value in settings.items():
        setattr(queue, name, value)
    queue.ready = True
    return driver, queue


@pytest.fixture
def pair(memory):
    return connected(memory)


def publish(driver, *heads):
    for slot, head in enumerate(heads):
        driver.set_available(slot, head)
    driver.set_available_index(len(heads))


def table(memory, *entries):
    """An indirect table at TABLE, from (address, length, flags, next)."""
    for index, (address, length, flags, following) in enumerate(entries):
        data = address.to_bytes(8, "little") + length.to_bytes(4, "little") + flags.to_bytes(2, "little")
        memory.write(TABLE + 16 * index, data + following.to_bytes(2, "little"))


@pytest.mark.parametrize(
    ("address", "length"),
    [(MIB, 1), (MIB - 4, 8), (HOLE_START, 4), (2**64 - 4, 8), (2**64 - 1, 1), (0, 2**32 - 1), (2**63, 16)],
)
def test_a_part_outside_ram_is_refused(pair, address, length):
    driver, queue = pair
    driver.set_descriptor(0, address, length)
    publish(driver, 0)
    with pytest.raises(QueueError, match=f"{address:#x}, which is not RAM"):
        queue.pop()


def test_a_part_may_not_reach_into_the_hole_below_4_gib():
    with GuestMemory(3 * GIB + MIB) as memory:
        driver, queue = connected(memory)
        for index, address in enumerate([HOLE_START - 4, HOLE_END, HOLE_END + MIB - 4, HOLE_END + MIB - 3]):
            driver.set_descriptor(index, address, 4)
        driver.set_descriptor(4, HOLE_START - 3, 4)
        publish(driver, 0, 1, 2, 3)
        assert len(queue.pop_batch(4)) == 3
        with pytest.raises(QueueError):
            queue.pop()


def test_a_part_without_length_is_refused(pair):
    driver, queue = pair
    driver.set_descriptor(0, BUFFER, 0)
    publish(driver, 0)
    with pytest.raises(QueueError, match="descriptor 0 has no length"):
        queue.pop()


@pytest.mark.parametrize("head", [SIZE, 0xFFFF])
def test_a_head_outside_the_table_is_refused(pair, head):
    driver, queue = pair
    publish(driver, head)
    with pytest.raises(QueueError, match=f"descriptor {head} is not in its table"):
        queue.pop()


def test_a_next_outside_the_table_is_refused(pair):
    driver, queue = pair
    driver.set_descriptor(0, BUFFER, 1, NEXT, SIZE)
    publish(driver, 0)
    with pytest.raises(QueueError, match="descriptor 8"):
        queue.pop()


@pytest.mark.parametrize("members", [1, 2, SIZE])
def test_a_circle_is_refused(pair, members):
    driver, queue = pair
    for index in range(members):
        driver.set_descriptor(index, BUFFER, 1, NEXT, (index + 1) % members)
    publish(driver, 0)
    with pytest.raises(QueueError, match="circle"):
        queue.pop()


def test_a_readable_part_behind_a_writable_one_is_refused(pair):
    driver, queue = pair
    driver.set_descriptor(0, BUFFER, 1, WRITE | NEXT, 1)
    driver.set_descriptor(1, BUFFER, 1)
    publish(driver, 0)
    with pytest.raises(QueueError, match="descriptor 1 is to be read"):
        queue.pop()


def test_a_chain_of_more_than_4_gib_is_refused():
    with GuestMemory(3 * GIB) as memory:
        driver, queue = connected(memory)
        driver.set_descriptor(0, 0, 3 * GIB, NEXT, 1)
        driver.set_descriptor(1, 0, GIB)
        driver.set_descriptor(2, 0, 3 * GIB, NEXT, 3)
        driver.set_descriptor(3, 0, GIB + 1)
        publish(driver, 0, 2)
        assert queue.pop().readable_length == 4 * GIB
        with pytest.raises(QueueError, match="4 GiB"):
            queue.pop()


@pytest.mark.parametrize("ahead", [SIZE + 1, 0x8000, 0xFFFF])
def test_an_available_index_that_runs_ahead_is_refused(pair, ahead):
    driver, queue = pair
    driver.set_available_index(ahead)
    with pytest.raises(QueueError, match=f"index {ahead} is further ahead"):
        queue.pop()


def test_no_more_chains_than_descriptors_are_in_flight(pair):
    driver, queue = pair
    driver.set_descriptor(0, BUFFER, 1)
    publish(driver, *[0] * SIZE)
    assert len(queue.pop_batch(SIZE)) == SIZE
    driver.set_available_index(SIZE + 1)
    with pytest.raises(QueueError, match="further ahead"):
        queue.pop()


def test_an_available_index_that_goes_back_is_refused(pair):
    driver, queue = pair
    driver.set_descriptor(0, BUFFER, 1)
    publish(driver, 0, 0)
    assert len(queue.pop_batch(2)) == 2
    driver.set_available_index(1)
    with pytest.raises(QueueError):
        queue.pop()


# --- indirect tables


def refused_table(memory, address, length, *, flags=INDIRECT, **settings):
    driver, queue = connected(memory, **settings)
    driver.set_descriptor(0, address, length, flags, 0)
    publish(driver, 0)
    with pytest.raises(QueueError) as caught:
        queue.pop()
    return str(caught.value)


def test_an_indirect_table_that_was_not_negotiated_is_refused(memory):
    table(memory, (BUFFER, 1, 0, 0))
    assert "indirect" in refused_table(memory, TABLE, 16, indirect=False)


@pytest.mark.parametrize("length", [1, 15, 17])
def test_an_indirect_table_has_whole_descriptors(memory, length):
    assert "indirect" in refused_table(memory, TABLE, length)


def test_an_indirect_table_without_length_is_refused(memory):
    assert "no length" in refused_table(memory, TABLE, 0)


def test_an_indirect_table_ends_its_chain(memory):
    table(memory, (BUFFER, 1, 0, 0))
    assert "indirect" in refused_table(memory, TABLE, 16, flags=INDIRECT | NEXT)


def test_an_indirect_table_outside_ram_is_refused(memory):
    assert "not RAM" in refused_table(memory, MIB - 16, 32)


def test_an_indirect_table_in_an_indirect_table_is_refused(memory):
    table(memory, (TABLE, 16, INDIRECT, 0))
    assert "indirect" in refused_table(memory, TABLE, 16)


def test_a_next_outside_its_indirect_table_is_refused(memory):
    table(memory, (BUFFER, 1, NEXT, 2), (BUFFER, 1, 0, 0), (BUFFER, 1, 0, 0))
    assert "descriptor 2" in refused_table(memory, TABLE, 32)


def test_a_circle_in_an_indirect_table_is_refused(memory):
    table(memory, (BUFFER, 1, NEXT, 1), (BUFFER, 1, NEXT, 0))
    assert "circle" in refused_table(memory, TABLE, 32)


def test_a_chain_has_no_more_parts_than_the_queue_can_have_descriptors(memory):
    table(memory, *[(BUFFER, 1, NEXT, index + 1) for index in range(SIZE)], (BUFFER, 1, 0, 0))
    assert "9 descriptors" in refused_table(memory, TABLE, 16 * (SIZE + 1))


def test_an_indirect_chain_may_be_longer_than_a_queue_made_small(memory):
    table(memory, *[(BUFFER, 1, NEXT, index + 1) for index in range(SIZE - 1)], (BUFFER, 1, 0, 0))
    driver, queue = connected(memory, size=2)
    driver.set_descriptor(0, TABLE, 16 * SIZE, INDIRECT)
    publish(driver, 0)
    assert queue.pop().readable_length == SIZE


# --- rings


@pytest.mark.parametrize("size", [0, 3, SIZE * 2, 65536, 2**31])
def test_a_size_that_cannot_be_is_refused(memory, size):
    _, queue = connected(memory)
    queue.size = size
    queue.ready = True
    with pytest.raises(QueueError, match=f"a queue of {size} descriptors"):
        queue.pop()


@pytest.mark.parametrize("ring", ["descriptors", "driver", "device"])
@pytest.mark.parametrize("address", [MIB - 8, MIB, HOLE_START, 2**64 - 16, RINGS + 1])
def test_a_ring_where_it_cannot_be_is_refused(memory, ring, address):
    _, queue = connected(memory, **{ring: address})
    with pytest.raises(QueueError, match=f"{address:#x}"):
        queue.pop()
    with pytest.raises(QueueError):
        queue.disable_notifications()
    with pytest.raises(QueueError):
        queue.enable_notifications()
    assert not queue.should_notify()


LAST = {"descriptors": MIB - 16 * SIZE, "driver": MIB - 6 - 2 * SIZE, "device": MIB - 8 - 8 * SIZE}


@pytest.mark.parametrize("ring", LAST)
def test_a_ring_may_end_where_memory_does(memory, ring):
    _, queue = connected(memory, **{ring: LAST[ring]})
    assert queue.pop() is None


@pytest.mark.parametrize(("ring", "alignment"), [("descriptors", 16), ("driver", 2), ("device", 4)])
def test_a_ring_does_not_reach_past_the_end_of_memory(memory, ring, alignment):
    _, queue = connected(memory, **{ring: LAST[ring] + alignment})
    with pytest.raises(QueueError, match="cannot be at"):
        queue.pop()


def test_rings_on_top_of_one_another_break_nothing_but_themselves(memory):
    driver, queue = connected(memory, device=RINGS, driver=RINGS)
    driver.set_descriptor(0, BUFFER, 16)
    try:
        for _ in range(4):
            for chain in queue.pop_batch(SIZE):
                queue.push(chain, 0)
    except QueueError:
        pass
    assert not any(memory.read(driver.device, MIB - driver.device))


# --- what follows


def test_chains_before_a_bad_one_are_still_served(pair):
    driver, queue = pair
    driver.set_descriptor(0, BUFFER, 1)
    publish(driver, 0, 0, SIZE, 0)
    assert len(queue.pop_batch(SIZE)) == 2
    with pytest.raises(QueueError):
        queue.pop_batch(SIZE)
    assert queue.stats.errors == 1


def test_a_broken_queue_stays_broken_until_it_is_reset(pair, memory):
    driver, queue = pair
    publish(driver, SIZE)
    with pytest.raises(QueueError):
        queue.pop()
    publish(driver, 0)
    driver.set_descriptor(0, BUFFER, 1)
    with pytest.raises(QueueError):
        queue.pop()
    queue.reset()
    queue.descriptors, queue.driver, queue.device = driver.descriptors, driver.driver, driver.device
    queue.ready = True
    assert queue.pop().readable == [(BUFFER, 1)]
    assert queue.stats.errors == 1


def test_a_chain_pushed_twice_is_given_back_once(pair):
    driver, queue = pair
    driver.add([(BUFFER, 1)])
    driver.kick()
    chain = queue.pop()
    queue.push(chain, 0)
    queue.push(chain, 0)
    assert driver.used_index == 1


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    event_idx=st.booleans(),
    noise=st.floats(0, 1),
    indices=st.lists(st.integers(0, 0xFFFF), max_size=4),
)
def test_whatever_is_in_the_rings_only_ram_is_named(seed, event_idx, noise, indices):
    random_ = random.Random(seed)
    with GuestMemory(MIB) as memory:
        driver, queue = connected(memory, event_idx=event_idx)
        for index in range(SIZE):
            address = random_.choice([BUFFER, RINGS, TABLE, MIB - 8, 2**64 - 8])
            driver.set_descriptor(
                index, address, random_.choice([1, 16, 64]), random_.randrange(8), random_.randrange(SIZE)
            )
        for place in range(0, 16 * SIZE, 1):
            if random_.random() < noise / 8:
                memory.write(TABLE + place, bytes([random_.randrange(256)]))
        for ahead in [1, 2, SIZE, *indices]:
            driver.set_available(ahead, random_.randrange(SIZE + 1))
            driver.set_available_index(ahead)
            try:
                for chain in queue.pop_batch(SIZE):
                    for address, length in chain.readable + chain.writable:
                        memory.region_of(address, length)
                    queue.push(chain, chain.write(b"x" * chain.writable_length))
                queue.should_notify()
                queue.enable_notifications()
            except QueueError:
                break
