"""Resource descriptors, against the layouts of ACPI 6.5, 6.4."""

from __future__ import annotations

import struct

import pytest

from kvmpy.x86.acpi import resources as r


@pytest.mark.parametrize(
    ("made", "encoded"),
    [
        (r.IRQNoFlags(4), "22 1000"),
        (r.IRQNoFlags(8, 15), "22 0081"),
        (r.IO(0x3F8, 8), "47 01 f803 f803 01 08"),
        (r.Memory32Fixed(0xD0000000, 0x1000), "86 0900 01 000000d0 00100000"),
        (r.Interrupt(16), "89 0600 03 01 10000000"),
        (r.Interrupt(5, 6, flags=r.CONSUMER | r.ACTIVE_LOW | r.SHARED), "89 0a00 0d 02 05000000 06000000"),
        (r.ResourceTemplate(r.IRQNoFlags(4)), "11 08 0a 05 221000 7900"),
        (r.WordBusNumber(0, 255), "88 0d00 02 0c 00 0000 0000 ff00 0000 0001"),
        (r.WordIO(0xD00, 0xFFFF), "88 0d00 01 0c 03 0000 000d ffff 0000 00f3"),
        (r.DWordMemory(0xC0000000, 0xCFFFFFFF), "87 1700 00 0c 01 00000000 000000c0 ffffffcf 00000000 00000010"),
    ],
)
def test_descriptors(made, encoded):
    assert made == bytes.fromhex(encoded)


def test_a_window_above_4_gib():
    made = r.QWordMemory(1 << 40, (1 << 41) - 1, cacheable=True)
    assert made[:6] == bytes.fromhex("8a 2b00 00 0c 03")
    assert struct.unpack("<5Q", made[6:]) == (0, 1 << 40, (1 << 41) - 1, 0, 1 << 40)


def test_a_device_consumes_its_own_registers():
    assert r.QWordMemory(1 << 40, (1 << 40) + 0xFFF, consumer=True)[4] == 0x0D
