from __future__ import annotations

import struct

import pytest

from kvmpy.errors import ConfigError
from kvmpy.memory import GuestMemory
from kvmpy.units import MIB
from kvmpy.x86 import layout
from kvmpy.x86.mptable import MAX_CPUS, floating_pointer, mp_table, write_mp_tables

SIZES = {0: 20, 1: 8, 2: 8, 3: 8, 4: 8}


def entries(table: bytes) -> list[bytes]:
    """The entries behind the 44 bytes of the header, told apart by their type byte (MP 1.4, table 4-3)."""
    found, position = [], 44
    while position < len(table):
        size = SIZES[table[position]]
        found.append(table[position : position + size])
        position += size
    return found


def of_type(table: bytes, kind: int) -> list[bytes]:
    return [entry for entry in entries(table) if entry[0] == kind]


@pytest.mark.parametrize("cpus", [1, 2, 31, MAX_CPUS])
def test_all_bytes_of_the_table_sum_to_zero(cpus):
    assert sum(mp_table(cpus)) & 0xFF == 0


@pytest.mark.parametrize("cpus", [1, 2, 31, MAX_CPUS])
def test_header_tells_length_and_entries(cpus):
    table = mp_table(cpus)
    assert table[:4] == b"PCMP"
    assert struct.unpack_from("<H", table, 4)[0] == len(table)
    assert struct.unpack_from("<H", table, 34)[0] == len(entries(table))


def test_header_tells_where_the_local_apics_are():
    assert struct.unpack_from("<I", mp_table(1), 36)[0] == 0xFEE00000


def test_entries_are_in_rising_order_of_type():
    kinds = [entry[0] for entry in entries(mp_table(3))]
    assert kinds == sorted(kinds)


def test_each_cpu_is_enabled_and_the_first_one_boots():
    processors = of_type(mp_table(4), 0)
    assert [(entry[1], entry[3]) for entry in processors] == [(0, 3), (1, 1), (2, 1), (3, 1)]


def test_io_apic_has_an_id_of_its_own_and_its_address():
    (ioapic,) = of_type(mp_table(4), 2)
    assert ioapic[1] == 4
    assert ioapic[3] & 1
    assert struct.unpack_from("<I", ioapic, 4)[0] == 0xFEC00000


def test_isa_interrupts_go_to_the_pin_of_their_number_but_irq_0_to_2():
    table = mp_table(2)
    pins = {entry[5]: entry[7] for entry in of_type(table, 3)}
    assert pins == {0: 2, **{irq: irq for irq in range(16) if irq not in (0, 2)}}
    assert {entry[6] for entry in of_type(table, 3)} == {2}


def test_no_pin_has_two_interrupts():
    pins = [entry[7] for entry in of_type(mp_table(2), 3)]
    assert len(pins) == len(set(pins))


def test_local_interrupts_are_extint_and_nmi_of_all_cpus():
    assert [(entry[1], entry[6], entry[7]) for entry in of_type(mp_table(2), 4)] == [(3, 0xFF, 0), (1, 0xFF, 1)]


def test_floating_pointer_is_as_the_specification_has_it():
    pointer = floating_pointer(0xF0000)
    assert len(pointer) == 16
    assert pointer[:4] == b"_MP_"
    assert struct.unpack_from("<I", pointer, 4)[0] == 0xF0000
    assert pointer[8:10] == b"\1\4"
    assert sum(pointer) & 0xFF == 0


def test_tables_are_written_where_a_guest_searches():
    with GuestMemory(MIB) as memory:
        write_mp_tables(memory, 2)
        # The last KiB of the 639 KiB that the BIOS data area names, on a 16-byte boundary.
        assert struct.unpack("<H", memory.read(0x413, 2))[0] == 639
        assert struct.unpack("<H", memory.read(0x40E, 2))[0] << 4 == 639 * 1024
        pointer = memory.read(639 * 1024, 16)
        (address,) = struct.unpack_from("<I", pointer, 4)
        assert memory.read(address, len(mp_table(2))) == mp_table(2)


def test_the_largest_table_fits_its_place():
    assert len(mp_table(MAX_CPUS)) <= layout.MP_TABLE_SIZE


@pytest.mark.parametrize("cpus", [0, -1, MAX_CPUS + 1])
def test_a_number_of_cpus_that_cannot_be_named(cpus):
    with pytest.raises(ConfigError, match="vcpus"):
        mp_table(cpus)
