"""The tables as a guest finds them, field by field (ACPI 6.5, 5.2)."""

from __future__ import annotations

import struct

import pytest

from kvmpy.errors import ConfigError, GuestMemoryError
from kvmpy.memory import GuestMemory
from kvmpy.units import KIB, MIB
from kvmpy.x86 import layout
from kvmpy.x86.acpi.hardware import TABLES_END
from kvmpy.x86.acpi.platform import AcpiPlatform, NumaNode
from kvmpy.x86.acpi.write import write_acpi


def field(table, offset, layout):
    return struct.unpack_from("<" + layout, table, offset)[0]


def madt_entries(table):
    """(type, bytes) of each structure behind the MADT's first 44 bytes."""
    found, position = [], 44
    while position < len(table):
        found.append((table[position], table[position : position + table[position + 1]]))
        position += table[position + 1]
    return found


def test_checksums(any_platform, tables):
    found = tables(any_platform)
    assert sum(found["RSDP"][:20]) & 0xFF == 0
    assert {name: sum(data) & 0xFF for name, data in found.items() if name != "FACS"} == {
        name: 0 for name in found if name != "FACS"
    }


def test_root_pointer(platform, tables):
    rsdp = tables(platform("plain"))["RSDP"]
    assert rsdp[:8] == b"RSD PTR "
    assert rsdp[15] == 2
    assert field(rsdp, 20, "I") == 36


def test_root_pointer_is_where_a_guest_looks_for_it(platform):
    with GuestMemory(MIB) as memory:
        assert write_acpi(memory, platform("plain")) == layout.RSDP == 0xE0000


def test_nothing_is_written_outside_of_its_place(platform):
    with GuestMemory(MIB) as memory:
        memory.fill(0, MIB, 0xA5)
        write_acpi(memory, platform("everything"))
        assert memory.read(0, layout.RSDP) == b"\xa5" * layout.RSDP
        assert memory.read(TABLES_END, MIB - TABLES_END) == b"\xa5" * (MIB - TABLES_END)


def test_tables_that_do_not_fit():
    with GuestMemory(MIB) as memory, pytest.raises(ConfigError, match="acpi: the tables need more than"):
        write_acpi(memory, AcpiPlatform(range(0x1000)))


def test_a_machine_without_a_bios_area():
    with GuestMemory(512 * KIB) as memory, pytest.raises(GuestMemoryError):
        write_acpi(memory, AcpiPlatform([0]))


def test_which_tables_there_are(platform, tables):
    assert set(tables(platform("plain"))) == {"RSDP", "RSDT", "XSDT", "FACP", "FACS", "APIC", "DSDT"}
    assert set(tables(platform("everything"))) == {
        "RSDP", "RSDT", "XSDT", "FACP", "FACS", "APIC", "DSDT", "MCFG", "SRAT",
    }  # fmt: skip
    assert "FACS" not in tables(platform("reduced"))


# FADT.


def test_fixed_registers(platform, tables):
    fadt = tables(platform("plain"))["FACP"]
    assert (len(fadt), fadt[8], fadt[131]) == (276, 6, 5)
    assert field(fadt, 46, "H") == 9
    assert field(fadt, 48, "I") == 0  # no SMI command: ACPI is always on
    assert (field(fadt, 56, "I"), field(fadt, 64, "I"), fadt[88], fadt[89]) == (0x600, 0x604, 4, 2)
    assert fadt[148:160] == struct.pack("<BBBBQ", 1, 32, 0, 2, 0x600)
    assert fadt[172:184] == struct.pack("<BBBBQ", 1, 16, 0, 2, 0x604)
    assert fadt[108] == 0x32
    assert field(fadt, 112, "I") & (1 << 20 | 1 << 5 | 1 << 4) == 0


def test_no_timer_unless_there_is_one(platform, tables):
    fadt = tables(platform("plain"))["FACP"]
    assert (field(fadt, 76, "I"), fadt[91], fadt[208:220]) == (0, 0, bytes(12))


def test_timer(platform, tables):
    fadt = tables(platform("everything"))["FACP"]
    assert (field(fadt, 76, "I"), fadt[91]) == (0x608, 4)
    assert fadt[208:220] == struct.pack("<BBBBQ", 1, 32, 0, 3, 0x608)
    assert field(fadt, 112, "I") & 1 << 8


@pytest.mark.parametrize("reset", [(0xCF9, 6), (0x64, 0xFE)])
def test_reset_register(reset, tables):
    fadt = tables(AcpiPlatform([0], reset=reset))["FACP"]
    assert field(fadt, 112, "I") & 1 << 10
    assert fadt[116:129] == struct.pack("<BBBBQB", 1, 8, 0, 1, *reset)


def test_no_reset_register(platform, tables):
    fadt = tables(platform("bare"))["FACP"]
    assert not field(fadt, 112, "I") & 1 << 10
    assert fadt[116:129] == bytes(13)


def test_boot_architecture(platform, tables):
    assert field(tables(platform("plain"))["FACP"], 109, "H") == 0b000111
    assert field(tables(platform("bare"))["FACP"], 109, "H") == 0b100101


def test_hardware_reduced(platform, tables):
    fadt = tables(platform("reduced"))["FACP"]
    assert field(fadt, 112, "I") & (1 << 20 | 1 << 5 | 1 << 4) == 1 << 20 | 1 << 5 | 1 << 4
    assert fadt[56:92] == bytes(36)
    assert fadt[148:244] == bytes(96)
    # Sleep control and status: the upper bytes of PM1 control and status.
    assert fadt[244:256] == struct.pack("<BBBBQ", 1, 8, 0, 1, 0x605)
    assert fadt[256:268] == struct.pack("<BBBBQ", 1, 8, 0, 1, 0x601)


# MADT.


def test_cpus_by_their_apic_ids(tables):
    entries = madt_entries(tables(AcpiPlatform([0, 2, 254, 255, 300]))["APIC"])
    assert [entry[2:8] for kind, entry in entries if kind == 0] == [
        bytes((0, 0, 1, 0, 0, 0)), bytes((1, 2, 1, 0, 0, 0)), bytes((2, 254, 1, 0, 0, 0)),
    ]  # fmt: skip
    assert [struct.unpack("<III", entry[4:]) for kind, entry in entries if kind == 9] == [(255, 1, 3), (300, 1, 4)]


def test_interrupt_wiring(platform, tables):
    madt = tables(platform("plain"))["APIC"]
    entries = madt_entries(madt)
    assert struct.unpack_from("<II", madt, 36) == (0xFEE00000, 1)
    assert [struct.unpack("<BBII", entry[2:]) for kind, entry in entries if kind == 1] == [(0, 0, 0xFEC00000, 0)]
    # IRQ 0 to pin 2 as ISA has it; IRQ 9 to pin 9, level and active high.
    assert [struct.unpack("<BBIH", entry[2:]) for kind, entry in entries if kind == 2] == [
        (0, 0, 2, 0), (0, 9, 9, 0xD),
    ]  # fmt: skip
    assert [struct.unpack("<BHB", entry[2:]) for kind, entry in entries if kind == 4] == [(0xFF, 0, 1)]


def test_nmi_of_cpus_with_large_ids(platform, tables):
    entries = madt_entries(tables(platform("everything"))["APIC"])
    assert [struct.unpack("<HIB", entry[2:9]) for kind, entry in entries if kind == 10] == [(0, 0xFFFFFFFF, 1)]


def test_hardware_reduced_has_no_pics_and_no_overrides(platform, tables):
    madt = tables(platform("reduced"))["APIC"]
    assert field(madt, 40, "I") == 0
    assert [kind for kind, _ in madt_entries(madt)] == [0, 0, 1, 4]


# The others.


def test_configuration_space(platform, tables):
    assert tables(platform("everything"))["MCFG"][36:] == struct.pack("<8xQHBB4x", 0xE0000000, 0, 0, 255)


def test_affinity(tables):
    nodes = [NumaNode([0], [(0, 1 << 30)]), NumaNode([255], [(1 << 32, 1 << 31)])]
    srat = tables(AcpiPlatform([0, 255], nodes=nodes))["SRAT"]
    assert srat[36:48] == struct.pack("<I8x", 1)
    entries = madt_entries(srat[4:])  # 48 bytes precede them
    assert [kind for kind, _ in entries] == [0, 1, 2, 1]
    assert (entries[0][1][2], entries[0][1][3]) == (0, 0)
    assert struct.unpack_from("<IHQQII", entries[1][1], 2) == (0, 0, 0, 1 << 30, 0, 1)
    assert struct.unpack_from("<III", entries[2][1], 4) == (1, 255, 1)
    assert struct.unpack_from("<IHQQII", entries[3][1], 2) == (1, 0, 1 << 32, 1 << 31, 0, 1)
