"""The one thread that waits for the host's fds: consoles, timers, and later the kicks of virtio queues.

It starts with the first thing to wait for, so a machine without any never pays for it.
"""

from __future__ import annotations

import os
import select
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Reactor:
    """An epoll loop in a thread of its own.

    Callbacks run in that thread and must not block.  One that raises ends the loop's part in it: `on_error` gets the
    exception, and what raised is watched no more.  Use it as a context manager, or call `close`.
    """

    def __init__(self, on_error: Callable[[BaseException], None]) -> None:
        self._on_error = on_error
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._soon: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = False

    def __enter__(self) -> Reactor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Calls `callback(events)` whenever `fd` is ready for any of `events` (`select.EPOLL*`).

        Raises `PermissionError` for an fd that epoll cannot watch, such as a regular file's.
        """
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback
        self._start()

    def modify(self, fd: int, events: int) -> None:
        """Watches `fd` for other `events` from now on."""
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Watches `fd` no more; after `close`, it is watched no more already."""
        self._callbacks.pop(fd, None)
        if not self._epoll.closed:
            self._epoll.unregister(fd)

    def call_soon(self, function: Callable[[], None]) -> None:
        """Calls `function` in the loop's thread; may be called from any thread."""
        with self._lock:
            if self._stopping:
                return
            self._soon.append(function)
            os.eventfd_write(self._wake, 1)
        self._start()

    def close(self) -> None:
        """Ends the loop after what it is doing, and waits for that; twice is fine."""
        with self._lock:
            if self._stopping:
                return
            self._stopping = True
            os.eventfd_write(self._wake, 1)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._epoll.close()
        os.close(self._wake)

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None or self._stopping:
                return
            self._thread = threading.Thread(target=self._loop, name="kvmpy-reactor", daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        while not self._stopping:
            for fd, events in self._epoll.poll():
                if self._stopping:
                    return
                if fd == self._wake:
                    os.eventfd_read(fd)
                    self._call_all_soon()
                    continue
                callback = self._callbacks.get(fd)
                if callback is None:
                    continue  # Removed by a callback of the same round.
                try:
                    callback(events)
                except Exception as error:
                    if self._callbacks.get(fd) is callback:
                        self.remove(fd)
                    self._on_error(error)

    def _call_all_soon(self) -> None:
        with self._lock:
            functions, self._soon = self._soon, []
        for function in functions:
            try:
                function()
            except Exception as error:
                self._on_error(error)
