"""Byte streams of the host that never make us wait: standard input and output, whatever they are.

The open file behind fd 0, 1 or 2 is shared with the shell and with every other process that was started from it, so
its flags are not ours to change.  A pipe or terminal is opened once more, which gives an open file of our own that
can be non-blocking; what cannot be opened again, as a socket, is asked by poll before each small write.
"""

from __future__ import annotations

import os
import select
import stat

# POSIX: a pipe that polls writable takes this much at once.
PIPE_BUF = select.PIPE_BUF


class Stream:
    """An open file of our own on what `fd` is open on, to read or to write; `fd` itself is left alone.

    `can_wait` says that reading or writing may have to wait, so that it is worth watching the file by epoll; a
    regular file and a device like /dev/null never wait, and epoll refuses them.
    """

    __slots__ = ("_poll", "can_wait", "fd", "is_terminal")

    def __init__(self, fd: int, *, writing: bool) -> None:
        mode = os.fstat(fd).st_mode
        self.is_terminal = os.isatty(fd)
        self.can_wait = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or self.is_terminal
        self._poll: select.poll | None = None
        if stat.S_ISFIFO(mode) or self.is_terminal:
            try:
                flags = (os.O_WRONLY if writing else os.O_RDONLY) | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                self.fd = os.open(f"/proc/self/fd/{fd}", flags)
                return
            except OSError:
                pass  # Somebody else's terminal, a pipe without a reader, no /proc: poll will do.
        self.fd = os.dup(fd)
        if self.can_wait:
            self._poll = select.poll()
            self._poll.register(self.fd, select.POLLOUT if writing else select.POLLIN)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Writes as much of `data` as goes without waiting and returns how many bytes that was; raises `OSError`."""
        if not self.can_wait:
            return self._write_all(data)
        if self._poll is not None:
            if not self._poll.poll(0):
                return 0
            data = data[:PIPE_BUF]
        try:
            return os.write(self.fd, data)
        except BlockingIOError:
            return 0

    def _write_all(self, data: bytes | bytearray | memoryview) -> int:
        """A file takes all, or less and then tells why by an error: the disk is full."""
        written = os.write(self.fd, data)
        while written < len(data):
            written += os.write(self.fd, data[written:])
        return written

    def read(self, length: int) -> bytes | None:
        """At most `length` bytes, b"" at the end, None where there is nothing yet; raises `OSError`."""
        if self._poll is not None and not self._poll.poll(0):
            return None
        try:
            return os.read(self.fd, length)
        except BlockingIOError:
            return None

    def close(self) -> None:
        """Closes our open file; twice is fine."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
