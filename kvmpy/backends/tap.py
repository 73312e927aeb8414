"""Listens to a console on its way out: when it began, and whether its kernel panicked."""

from __future__ import annotations

import threading
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PANIC = b"Kernel panic - not syncing"
LINE_LIMIT = 1024  # A longer line is looked at in pieces of this size.


class Tap:
    """Passes all bytes on to `sink`, or to nobody, and reads along.

    `first_byte` is what `clock` said at the first byte, or None.  Several vCPUs may write at once.
    """

    __slots__ = ("_clock", "_line", "_lock", "_panic", "_sink", "first_byte")

    def __init__(self, sink: Callable[[bytes], None] | None = None, clock: Callable[[], float] = monotonic) -> None:
        self._sink = sink
        self._clock = clock
        self._lock = threading.Lock()
        self._line = bytearray()
        self._panic: bytes | None = None
        self.first_byte: float | None = None

    def write(self, data: bytes) -> None:
        """Takes what the guest wrote."""
        if self._panic is None:
            with self._lock:
                if self.first_byte is None and data:
                    self.first_byte = self._clock()
                self._line += data
                if b"\n" in data or len(self._line) > LINE_LIMIT:
                    self._scan()
        if self._sink is not None:
            self._sink(data)

    @property
    def in_line(self) -> bool:
        """Whether a line has begun and not ended; False once a panic was heard."""
        return bool(self._line)

    @property
    def panic(self) -> str | None:
        """The first line in which a Linux kernel said that it panicked, from that word on; None without one.

        It is what the guest wrote: the caller decides what of it is fit to print.
        """
        with self._lock:
            text = self._panic
            if text is None and PANIC in self._line:
                text = bytes(self._line)
        if text is None:
            return None
        start = text.index(PANIC)
        return text[start:].split(b"\n", 1)[0].strip().decode("ascii", "backslashreplace")

    def _scan(self) -> None:
        """Looks at the lines that are complete; keeps the last one, or so much of it that no panic is missed."""
        found = self._line.find(PANIC)
        if found >= 0:
            end = self._line.find(b"\n", found)
            if end >= 0 or len(self._line) - found > LINE_LIMIT:
                self._panic = bytes(self._line[found : end if end >= 0 else found + LINE_LIMIT])
                self._line.clear()
            else:
                del self._line[:found]  # The rest of its line is still to come.
            return
        end = self._line.rfind(b"\n") + 1
        del self._line[: max(end, len(self._line) - len(PANIC) + 1)]
