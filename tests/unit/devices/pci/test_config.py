"""kvmpy.devices.pci.config: who may write which bits, and the capability list."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.devices.pci.config import (
    BAR0,
    CAPABILITIES,
    CLASS_CODE,
    COMMAND,
    COMMAND_MASTER,
    DEVICE_ID,
    INTERRUPT_LINE,
    STATUS,
    STATUS_CAPABILITIES,
    SUBSYSTEM_ID,
    VENDOR_ID,
    ConfigSpace,
)


@pytest.fixture
def config():
    return ConfigSpace(0x1AF4, 0x1042, 0x010000, revision=1, subsystem_vendor_id=0x1AF4, subsystem_id=0x1100)


def test_the_header_identifies_the_device(config):
    assert config.bytes[:4] == b"\xf4\x1a\x42\x10"
    assert config.bytes[8:12] == b"\x01\x00\x00\x01"
    assert config.get(CLASS_CODE, 3) == 0x010000
    assert config.get(SUBSYSTEM_ID, 2) == 0x1100


def test_identity_cannot_be_written(config):
    config.write(VENDOR_ID, b"\0\0\0\0")
    assert config.get(DEVICE_ID, 2) == 0x1042


def test_only_the_defined_bits_of_command_are_kept(config):
    config.write(COMMAND, b"\xff\xff")
    assert config.get(COMMAND, 2) == 0x0547


def test_a_byte_write_leaves_its_neighbours(config):
    config.write(COMMAND, b"\x07\x04")
    config.write(COMMAND + 1, b"\x00")
    assert config.get(COMMAND, 2) == 0x0007


def test_a_one_clears_an_error_bit(config):
    config.set_bits(STATUS, 0xA000, True)
    config.write(STATUS, b"\x00\x20")
    assert config.get(STATUS, 2) == 0x8000


def test_a_write_cannot_set_an_error_bit(config):
    config.write(STATUS, b"\xff\xff")
    assert config.get(STATUS, 2) == 0


def test_the_interrupt_line_is_the_firmware_s_to_note_in(config):
    config.write(INTERRUPT_LINE, b"\x0b")
    assert config.get(INTERRUPT_LINE, 1) == 11


def test_without_capabilities_there_is_no_list(config):
    assert config.get(STATUS, 2) & STATUS_CAPABILITIES == 0
    assert config.get(CAPABILITIES, 1) == 0


def test_capabilities_are_linked(config):
    first = config.add_capability(0x11, bytes(10))
    second = config.add_capability(0x09, b"\x05")
    assert config.get(STATUS, 2) & STATUS_CAPABILITIES
    assert config.get(CAPABILITIES, 1) == first
    assert config.bytes[first : first + 2] == bytes([0x11, second])
    assert config.bytes[second : second + 3] == b"\x09\x00\x05"


def test_capabilities_are_aligned(config):
    config.add_capability(0x09, bytes(3))
    assert config.add_capability(0x09, b"") % 4 == 0


def test_a_capability_is_written_where_it_may_be(config):
    at = config.add_capability(0x11, b"\x01\x00\x00", writable=b"\x00\xc0")
    config.write(at, b"\xff\xff\xff\xff\xff")
    assert config.bytes[at : at + 5] == b"\x11\x00\x01\xc0\x00"


def test_a_capability_that_does_not_fit_is_refused(config):
    config.add_capability(0x09, bytes(0x100 - 0x40 - 2))
    with pytest.raises(ValueError, match="does not fit"):
        config.add_capability(0x09, b"")


def test_a_capability_fits_to_the_last_byte(config):
    assert config.add_capability(0x09, bytes(0x100 - 0x40 - 2)) == 0x40


@given(st.lists(st.tuples(st.integers(0, 252), st.binary(min_size=1, max_size=4))))
def test_what_a_guest_wrote_comes_back(writes):
    def fresh():
        space = ConfigSpace(1, 2, 3)
        space.define(BAR0, 4, 8, writable=0xFFFFF000)
        space.set_bits(STATUS, 0x8000, True)
        return space

    config, other = fresh(), fresh()
    for offset, data in writes:
        config.write(offset, data)
    other.set_volatile(config.volatile())
    assert other.bytes == config.bytes


def test_what_only_the_device_sets_is_not_taken_from_a_state(config):
    config.set_volatile(b"\xff" * config.size)
    assert config.get(VENDOR_ID, 2) == 0x1AF4
    assert config.get(COMMAND, 2) & COMMAND_MASTER
