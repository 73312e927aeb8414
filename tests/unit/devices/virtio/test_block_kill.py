"""What a guest has flushed is on the image, though its machine was killed in the middle of writing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kvmpy.units import MIB

# A guest's driver and its device in one process: writes sector after sector, and tells of each that is flushed.
WRITER = """
import struct, sys
from kvmpy.backends.disk import Disk
from kvmpy.devices.virtio import block_request as blk
from kvmpy.devices.virtio.block import Block
from kvmpy.devices.virtio.device import VIRTIO_F_VERSION_1
from kvmpy.devices.virtio.queue import Queue
from kvmpy.memory import GuestMemory
from kvmpy.testing.virtio_driver import QueueDriver

memory = GuestMemory(1 << 20)
disk = Disk(sys.argv[1], engine=sys.argv[2])
device = Block(disk)
queue = Queue(memory, 256)
driver = QueueDriver(memory, 256, 0x1000)
queue.descriptors, queue.driver, queue.device = driver.descriptors, driver.driver, driver.device
queue.ready = True
device.activate([queue], device.features | VIRTIO_F_VERSION_1)

HEADER, DATA, STATUS = 0x80000, 0x81000, 0x82000

def ask(kind, sector, data):
    memory.write(HEADER, struct.pack("<IIQ", kind, 0, sector))
    driver.add([(HEADER, 16), *data], [(STATUS, 1)])
    driver.kick()
    device.kick(0)
    device.drain()
    assert len(driver.reap()) == 1
    assert memory.read(STATUS, 1) == b"\\0"

for sector in range(4096):
    memory.write(DATA, sector.to_bytes(4, "little") * 128)
    ask(blk.VIRTIO_BLK_T_OUT, sector, [(DATA, 512)])
    ask(blk.VIRTIO_BLK_T_FLUSH, 0, [])
    print(sector, flush=True)
"""


@pytest.mark.parametrize("engine", ["io_uring", "threads"])
def test_all_that_was_flushed_is_there_after_sigkill(tmp_path, engine):
    path = tmp_path / "disk.img"
    path.write_bytes(b"\xff" * 2 * MIB)
    words = [sys.executable, "-c", WRITER, str(path), engine]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        for _ in range(50):
            flushed = int(process.stdout.readline())
        process.kill()
        # What it had said before it was gone counts too.
        flushed = max(
            [flushed, *(int(line) for line in process.stdout.read().splitlines(keepends=True) if "\n" in line)]
        )
        assert process.wait() == -9
    image = path.read_bytes()
    for sector in range(flushed + 1):
        assert image[sector * 512 : sector * 512 + 512] == sector.to_bytes(4, "little") * 128
