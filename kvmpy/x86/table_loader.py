"""ACPI tables as firmware takes them: three fw_cfg files, for memory that the firmware chooses.

The tables hold offsets where they point at each other; `etc/table-loader` has a list of commands that say where to
put them and what to correct then: pointers first, checksums behind (QEMU's bios-linker-loader, which SeaBIOS, OVMF
and qboot carry out).
"""

from __future__ import annotations

import struct

from kvmpy.memory import GuestMemory
from kvmpy.units import MIB
from kvmpy.x86.acpi.write import write_acpi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvmpy.x86.acpi.platform import AcpiPlatform

RSDP_FILE = "etc/acpi/rsdp"
TABLES_FILE = "etc/acpi/tables"
LOADER_FILE = "etc/table-loader"

ALLOCATE = 1
ADD_POINTER = 2
ADD_CHECKSUM = 3

# Where memory is allocated: anywhere below 4 GiB, or where a PC looks for the RSDP.
ZONE_HIGH = 1
ZONE_FSEG = 2

COMMAND_SIZE = 128
_ALLOCATE = struct.Struct("<I56sIB")  # file, alignment, zone
_ADD_POINTER = struct.Struct("<I56s56sIB")  # file, the file that it points into, offset, size
_ADD_CHECKSUM = struct.Struct("<I56sIII")  # file, offset of the checksum, first byte and length of what it covers

_ALIGNMENT = 64  # the FACS needs it, the others less
_CHECKSUM = 9  # in a table's header
_HEADER_SIZE = 36

_RSDP_SIZE = 36
_RSDP_POINTERS = ((16, 4), (24, 8))  # RSDT, XSDT
_RSDP_CHECKSUMS = ((8, 20), (32, 36))  # (offset, bytes that it covers)
_FADT_POINTERS = ((36, 4), (40, 4), (132, 8), (140, 8))  # FACS and DSDT, each in 32 and in 64 bits


def acpi_files(platform: AcpiPlatform) -> dict[str, bytes]:
    """The fw_cfg files by name that have firmware install the tables of `platform`."""
    with GuestMemory(MIB) as scratch:
        rsdp = write_acpi(scratch, platform)
        root = bytearray(scratch.read(rsdp, _RSDP_SIZE))
        tables = _Tables(scratch, root)
        blob = bytearray(scratch.read(tables.start, tables.end - tables.start))
    script = [
        _ALLOCATE.pack(ALLOCATE, RSDP_FILE.encode(), 16, ZONE_FSEG),
        _ALLOCATE.pack(ALLOCATE, TABLES_FILE.encode(), _ALIGNMENT, ZONE_HIGH),
    ]
    for offset, size in tables.pointers:
        at = offset - tables.start
        _make_relative(blob, at, size, tables.start)
        script.append(_ADD_POINTER.pack(ADD_POINTER, TABLES_FILE.encode(), TABLES_FILE.encode(), at, size))
    for offset, length in tables.changed:
        at = offset - tables.start
        blob[at + _CHECKSUM] = 0
        script.append(_ADD_CHECKSUM.pack(ADD_CHECKSUM, TABLES_FILE.encode(), at + _CHECKSUM, at, length))
    for at, size in _RSDP_POINTERS:
        _make_relative(root, at, size, tables.start)
        script.append(_ADD_POINTER.pack(ADD_POINTER, RSDP_FILE.encode(), TABLES_FILE.encode(), at, size))
    for at, length in _RSDP_CHECKSUMS:
        root[at] = 0
        script.append(_ADD_CHECKSUM.pack(ADD_CHECKSUM, RSDP_FILE.encode(), at, 0, length))
    loader = b"".join(command.ljust(COMMAND_SIZE, b"\0") for command in script)
    return {RSDP_FILE: bytes(root), TABLES_FILE: bytes(blob), LOADER_FILE: loader}


class _Tables:
    """The tables in `memory` from the RSDP `root` on: `start` to `end`, which point at others and where.

    `pointers` are (address, size), `changed` are the tables that have any, as (address, length).
    """

    def __init__(self, memory: GuestMemory, root: bytearray) -> None:
        self._memory = memory
        self.pointers: list[tuple[int, int]] = []
        self.changed: list[tuple[int, int]] = []
        found: dict[int, int] = {}
        todo = [_number(root, at, size) for at, size in _RSDP_POINTERS]
        while todo:
            address = todo.pop()
            if address in found:
                continue
            length = found[address] = _number(memory.read(address + 4, 4), 0, 4)
            pointers = [(at, size) for at, size in self._pointers_of(address, length) if self._at(at, size)]
            if pointers:
                self.pointers += pointers
                self.changed.append((address, length))
                todo += [self._at(at, size) for at, size in pointers]
        self.start = min(found) & -_ALIGNMENT
        self.end = max(address + length for address, length in found.items())

    def _at(self, address: int, size: int) -> int:
        return _number(self._memory.read(address, size), 0, size)

    def _pointers_of(self, address: int, length: int) -> Iterator[tuple[int, int]]:
        signature = self._memory.read(address, 4)
        if signature == b"FACP":
            yield from ((address + at, size) for at, size in _FADT_POINTERS if at + size <= length)
        elif signature in (b"RSDT", b"XSDT"):
            size = 4 if signature == b"RSDT" else 8
            yield from ((at, size) for at in range(address + _HEADER_SIZE, address + length, size))


def _number(data: bytes | bytearray, offset: int, size: int) -> int:
    return int.from_bytes(data[offset : offset + size], "little")


def _make_relative(data: bytearray, offset: int, size: int, start: int) -> None:
    data[offset : offset + size] = (_number(data, offset, size) - start).to_bytes(size, "little")
