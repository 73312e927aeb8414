"""Where things sit in guest-physical memory, for guests that are started without firmware.

Everything that a loader writes besides the guest's own image lies in the first 640 KiB or in the BIOS area below
1 MiB, which no kernel loads into.
"""

from __future__ import annotations

from kvmpy.units import KIB, MIB

# BIOS data area: Linux reads the two words to see where conventional memory ends (reserve_bios_regions()).
BDA_EBDA_SEGMENT = 0x40E
BDA_BASE_MEMORY_KIB = 0x413

GDT = 0x1000

# Grows down from its top; a kernel leaves it within its first instructions.
BOOT_STACK = 0x2000
BOOT_STACK_TOP = 0x7000

ZERO_PAGE = 0x7000

# The setup_data list that the zero page points to.
SETUP_DATA = 0x8000
SETUP_DATA_SIZE = 0x1000

# One PML4, one PDPT, and a page directory for each of the first 4 GiB.
PAGE_TABLES = 0x9000
PAGE_TABLES_SIZE = 6 * 0x1000

COMMAND_LINE = 0x20000
COMMAND_LINE_MAX = 64 * KIB

# End of conventional memory.  Linux looks for the MP floating pointer in the last KiB before 640 KiB.
EBDA = 0x9FC00
EBDA_END = 0xA0000

# Read-only on a PC; here RAM that e820 reserves.
BIOS = 0xE0000
BIOS_END = 0x100000

# ACPI 6.5, 5.2.5.1: the RSDP is searched from 0xE0000 on, on 16-byte boundaries.
RSDP = 0xE0000

# 64 KiB from here are scanned for the MP tables too; 254 CPUs need 5.3 KiB of it.
MP_FLOATING_POINTER = EBDA
MP_TABLE = 0xF0000
MP_TABLE_SIZE = 0x10000

# Where a bzImage's protected-mode code goes (LOADED_HIGH), and the lowest address that a kernel may use.
HIGH_MEMORY = 1 * MIB

IOAPIC = 0xFEC00000
LOCAL_APIC = 0xFEE00000

# Intel's KVM needs four pages for real mode without "unrestricted guest": a page table and a TSS of three pages.
# They must not be RAM; this is where QEMU has them, below the firmware's place at the end of the 4 GiB.
IDENTITY_MAP = 0xFEFFC000
TSS = 0xFEFFD000
TSS_END = 0xFF000000

# Between RAM's end below 4 GiB and the interrupt controllers: windows for PCI devices' memory, then their
# configuration space, of which bus 0 has the first MiB.
PCI_MEMORY32 = 0xC0000000
PCI_MEMORY32_SIZE = 0x20000000
ECAM = 0xE0000000
ECAM_SIZE = MIB
