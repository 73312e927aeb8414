"""kvmpy.machine.script.device: registers that are declared."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.errors import ConfigError
from kvmpy.machine.script.device import Register, RegisterDevice


class Sample(RegisterDevice):
    control = Register(0, 4, reset=0x11223344)
    status = Register(4, 2, reset=7, readonly=True)
    twice = Register(8, 1, read=lambda self: self.control * 2)
    log = Register(10, 1)

    def __init__(self):
        self.written = []

    @log.on_write
    def note(self, value):
        self.written.append(value)

    @control.on_write
    def control_written(self, value):
        self.written.append(("control", value))


def read(device, offset, size):
    data = memoryview(bytearray(size))
    device.read(offset, data)
    return int.from_bytes(data, "little")


def write(device, offset, value, size):
    device.write(offset, memoryview(value.to_bytes(size, "little")))


def test_registers_start_as_they_are_reset():
    assert read(Sample(), 0, 4) == 0x11223344
    assert read(Sample(), 4, 2) == 7


def test_the_device_has_registers_as_numbers():
    device = Sample()
    device.control = 0x1_0000_0005
    assert device.control == 5
    assert read(device, 0, 4) == 5


def test_a_write_is_stored_and_told_of():
    device = Sample()
    write(device, 0, 9, 4)
    write(device, 10, 3, 1)
    assert device.control == 9
    assert device.written == [("control", 9), 3]


def test_a_write_of_a_part_keeps_the_rest():
    device = Sample()
    write(device, 1, 0xAA, 1)
    assert device.control == 0x1122AA44


def test_a_reader_answers_in_place_of_the_value():
    assert read(Sample(), 8, 1) == 0x88


def test_a_readonly_register_keeps_its_value():
    device = Sample()
    write(device, 4, 0xFFFF, 2)
    assert device.status == 7


def test_an_access_may_touch_several_registers_and_gaps():
    assert read(Sample(), 2, 8) == int.from_bytes(bytes([0x22, 0x11, 7, 0, 0xFF, 0xFF, 0x88, 0xFF]), "little")


def test_two_devices_do_not_share_values():
    one, other = Sample(), Sample()
    one.control = 1
    assert other.control == 0x11223344


def test_a_subclass_has_the_registers_of_its_base():
    class More(Sample):
        extra = Register(12, 4, reset=5)

    assert More.size == 16
    assert Sample.size == 11
    assert read(More(), 12, 4) == 5
    assert read(More(), 4, 2) == 7


def test_registers_that_overlap_are_refused():
    with pytest.raises(ConfigError, match="overlaps"):
        type("Bad", (RegisterDevice,), {"one": Register(0, 4), "two": Register(2, 4)})


@given(st.integers(0, 32), st.integers(1, 64), st.binary(min_size=64, max_size=64))
def test_any_access_is_taken(offset, size, data):
    device = Sample()
    device.write(offset, memoryview(data[:size]))
    assert read(device, offset, size) >= 0
