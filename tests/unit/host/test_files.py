from __future__ import annotations

import ctypes
import errno
import os

import pytest

from kvmpy.host import files


@pytest.fixture
def opened(tmp_path):
    """Opens the same file once more, each time as an open file of its own."""
    path = tmp_path / "file"
    path.write_bytes(b"\xff" * 16384)
    fds = []

    def open_once_more(flags=os.O_RDWR):
        fds.append(os.open(path, flags))
        return fds[-1]

    yield open_once_more
    for fd in fds:
        os.close(fd)


def test_an_exclusive_lock_keeps_all_others_out_though_they_are_of_the_same_process(opened):
    assert files.lock(opened(), exclusive=True)
    assert not files.lock(opened(), exclusive=True)
    assert not files.lock(opened(os.O_RDONLY), exclusive=False)


def test_shared_locks_go_together_and_keep_an_exclusive_one_out(opened):
    assert files.lock(opened(os.O_RDONLY), exclusive=False)
    assert files.lock(opened(os.O_RDONLY), exclusive=False)
    assert not files.lock(opened(), exclusive=True)


def test_a_lock_ends_with_its_open_file(tmp_path):
    path = tmp_path / "file"
    path.touch()
    first, second = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    assert files.lock(first, exclusive=True)
    os.close(first)
    assert files.lock(second, exclusive=True)
    os.close(second)


def test_a_lock_that_cannot_be_is_an_error(opened):
    with pytest.raises(OSError, match="Bad file descriptor"):
        files.lock(opened(os.O_RDONLY), exclusive=True)


def test_fallocate_punches_a_hole_or_says_why_not(opened):
    fd = opened()
    assert files.fallocate(fd, files.FALLOC_FL_PUNCH_HOLE | files.FALLOC_FL_KEEP_SIZE, 4096, 8192) == 0
    assert os.pread(fd, 16384, 0) == b"\xff" * 4096 + bytes(8192) + b"\xff" * 4096
    assert files.fallocate(opened(os.O_RDONLY), 0, 0, 4096) == -errno.EBADF


def test_the_alignment_of_direct_access_is_a_power_of_two_or_unknown(opened):
    alignment = files.direct_alignment(opened())
    assert alignment is None or (0 < alignment <= 65536 and alignment & (alignment - 1) == 0)


def test_what_is_no_block_device_has_no_logical_block_size(opened):
    with pytest.raises(OSError, match="ioctl"):
        files.logical_block_size(opened())


def test_an_address_is_where_the_bytes_lie():
    data = bytearray(b"some bytes")
    assert ctypes.string_at(files.address_of(memoryview(data)[5:]), 5) == b"bytes"
