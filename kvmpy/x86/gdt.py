"""The global descriptor table that guests are started with (Intel SDM volume 3, 3.4.5)."""

from __future__ import annotations

import struct

from kvmpy.x86.layout import GDT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.memory import GuestMemory

# Selectors of the Linux boot protocol ("64-bit Boot Protocol" in the kernel's boot.rst), and one for a TSS.
BOOT_CS = 0x10
BOOT_DS = 0x18
BOOT_TSS = 0x20

# Flat segments of ring 0, accessed.
_CODE = {64: 0x00AF9B000000FFFF, 32: 0x00CF9B000000FFFF}
_DATA = 0x00CF93000000FFFF
# VT-x enters no guest without a task register; this one has 16 bytes in the table, as 64-bit mode wants.
_TSS = 0x00808B000000FFFF


def write_gdt(memory: GuestMemory, bits: int) -> tuple[int, int]:
    """Writes the table for a 32 or 64-bit start at its place in the layout; its base and limit."""
    table = struct.pack("<6Q", 0, 0, _CODE[bits], _DATA, _TSS, 0)
    memory.write(GDT, table)
    return GDT, len(table) - 1
