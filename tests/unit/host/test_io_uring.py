"""The ring on the kernel's real io_uring."""

from __future__ import annotations

import errno
import os
import select

import pytest

from kvmpy.errors import HostError
from kvmpy.host.files import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from kvmpy.host.io_uring import Ring


@pytest.fixture
def event():
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


@pytest.fixture
def ring(event):
    ring = Ring(8, event)
    yield ring
    ring.close()


@pytest.fixture
def file(tmp_path):
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, bytes(range(256)) * 64)
    yield fd
    os.close(fd)


def finish(ring, count=1):
    """Submits what is prepared and gives the results by id."""
    ring.submit(count)
    return dict(ring.reap())


def test_a_read_fills_its_buffers_one_after_the_other(ring, file):
    first, second = bytearray(10), bytearray(20)
    ring.read(7, file, [memoryview(first), memoryview(second)], 256)
    assert finish(ring) == {7: 30}
    assert (first, second) == (bytes(range(10)), bytes(range(10, 30)))


def test_a_write_gathers_its_buffers(ring, file):
    ring.write(2**64 - 1, file, [memoryview(b"abc"), memoryview(b"defg")], 100)
    assert finish(ring) == {2**64 - 1: 7}
    assert os.pread(file, 8, 100) == b"abcdefg\x6b"


def test_a_batch_comes_back_whole(ring, file):
    buffers = [bytearray(16) for _ in range(8)]
    for number, buffer in enumerate(buffers):
        ring.read(number, file, [memoryview(buffer)], number * 16)
    assert finish(ring, 8) == dict.fromkeys(range(8), 16)
    assert b"".join(buffers) == bytes(range(128))


def test_a_sync_and_a_hole(ring, file):
    ring.sync(1, file)
    ring.fallocate(2, file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4096, 4096)
    assert finish(ring, 2) == {1: 0, 2: 0}
    assert os.pread(file, 4097, 4096) == bytes(4096) + b"\0"
    assert os.pread(file, 2, 4094) == b"\xfe\xff"


def test_a_failure_is_the_result_of_its_own_request_alone(ring, file, tmp_path):
    read_only = os.open("/proc/self/exe", os.O_RDONLY)
    ring.write(1, read_only, [memoryview(b"abc")], 0)
    ring.write(2, file, [memoryview(b"abc")], 0)
    assert finish(ring, 2) == {1: -errno.EBADF, 2: 3}
    os.close(read_only)


def test_the_event_says_that_something_is_complete(ring, event, file):
    poll = select.poll()
    poll.register(event, select.POLLIN)
    assert poll.poll(0) == []
    ring.sync(1, file)
    ring.submit()
    assert poll.poll(10_000) == [(event, select.POLLIN)]
    assert ring.reap() == [(1, 0)]
    assert ring.reap() == []


def test_the_ring_goes_round_many_times(ring, file):
    buffer = bytearray(1)
    for number in range(100):
        ring.read(number, file, [memoryview(buffer)], number)
        assert finish(ring) == {number: 1}
        assert buffer[0] == number


def test_more_than_there_is_room_for_is_refused_until_something_is_submitted(ring, file):
    for number in range(8):
        ring.sync(number, file)
    with pytest.raises(HostError, match="busy"):
        ring.sync(8, file)
    assert len(finish(ring, 8)) == 8
    ring.sync(8, file)
    assert finish(ring) == {8: 0}


def test_the_kernels_refusal_is_an_error(file):
    with pytest.raises(HostError, match="io_uring_setup"):
        Ring(8, file)  # No eventfd.


@pytest.mark.parametrize("entries", [0, 3, 8192, -1])
def test_an_odd_number_of_entries_is_refused(event, entries):
    with pytest.raises(ValueError, match="power of two"):
        Ring(entries, event)


def test_no_buffer_or_too_many_are_refused(ring, file):
    with pytest.raises(ValueError, match="buffers"):
        ring.read(1, file, [], 0)
    with pytest.raises(ValueError, match="buffers"):
        ring.write(1, file, [memoryview(b"a")] * 1025, 0)


def test_close_gives_the_ring_back_and_twice_is_fine(event):
    before = os.listdir("/proc/self/fd")
    ring = Ring(8, event)
    assert len(os.listdir("/proc/self/fd")) == len(before) + 1
    ring.close()
    ring.close()
    assert os.listdir("/proc/self/fd") == before
