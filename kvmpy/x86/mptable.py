"""The MP tables: how a guest without ACPI finds its CPUs, I/O APIC and interrupt wiring.

MultiProcessor Specification 1.4, chapter 4.
"""

from __future__ import annotations

import struct

from kvmpy.errors import ConfigError
from kvmpy.x86 import layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.memory import GuestMemory

# APIC ids are 8 bits wide here: 0xff is the broadcast, and the I/O APIC takes one.
MAX_CPUS = 254

_PROCESSOR, _BUS, _IOAPIC, _INTERRUPT, _LOCAL_INTERRUPT = range(5)

_CPU_ENABLED = 1 << 0
_CPU_BOOTSTRAP = 1 << 1
_IOAPIC_ENABLED = 1 << 0

_INT, _NMI, _EXTINT = 0, 1, 3
_ALL_LOCAL_APICS = 0xFF

_APIC_VERSION = 0x14
_IOAPIC_VERSION = 0x11
_CPU_SIGNATURE = 0x600  # family 6; CPUID has the truth
_CPU_FEATURES = 0x201  # FPU and APIC
_ISA_BUS = 0
_ISA_IRQS = 16

_HEADER = struct.Struct("<4sHBB8s12sIHHIHBB")


def mp_table(cpus: int) -> bytes:
    """The MP configuration table of a machine with `cpus` CPUs (APIC ids 0, 1 ...), an ISA bus and an I/O APIC.

    IRQ 0 is on pin 2, as the PIT is on every PC; the other 15 are on the pin of their number.
    """
    if not 1 <= cpus <= MAX_CPUS:
        raise ConfigError("vcpus", f"{cpus} is not between 1 and {MAX_CPUS}, all that MP tables can name")
    ioapic_id = cpus
    entries = [
        struct.pack(
            "<BBBBIIQ",
            _PROCESSOR,
            apic_id,
            _APIC_VERSION,
            _CPU_ENABLED | (0 if apic_id else _CPU_BOOTSTRAP),
            _CPU_SIGNATURE,
            _CPU_FEATURES,
            0,
        )
        for apic_id in range(cpus)
    ]
    entries.append(struct.pack("<BB6s", _BUS, _ISA_BUS, b"ISA   "))
    entries.append(struct.pack("<BBBBI", _IOAPIC, ioapic_id, _IOAPIC_VERSION, _IOAPIC_ENABLED, layout.IOAPIC))
    for irq in range(_ISA_IRQS):
        if irq == 2:  # the cascade of the two PICs; its pin carries IRQ 0
            continue
        pin = 2 if irq == 0 else irq
        entries.append(struct.pack("<BBHBBBB", _INTERRUPT, _INT, 0, _ISA_BUS, irq, ioapic_id, pin))
    for kind, lint in ((_EXTINT, 0), (_NMI, 1)):
        entries.append(struct.pack("<BBHBBBB", _LOCAL_INTERRUPT, kind, 0, _ISA_BUS, 0, _ALL_LOCAL_APICS, lint))
    body = b"".join(entries)
    length = _HEADER.size + len(body)
    header = [b"PCMP", length, 4, 0, b"KVMPY   ", b"KVMPY       ", 0, 0, len(entries), layout.LOCAL_APIC, 0, 0, 0]
    header[3] = _checksum(_HEADER.pack(*header) + body)
    return _HEADER.pack(*header) + body


def floating_pointer(table: int) -> bytes:
    """The 16 bytes by which a guest finds the configuration table at address `table`."""
    without = struct.pack("<4sIBBB5x", b"_MP_", table, 1, 4, 0)
    return struct.pack("<4sIBBB5x", b"_MP_", table, 1, 4, _checksum(without))


def write_mp_tables(memory: GuestMemory, cpus: int) -> None:
    """Writes the floating pointer, the table, and the BIOS data area's words that lead to them."""
    memory.write(layout.MP_TABLE, mp_table(cpus))
    memory.write(layout.MP_FLOATING_POINTER, floating_pointer(layout.MP_TABLE))
    memory.write(layout.BDA_EBDA_SEGMENT, struct.pack("<H", layout.EBDA >> 4))
    memory.write(layout.BDA_BASE_MEMORY_KIB, struct.pack("<H", layout.EBDA >> 10))


def _checksum(data: bytes) -> int:
    return -sum(data) & 0xFF
