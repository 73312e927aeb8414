"""How requests to a disk are carried out while the guest runs: by the kernel's io_uring, or by a few threads."""

from __future__ import annotations

import os
import threading
from collections import deque
from queue import SimpleQueue

from kvmpy.backends.disk_request import READ, SYNC, WRITE, Request
from kvmpy.errors import HostError
from kvmpy.host.files import fallocate
from kvmpy.host.io_uring import Ring

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    class Engine(Protocol):
        """Carries out requests on one open file, in no particular order.

        `event_fd` is readable when something was completed.  One thread at a time calls it.
        """

        name: str
        event_fd: int

        def submit(self, requests: Sequence[Request]) -> None:
            """Begins to carry out `requests`."""

        def completed(self) -> list[Request]:
            """The requests that were completed since the last call; never waits."""

        def wait(self) -> None:
            """Waits until all that was begun is complete."""

        def close(self) -> None:
            """Waits for all that was begun; twice is fine."""


THREADS = 4
RING_ENTRIES = 256


class ThreadEngine:
    """A few threads that read and write `fd`; works everywhere."""

    name = "threads"

    def __init__(self, fd: int, alignment: int = 1, threads: int = THREADS) -> None:
        self.event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._fd = fd
        self._alignment = alignment
        self._work: SimpleQueue[Request | None] = SimpleQueue()
        self._idle = threading.Condition()  # Its lock guards the two below, too.
        self._left = 0
        self._done: list[Request] = []
        self._threads = [
            threading.Thread(target=self._carry_out, name=f"kvmpy-disk-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, requests: Sequence[Request]) -> None:
        """Begins to carry out `requests`."""
        with self._idle:
            self._left += len(requests)
        for request in requests:
            self._work.put(request)

    def completed(self) -> list[Request]:
        """The requests that were completed since the last call; never waits."""
        _clear(self.event_fd)
        with self._idle:
            done, self._done = self._done, []
        return done

    def wait(self) -> None:
        """Waits until all that was begun is complete."""
        with self._idle:
            self._idle.wait_for(lambda: not self._left)

    def close(self) -> None:
        """Waits for all that was begun; twice is fine."""
        if self.event_fd < 0:
            return
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()
        os.close(self.event_fd)
        self.event_fd = -1

    def _carry_out(self) -> None:
        while (request := self._work.get()) is not None:
            while not request.settle(self._attempt(request)):
                pass
            with self._idle:
                self._done.append(request)
                self._left -= 1
                if not self._left:
                    self._idle.notify_all()
            os.eventfd_write(self.event_fd, 1)

    def _attempt(self, request: Request) -> int:
        try:
            if request.operation == READ:
                return os.preadv(self._fd, request.attempt(self._alignment), request.offset)
            if request.operation == WRITE:
                return os.pwritev(self._fd, request.attempt(self._alignment), request.offset)
            if request.operation == SYNC:
                os.fdatasync(self._fd)
                return 0
            return fallocate(self._fd, request.mode, request.offset, request.length)
        except OSError as error:
            return -(error.errno or 0)


class RingEngine:
    """The kernel's io_uring; raises `HostError` where it is not to be had."""

    name = "io_uring"

    def __init__(self, fd: int, alignment: int = 1, entries: int = RING_ENTRIES) -> None:
        self.event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self._ring = Ring(entries, self.event_fd)
        except HostError:
            os.close(self.event_fd)
            raise
        self._fd = fd
        self._alignment = alignment
        self._waiting: deque[Request] = deque()
        self._under_way: dict[int, tuple[Request, list[memoryview]]] = {}
        self._done: list[Request] = []
        self._next = 0
        self._stalled = False

    def submit(self, requests: Sequence[Request]) -> None:
        """Begins to carry out `requests`; beyond the ring's size they wait for their turn."""
        self._waiting.extend(requests)
        self._fill()

    def completed(self) -> list[Request]:
        """The requests that were completed since the last call; never waits."""
        _clear(self.event_fd)
        self._reap()
        if self._waiting or self._stalled:
            self._fill()
        done, self._done = self._done, []
        return done

    def wait(self) -> None:
        """Waits until all that was begun is complete."""
        while self._under_way:  # Nobody waits for a turn while nothing is under way.
            try:
                self._ring.submit(1)
            except HostError:
                pass  # The host is short of something: what is complete makes room.
            self._reap()
            self._fill()

    def close(self) -> None:
        """Waits for all that was begun; twice is fine."""
        if self.event_fd < 0:
            return
        self.wait()
        self._ring.close()
        os.close(self.event_fd)
        self.event_fd = -1

    def _reap(self) -> None:
        for number, result in self._ring.reap():
            request, _ = self._under_way.pop(number)
            if request.settle(result):
                self._done.append(request)
            else:
                self._waiting.append(request)

    def _fill(self) -> None:
        ring, waiting = self._ring, self._waiting
        while waiting and len(self._under_way) < ring.entries:
            request = waiting.popleft()
            self._next = number = (self._next + 1) & 0xFFFF_FFFF
            buffers: list[memoryview] = []
            if request.operation == READ:
                buffers = request.attempt(self._alignment)
                ring.read(number, self._fd, buffers, request.offset)
            elif request.operation == WRITE:
                buffers = request.attempt(self._alignment)
                ring.write(number, self._fd, buffers, request.offset)
            elif request.operation == SYNC:
                ring.sync(number, self._fd)
            else:
                ring.fallocate(number, self._fd, request.mode, request.offset, request.length)
            # The buffers have to live until the kernel is done with them.
            self._under_way[number] = request, buffers
        self._stalled = False
        try:
            ring.submit()
        except HostError:
            # The host is short of something; what is prepared goes with the next round, which we call for.
            self._stalled = True
            os.eventfd_write(self.event_fd, 1)


def _clear(event_fd: int) -> None:
    try:
        os.eventfd_read(event_fd)
    except BlockingIOError:
        pass
