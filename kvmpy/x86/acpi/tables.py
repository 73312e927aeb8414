"""The tables that are plain structures: RSDP, RSDT, XSDT, FACS, MADT, MCFG, SRAT (ACPI 6.5, 5.2)."""

from __future__ import annotations

import struct

from kvmpy.x86 import layout
from kvmpy.x86.acpi.hardware import SCI

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvmpy.x86.acpi.platform import AcpiPlatform, NumaNode, PciRoot

HEADER_SIZE = 36

_OEM = b"KVMPY "
_OEM_TABLE = b"KVMPY   "
_CREATOR = b"KVMP"

# MADT (5.2.12).
_PCAT_COMPAT = 1  # there are 8259s too
_LOCAL_APIC, _IO_APIC, _SOURCE_OVERRIDE, _LOCAL_APIC_NMI, _LOCAL_X2APIC, _LOCAL_X2APIC_NMI = 0, 1, 2, 4, 9, 10
_ENABLED = 1
_LEVEL_ACTIVE_HIGH = 0x0D
_LINT1 = 1
_ALL_CPUS = 0xFF
_ALL_X2APIC_CPUS = 0xFFFFFFFF
# From here on an APIC id needs the x2APIC's structures: 0xff is the broadcast.
X2APIC_IDS = 0xFF

# SRAT (5.2.16).
_CPU_AFFINITY, _MEMORY_AFFINITY, _X2APIC_AFFINITY = range(3)

_FACS_SIZE = 64


def checksum(data: bytes) -> int:
    """The byte that makes all bytes of `data` sum to zero."""
    return -sum(data) & 0xFF


def table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A system description table: `body` behind its header (5.2.6)."""
    length = HEADER_SIZE + len(body)
    head = struct.pack("<4sIB", signature, length, revision)
    tail = struct.pack("<6s8sI4sI", _OEM, _OEM_TABLE, 1, _CREATOR, 1) + body
    return head + bytes((checksum(head + tail),)) + tail


def rsdp(rsdt_address: int, xsdt_address: int) -> bytes:
    """The root pointer (5.2.5.3)."""
    head = struct.pack("<8s", b"RSD PTR ")
    first = struct.pack("<6sBI", _OEM, 2, rsdt_address)
    first = head + bytes((checksum(head + first),)) + first
    second = struct.pack("<IQ", 36, xsdt_address)
    return first + second + bytes((checksum(first + second), 0, 0, 0))


def rsdt(addresses: Sequence[int]) -> bytes:
    """The table of tables, for systems that know only ACPI 1.0 (5.2.7)."""
    return table(b"RSDT", 1, struct.pack(f"<{len(addresses)}I", *addresses))


def xsdt(addresses: Sequence[int]) -> bytes:
    """The table of tables (5.2.8)."""
    return table(b"XSDT", 1, struct.pack(f"<{len(addresses)}Q", *addresses))


def facs() -> bytes:
    """The firmware control structure (5.2.10); it needs a boundary of 64 bytes and has no checksum."""
    return struct.pack("<4sIIIIIQB", b"FACS", _FACS_SIZE, 0, 0, 0, 0, 0, 2).ljust(_FACS_SIZE, b"\0")


def madt(platform: AcpiPlatform) -> bytes:
    """Interrupt controllers and how they are wired (5.2.12)."""
    body = struct.pack("<II", layout.LOCAL_APIC, 0 if platform.hardware_reduced else _PCAT_COMPAT)
    for uid, apic_id in enumerate(platform.apic_ids):
        if apic_id < X2APIC_IDS:
            body += struct.pack("<BBBBI", _LOCAL_APIC, 8, uid, apic_id, _ENABLED)
        else:
            body += struct.pack("<BBHIII", _LOCAL_X2APIC, 16, 0, apic_id, _ENABLED, uid)
    body += struct.pack("<BBBBII", _IO_APIC, 12, 0, 0, layout.IOAPIC, 0)
    if not platform.hardware_reduced:
        body += struct.pack("<BBBBIH", _SOURCE_OVERRIDE, 10, 0, 0, 2, 0)
        body += struct.pack("<BBBBIH", _SOURCE_OVERRIDE, 10, 0, SCI, SCI, _LEVEL_ACTIVE_HIGH)
    body += struct.pack("<BBBHB", _LOCAL_APIC_NMI, 6, _ALL_CPUS, 0, _LINT1)
    if platform.apic_ids[-1] >= X2APIC_IDS:
        body += struct.pack("<BBHIB3x", _LOCAL_X2APIC_NMI, 12, 0, _ALL_X2APIC_CPUS, _LINT1)
    return table(b"APIC", 5, body)


def mcfg(pci: PciRoot) -> bytes:
    """Where PCI configuration space is in memory (PCI firmware specification 3.3, 4.1.2)."""
    return table(b"MCFG", 1, struct.pack("<8xQHBB4x", pci.ecam, 0, 0, pci.buses - 1))


def srat(nodes: Sequence[NumaNode]) -> bytes:
    """Which CPUs and which memory are near each other (5.2.16)."""
    body = struct.pack("<I8x", 1)
    for node, cpus_and_memory in enumerate(nodes):
        low, high = node & 0xFF, (node >> 8).to_bytes(3, "little")
        for apic_id in cpus_and_memory.apic_ids:
            if apic_id < X2APIC_IDS:
                body += struct.pack("<BBBBIB3sI", _CPU_AFFINITY, 16, low, apic_id, _ENABLED, 0, high, 0)
            else:
                body += struct.pack("<BBHIIIII", _X2APIC_AFFINITY, 24, 0, node, apic_id, _ENABLED, 0, 0)
        for address, size in cpus_and_memory.memory:
            body += struct.pack("<BBIHQQIIQ", _MEMORY_AFFINITY, 40, node, 0, address, size, 0, _ENABLED, 0)
    return table(b"SRAT", 3, body)
