"""Consoles on real pipes, files, sockets and terminals."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import socket
import threading
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmpy.backends.chardev import INPUT_LIMIT, ConsoleInput, ConsoleOutput
from kvmpy.backends.escape import Escapes


class Pipe:
    """A pipe of one page: fds to read from and to write to, -1 once closed."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        fcntl.fcntl(self.reader, fcntl.F_SETPIPE_SZ, 4096)

    def close_reader(self) -> None:
        os.close(self.reader)
        self.reader = -1

    def close_writer(self) -> None:
        os.close(self.writer)
        self.writer = -1


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    for fd in (pipe.reader, pipe.writer):
        if fd >= 0:
            os.close(fd)


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Who types and reads, and the raw terminal."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    yield master, slave
    os.close(master)
    os.close(slave)


@pytest.fixture
def errors() -> list[OSError]:
    return []


@pytest.fixture
def output(loop: Any, errors: list[OSError]) -> Iterator[Callable[..., ConsoleOutput]]:
    made = []

    def make(fd: int, limit: int = 1 << 20) -> ConsoleOutput:
        made.append(ConsoleOutput(fd, loop, errors.append, limit=limit))
        return made[-1]

    yield make
    for one in made:
        one.close()
    loop.settle()


@pytest.fixture
def source(loop: Any) -> Iterator[Callable[..., ConsoleInput]]:
    made = []

    def make(fd: int, receive: Callable[[bytes], int], escapes: Escapes | None = None) -> ConsoleInput:
        made.append(ConsoleInput(fd, loop, receive, escapes))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.close()
    loop.settle()


class Device:
    """A receiver with room for `room` bytes."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room
        self.got = b""

    def receive(self, data: bytes) -> int:
        taken = min(self.room, len(data))
        self.room -= taken
        self.got += data[:taken]
        return taken


def pattern(length: int) -> bytes:
    return bytes(i * 7 % 251 for i in range(length))


class TestOutput:
    def test_bytes_are_there_at_once(self, output: Any, pipe: Pipe) -> None:
        output(pipe.writer).write(b"x")
        assert os.read(pipe.reader, 10) == b"x"

    def test_the_shared_file_stays_blocking(self, output: Any, pipe: Pipe) -> None:
        console = output(pipe.writer)
        console.write(b"x" * 10000)
        assert os.get_blocking(pipe.writer)

    def test_what_a_full_pipe_does_not_take_waits_and_follows(self, output: Any, loop: Any, pipe: Pipe) -> None:
        console = output(pipe.writer)
        data = pattern(100_000)
        for start in range(0, len(data), 1000):
            console.write(data[start : start + 1000])
        assert console.waiting > 90_000
        got = b""
        while len(got) < len(data):
            got += os.read(pipe.reader, 4096)
            loop.settle()
        assert got == data
        assert console.waiting == 0
        assert not loop.callbacks

    @pytest.mark.parametrize("run_loop", [True, False])
    def test_a_slow_reader_loses_nothing_and_memory_is_bounded(
        self, run_loop: bool, output: Any, loop: Any, pipe: Pipe
    ) -> None:
        # Also without a reactor that runs: it may be waiting for a lock that the writer holds.
        console = output(pipe.writer, limit=5000)
        data = pattern(300_000)
        most = 0
        done = threading.Event()

        def write() -> None:
            for start in range(0, len(data), 100):
                console.write(data[start : start + 100])
            console.drain()
            done.set()

        writer = threading.Thread(target=write)
        writer.start()
        reactor = threading.Thread(target=loop.run, args=(done,)) if run_loop else None
        if reactor:
            reactor.start()
        while console.waiting <= 5000:
            time.sleep(0)  # Nobody reads yet, so the writer comes to wait.
        got = b""
        while len(got) < len(data):
            most = max(most, console.waiting)
            got += os.read(pipe.reader, 700)
        writer.join()
        if reactor:
            reactor.join()
        assert got == data
        assert 5000 < most <= 5100

    def test_release_ends_the_wait_of_a_writer(self, output: Any, pipe: Pipe) -> None:
        console = output(pipe.writer, limit=100)
        writer = threading.Thread(target=console.write, args=(bytes(100_000),))
        writer.start()
        while not console.waiting:
            pass
        console.release()
        writer.join()
        assert console.waiting <= 100

    def test_drain_gives_up_after_its_time(self, output: Any, pipe: Pipe) -> None:
        console = output(pipe.writer)
        console.write(bytes(100_000))
        assert not console.drain(0.01)
        assert console.waiting

    def test_drain_of_nothing_is_done(self, output: Any, pipe: Pipe) -> None:
        assert output(pipe.writer).drain()

    def test_a_reader_that_goes_is_told_once(self, output: Any, pipe: Pipe, errors: list[OSError]) -> None:
        console = output(pipe.writer)
        pipe.close_reader()
        console.write(b"a")
        console.write(b"b")
        assert [error.errno for error in errors] == [errno.EPIPE]

    def test_a_reader_that_goes_while_bytes_wait_is_told_once(
        self, output: Any, loop: Any, pipe: Pipe, errors: list[OSError]
    ) -> None:
        console = output(pipe.writer)
        console.write(bytes(100_000))
        loop.settle()
        pipe.close_reader()
        loop.settle()
        console.write(b"b")
        assert [error.errno for error in errors] == [errno.EPIPE]
        assert console.waiting == 0

    def test_a_pipe_without_reader_from_the_start_is_told(self, output: Any, pipe: Pipe, errors: list[OSError]) -> None:
        pipe.close_reader()
        output(pipe.writer).write(b"a")
        assert [error.errno for error in errors] == [errno.EPIPE]

    def test_a_file_goes_on_where_it_is(self, output: Any, loop: Any, tmp_path: Path) -> None:
        with (tmp_path / "log").open("wb", buffering=0) as file:
            file.write(b"before ")
            output(file.fileno()).write(b"after")
            file.write(b" end")
        assert (tmp_path / "log").read_bytes() == b"before after end"

    def test_a_full_disk_is_told(self, output: Any, errors: list[OSError]) -> None:
        with open("/dev/full", "wb", buffering=0) as file:
            output(file.fileno()).write(b"x")
        assert [error.errno for error in errors] == [errno.ENOSPC]

    def test_a_socket_is_as_good_as_a_pipe(self, output: Any, loop: Any) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            console = output(ours.fileno())
            data = pattern(1_000_000)
            for start in range(0, len(data), 50_000):
                console.write(data[start : start + 50_000])
            assert console.waiting
            got = b""
            while len(got) < len(data):
                got += theirs.recv(1 << 16)
                loop.settle()
            assert got == data

    def test_a_terminal_that_nobody_reads_makes_nobody_wait(
        self, output: Any, loop: Any, terminal: tuple[int, int]
    ) -> None:
        console = output(terminal[1])
        data = pattern(200_000)
        for start in range(0, len(data), 1000):
            console.write(data[start : start + 1000])
        loop.settle()
        assert console.waiting
        assert os.get_blocking(terminal[1])
        got = b""

        def read() -> bool:
            nonlocal got
            got += os.read(terminal[0], 4096)
            return len(got) >= len(data)

        loop.until(read)
        assert got == data

    def test_close_twice_leaves_no_file_open(self, output: Any, pipe: Pipe) -> None:
        before = os.listdir("/proc/self/fd")
        console = output(pipe.writer)
        console.close()
        console.close()
        assert os.listdir("/proc/self/fd") == before


class TestInput:
    def test_a_pipe_arrives_and_its_end_ends_the_reading(self, source: Any, loop: Any, pipe: Pipe) -> None:
        device = Device()
        console = source(pipe.reader, device.receive)
        os.write(pipe.writer, b"hello")
        loop.settle()
        assert device.got == b"hello"
        pipe.close_writer()
        loop.settle()
        assert console.ended
        assert not loop.callbacks

    def test_escapes_in_a_pipe_are_data(self, source: Any, loop: Any, pipe: Pipe) -> None:
        device = Device()
        ended: list[bool] = []
        source(pipe.reader, device.receive, Escapes(lambda: ended.append(True)))
        os.write(pipe.writer, b"\x01x")
        loop.settle()
        assert (device.got, ended) == (b"\x01x", [])

    def test_bytes_without_room_wait_for_it_and_the_pipe_is_left_alone(
        self, source: Any, loop: Any, pipe: Pipe
    ) -> None:
        device = Device(room=3)
        console = source(pipe.reader, device.receive)
        os.write(pipe.writer, b"abcdef")
        loop.settle()
        os.write(pipe.writer, b"ghi")
        pipe.close_writer()
        loop.settle()
        assert device.got == b"abc"
        assert not loop.callbacks
        for _ in range(3):
            device.room = 2
            console.on_room()
            loop.settle()
        assert device.got == b"abcdefghi"
        device.room = 9
        console.on_room()
        loop.settle()
        assert console.ended

    def test_room_that_comes_during_a_delivery_is_not_missed(self, source: Any, loop: Any, pipe: Pipe) -> None:
        device = Device(room=1)

        def receive(data: bytes) -> int:
            taken = device.receive(data)
            device.room = 1
            console.on_room()
            return taken

        console = source(pipe.reader, receive)
        os.write(pipe.writer, b"abcdef")
        loop.settle()
        assert device.got == b"abcdef"

    def test_a_file_arrives_whole_whatever_the_room(self, source: Any, loop: Any, tmp_path: Path) -> None:
        data = pattern(20_000)
        (tmp_path / "input").write_bytes(data)
        device = Device(room=16)
        with (tmp_path / "input").open("rb") as file:
            console = source(file.fileno(), device.receive)
            loop.settle()
            while not console.ended:
                device.room = 16
                console.on_room()
                loop.settle()
                assert len(console._waiting) <= 4096
        assert device.got == data

    def test_dev_null_ends_at_once(self, source: Any, loop: Any) -> None:
        with open("/dev/null", "rb") as file:
            console = source(file.fileno(), Device().receive)
            loop.settle()
        assert console.ended

    def test_a_terminals_escapes_act_and_the_rest_arrives(
        self, source: Any, loop: Any, terminal: tuple[int, int]
    ) -> None:
        device = Device()
        ended: list[bool] = []
        source(terminal[1], device.receive, Escapes(lambda: ended.append(True)))
        os.write(terminal[0], b"a\x03\x01\x01b")
        loop.until(lambda: device.got == b"a\x03\x01b")
        assert ended == []
        os.write(terminal[0], b"\x01")
        loop.settle()
        os.write(terminal[0], b"x")
        loop.until(lambda: ended == [True])

    def test_escapes_work_though_the_guest_reads_nothing(
        self, source: Any, loop: Any, terminal: tuple[int, int]
    ) -> None:
        ended: list[bool] = []
        console = source(terminal[1], Device(room=0).receive, Escapes(lambda: ended.append(True)))
        for length in range(1000, INPUT_LIMIT + 2000, 1000):
            os.write(terminal[0], b"y" * 1000)
            loop.until(lambda length=length: len(console._waiting) >= min(length, INPUT_LIMIT))
        os.write(terminal[0], b"\x01x")
        loop.until(lambda: ended == [True])
        assert len(console._waiting) == INPUT_LIMIT

    def test_a_terminal_that_hangs_up_ends_the_reading(self, source: Any, loop: Any) -> None:
        master, slave = pty.openpty()
        console = source(slave, Device().receive)
        loop.settle()
        os.close(master)
        loop.until(lambda: console.ended)
        os.close(slave)

    def test_the_shared_file_stays_blocking(self, source: Any, loop: Any, terminal: tuple[int, int]) -> None:
        source(terminal[1], Device().receive)
        loop.settle()
        assert os.get_blocking(terminal[1])

    def test_close_while_bytes_wait_leaves_nothing(self, source: Any, loop: Any, pipe: Pipe) -> None:
        before = os.listdir("/proc/self/fd")
        console = source(pipe.reader, Device(room=0).receive)
        os.write(pipe.writer, b"abc")
        loop.settle()
        console.on_room()
        console.close()
        console.close()
        loop.settle()
        assert os.listdir("/proc/self/fd") == before
