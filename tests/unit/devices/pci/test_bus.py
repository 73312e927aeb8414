"""kvmpy.devices.pci: the root bus by ports and by memory, the host bridge, BARs on the machine's buses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.bus import mmio_bus, pio_bus
from kvmpy.devices.pci.bus import ConfigPorts, ConfigPortsState, Ecam, PciBus
from kvmpy.devices.pci.config import BAR0, COMMAND, EXTENDED_SIZE, HEADER_TYPE, ConfigSpace
from kvmpy.devices.pci.function import IO, Bar, PciFunction
from kvmpy.devices.pci.host import host_bridge
from kvmpy.devices.pci.mapper import BusMapper
from kvmpy.errors import ConfigError
from kvmpy.testing.fakes import Ports


@pytest.fixture
def bus():
    made = PciBus()
    made.add(0, host_bridge())
    return made


@pytest.fixture
def ports(bus):
    return Ports(ConfigPorts(bus))


def function(device_id=0x1041, size=0x100):
    return PciFunction(ConfigSpace(0x1AF4, device_id, 0x020000, size=size))


def address(ports, slot, register, *, bus=0, function=0, enable=0x80000000):
    value = enable | bus << 16 | slot << 11 | function << 8 | register
    ports.write(0, value.to_bytes(4, "little"))


def ecam(slot, register, *, bus=0, function=0):
    return bus << 20 | slot << 15 | function << 12 | register


def test_the_bridge_is_found_in_slot_0(ports):
    address(ports, 0, 0)
    assert ports.read(4, 4) == b"\x36\x1b\x08\x00"
    address(ports, 0, 8)
    assert ports.read(4, 4) == b"\x00\x00\x00\x06"


def test_the_address_reads_back_without_its_reserved_bits(ports):
    ports.write(0, b"\xff\xff\xff\xff")
    assert ports.read(0, 4) == b"\xfc\xff\xff\x80"


@pytest.mark.parametrize(("offset", "length", "expected"), [(0, 1, b"\x36"), (1, 1, b"\x1b"), (2, 2, b"\x08\x00")])
def test_the_data_port_has_byte_lanes(ports, offset, length, expected):
    address(ports, 0, 0)
    assert ports.read(4 + offset, length) == expected


def test_a_byte_is_written_by_itself(ports):
    address(ports, 0, 0x3C)
    ports.write(4, b"\x0a")
    ports.write(5, b"\x0b")  # The pin is read-only.
    assert ports.read(4, 2) == b"\x0a\x00"


@pytest.mark.parametrize("where", [{"slot": 1}, {"slot": 0, "bus": 1}, {"slot": 0, "function": 1}])
def test_an_empty_place_reads_as_ones(ports, where):
    address(ports, register=0, **where)
    ports.write(4, b"\0\0\0\0")
    assert ports.read(4, 4) == b"\xff\xff\xff\xff"


def test_a_disabled_address_reads_as_ones(ports):
    address(ports, 0, 0, enable=0)
    assert ports.read(4, 4) == b"\xff\xff\xff\xff"


@pytest.mark.parametrize(("offset", "length"), [(0, 1), (0, 2), (2, 2), (3, 4), (6, 4)])
def test_other_accesses_to_the_ports_find_nothing(ports, offset, length):
    address(ports, 0, 0)
    ports.write(offset, bytes(length))
    assert ports.read(offset, length) == b"\xff" * length
    assert ports.read(0, 4) == b"\0\0\0\x80"


def test_the_reset_control_register_resets_as_its_bit_rises(bus):
    resets = []
    ports = Ports(ConfigPorts(bus, lambda: resets.append(1)))
    ports.outb(1, 0x02)
    assert resets == []
    ports.outb(1, 0x06)
    ports.outb(1, 0x06)
    assert resets == [1]
    assert ports.inb(1) == 0x06


def test_the_ports_are_saved(bus, ports):
    address(ports, 3, 0x40)
    ports.outb(1, 0x02)
    other = ConfigPorts(bus)
    other.restore(ConfigPortsState.from_dict(ports.device.save().to_dict()))
    assert other.save() == ports.device.save()
    assert Ports(other).read(0, 4) == b"\x40\x18\x00\x80"


def test_ecam_finds_what_the_ports_find(bus):
    bus.add(5, function(0x1050), function=0)
    bus.add(5, function(0x1051), function=3)
    memory = Ports(Ecam(bus))
    assert memory.read(ecam(0, 0), 4) == b"\x36\x1b\x08\x00"
    assert memory.read(ecam(5, 2), 2) == b"\x50\x10"
    assert memory.read(ecam(5, 2, function=3), 2) == b"\x51\x10"
    assert memory.read(ecam(0, 0, bus=1), 4) == b"\xff\xff\xff\xff"
    assert memory.read(ecam(6, 0), 8) == b"\xff" * 8


def test_ecam_writes(bus):
    memory = Ports(Ecam(bus))
    memory.write(ecam(0, 0x3C), b"\x05")
    assert memory.read(ecam(0, 0x3C), 1) == b"\x05"


def test_ecam_reaches_extended_registers(bus):
    device = function(size=EXTENDED_SIZE)
    device.config.define(0xFFC, 4, 0x89ABCDEF)
    bus.add(1, device)
    assert Ports(Ecam(bus)).read(ecam(1, 0xFFC), 4) == b"\xef\xcd\xab\x89"


def test_ecam_stays_in_one_function(bus):
    bus.add(1, function(size=EXTENDED_SIZE))
    assert Ports(Ecam(bus)).read(ecam(1, 0xFFE), 4) == bytes(4)


def test_one_function_is_not_several(bus):
    assert Ports(Ecam(bus)).inb(ecam(0, HEADER_TYPE)) == 0


@pytest.mark.parametrize("order", [(0, 2), (2, 0)])
def test_function_0_says_that_there_are_others(bus, order):
    for number in order:
        bus.add(4, function(), function=number)
    assert Ports(Ecam(bus)).inb(ecam(4, HEADER_TYPE)) == 0x80


@pytest.mark.parametrize(("slot", "number"), [(0, 0), (32, 0), (-1, 0), (1, 8)])
def test_where_there_is_no_room_is_refused(bus, slot, number):
    with pytest.raises(ConfigError):
        bus.add(slot, function(), function=number)


def test_free_slots_run_out(bus):
    for expected in range(1, 32):
        assert bus.free_slot() == expected
        bus.add(expected, function())
    with pytest.raises(ConfigError):
        bus.free_slot()


def test_functions_are_told_by_place(bus):
    device = function()
    bus.add(7, device, function=0)
    assert bus.functions()[7, 0] is device


class Register:
    """A device that reads as its offset."""

    def read(self, offset, data):
        data[:] = bytes([offset]) * len(data)

    def write(self, offset, data):
        pass


def test_bars_appear_on_the_buses():
    pio, mmio = pio_bus(), mmio_bus()
    device = PciFunction(ConfigSpace(1, 2, 3), mapper=BusMapper(pio, mmio))
    device.add_bar(Bar(0, 0x20, Register(), kind=IO))
    device.add_bar(Bar(1, 0x1000, Register()))
    for offset, value in ((BAR0, 0xC000), (BAR0 + 4, 0xD0000000), (COMMAND, 3)):
        device.write_config(offset, memoryview(value.to_bytes(4, "little")))
    data = memoryview(bytearray(1))
    assert pio.read(0xC005, data)
    assert data[0] == 5
    assert mmio.read(0xD0000007, data)
    assert data[0] == 7
    device.write_config(COMMAND, memoryview(bytearray(2)))
    assert not pio.read(0xC005, data)
    assert not mmio.read(0xD0000007, data)


@pytest.mark.parametrize("place", [0x60, 0xFFF0, 0x10000])
def test_a_bar_over_another_device_or_off_the_bus_is_not_seen(place):
    pio = pio_bus()
    other = pio.add(0x60, 1, Register())
    pio.add(0xFFF8, 8, Register())
    mapper = BusMapper(pio, mmio_bus())
    bar = Bar(0, 0x10, Register(), kind=IO)
    mapper.map(bar, place, 0x10)
    assert mapper.refused == 1
    assert pio.find(0x60) is other
    assert len(pio.mappings) == 2
    mapper.unmap(bar)


ACCESSES = st.tuples(st.booleans(), st.integers(0, 7), st.sampled_from([1, 2, 4]), st.integers(0, 0xFFFFFFFF))


@given(st.lists(ACCESSES, max_size=40))
def test_no_access_raises(accesses):
    pio = pio_bus()
    bus = PciBus()
    device = PciFunction(ConfigSpace(1, 2, 3), mapper=BusMapper(pio, mmio_bus()))
    device.add_bar(Bar(0, 0x20, Register(), kind=IO))
    device.add_bar(Bar(2, 0x1000, Register()))
    bus.add(0, device)
    ports = Ports(ConfigPorts(bus))
    for is_write, offset, length, value in accesses:
        if is_write:
            ports.write(offset, (value & (1 << 8 * length) - 1).to_bytes(length, "little"))
        else:
            assert len(ports.read(offset, length)) == length
