"""The block device over a real disk image, with the test driver on the guest's side."""

from __future__ import annotations

import os
import random
import select
import struct
import subprocess

import pytest

from kvmpy.backends.disk import IO_URING, THREADS, Disk
from kvmpy.devices.virtio import block_request as blk
from kvmpy.devices.virtio.block import MAX_QUEUES, Block
from kvmpy.devices.virtio.device import VIRTIO_F_VERSION_1
from kvmpy.devices.virtio.queue import Queue, QueueError
from kvmpy.memory import GuestMemory
from kvmpy.testing.virtio_driver import QueueDriver
from kvmpy.units import MIB, PAGE_SIZE

SIZE = 2 * MIB
RAM = 8 * MIB
HEADERS = 0x100000
STATUSES = 0x180000
DATA = 0x200000

PENDING = 0xEE  # What a status byte is before it is one.


class Guest:
    """A guest with one block device: it writes requests and sees what comes back."""

    def __init__(self, disk, *, refuse=0, queues=1, memory=None):
        self.memory = memory or GuestMemory(RAM)
        self.disk = disk
        self.interrupts = []
        self.config_changes = 0
        self.reasons = []
        self.device = Block(disk, queues=queues, identity=b"the disk's serial")
        self.device.connect(self)
        self.features = (self.device.features | VIRTIO_F_VERSION_1) & ~refuse
        self.queues = [Queue(self.memory, size) for size in self.device.QUEUE_SIZES]
        self.drivers = []
        for number, queue in enumerate(self.queues):
            driver = QueueDriver(self.memory, queue.max_size, 0x1000 + number * 0x20000)
            queue.descriptors, queue.driver, queue.device = driver.descriptors, driver.driver, driver.device
            queue.ready = True
            self.drivers.append(driver)
        self.device.activate(self.queues, self.features)
        self.heads = {}
        self.count = 0

    # The transport.

    def notify(self, index):
        self.interrupts.append(index)

    def config_changed(self):
        self.config_changes += 1

    def broken(self, reason):
        self.reasons.append(reason)

    # The driver.

    def request(self, kind, sector=0, readable=(), writable=(), *, queue=0, header=None):
        """Adds a request with a header and a status of its own; the address of its status."""
        number = self.count
        self.count += 1
        status = STATUSES + number
        header = struct.pack("<IIQ", kind, 0, sector) if header is None else header
        self.memory.write(HEADERS + 16 * number, header)
        self.memory.write(status, bytes((PENDING,)))
        parts = [(HEADERS + 16 * number, len(header))] if header else []
        self.add([*parts, *readable], [*writable, (status, 1)], status, queue=queue)
        return status

    def add(self, readable, writable, status, queue=0):
        self.heads[queue, self.drivers[queue].add(readable, writable)] = status

    def run(self, queue=0):
        """Kicks and waits until all is back; (status, written) by the address of the status."""
        self.drivers[queue].kick()
        self.device.kick(queue)
        return self.wait()

    def wait(self):
        poll = select.poll()
        poll.register(self.disk.event_fd, select.POLLIN)
        results = {}
        while True:
            for number, driver in enumerate(self.drivers):
                for head, written in driver.reap():
                    status = self.heads.pop((number, head))
                    results[status] = self.memory.read(status, 1)[0], written
            if not any(driver.in_flight for driver in self.drivers):
                return results
            assert poll.poll(20_000), "something never came back"
            self.device.complete()

    def ask(self, kind, sector=0, readable=(), writable=(), **options):
        """Makes one request; (status, written)."""
        status = self.request(kind, sector, readable, writable, **options)
        return self.run(options.get("queue", 0))[status]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(content())
    return str(path)


def content(seed=1, size=SIZE):
    return random.Random(seed).randbytes(size)


@pytest.fixture(params=[IO_URING, THREADS])
def disk(path, request):
    with Disk(path, engine=request.param) as disk:
        yield disk


@pytest.fixture
def guest(disk):
    return Guest(disk)


def image(path):
    with open(path, "rb") as file:
        return file.read()


def config(device, offset=0, length=96):
    data = bytearray(b"\xff" * length)
    device.read_config(offset, memoryview(data))
    return bytes(data)


class TestRequests:
    def test_a_read_gives_what_is_on_the_disk_and_marks_the_pages_that_it_filled(self, guest):
        guest.memory.clear_dirty()
        parts = [(DATA + 512, 1024), (DATA + 8192, 3072)]
        assert guest.ask(blk.VIRTIO_BLK_T_IN, 3, writable=parts) == (0, 4097)
        assert guest.memory.read(DATA + 512, 1024) + guest.memory.read(DATA + 8192, 3072) == content()[1536:5632]
        dirty = set(guest.memory.dirty_pages())
        assert {DATA, DATA + 2 * PAGE_SIZE} <= dirty
        assert DATA + PAGE_SIZE not in dirty

    def test_a_write_is_on_the_disk_and_nowhere_else(self, guest, path):
        data = content(2, 4096)
        guest.memory.write(DATA, data)
        assert guest.ask(blk.VIRTIO_BLK_T_OUT, 5, readable=[(DATA, 1000), (DATA + 1000, 3096)]) == (0, 1)
        before = content()
        assert image(path) == before[:2560] + data + before[2560 + 4096 :]

    def test_what_was_written_is_read_back(self, guest):
        guest.memory.write(DATA, content(3, 512))
        assert guest.ask(blk.VIRTIO_BLK_T_OUT, 4095, readable=[(DATA, 512)])[0] == 0
        assert guest.ask(blk.VIRTIO_BLK_T_IN, 4095, writable=[(DATA + 4096, 512)])[0] == 0
        assert guest.memory.read(DATA + 4096, 512) == content(3, 512)

    def test_a_flush(self, guest):
        assert guest.ask(blk.VIRTIO_BLK_T_FLUSH) == (0, 1)

    def test_the_serial_number_is_20_bytes(self, guest):
        assert guest.ask(blk.VIRTIO_BLK_T_GET_ID, writable=[(DATA, 20)]) == (0, 21)
        assert guest.memory.read(DATA, 20) == b"the disk's serial\0\0\0"

    @pytest.mark.parametrize(("room", "written"), [(8, 9), (40, 20)])
    def test_a_serial_number_with_less_or_more_room(self, guest, room, written):
        guest.memory.fill(DATA, 64, 0x55)
        assert guest.ask(blk.VIRTIO_BLK_T_GET_ID, writable=[(DATA, room)]) == (0, written)
        text = b"the disk's serial\0\0\0"[:room]
        assert guest.memory.read(DATA, 64) == text.ljust(64, b"\x55")

    def test_a_discard_of_several_ranges(self, guest, path):
        guest.memory.write(DATA, struct.pack("<QIIQII", 8, 16, 0, 2048, 8, 0))
        before = os.stat(path).st_blocks
        assert guest.ask(blk.VIRTIO_BLK_T_DISCARD, readable=[(DATA, 32)]) == (0, 1)
        assert os.stat(path).st_blocks == before - 24
        old = content()
        assert image(path) == old[:4096] + bytes(8192) + old[12288:MIB] + bytes(4096) + old[MIB + 4096 :]

    @pytest.mark.parametrize("flags", [0, blk.VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP])
    def test_zeroes_of_several_ranges(self, guest, path, flags):
        guest.memory.write(DATA, struct.pack("<QIIQII", 1, 2, flags, 4095, 1, flags))
        assert guest.ask(blk.VIRTIO_BLK_T_WRITE_ZEROES, readable=[(DATA, 32)]) == (0, 1)
        old = content()
        assert image(path) == old[:512] + bytes(1024) + old[1536 : SIZE - 512] + bytes(512)

    def test_a_range_of_no_sectors_is_well(self, guest, path):
        guest.memory.write(DATA, struct.pack("<QII", 1, 0, 0))
        assert guest.ask(blk.VIRTIO_BLK_T_DISCARD, readable=[(DATA, 16)]) == (0, 1)
        assert image(path) == content()

    @pytest.mark.parametrize("kind", [blk.VIRTIO_BLK_T_IN, blk.VIRTIO_BLK_T_OUT])
    def test_no_data_is_well(self, guest, kind):
        assert guest.ask(kind, SIZE // 512) == (0, 1)

    def test_header_data_and_status_may_lie_in_buffers_in_any_way(self, guest, path):
        data = content(4, 1024)
        guest.memory.write(DATA, struct.pack("<IIQ", blk.VIRTIO_BLK_T_OUT, 0, 9) + data)
        guest.add([(DATA, 5), (DATA + 5, 100), (DATA + 105, 935)], [(DATA + 4096, 1)], DATA + 4096)
        assert guest.run() == {DATA + 4096: (0, 1)}
        assert image(path)[9 * 512 : 11 * 512] == data
        guest.memory.write(DATA, struct.pack("<IIQ", blk.VIRTIO_BLK_T_IN, 0, 9))
        guest.add([(DATA, 16)], [(DATA + 8192, 1000), (DATA + 9192, 25)], DATA + 9216)
        assert guest.run() == {DATA + 9216: (0, 1025)}
        assert guest.memory.read(DATA + 8192, 1024) == data

    def test_a_batch_comes_back_whole_with_one_interrupt_or_few(self, guest):
        statuses = {
            guest.request(blk.VIRTIO_BLK_T_IN, sector, writable=[(DATA + sector * 512, 512)]): sector
            for sector in range(64)
        }
        results = guest.run()
        assert results == dict.fromkeys(statuses, (0, 513))
        assert guest.memory.read(DATA, 64 * 512) == content()[: 64 * 512]
        assert 1 <= len(guest.interrupts) <= 64
        assert set(guest.interrupts) == {0}

    def test_what_was_done_is_counted(self, guest):
        guest.ask(blk.VIRTIO_BLK_T_IN, 0, writable=[(DATA, 1024)])
        guest.ask(blk.VIRTIO_BLK_T_OUT, 0, readable=[(DATA, 512)])
        guest.ask(99)
        stats = guest.device.stats
        assert (stats.requests, stats.bytes, stats.errors) == (3, 1536, 1)


class TestHostile:
    @pytest.mark.parametrize(
        ("kind", "sector", "length"),
        [
            (blk.VIRTIO_BLK_T_IN, SIZE // 512, 512),
            (blk.VIRTIO_BLK_T_IN, SIZE // 512 - 1, 1024),
            (blk.VIRTIO_BLK_T_IN, 2**64 - 1, 512),
            (blk.VIRTIO_BLK_T_IN, 2**55, 512),  # In bytes it would be 0 in 64 bits.
            (blk.VIRTIO_BLK_T_IN, 0, 511),
            (blk.VIRTIO_BLK_T_OUT, SIZE // 512, 512),
            (blk.VIRTIO_BLK_T_OUT, 2**64 - 1, 512),
            (blk.VIRTIO_BLK_T_OUT, 2**55, 512),
            (blk.VIRTIO_BLK_T_OUT, 0, 513),
        ],
    )
    def test_what_is_not_on_the_disk_is_an_i_o_error(self, guest, path, kind, sector, length):
        guest.memory.fill(DATA, length, 0x77)
        side = "writable" if kind == blk.VIRTIO_BLK_T_IN else "readable"
        status, written = guest.ask(kind, sector, **{side: [(DATA, length)]})
        assert status == blk.VIRTIO_BLK_S_IOERR
        assert written == (0 if side == "writable" else 1)
        assert guest.memory.read(DATA, length) == b"\x77" * length
        assert image(path) == content()

    @pytest.mark.parametrize("kind", [2, 3, 5, 6, 7, 9, 10, 12, 14, 15, 0x80000000, 0xFFFFFFFF])
    def test_a_request_that_we_do_not_know_is_unsupported(self, guest, kind):
        assert guest.ask(kind, writable=[(DATA, 512)]) == (blk.VIRTIO_BLK_S_UNSUPP, 0)

    @pytest.mark.parametrize("length", [0, 1, 8, 15])
    def test_a_short_header_is_an_i_o_error(self, guest, length):
        assert guest.ask(0, header=bytes(length)) == (blk.VIRTIO_BLK_S_IOERR, 1)

    def test_a_request_without_a_status_breaks_the_device_and_what_came_before_is_answered(self, guest):
        status = guest.request(blk.VIRTIO_BLK_T_IN, 0, writable=[(DATA, 512)])
        guest.drivers[0].add([(HEADERS, 16)], [])
        guest.drivers[0].kick()
        with pytest.raises(QueueError, match="no room for a status"):
            guest.device.kick(0)
        guest.device.drain()
        assert guest.memory.read(status, 1) == b"\0"
        assert guest.memory.read(DATA, 512) == content()[:512]

    @pytest.mark.parametrize("kind", [blk.VIRTIO_BLK_T_DISCARD, blk.VIRTIO_BLK_T_WRITE_ZEROES])
    @pytest.mark.parametrize(
        ("data", "status"),
        [
            (b"", blk.VIRTIO_BLK_S_IOERR),
            (bytes(15), blk.VIRTIO_BLK_S_IOERR),
            (bytes(17), blk.VIRTIO_BLK_S_IOERR),
            (bytes(16) * 17, blk.VIRTIO_BLK_S_IOERR),
            (struct.pack("<QII", 4096, 1, 0), blk.VIRTIO_BLK_S_IOERR),
            (struct.pack("<QII", 2**64 - 1, 2, 0), blk.VIRTIO_BLK_S_IOERR),
            (struct.pack("<QII", 0, 2**32 - 1, 0), blk.VIRTIO_BLK_S_IOERR),
            (struct.pack("<QII", 0, 1, 2), blk.VIRTIO_BLK_S_UNSUPP),
            (struct.pack("<QIIQII", 0, 8, 0, 4096, 1, 0), blk.VIRTIO_BLK_S_IOERR),
        ],
    )
    def test_bad_ranges_change_nothing(self, guest, path, kind, data, status):
        guest.memory.write(DATA, data)
        assert guest.ask(kind, readable=[(DATA, len(data))] if data else []) == (status, 1)
        assert image(path) == content()

    def test_a_discard_with_the_flag_of_zeroes_is_unsupported(self, guest, path):
        guest.memory.write(DATA, struct.pack("<QII", 0, 1, blk.VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP))
        assert guest.ask(blk.VIRTIO_BLK_T_DISCARD, readable=[(DATA, 16)])[0] == blk.VIRTIO_BLK_S_UNSUPP
        assert image(path) == content()

    def test_more_segments_than_agreed_are_an_i_o_error(self, guest):
        # 254 with a header is all that a queue of 256 has descriptors for, so the header and data share the first.
        guest.memory.write(DATA, struct.pack("<IIQ", blk.VIRTIO_BLK_T_OUT, 0, 0))
        parts = [(DATA, 16 + 2)] + [(DATA, 2)] * 254
        guest.add(parts, [(STATUSES, 1)], STATUSES)
        assert guest.run() == {STATUSES: (blk.VIRTIO_BLK_S_IOERR, 1)}

    def test_a_segment_longer_than_agreed_is_an_i_o_error(self, guest):
        length = blk.SIZE_MAX + 512
        assert guest.ask(blk.VIRTIO_BLK_T_IN, writable=[(DATA, length)]) == (blk.VIRTIO_BLK_S_IOERR, 0)

    def test_a_segment_of_any_length_is_well_where_none_was_agreed(self, disk):
        guest = Guest(disk, refuse=blk.VIRTIO_BLK_F_SIZE_MAX)
        length = blk.SIZE_MAX + 512
        assert guest.ask(blk.VIRTIO_BLK_T_IN, writable=[(DATA, length)]) == (0, length + 1)
        assert guest.memory.read(DATA, length) == content()[:length]

    def test_what_was_not_agreed_is_unsupported(self, disk, path):
        guest = Guest(disk, refuse=blk.VIRTIO_BLK_F_DISCARD | blk.VIRTIO_BLK_F_WRITE_ZEROES)
        guest.memory.write(DATA, struct.pack("<QII", 0, 1, 0))
        for kind in (blk.VIRTIO_BLK_T_DISCARD, blk.VIRTIO_BLK_T_WRITE_ZEROES):
            assert guest.ask(kind, readable=[(DATA, 16)])[0] == blk.VIRTIO_BLK_S_UNSUPP
        assert image(path) == content()

    @pytest.mark.parametrize("index", [1, 7, 65535])
    def test_a_kick_of_a_queue_that_is_not_there_does_nothing(self, guest, index):
        guest.device.kick(index)


class TestReadOnly:
    @pytest.fixture
    def guest(self, path):
        with Disk(path, read_only=True) as disk:
            yield Guest(disk)

    def test_it_says_so(self, guest):
        features = guest.device.features
        assert features & blk.VIRTIO_BLK_F_RO
        assert not features & (blk.VIRTIO_BLK_F_DISCARD | blk.VIRTIO_BLK_F_WRITE_ZEROES)

    @pytest.mark.parametrize("kind", [blk.VIRTIO_BLK_T_OUT, blk.VIRTIO_BLK_T_DISCARD, blk.VIRTIO_BLK_T_WRITE_ZEROES])
    def test_what_would_change_it_is_an_i_o_error(self, guest, path, kind):
        guest.memory.write(DATA, struct.pack("<QII", 0, 1, 0))
        length = 512 if kind == blk.VIRTIO_BLK_T_OUT else 16
        assert guest.ask(kind, readable=[(DATA, length)]) == (blk.VIRTIO_BLK_S_IOERR, 1)
        assert image(path) == content()

    def test_reads_and_flushes_go(self, guest):
        assert guest.ask(blk.VIRTIO_BLK_T_IN, 1, writable=[(DATA, 512)]) == (0, 513)
        assert guest.memory.read(DATA, 512) == content()[512:1024]
        assert guest.ask(blk.VIRTIO_BLK_T_FLUSH) == (0, 1)


class TestConfiguration:
    def test_the_fields_are_where_the_specification_has_them(self, disk):
        device = Block(disk, queues=3)
        data = config(device)
        assert struct.unpack_from("<QII", data) == (SIZE // 512, blk.SIZE_MAX, blk.SEG_MAX)
        assert struct.unpack_from("<I", data, 20) == (512,)
        assert struct.unpack_from("<BBHI", data, 24) == (3, 0, 8, 0)
        assert data[32] == 1
        assert struct.unpack_from("<H", data, 34) == (3,)
        assert struct.unpack_from("<III", data, 36) == (blk.MAX_DISCARD_SECTORS, blk.MAX_RANGES, 8)
        assert struct.unpack_from("<IIB", data, 48) == (blk.MAX_WRITE_ZEROES_SECTORS, blk.MAX_RANGES, 1)
        assert data[57:] == bytes(len(data) - 57)

    @pytest.mark.parametrize(("offset", "length"), [(0, 1), (4, 4), (58, 8), (60, 1), (4000, 8), (2**40, 4)])
    def test_any_part_can_be_read_and_zeroes_past_the_end(self, disk, offset, length):
        device = Block(disk)
        assert config(device, offset, length) == (config(device, 0, 60) + bytes(8192))[offset:][:length].ljust(
            length, b"\0"
        )

    def test_writes_change_nothing_but_the_cache_mode(self, guest):
        before = config(guest.device)
        for offset in (0, 20, 31, 33, 59, 60, 4000):
            guest.device.write_config(offset, memoryview(b"\xff"))
        guest.device.write_config(32, memoryview(b"\0\0\0\0"))
        assert config(guest.device) == before
        guest.device.write_config(32, memoryview(b"\0"))
        assert config(guest.device) == before[:32] + b"\0" + before[33:]

    def test_the_cache_mode_is_back_after_a_reset(self, guest):
        guest.device.write_config(32, memoryview(b"\0"))
        guest.device.reset()
        assert config(guest.device)[32] == 1

    @pytest.mark.parametrize("queues", [1, 2, MAX_QUEUES])
    def test_several_queues_are_a_feature(self, disk, queues):
        device = Block(disk, queues=queues)
        assert len(device.QUEUE_SIZES) == queues
        assert bool(device.features & blk.VIRTIO_BLK_F_MQ) == (queues > 1)

    @pytest.mark.parametrize("queues", [0, -1, MAX_QUEUES + 1])
    def test_no_queue_or_too_many_are_refused(self, disk, queues):
        with pytest.raises(ValueError, match="queues"):
            Block(disk, queues=queues)

    def test_each_queue_gets_its_own_answers(self, disk):
        guest = Guest(disk, queues=3)
        asked = {
            queue: guest.request(blk.VIRTIO_BLK_T_IN, queue, writable=[(DATA + queue * 512, 512)], queue=queue)
            for queue in range(3)
        }
        for queue in range(3):
            guest.drivers[queue].kick()
            guest.device.kick(queue)
        assert guest.wait() == dict.fromkeys(asked.values(), (0, 513))
        assert guest.memory.read(DATA, 1536) == content()[:1536]
        assert sorted(guest.interrupts) == [0, 1, 2]


class Recorder:
    """A disk that notes the order of what it is asked, and completes when it is told to."""

    size = SIZE
    block_size = 512
    read_only = False

    def __init__(self):
        self.calls = []
        self.queued = []
        self.begun = []
        self.error = 0

    def __getattr__(self, name):
        def note(token, *_arguments, **_options):
            self.calls.append(name)
            self.queued.append(token)

        return note

    def submit(self):
        self.begun += self.queued
        self.queued = []

    def completed(self):
        done, self.begun = self.begun, []
        return [(token, self.error) for token in done]

    def wait(self):
        pass


class TestWriteThrough:
    """Without a way to flush, or with the cache switched off, a write is answered when it is stable (5.2.6.2)."""

    def guest(self, **options):
        return Guest(Recorder(), **options)

    def start(self, guest, kind=blk.VIRTIO_BLK_T_OUT):
        guest.memory.write(DATA, struct.pack("<QII", 0, 1, 0))
        guest.request(kind, 0, readable=[(DATA, 512 if kind == blk.VIRTIO_BLK_T_OUT else 16)])
        guest.drivers[0].kick()
        guest.device.kick(0)

    @pytest.mark.parametrize(
        ("kind", "call"),
        [
            (blk.VIRTIO_BLK_T_OUT, "write"),
            (blk.VIRTIO_BLK_T_DISCARD, "discard"),
            (blk.VIRTIO_BLK_T_WRITE_ZEROES, "write_zeroes"),
        ],
    )
    def test_a_flush_follows_before_the_answer(self, kind, call):
        guest = self.guest(refuse=blk.VIRTIO_BLK_F_FLUSH | blk.VIRTIO_BLK_F_CONFIG_WCE)
        self.start(guest, kind)
        guest.device.complete()
        assert guest.disk.calls == [call, "flush"]
        assert guest.drivers[0].reap() == []
        guest.device.complete()
        assert len(guest.drivers[0].reap()) == 1

    def test_the_driver_can_switch_the_cache_off(self):
        guest = self.guest()
        guest.device.write_config(32, memoryview(b"\0"))
        self.start(guest)
        guest.device.complete()
        assert guest.disk.calls == ["write", "flush"]

    def test_with_a_cache_no_flush_follows(self):
        guest = self.guest()
        self.start(guest)
        guest.device.complete()
        assert guest.disk.calls == ["write"]
        assert len(guest.drivers[0].reap()) == 1

    def test_a_read_needs_none(self):
        guest = self.guest(refuse=blk.VIRTIO_BLK_F_FLUSH | blk.VIRTIO_BLK_F_CONFIG_WCE)
        guest.request(blk.VIRTIO_BLK_T_IN, 0, writable=[(DATA, 512)])
        guest.drivers[0].kick()
        guest.device.kick(0)
        guest.device.complete()
        assert guest.disk.calls == ["read"]
        assert len(guest.drivers[0].reap()) == 1

    def test_a_failed_write_is_answered_at_once(self):
        guest = self.guest(refuse=blk.VIRTIO_BLK_F_FLUSH | blk.VIRTIO_BLK_F_CONFIG_WCE)
        guest.disk.error = 5
        self.start(guest)
        guest.device.complete()
        assert guest.disk.calls == ["write"]
        assert guest.memory.read(STATUSES, 1)[0] == blk.VIRTIO_BLK_S_IOERR

    def test_draining_includes_the_flush(self):
        guest = self.guest(refuse=blk.VIRTIO_BLK_F_FLUSH | blk.VIRTIO_BLK_F_CONFIG_WCE)
        self.start(guest)
        guest.device.drain()
        assert guest.disk.calls == ["write", "flush"]
        assert len(guest.drivers[0].reap()) == 1


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "status"), [(5, blk.VIRTIO_BLK_S_IOERR), (28, blk.VIRTIO_BLK_S_IOERR), (95, blk.VIRTIO_BLK_S_UNSUPP)]
    )
    def test_an_error_of_the_host_is_a_status(self, error, status):
        guest = Guest(Recorder())
        guest.disk.error = error
        TestWriteThrough().start(guest)
        guest.device.complete()
        assert guest.memory.read(STATUSES, 1)[0] == status

    def test_a_full_disk_is_an_i_o_error_and_the_rest_goes_on(self, tmp_path):
        mount = tmp_path / "small"
        mount.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "kvmpy-test", mount], check=False).returncode:
            pytest.skip("mounting needs root")
        try:
            path = mount / "disk.img"
            path.touch()
            os.truncate(path, SIZE)
            with Disk(str(path)) as disk:
                guest = Guest(disk)
                guest.memory.fill(DATA, MIB, 0x11)
                assert guest.ask(blk.VIRTIO_BLK_T_OUT, 0, readable=[(DATA, MIB)]) == (blk.VIRTIO_BLK_S_IOERR, 1)
                assert guest.ask(blk.VIRTIO_BLK_T_OUT, 0, readable=[(DATA, 512)]) == (0, 1)
                assert guest.ask(blk.VIRTIO_BLK_T_IN, 0, writable=[(DATA + MIB, 512)]) == (0, 513)
                assert guest.memory.read(DATA + MIB, 512) == b"\x11" * 512
        finally:
            subprocess.run(["umount", mount], check=True)


class TestReset:
    def test_nothing_touches_memory_or_queue_once_it_returned(self, guest):
        for sector in range(80):
            guest.request(blk.VIRTIO_BLK_T_IN, sector, writable=[(DATA + sector * 512, 512)])
        guest.drivers[0].kick()
        guest.device.kick(0)
        guest.device.reset()
        before = guest.memory.read(0, RAM)
        guest.device.complete()
        assert guest.memory.read(0, RAM) == before

    def test_a_queues_reset_finishes_what_is_under_way(self, guest):
        status = guest.request(blk.VIRTIO_BLK_T_IN, 0, writable=[(DATA, 512)])
        guest.drivers[0].kick()
        guest.device.kick(0)
        guest.device.reset_queue(0)
        assert guest.memory.read(status, 1) == b"\0"
        assert len(guest.drivers[0].reap()) == 1


class TestResize:
    def test_the_guest_is_told_and_reaches_the_new_end(self, guest, path):
        assert guest.device.resize(SIZE + MIB) == SIZE + MIB
        assert guest.config_changes == 1
        assert struct.unpack_from("<Q", config(guest.device)) == ((SIZE + MIB) // 512,)
        guest.memory.fill(DATA, 512, 0x42)
        assert guest.ask(blk.VIRTIO_BLK_T_OUT, (SIZE + MIB) // 512 - 1, readable=[(DATA, 512)]) == (0, 1)
        assert image(path)[-512:] == b"\x42" * 512
