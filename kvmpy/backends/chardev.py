"""The host side of a console: a guest's output to a stream, and a stream to a guest's input.

Both sides may be slow.  Nothing that the guest wrote is lost to a slow reader: output waits in a buffer, and when that
is full its vCPU waits.  Input for which the guest has no room waits too, and then we stop reading.
"""

from __future__ import annotations

import os
import select
import threading

from kvmpy.backends.streams import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from kvmpy.backends.escape import Escapes

    class Reactor(Protocol):
        """The event loop's part that a backend uses; callbacks run in the loop's thread."""

        def add(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
            """Calls `callback(events)` whenever `fd` is ready for any of `events`."""

        def modify(self, fd: int, events: int) -> None:
            """Watches `fd` for other `events` from now on."""

        def remove(self, fd: int) -> None:
            """Watches `fd` no more."""

        def call_soon(self, function: Callable[[], None]) -> None:
            """Calls `function` in the loop's thread; may be called from any thread."""


OUTPUT_LIMIT = 1 << 20  # Bytes that wait for a slow reader before the vCPU does.
INPUT_LIMIT = 64 << 10  # Bytes typed ahead; a terminal of the host keeps 4 KiB.
CHUNK = 4096


class ConsoleOutput:
    """Writes what vCPU threads give to the stream at `fd`, in order and without loss.

    While the stream takes bytes at once they go straight there.  Else they wait, `limit` bytes of them, and the
    reactor writes them when it can; beyond that, `write` waits for the reader.  It then writes by itself, so that it
    rests on no other thread, which may be waiting for a lock that its caller holds.

    When the stream fails (the reader of a pipe is gone, a disk is full), `on_closed` is called once with the
    `OSError`, by the thread that met it, and all output from then on is dropped.
    """

    def __init__(
        self, fd: int, reactor: Reactor, on_closed: Callable[[OSError], None], *, limit: int = OUTPUT_LIMIT
    ) -> None:
        self._stream = Stream(fd, writing=True)
        self._reactor = reactor
        self._on_closed = on_closed
        self._limit = limit
        self._lock = threading.Lock()
        self._pending = bytearray()
        self._watched = False
        self._dropping = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def write(self, data: bytes | memoryview) -> None:
        """Takes all of `data`; waits where `limit` bytes are waiting already, until there is room or `release`."""
        error = None
        with self._lock:
            if self._dropping:
                return
            try:
                if not self._pending:
                    written = self._stream.write(data)
                    if written == len(data):
                        return
                    data = data[written:]
                self._pending += data
                while len(self._pending) > self._limit and self._wait(None):
                    self._write_pending()
                del self._pending[self._limit :]  # Only after `release` is there any.
            except OSError as failure:
                error = failure
                self._drop()
            if self._pending and not self._watched:
                self._watched = True
                self._reactor.call_soon(self._watch)
        if error is not None:
            self._on_closed(error)

    def drain(self, timeout: float | None = None) -> bool:
        """Waits until all output is written, at most `timeout` seconds or until `release`; says whether it is."""
        from time import monotonic

        deadline = None if timeout is None else monotonic() + timeout
        error = None
        with self._lock:
            try:
                while self._pending:
                    left = None if deadline is None else deadline - monotonic()
                    if (left is not None and left <= 0) or not self._wait(left):
                        break
                    self._write_pending()
            except OSError as failure:
                error = failure
                self._drop()
            done = not self._pending and not self._dropping
        if error is not None:
            self._on_closed(error)
        return done

    def release(self) -> None:
        """Ends every wait in `write` and `drain`, now and from now on; any thread or signal handler may call it."""
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Drops what still waits and closes our side; call `drain` before it.  Twice is fine.

        Call it in the reactor's thread, or after the reactor has ended.
        """
        self.release()
        with self._lock:
            if self._wake >= 0:
                try:
                    self._write_pending()
                except OSError:
                    pass  # Nobody is left who could be told.
                self._drop()
                self._unwatch()
                self._stream.close()
                wake, self._wake = self._wake, -1  # `release` takes no lock.
                os.close(wake)

    @property
    def waiting(self) -> int:
        """The bytes that wait for the reader."""
        return len(self._pending)

    def _wait(self, timeout: float | None) -> bool:
        """Waits until the stream takes bytes or `timeout` seconds are over; False when released."""
        poll = select.poll()
        poll.register(self._stream.fd, select.POLLOUT)
        poll.register(self._wake, select.POLLIN)
        ready = poll.poll(None if timeout is None else timeout * 1000)
        return all(fd != self._wake for fd, _ in ready)

    def _write_pending(self) -> None:
        """Writes what goes without waiting."""
        while self._pending:
            written = self._stream.write(self._pending[: 16 * CHUNK])
            if not written:
                return
            del self._pending[:written]

    def _drop(self) -> None:
        self._dropping = True
        self._pending.clear()

    def _watch(self) -> None:
        """In the reactor's thread: has `_flush` called when the stream takes bytes."""
        with self._lock:
            if self._wake < 0:
                return
            if self._pending:
                self._reactor.add(self._stream.fd, select.EPOLLOUT, self._flush)
            else:
                self._watched = False

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            _remove(self._reactor, self._stream.fd)

    def _flush(self, _events: int) -> None:
        # The lock's holder may be waiting for the same reader, and then writes for us; the reactor never waits.
        if not self._lock.acquire(blocking=False):
            return
        error = None
        try:
            try:
                self._write_pending()
            except OSError as failure:
                error = failure
                self._drop()
            if not self._pending:
                self._unwatch()
        finally:
            self._lock.release()
        if error is not None:
            self._on_closed(error)


class ConsoleInput:
    """Gives the bytes of the stream at `fd` to `receive`, which says how many it had room for.

    The rest waits until the device calls `on_room`.  A pipe or file is read only while nothing waits, so all of it
    arrives.  A terminal is always read, or its escapes would die with a guest that stopped listening; what is typed
    beyond `INPUT_LIMIT` is dropped, as the terminal itself would.  The end of the stream ends the reading.

    `escapes` sees what comes from a terminal, and nothing else.  `receive` is called in the reactor's thread.
    """

    def __init__(
        self, fd: int, reactor: Reactor, receive: Callable[[bytes], int], escapes: Escapes | None = None
    ) -> None:
        self._stream = Stream(fd, writing=False)
        self._reactor = reactor
        self._receive = receive
        self._escapes = escapes if self._stream.is_terminal else None
        self._waiting = bytearray()
        self._watched = False
        self._ended = False
        self._scheduled = False

    def start(self) -> None:
        """Begins to read, in the reactor's thread; any thread may call it, once."""
        self._reactor.call_soon(self._watch)

    def on_room(self) -> None:
        """The device has room again; any thread may say so, and with a lock held."""
        if self._waiting and not self._scheduled:
            self._scheduled = True
            self._reactor.call_soon(self._deliver)

    def close(self) -> None:
        """Stops reading and closes our side, in the reactor's thread or after it ended; twice is fine."""
        self._end()
        self._stream.close()

    @property
    def ended(self) -> bool:
        """Whether the stream is at its end, or closed."""
        return self._ended

    def _watch(self) -> None:
        if self._ended or self._watched:
            return
        self._watched = True
        if self._stream.can_wait:
            self._reactor.add(self._stream.fd, select.EPOLLIN, self._read)
        else:
            # A piece at a time, so that a long file does not keep the others from the loop.
            self._reactor.call_soon(self._read_file)

    def _unwatch(self) -> None:
        # Not only without events: epoll would go on to report that the writer is gone.
        if self._watched and self._stream.can_wait:
            self._watched = False
            _remove(self._reactor, self._stream.fd)

    def _read_file(self) -> None:
        self._watched = False
        if not self._ended:
            self._read(0)

    def _read(self, _events: int) -> None:
        try:
            data = self._stream.read(CHUNK)
        except OSError:
            data = b""  # The terminal hung up.
        if data is None:
            return
        if not data:
            self._end()
            return
        if self._escapes is not None:
            data = self._escapes.filter(data)
        self._waiting += data
        if self._stream.is_terminal:
            del self._waiting[INPUT_LIMIT:]
        self._deliver()

    def _deliver(self) -> None:
        self._scheduled = False
        if self._waiting:
            taken = self._receive(bytes(self._waiting[:CHUNK]))
            del self._waiting[:taken]
        if self._waiting and not self._stream.is_terminal:
            self._unwatch()
        else:
            self._watch()

    def _end(self) -> None:
        self._ended = True
        self._unwatch()


def _remove(reactor: Reactor, fd: int) -> None:
    """Has `fd` watched no more, if it is: the reactor may have ended, or not yet begun to."""
    try:
        reactor.remove(fd)
    except (KeyError, ValueError, OSError):
        pass
