"""Disk images on real files, with both engines."""

from __future__ import annotations

import errno
import mmap
import os
import random
import resource
import select
import subprocess
import sys

import pytest

from kvmpy.backends.disk import IO_URING, THREADS, Disk
from kvmpy.backends.disk_request import BOUNCE_SIZE
from kvmpy.errors import ConfigError
from kvmpy.units import KIB, MIB

SIZE = 4 * MIB


@pytest.fixture
def path(tmp_path):
    """An image in which each 512-byte sector begins with its number."""
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(number.to_bytes(4, "little") * 128 for number in range(SIZE // 512)))
    return str(path)


@pytest.fixture(params=[IO_URING, THREADS])
def engine(request):
    return request.param


@pytest.fixture
def disk(path, engine):
    with Disk(path, engine=engine) as disk:
        assert disk.engine == engine
        yield disk


def finish(disk, count=1):
    """Submits what is queued and waits for `count` answers; the errno by token."""
    disk.submit()
    poll = select.poll()
    poll.register(disk.event_fd, select.POLLIN)
    results = {}
    while len(results) < count:
        assert poll.poll(20_000), f"{len(results)} of {count} came back"
        results.update(disk.completed())
    return results


def read(disk, offset, length):
    buffer = bytearray(length)
    disk.read("read", offset, [memoryview(buffer)], length)
    assert finish(disk) == {"read": 0}
    return bytes(buffer)


def write(disk, offset, data):
    disk.write("write", offset, [memoryview(data)], len(data))
    return finish(disk)["write"]


def test_a_read_scatters(disk):
    buffers = [bytearray(4), bytearray(0), bytearray(508), bytearray(1024)]
    disk.read(1, 1024, [memoryview(buffer) for buffer in buffers], 1536)
    assert finish(disk) == {1: 0}
    assert b"".join(buffers) == b"".join(number.to_bytes(4, "little") * 128 for number in (2, 3, 4))


def test_a_write_gathers_and_leaves_its_neighbours_alone(disk, path):
    disk.write(1, 512, [memoryview(b"a" * 100), memoryview(b"b" * 412)], 512)
    assert finish(disk) == {1: 0}
    with open(path, "rb") as file:
        assert file.read(1536) == bytes(512) + b"a" * 100 + b"b" * 412 + (2).to_bytes(4, "little") * 128


def test_more_requests_than_a_ring_holds_all_come_back(disk):
    buffers = [bytearray(512) for _ in range(1000)]
    for number, buffer in enumerate(buffers):
        disk.read(number, number * 512, [memoryview(buffer)], 512)
    assert finish(disk, 1000) == dict.fromkeys(range(1000), 0)
    assert all(int.from_bytes(buffer[:4], "little") == number for number, buffer in enumerate(buffers))


def test_more_buffers_than_the_kernel_takes_at_once(disk, path):
    data = random.Random(1).randbytes(3000 * 512)
    disk.write(1, 0, [memoryview(data)[start : start + 512] for start in range(0, len(data), 512)], len(data))
    assert finish(disk) == {1: 0}
    back = bytearray(len(data))
    disk.read(2, 0, [memoryview(back)[start : start + 512] for start in range(0, len(data), 512)], len(data))
    assert finish(disk) == {2: 0}
    assert back == data
    assert os.path.getsize(path) == SIZE


def test_who_waits_finds_all_of_it_complete(disk):
    for number in range(600):
        disk.write(number, number * 512, [memoryview(b"w" * 512)], 512)
    disk.submit()
    disk.wait()
    assert dict(disk.completed()) == dict.fromkeys(range(600), 0)
    disk.wait()
    assert disk.completed() == []


def test_a_flush_comes_back(disk):
    disk.flush("flush")
    assert finish(disk) == {"flush": 0}


def test_a_discard_gives_the_host_its_space_back(disk, path):
    before = os.stat(path).st_blocks
    disk.discard(1, MIB, MIB)
    assert finish(disk) == {1: 0}
    assert os.stat(path).st_blocks <= before - MIB // 512 // 2
    assert os.path.getsize(path) == SIZE
    assert read(disk, MIB, 512) == bytes(512)


@pytest.mark.parametrize("unmap", [True, False])
def test_zeroes_are_written_and_nothing_else_is(disk, unmap):
    disk.write_zeroes(1, MIB + 512, 3 * KIB, unmap=unmap)
    assert finish(disk) == {1: 0}
    assert (
        read(disk, MIB, 4 * KIB)
        == (2048).to_bytes(4, "little") * 128 + bytes(3 * KIB) + (2055).to_bytes(4, "little") * 128
    )


def test_zeroes_are_written_where_the_file_system_has_no_call_for_them(tmp_path, engine):
    # The kernel's tmpfs punches holes and does not zero ranges.
    path = f"/dev/shm/kvmpy-test-{os.getpid()}-{engine}"
    try:
        with open(path, "wb") as file:
            file.write(b"\xff" * (4 * MIB))
        with Disk(path, engine=engine) as disk:
            disk.write_zeroes(1, 512, 2 * MIB + 512, unmap=False)
            assert finish(disk) == {1: 0}
            assert read(disk, 0, 4 * MIB) == b"\xff" * 512 + bytes(2 * MIB + 512) + b"\xff" * (2 * MIB - KIB)
    finally:
        os.unlink(path)


def test_a_failed_request_leaves_the_others_alone(path, engine):
    with Disk(path, read_only=True, engine=engine) as disk:
        buffer = bytearray(512)
        disk.write("write", 0, [memoryview(b"x" * 512)], 512)
        disk.read("read", 512, [memoryview(buffer)], 512)
        assert finish(disk, 2) == {"write": errno.EBADF, "read": 0}
        assert buffer == (1).to_bytes(4, "little") * 128


def test_an_image_that_somebody_cut_short_is_an_i_o_error_and_what_is_left_is_read(disk, path):
    os.truncate(path, MIB)
    buffer = bytearray(KIB)
    disk.read("across", MIB - 512, [memoryview(buffer)], KIB)
    assert finish(disk) == {"across": errno.EIO}
    assert read(disk, MIB - 512, 512) == (2047).to_bytes(4, "little") * 128


FULL = """
import resource
from kvmpy.backends.disk import Disk
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
with Disk({path!r}, engine={engine!r}) as disk:
    def finish():
        disk.submit()
        disk.wait()
        return disk.completed()
    disk.write("across", (1 << 20) - 512, [memoryview(b"x" * 1024)], 1024)
    print(finish())
    disk.write("below", 0, [memoryview(b"y" * 512)], 512)
    print(finish())
"""


def test_a_disk_that_takes_no_more_is_an_error_and_the_rest_goes_on(tmp_path, engine):
    path = tmp_path / "disk.img"
    path.write_bytes(b"")
    os.truncate(path, 2 * MIB)
    program = FULL.format(path=str(path), engine=engine)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines() == [f"[('across', {errno.EFBIG})]", "[('below', 0)]"], done.stderr
    assert path.read_bytes()[:512] == b"y" * 512


def test_a_full_file_system_is_no_space_left(tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "kvmpy-test", mount], check=False).returncode:
        pytest.skip("mounting needs root")
    try:
        path = mount / "disk.img"
        path.touch()
        os.truncate(path, 4 * MIB)
        with Disk(str(path)) as disk:
            assert write(disk, 0, b"x" * 2 * MIB) == errno.ENOSPC
            assert write(disk, 0, b"y" * 512) == 0
            assert read(disk, 0, 512) == b"y" * 512
    finally:
        subprocess.run(["umount", mount], check=True)


class TestDirect:
    @pytest.fixture
    def disk(self, path, engine):
        try:
            disk = Disk(path, direct=True, engine=engine)
        except ConfigError as error:
            pytest.skip(str(error))
        with disk:
            yield disk

    def test_aligned_buffers_go_straight(self, disk):
        buffer = mmap.mmap(-1, 8192)
        disk.read(1, 4096, [memoryview(buffer)], 8192)
        assert finish(disk) == {1: 0}
        assert buffer[:4] == (8).to_bytes(4, "little")

    def test_buffers_at_odd_addresses_go_by_way_of_another(self, disk):
        data = random.Random(2).randbytes(8192)
        assert write(disk, 4096, memoryview(b"?" + data)[1:]) == 0
        buffers = [memoryview(bytearray(9000))[3:1003], memoryview(bytearray(9000))[7:7199]]
        disk.read(1, 4096, buffers, 8192)
        assert finish(disk) == {1: 0}
        assert b"".join(buffers) == data

    def test_odd_buffers_longer_than_the_one_between_go_in_pieces(self, disk):
        data = random.Random(3).randbytes(2 * BOUNCE_SIZE + 4096)
        parts = [memoryview(data)[start : start + 70_001] for start in range(0, len(data), 70_001)]
        disk.write(1, 4096, parts, len(data))
        assert finish(disk) == {1: 0}
        back = bytearray(len(data))
        parts = [memoryview(back)[start : start + 90_001] for start in range(0, len(back), 90_001)]
        disk.read(2, 4096, parts, len(back))
        assert finish(disk) == {2: 0}
        assert back == data

    def test_zeroes(self, disk):
        disk.write_zeroes(1, 4096, 4096, unmap=False)
        assert finish(disk) == {1: 0}
        assert read(disk, 4096, 4096) == bytes(4096)

    def test_an_offset_that_the_device_cannot_do_is_an_error(self, disk):
        disk.read(1, 1, [memoryview(bytearray(512))], 512)
        assert finish(disk) == {1: errno.EINVAL}

    def test_the_block_size_is_told(self, disk):
        assert disk.block_size in (512, 1024, 2048, 4096)


class TestOpening:
    @pytest.mark.parametrize(
        ("size", "words"), [(0, "0 bytes"), (1000, "1000 bytes.*512"), (1, "multiple of 512")], ids=str
    )
    def test_a_size_that_no_disk_has_is_refused(self, tmp_path, size, words):
        path = tmp_path / "odd.img"
        path.write_bytes(bytes(size))
        with pytest.raises(ConfigError, match=words):
            Disk(str(path))

    def test_what_is_no_disk_is_refused(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        for path in (tmp_path, tmp_path / "pipe", "/dev/null"):
            with pytest.raises(ConfigError, match="neither a regular file nor a block device"):
                Disk(str(path))

    @pytest.mark.parametrize("path", ["/nowhere/disk.img", "", "a\0b"])
    def test_what_is_not_there_is_refused(self, path):
        with pytest.raises(ConfigError, match="drive: "):
            Disk(path)

    def test_an_unknown_engine_is_refused(self, path):
        with pytest.raises(ConfigError, match="none of auto, io_uring, threads"):
            Disk(path, engine="steam")

    def test_a_refusal_leaves_nothing_open(self, path):
        with Disk(path):
            before = set(os.listdir("/proc/self/fd"))
            with pytest.raises(ConfigError):
                Disk(path)
            assert set(os.listdir("/proc/self/fd")) == before

    def test_close_leaves_nothing_behind_and_twice_is_fine(self, path, engine):
        before = set(os.listdir("/proc/self/fd"))
        disk = Disk(path, engine=engine)
        disk.close()
        disk.close()
        assert set(os.listdir("/proc/self/fd")) == before

    def test_close_waits_for_what_was_begun(self, path, engine):
        disk = Disk(path, engine=engine)
        for number in range(16):
            disk.write(number, number * 512, [memoryview(b"z" * 512)], 512)
        disk.submit()
        disk.close()
        with open(path, "rb") as file:
            assert file.read(16 * 512) == b"z" * 16 * 512


HOLD = """
import sys
from kvmpy.backends.disk import Disk
with Disk(sys.argv[1], read_only=sys.argv[2] == "ro"):
    print("open", flush=True)
    sys.stdin.read()
"""


class TestLocks:
    @pytest.fixture
    def held(self, path):
        """Opens the image in another process until the test's end."""
        processes = []

        def hold(mode):
            words = [sys.executable, "-c", HOLD, path, mode]
            process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            processes.append(process)
            assert process.stdout.readline() == "open\n"
            return process

        yield hold
        for process in processes:
            process.communicate()

    def test_a_second_writer_is_refused(self, held, path):
        held("rw")
        with pytest.raises(ConfigError, match="in use by another machine; end it, or open it read-only in both"):
            Disk(path)

    def test_a_reader_is_refused_while_somebody_writes(self, held, path):
        held("rw")
        with pytest.raises(ConfigError, match="is being written by another machine"):
            Disk(path, read_only=True)

    def test_a_writer_is_refused_while_somebody_reads(self, held, path):
        held("ro")
        with pytest.raises(ConfigError, match="in use by another machine"):
            Disk(path)

    def test_readers_go_together(self, held, path):
        held("ro")
        with Disk(path, read_only=True) as disk:
            assert read(disk, 512, 4) == (1).to_bytes(4, "little")

    def test_a_lock_ends_with_its_process_however_it_ends(self, held, path):
        process = held("rw")
        process.kill()
        process.wait()
        with Disk(path):
            pass


class TestResize:
    def test_a_file_becomes_longer(self, disk, path):
        assert disk.resize(SIZE + MIB) == disk.size == os.path.getsize(path) == SIZE + MIB
        assert read(disk, SIZE, 512) == bytes(512)

    def test_a_file_that_became_longer_is_seen(self, disk, path):
        os.truncate(path, SIZE + 512)
        assert disk.resize() == SIZE + 512

    @pytest.mark.parametrize("size", [SIZE - 512, SIZE + 1, 0, -512])
    def test_other_sizes_are_refused(self, disk, path, size):
        with pytest.raises(ConfigError, match="drive: "):
            disk.resize(size)
        assert os.path.getsize(path) == disk.size == SIZE

    def test_a_read_only_one_stays_as_it_is(self, path):
        with Disk(path, read_only=True) as disk, pytest.raises(ConfigError, match="no writable image"):
            disk.resize(2 * SIZE)


def test_threads_take_over_where_the_kernel_refuses_io_uring(path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    holder = os.open(path, os.O_RDONLY)
    try:
        # Room for the image and one eventfd, and none for a ring: the same refusal as without io_uring.
        resource.setrlimit(resource.RLIMIT_NOFILE, (os.dup(holder) + 3, hard))
        with Disk(path) as disk:
            assert disk.engine == THREADS
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
