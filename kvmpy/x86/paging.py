"""Page tables: the identity map that 64-bit guests start with (and, below, how the CPU walks tables)."""

from __future__ import annotations

import struct

from kvmpy.units import GIB, MIB

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.memory import GuestMemory

# Intel SDM volume 3, 4.5: bits of a paging-structure entry.
PTE_PRESENT = 1 << 0
PTE_WRITABLE = 1 << 1
PTE_USER = 1 << 2
PTE_ACCESSED = 1 << 5
PTE_DIRTY = 1 << 6
PTE_LARGE = 1 << 7
PTE_NO_EXECUTE = 1 << 63

# The 64-bit boot protocol wants the kernel, zero page and command line mapped; all of them lie below 4 GiB.
IDENTITY_MAPPED = 4 * GIB

_TABLE = PTE_PRESENT | PTE_WRITABLE | PTE_ACCESSED
_LARGE_PAGE = PTE_PRESENT | PTE_WRITABLE | PTE_ACCESSED | PTE_DIRTY | PTE_LARGE


def build_identity_map(memory: GuestMemory, address: int) -> int:
    """Writes 4-level tables that map the first 4 GiB onto themselves in 2 MiB pages; the CR3 value.

    `address` is page aligned; the six pages from there on (PML4, PDPT, four page directories) are used.
    """
    pdpt = address + 0x1000
    directory = address + 0x2000
    directories = [directory + index * 0x1000 | _TABLE for index in range(IDENTITY_MAPPED // GIB)]
    memory.write(address, struct.pack("<Q", pdpt | _TABLE).ljust(0x1000, b"\0"))
    memory.write(pdpt, struct.pack(f"<{len(directories)}Q", *directories).ljust(0x1000, b"\0"))
    pages = IDENTITY_MAPPED // (2 * MIB)
    memory.write(directory, struct.pack(f"<{pages}Q", *range(_LARGE_PAGE, IDENTITY_MAPPED + _LARGE_PAGE, 2 * MIB)))
    return address
