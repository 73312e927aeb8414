"""Page tables: the identity map that 64-bit guests start with, and the CPU's walk from a linear address.

Intel SDM volume 3, chapter 4.
"""

from __future__ import annotations

import struct

from kvmpy.errors import GuestMemoryError
from kvmpy.units import GIB, MIB

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.memory import GuestMemory

# Bits of a paging-structure entry.
PTE_PRESENT = 1 << 0
PTE_WRITABLE = 1 << 1
PTE_USER = 1 << 2
PTE_ACCESSED = 1 << 5
PTE_DIRTY = 1 << 6
PTE_LARGE = 1 << 7
PTE_NO_EXECUTE = 1 << 63
PTE_ADDRESS = ((1 << 52) - 1) & ~0xFFF

CR0_PG = 1 << 31
CR4_PSE = 1 << 4
CR4_PAE = 1 << 5
CR4_LA57 = 1 << 12
EFER_LMA = 1 << 10
EFER_NXE = 1 << 11

# The 64-bit boot protocol wants the kernel, zero page and command line mapped; all of them lie below 4 GiB.
IDENTITY_MAPPED = 4 * GIB

_TABLE = PTE_PRESENT | PTE_WRITABLE | PTE_ACCESSED
_LARGE_PAGE = PTE_PRESENT | PTE_WRITABLE | PTE_ACCESSED | PTE_DIRTY | PTE_LARGE


class Translation:
    """Where a linear address leads: `physical`, in a page of `page_size` bytes, and what its tables allow.

    `writable` and `user` are the R/W and U/S bits of all levels taken together, `no_execute` the XD bits; what
    CR0.WP, SMEP, SMAP and protection keys make of them is not in here.  Without paging everything is allowed.
    """

    __slots__ = ("no_execute", "page_size", "physical", "user", "writable")

    def __init__(self, physical: int, page_size: int, *, writable: bool, user: bool, no_execute: bool) -> None:
        self.physical = physical
        self.page_size = page_size
        self.writable = writable
        self.user = user
        self.no_execute = no_execute

    def __repr__(self) -> str:
        rights = ("w" if self.writable else "-") + ("u" if self.user else "-") + ("-" if self.no_execute else "x")
        return f"Translation({self.physical:#x}, {self.page_size:#x}, {rights})"


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


def walk(memory: GuestMemory, cr0: int, cr3: int, cr4: int, efer: int, linear: int) -> Translation | None:
    """Translates `linear` as a CPU with these control registers does, or None where it would fault.

    None also for tables that lie outside of RAM, for entries with reserved bits set, and for an address that the
    mode cannot have (not canonical, or over 32 bits).  Accessed and dirty bits are left as they are.
    """
    if efer & EFER_LMA:
        levels = 5 if cr4 & CR4_LA57 else 4
        sign = linear >> (levels * 9 + 11)
        if sign not in (0, (1 << (64 - levels * 9 - 11)) - 1):
            return None
        return _walk_wide(memory, cr3 & PTE_ADDRESS, levels, linear, efer)
    if not 0 <= linear < 1 << 32:
        return None
    if not cr0 & CR0_PG:
        return Translation(linear, 0x1000, writable=True, user=True, no_execute=False)
    if not cr4 & CR4_PAE:
        return _walk_32bit(memory, cr3, cr4, linear)
    # The four entries of a PAE page-directory-pointer table have no rights.
    pointer = _entry(memory, (cr3 & 0xFFFFFFE0) + (linear >> 30) * 8, 8)
    if not pointer & PTE_PRESENT:
        return None
    return _walk_wide(memory, pointer & PTE_ADDRESS, 2, linear, efer)


def _walk_wide(memory: GuestMemory, table: int, level: int, linear: int, efer: int) -> Translation | None:
    """Tables of 8-byte entries, from `level` (5: PML5, 1: page table) down."""
    rights = PTE_WRITABLE | PTE_USER
    no_execute = 0
    while True:
        shift = 3 + 9 * level
        entry = _entry(memory, table + (linear >> shift & 0x1FF) * 8, 8)
        if not entry & PTE_PRESENT:
            return None
        no_execute |= entry & PTE_NO_EXECUTE
        if no_execute and not efer & EFER_NXE:
            return None
        rights &= entry
        if level == 1 or entry & PTE_LARGE:
            break
        table = entry & PTE_ADDRESS
        level -= 1
    if level > 3:
        return None
    size = 1 << shift
    # In a large page bit 12 is its PAT bit; the others below its size are reserved.
    if level > 1 and entry & (size - 1) & PTE_ADDRESS & ~0x1000:
        return None
    return _translation(entry & PTE_ADDRESS & -size, size, linear, rights, bool(no_execute))


def _walk_32bit(memory: GuestMemory, cr3: int, cr4: int, linear: int) -> Translation | None:
    directory = _entry(memory, (cr3 & 0xFFFFF000) + (linear >> 22) * 4, 4)
    if not directory & PTE_PRESENT:
        return None
    if directory & PTE_LARGE and cr4 & CR4_PSE:
        if directory & 1 << 21:
            return None
        # PSE-36: bits 13 to 20 are bits 32 to 39 of the address.
        base = (directory & 0xFFC00000) | (directory >> 13 & 0xFF) << 32
        return _translation(base, 4 * MIB, linear, directory, False)
    entry = _entry(memory, (directory & 0xFFFFF000) + (linear >> 12 & 0x3FF) * 4, 4)
    if not entry & PTE_PRESENT:
        return None
    return _translation(entry & 0xFFFFF000, 0x1000, linear, directory & entry, False)


def _translation(base: int, size: int, linear: int, rights: int, no_execute: bool) -> Translation:
    return Translation(
        base | linear & (size - 1),
        size,
        writable=bool(rights & PTE_WRITABLE),
        user=bool(rights & PTE_USER),
        no_execute=no_execute,
    )


def _entry(memory: GuestMemory, address: int, size: int) -> int:
    """The table entry at `address`; 0, which is not present, where there is no RAM."""
    try:
        return int.from_bytes(memory.read(address, size), "little")
    except GuestMemoryError:
        return 0
