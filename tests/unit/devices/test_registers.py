"""`RegisterFile`: how accesses of any width and place reach byte-wide registers."""

from __future__ import annotations

import pytest

from kvmpy.devices.registers import RegisterFile, ignore_write, read_ones
from kvmpy.testing.fakes import Ports


class Pair(RegisterFile):
    """Two registers that keep what is written, and one that cannot be reached at all."""

    def __init__(self) -> None:
        super().__init__()
        self.values = [0x11, 0x22]
        self.called = []

    def _write_second(self, value):
        self.values[1] = value
        self._later.append((self._call, (value,)))

    def _call(self, value):
        self.called.append((value, self._lock.locked()))

    READERS = (lambda self: self.values[0], lambda self: self.values[1], read_ones)
    WRITERS = (lambda self, value: self.values.__setitem__(0, value), _write_second, ignore_write)


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_a_wide_read_takes_consecutive_registers_and_ones_past_the_end(pair):
    assert Ports(pair).read(0, 4) == b"\x11\x22\xff\xff"


def test_a_wide_write_goes_to_consecutive_registers(pair):
    Ports(pair).write(0, b"\x33\x44\x55\x66")
    assert pair.values == [0x33, 0x44]


@pytest.mark.parametrize("offset", [-1, 2, 3, 1 << 40])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_what_is_out_of_range_reads_ones_and_swallows_writes(pair, offset, width):
    if offset == -1:
        width = 1
    assert Ports(pair).read(offset, width) == b"\xff" * width
    Ports(pair).write(offset, bytes(width))
    assert pair.values == [0x11, 0x22]


def test_an_empty_access_does_nothing(pair):
    Ports(pair).write(0, b"")
    assert Ports(pair).read(0, 0) == b""


def test_calls_out_come_once_and_after_the_lock_is_free(pair):
    Ports(pair).outb(1, 7)
    Ports(pair).inb(1)
    assert pair.called == [(7, False)]
