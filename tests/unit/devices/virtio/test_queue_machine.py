"""kvmpy.devices.virtio.queue and a driver, by any sequence of steps: order and bytes are kept, nobody waits in vain."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvmpy.devices.virtio.queue import Queue, QueueState
from kvmpy.memory import GuestMemory
from kvmpy.testing.virtio_driver import QueueDriver
from kvmpy.units import MIB

RINGS = 0x3000
BUFFERS = 0x40000
SLOT = 0x400  # Each chain has its buffers to itself, readable ones in the first half.
REPLY = bytes(range(1, 251))


class QueueMachine(RuleBasedStateMachine):
    """What the driver added in order is `added`; what the device holds, `held`; what it pushed in order, `pushed`."""

    @initialize(
        size=st.sampled_from([1, 2, 8, 64]),
        event_idx=st.booleans(),
        start=st.sampled_from([0, 0x7FFE, 0xFFFD]),
    )
    def connect(self, size, event_idx, start):
        self.memory = GuestMemory(MIB)
        self.size = size
        self.driver = QueueDriver(self.memory, size, RINGS, event_idx=event_idx, first=start)
        self.queue = Queue(self.memory, 64)
        self.queue.restore(
            QueueState(
                size=size, ready=1, event_idx=int(event_idx), indirect=1, next_available=start, next_used=start,
                descriptors=self.driver.descriptors, driver=self.driver.driver, device=self.driver.device,
            )
        )  # fmt: skip
        self.unpublished = deque()
        self.added = deque()
        self.held = []
        self.pushed = deque()
        self.slots = list(range(64))
        self.slot_of = {}
        # The device goes on until it found the queue empty; then only a notification wakes it.
        self.device_awake = True
        self.queue.pop()
        self.interrupted = False

    @precondition(lambda self: self.driver.free)
    @rule(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=8), readable=st.integers(0, 8), data=st.data())
    def add(self, sizes, readable, data):
        indirect = len(sizes) > self.driver.free or data.draw(st.booleans())
        slot = self.slots.pop()
        places = [(BUFFERS + slot * SLOT + 64 * index, size) for index, size in enumerate(sizes)]
        sources, sinks = places[:readable], places[readable:]
        text = b""
        for address, size in sources:
            part = data.draw(st.binary(min_size=size, max_size=size))
            self.memory.write(address, part)
            text += part
        head = self.driver.add(sources, sinks, indirect=indirect)
        self.slot_of[head] = slot, sinks
        self.unpublished.append((head, text, sum(size for _, size in sinks)))

    @precondition(lambda self: self.unpublished)
    @rule()
    def kick(self):
        if self.driver.kick():
            self.device_awake = True
        self.added.extend(self.unpublished)
        self.unpublished.clear()

    @rule(limit=st.integers(1, 70))
    def pop(self, limit):
        for chain in (batch := self.queue.pop_batch(limit)):
            head, text, room = self.added.popleft()
            assert chain.index == head
            assert chain.read() == text
            assert chain.writable_length == room
            self.held.append(chain)
        assert len(batch) == limit or not self.added
        if len(batch) < limit:
            self.device_awake = False

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def push(self, data):
        batch = []
        for _ in range(data.draw(st.integers(1, len(self.held)))):
            chain = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
            written = chain.write(REPLY[: data.draw(st.integers(0, 250))])
            batch.append((chain, written))
            self.pushed.append((chain.index, written))
        self.queue.push_batch(batch)
        if self.queue.should_notify():
            self.interrupted = True

    @rule()
    def reap(self):
        for head, written in self.driver.reap():
            assert (head, written) == self.pushed.popleft()
            slot, sinks = self.slot_of.pop(head)
            data = b"".join(self.memory.read(address, size) for address, size in sinks)
            assert data[:written] == REPLY[:written]
            self.slots.append(slot)
        assert not self.pushed
        self.interrupted = False
        self.driver.want_interrupts()

    @precondition(lambda self: not self.held)
    @rule()
    def snapshot(self):
        state = QueueState.from_dict(self.queue.save().to_dict())
        self.queue = Queue(self.memory, 64)
        self.queue.restore(state)

    @rule()
    def look_by_ourselves_for_a_while(self):
        self.queue.disable_notifications()
        if self.queue.enable_notifications():
            self.device_awake = True

    @invariant()
    def nobody_waits_in_vain(self):
        if hasattr(self, "queue"):
            assert self.device_awake or not self.added
            assert self.interrupted or not self.pushed
            assert self.queue.in_flight == len(self.held)

    def teardown(self):
        if hasattr(self, "memory"):
            del self.queue
            self.memory.close()


TestQueueMachine = pytest.mark.filterwarnings("error")(QueueMachine.TestCase)
TestQueueMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
