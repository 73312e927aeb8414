"""isa-debug-exit and debugcon, as QEMU has them."""

from __future__ import annotations

import pytest

from kvmpy.devices.legacy.debug import DebugConsole, DebugExit, exit_status
from kvmpy.testing.fakes import Ports


@pytest.mark.parametrize(
    ("value", "status"), [(0, 1), (1, 3), (0x10, 0x21), (0x7F, 0xFF), (0x80, 1), (0xFFFFFFFF, 0xFF)]
)
def test_exit_status(value, status):
    assert exit_status(value) == status


@pytest.mark.parametrize(("data", "value"), [(b"\x2a", 0x2A), (b"\x34\x12", 0x1234), (b"\x78\x56\x34\x12", 0x12345678)])
def test_a_write_of_any_width_gives_its_value(data, value):
    seen = []
    Ports(DebugExit(seen.append)).write(0, data)
    assert seen == [value]


def test_other_widths_are_no_exit():
    seen = []
    Ports(DebugExit(seen.append)).write(0, bytes(8))
    Ports(DebugExit(seen.append)).write(0, b"")
    assert seen == []


def test_debug_exit_reads_zero():
    assert Ports(DebugExit(print)).read(0, 4) == bytes(4)


def test_console_prints_what_is_written():
    printed = bytearray()
    ports = Ports(DebugConsole(printed.extend))
    for data in (b"h", b"i!!!", b""):
        ports.write(0, data)
    ports.write(1, b"x")
    assert printed == b"hi"


def test_console_says_that_it_is_there():
    ports = Ports(DebugConsole(print))
    assert (ports.read(0, 1), ports.read(0, 2), ports.read(1, 1)) == (b"\xe9", b"\xe9\xff", b"\xff")
