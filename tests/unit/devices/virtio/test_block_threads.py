"""A driver and the device in threads of their own: nothing is lost between kicks, completions and interrupts."""

from __future__ import annotations

import os
import random
import select
import struct
import threading

import pytest

from kvmpy.backends.disk import IO_URING, THREADS, Disk
from kvmpy.devices.virtio import block_request as blk
from kvmpy.devices.virtio.block import Block
from kvmpy.devices.virtio.device import VIRTIO_F_VERSION_1
from kvmpy.devices.virtio.queue import Queue
from kvmpy.machine.reactor import Reactor
from kvmpy.memory import GuestMemory
from kvmpy.testing.virtio_driver import QueueDriver
from kvmpy.units import MIB

HEADERS = 0x100000
STATUSES = 0x180000
DATA = 0x200000

REQUESTS = 3000
SLOTS = 128


class Machine:
    """What a machine has of it: a reactor that waits for the doorbell and the disk, and an interrupt."""

    def __init__(self, disk, event_idx):
        self.memory = GuestMemory(8 * MIB)
        self.disk = disk
        self.device = Block(disk)
        self.queue = queue = Queue(self.memory, 256)
        self.driver = driver = QueueDriver(self.memory, 256, 0x1000, event_idx=event_idx)
        queue.descriptors, queue.driver, queue.device = driver.descriptors, driver.driver, driver.device
        queue.event_idx = event_idx
        queue.ready = True
        self.interrupt = threading.Event()
        self.failures = []
        self.device.connect(self)
        self.device.activate([queue], self.device.features | VIRTIO_F_VERSION_1)
        self.doorbell = os.eventfd(0, os.EFD_NONBLOCK)
        self.reactor = Reactor(self.failures.append)
        self.reactor.add(self.doorbell, select.EPOLLIN, self.rung)
        self.reactor.add(disk.event_fd, select.EPOLLIN, lambda _events: self.device.complete())

    def notify(self, index):
        self.interrupt.set()

    def config_changed(self):
        self.failures.append("configuration")

    def broken(self, reason):
        self.failures.append(reason)

    def rung(self, _events):
        os.eventfd_read(self.doorbell)
        with self.device.lock:
            self.device.kick(0)

    def close(self):
        self.reactor.close()
        os.close(self.doorbell)


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("engine", [IO_URING, THREADS])
def test_every_request_comes_back_to_a_driver_that_sleeps_until_it_is_interrupted(tmp_path, engine, event_idx):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8 * MIB))
    with Disk(str(path), engine=engine) as disk:
        machine = Machine(disk, event_idx)
        try:
            drive(machine, random.Random(5))
        finally:
            machine.close()
        assert machine.failures == []
        assert machine.device.stats.errors == 0


def drive(machine, chance):
    memory, driver = machine.memory, machine.driver
    asked = done = 0
    while done < REQUESTS:
        for _ in range(chance.randint(1, 8)):
            if driver.in_flight == SLOTS // 2 or driver.free < 3:
                break
            slot = asked % SLOTS
            asked += 1
            kind = chance.choice([blk.VIRTIO_BLK_T_IN, blk.VIRTIO_BLK_T_OUT, blk.VIRTIO_BLK_T_FLUSH])
            memory.write(HEADERS + 16 * slot, struct.pack("<IIQ", kind, 0, chance.randrange(16000)))
            data = [(DATA + 4096 * slot, 512)]
            readable = data if kind == blk.VIRTIO_BLK_T_OUT else []
            writable = data if kind == blk.VIRTIO_BLK_T_IN else []
            driver.add([(HEADERS + 16 * slot, 16), *readable], [*writable, (STATUSES + slot, 1)])
        if driver.kick():
            os.eventfd_write(machine.doorbell, 1)
        most = chance.randint(0, 20)
        while True:
            # First it asks, and then looks once more: what came before would interrupt nobody.
            driver.want_interrupts()
            reaped = len(driver.reap())
            done += reaped
            if driver.in_flight <= most:
                break
            if not reaped:
                assert machine.interrupt.wait(20), f"{driver.in_flight} requests never came back"
                machine.interrupt.clear()
    # None is left behind.
    while driver.in_flight:
        driver.want_interrupts()
        if not driver.reap():
            assert machine.interrupt.wait(20), f"{driver.in_flight} requests never came back"
            machine.interrupt.clear()
