"""kvmpy.bus: which device answers which address."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.bus import FOUND_LIMIT, Bus, mmio_bus, pio_bus
from kvmpy.errors import ConfigError


class Recorder:
    """A device that notes its accesses and reads as 0x5a."""

    def __init__(self):
        self.accesses = []

    def read(self, offset, data):
        self.accesses.append(("read", offset, len(data)))
        data[:] = b"\x5a" * len(data)

    def write(self, offset, data):
        self.accesses.append(("write", offset, bytes(data)))


def test_a_device_sees_offsets_and_not_addresses():
    bus, device = pio_bus(), Recorder()
    bus.add(0x3F8, 8, device)
    data = bytearray(1)
    assert bus.read(0x3FD, memoryview(data))
    assert bus.write(0x3F8, memoryview(b"A"))
    assert data == b"\x5a"
    assert device.accesses == [("read", 5, 1), ("write", 0, b"A")]


def test_what_nobody_claims_reads_as_ones_and_swallows_writes():
    bus, data = mmio_bus(), bytearray(4)
    assert not bus.read(0xD0000000, memoryview(data))
    assert not bus.write(0xD0000000, memoryview(data))
    assert data == b"\xff" * 4


@pytest.mark.parametrize(("start", "length"), [(0x100, 0x10), (0x108, 1), (0xF8, 9), (0xF0, 0x100), (0x10F, 0x10)])
def test_an_overlap_is_refused_and_names_both(start, length):
    bus = pio_bus()
    bus.add(0x100, 0x10, Recorder(), "first")
    with pytest.raises(ConfigError, match=r"second.*overlaps first"):
        bus.add(start, length, Recorder(), "second")
    assert len(bus.mappings) == 1


@pytest.mark.parametrize(("start", "length"), [(-1, 2), (0xFFFF, 2), (0x100, 0)])
def test_a_range_outside_of_the_bus_is_refused(start, length):
    with pytest.raises(ConfigError):
        pio_bus().add(start, length, Recorder())


def test_a_removed_device_is_found_no_more_even_where_it_was_used():
    bus, device = pio_bus(), Recorder()
    mapping = bus.add(0x80, 1, device)
    assert bus.find(0x80) is mapping
    bus.remove(mapping)
    assert bus.find(0x80) is None
    bus.add(0x80, 1, Recorder())


def test_a_guest_that_touches_every_address_fills_no_memory():
    bus = Bus("test", 1 << 40)
    bus.add(0, 1 << 30, Recorder())
    for address in range(3 * FOUND_LIMIT):
        assert bus.find(address) is not None
    assert len(bus._found) == FOUND_LIMIT


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)), max_size=20), st.integers(0, 400))
def test_find_agrees_with_a_search_of_all(ranges, address):
    bus = Bus("test", 400)
    kept = []
    for start, length in ranges:
        clash = any(start < other + size and other < start + length for other, size in kept)
        try:
            bus.add(start, length, Recorder())
            assert not clash
            assert start + length <= 400
            kept.append((start, length))
        except ConfigError:
            assert clash or start + length > 400
    expected = next((start for start, length in kept if start <= address < start + length), None)
    for _ in range(2):  # The second time from what is remembered.
        found = bus.find(address)
        assert (found.start if found else None) == expected
