"""kvmpy.x86.table_loader: a loader that carries the commands out gets tables that hold together."""

from __future__ import annotations

import struct

import pytest

from kvmpy.x86.acpi.platform import AcpiPlatform, PciRoot
from kvmpy.x86.table_loader import (
    ADD_CHECKSUM,
    ADD_POINTER,
    ALLOCATE,
    COMMAND_SIZE,
    LOADER_FILE,
    RSDP_FILE,
    TABLES_FILE,
    acpi_files,
)

# Where the loader below puts what it allocates.
PLACES = {RSDP_FILE: 0xF5A80, TABLES_FILE: 0x7FE1340}


def load(files):
    """What firmware does with the files; the memory that it allocated, by file."""
    memory = {}
    script = files[LOADER_FILE]
    assert len(script) % COMMAND_SIZE == 0
    for at in range(0, len(script), COMMAND_SIZE):
        command, name = struct.unpack_from("<I56s", script, at)
        name = name.rstrip(b"\0").decode()
        if command == ALLOCATE:
            alignment, _zone = struct.unpack_from("<IB", script, at + 60)
            assert PLACES[name] % alignment == 0
            memory[name] = bytearray(files[name])
        elif command == ADD_POINTER:
            source, offset, size = struct.unpack_from("<56sIB", script, at + 60)
            value = int.from_bytes(memory[name][offset : offset + size], "little")
            value += PLACES[source.rstrip(b"\0").decode()]
            memory[name][offset : offset + size] = value.to_bytes(size, "little")
        else:
            assert command == ADD_CHECKSUM
            offset, start, length = struct.unpack_from("<III", script, at + 60)
            memory[name][offset] = (memory[name][offset] - sum(memory[name][start : start + length])) & 0xFF
    return memory


@pytest.fixture(params=["fixed", "reduced", "pci"])
def loaded(request):
    platform = {
        "fixed": AcpiPlatform([0, 1]),
        "reduced": AcpiPlatform([0], hardware_reduced=True, ged=9),
        "pci": AcpiPlatform([0], pci=PciRoot(memory32=(0xD0000000, 0x10000000), ecam=0xC0000000, buses=1)),
    }[request.param]
    return request.param, load(acpi_files(platform))


def table(memory, address):
    """(signature, bytes) of the table at `address`."""
    offset = address - PLACES[TABLES_FILE]
    blob = memory[TABLES_FILE]
    assert 0 <= offset < len(blob)
    length = int.from_bytes(blob[offset + 4 : offset + 8], "little")
    return bytes(blob[offset : offset + 4]), bytes(blob[offset : offset + length])


def tables_of(memory, at, signature, width):
    root = memory[RSDP_FILE]
    found, content = table(memory, int.from_bytes(root[at : at + width], "little"))
    assert found == signature
    assert sum(content) & 0xFF == 0
    pointers = [int.from_bytes(content[i : i + width], "little") for i in range(36, len(content), width)]
    return dict(table(memory, pointer) for pointer in pointers)


def test_the_root_pointer_is_right(loaded):
    _, memory = loaded
    root = memory[RSDP_FILE]
    assert root[:8] == b"RSD PTR "
    assert sum(root[:20]) & 0xFF == 0
    assert sum(root) & 0xFF == 0


@pytest.mark.parametrize(("at", "signature", "width"), [(16, b"RSDT", 4), (24, b"XSDT", 8)])
def test_all_tables_are_found_with_their_checksums(loaded, at, signature, width):
    kind, memory = loaded
    tables = tables_of(memory, at, signature, width)
    assert set(tables) == {b"FACP", b"APIC"} | ({b"MCFG"} if kind == "pci" else set())
    for content in tables.values():
        assert sum(content) & 0xFF == 0


def test_the_fadt_leads_to_the_dsdt(loaded):
    _, memory = loaded
    fadt = tables_of(memory, 24, b"XSDT", 8)[b"FACP"]
    for at, width in ((40, 4), (140, 8)):
        signature, content = table(memory, int.from_bytes(fadt[at : at + width], "little"))
        assert signature == b"DSDT"
        assert sum(content) & 0xFF == 0


def test_only_fixed_hardware_has_a_facs(loaded):
    kind, memory = loaded
    fadt = tables_of(memory, 24, b"XSDT", 8)[b"FACP"]
    facs = int.from_bytes(fadt[36:40], "little")
    if kind == "reduced":
        assert facs == 0
    else:
        assert table(memory, facs)[0] == b"FACS"
        assert facs % 64 == 0
