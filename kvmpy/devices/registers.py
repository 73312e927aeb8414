"""Byte-wide register files: what the devices of the ISA bus have in common.

An ISA device is eight bits wide.  The chipset splits a wider access into one byte access a register, at
rising offsets, and so does `RegisterFile`.
"""

from __future__ import annotations

from threading import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class RegisterFile:
    """A device made of one-byte registers: `READERS[offset]` reads one, `WRITERS[offset]` writes one.

    The tables hold plain functions of the subclass, which are called with the device (and the value) while
    `_lock` is held.  An offset past a table's end reads 0xff and swallows writes.

    A register that wants to call out (to a backend, or to stop the machine) appends `(function, arguments)` to
    `_later`: it is called once the lock is free, so whoever is called may come straight back.
    """

    __slots__ = ("_later", "_lock")

    READERS: tuple[Callable[[Any], int], ...] = ()
    WRITERS: tuple[Callable[[Any, int], None], ...] = ()

    def __init__(self) -> None:
        self._lock = Lock()
        self._later: list[tuple[Callable[..., object], tuple[object, ...]]] = []

    def read(self, offset: int, data: memoryview) -> None:
        """Fills `data` with the registers from `offset` on."""
        readers = self.READERS
        # Called by hand, a lock costs a third of what `with` makes of it, and this is the way of every exit.
        self._lock.acquire()
        try:
            # One byte is nearly every access.
            if len(data) == 1:
                data[0] = readers[offset](self) if 0 <= offset < len(readers) else 0xFF
            else:
                for index, register in enumerate(range(offset, offset + len(data))):
                    data[index] = readers[register](self) if 0 <= register < len(readers) else 0xFF
        finally:
            self._lock.release()
        if self._later:
            self._call_later()

    def write(self, offset: int, data: memoryview) -> None:
        """Writes the bytes of `data` to the registers from `offset` on."""
        writers = self.WRITERS
        self._lock.acquire()
        try:
            if len(data) == 1:
                if 0 <= offset < len(writers):
                    writers[offset](self, data[0])
            else:
                for register, value in enumerate(data, offset):
                    if 0 <= register < len(writers):
                        writers[register](self, value)
        finally:
            self._lock.release()
        if self._later:
            self._call_later()

    def _call_later(self) -> None:
        with self._lock:
            later, self._later = self._later, []
        for function, arguments in later:
            function(*arguments)


def ignore_write(_device: object, _value: int) -> None:
    """The writer of a register that cannot be written."""


def read_ones(_device: object) -> int:
    """The reader of a register that cannot be read: the bus floats high."""
    return 0xFF


class Window:
    """The registers of `device` from `first` on, as a device of their own, for ports that do not lie together."""

    __slots__ = ("_device", "_first")

    def __init__(self, device: RegisterFile, first: int) -> None:
        self._device = device
        self._first = first

    def read(self, offset: int, data: memoryview) -> None:
        """Fills `data` with the registers from `offset` on."""
        self._device.read(self._first + offset, data)

    def write(self, offset: int, data: memoryview) -> None:
        """Writes the bytes of `data` to the registers from `offset` on."""
        self._device.write(self._first + offset, data)
