from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

import pytest


class Loop:
    """An event loop over epoll that the test turns itself."""

    def __init__(self) -> None:
        self.callbacks: dict[int, Callable[[int], None]] = {}
        self._epoll = select.epoll()
        self._soon: deque[Callable[[], None]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)

    def add(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        self._epoll.register(fd, events)
        self.callbacks[fd] = callback

    def modify(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        del self.callbacks[fd]
        self._epoll.unregister(fd)

    def call_soon(self, function: Callable[[], None]) -> None:
        self._soon.append(function)
        os.eventfd_write(self._wake, 1)

    def turn(self, timeout: float = 0) -> bool:
        """Does what there is to do; False when that was nothing."""
        busy = False
        for fd, events in self._epoll.poll(timeout):
            busy = True
            if fd == self._wake:
                os.eventfd_read(fd)
            elif fd in self.callbacks:
                self.callbacks[fd](events)
        for _ in range(len(self._soon)):
            self._soon.popleft()()
        return busy

    def settle(self) -> None:
        """Turns until nothing is left to do; a loop that never settles is busy for nothing."""
        for _ in range(10000):
            if not self.turn():
                return
        raise AssertionError("the loop does not settle")

    def until(self, condition: Callable[[], bool]) -> None:
        """Turns until `condition` holds, for what the kernel does in its own time."""
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end, "it never came true"
            self.turn(0.01)

    def run(self, until: threading.Event) -> None:
        """Turns until `until` is set."""
        while not until.is_set():
            self.turn(0.01)

    def close(self) -> None:
        self._epoll.close()
        os.close(self._wake)


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    assert not loop.callbacks, "something is still watched"
    loop.close()
