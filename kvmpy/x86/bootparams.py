"""The zero page (struct boot_params) and what hangs on it: e820, setup_data.

Offsets as in the kernel's Documentation/arch/x86/zero-page.rst and boot.rst.
"""

from __future__ import annotations

import struct

from kvmpy.errors import ConfigError
from kvmpy.x86 import layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kvmpy.memory import GuestMemory, MemoryRegion

BOOT_PARAMS_SIZE = 0x1000

ACPI_RSDP_ADDR = 0x070
EXT_RAMDISK_IMAGE = 0x0C0
EXT_RAMDISK_SIZE = 0x0C4
EXT_CMD_LINE_PTR = 0x0C8
ALT_MEM_K = 0x1E0
E820_ENTRIES = 0x1E8
E820_TABLE = 0x2D0
E820_MAX_ENTRIES = 128

# The setup header, at the same offset in the zero page and in a bzImage.
SETUP_HEADER = 0x1F1
SETUP_HEADER_MAX = 0x290 - SETUP_HEADER
BOOT_FLAG = 0x1FE
HEADER = 0x202
VERSION = 0x206
TYPE_OF_LOADER = 0x210
LOADFLAGS = 0x211
CODE32_START = 0x214
RAMDISK_IMAGE = 0x218
RAMDISK_SIZE = 0x21C
CMD_LINE_PTR = 0x228
INITRD_ADDR_MAX = 0x22C
KERNEL_ALIGNMENT = 0x230
CMDLINE_SIZE = 0x238
SETUP_DATA = 0x250

BOOT_FLAG_MAGIC = 0xAA55
HEADER_MAGIC = 0x53726448  # "HdrS"

LOADER_UNDEFINED = 0xFF

LOADED_HIGH = 1 << 0
KEEP_SEGMENTS = 1 << 6
CAN_USE_HEAP = 1 << 7

E820_RAM = 1
E820_RESERVED = 2

SETUP_RNG_SEED = 9
RNG_SEED_SIZE = 32  # what the kernel's random pool takes in: one BLAKE2s state

E820_ENTRY = struct.Struct("<QQI")
_SETUP_DATA_HEADER = struct.Struct("<QII")


def e820(regions: Iterable[MemoryRegion]) -> list[tuple[int, int, int]]:
    """The memory map of a machine with these RAM regions: (start, size, type) in bytes, by rising address."""
    table = []
    for region in regions:
        if region.start:
            table.append((region.start, region.size, E820_RAM))
            continue
        table.append((0, min(region.end, layout.EBDA), E820_RAM))
        if region.end > layout.EBDA:
            table.append((layout.EBDA, layout.EBDA_END - layout.EBDA, E820_RESERVED))
            table.append((layout.BIOS, layout.BIOS_END - layout.BIOS, E820_RESERVED))
        if region.end > layout.HIGH_MEMORY:
            table.append((layout.HIGH_MEMORY, region.end - layout.HIGH_MEMORY, E820_RAM))
    table.append((layout.IDENTITY_MAP, layout.TSS_END - layout.IDENTITY_MAP, E820_RESERVED))
    table.sort()
    return table


def synthetic_header(cmdline_size: int, initrd_addr_max: int) -> bytes:
    """A setup header, from offset 0x1f1 on, for a kernel that comes without one (an ELF file)."""
    page = bytearray(SETUP_HEADER + SETUP_HEADER_MAX)
    struct.pack_into("<H", page, BOOT_FLAG, BOOT_FLAG_MAGIC)
    struct.pack_into("<IH", page, HEADER, HEADER_MAGIC, 0x020F)
    page[LOADFLAGS] = LOADED_HIGH
    struct.pack_into("<II", page, INITRD_ADDR_MAX, initrd_addr_max, 0x1000000)
    struct.pack_into("<I", page, CMDLINE_SIZE, cmdline_size)
    return bytes(page[SETUP_HEADER:])


def write_zero_page(
    memory: GuestMemory,
    header: bytes,
    *,
    table: Sequence[tuple[int, int, int]],
    initrd: tuple[int, int] = (0, 0),
    code32_start: int = 0,
    rng: Callable[[int], bytes] | None = None,
    rsdp: int = 0,
) -> int:
    """Writes the zero page and the setup_data list; the zero page's address.

    `header` is the setup header from offset 0x1f1 on; `table` comes from `e820`; `initrd` is (address, size);
    `rng(n)` gives the n bytes of the kernel's random seed, None gives no seed; `rsdp` is where ACPI's root
    pointer is, 0 when there is none.  The command line is at `layout.COMMAND_LINE`.
    """
    page = bytearray(BOOT_PARAMS_SIZE)
    page[SETUP_HEADER : SETUP_HEADER + min(len(header), SETUP_HEADER_MAX)] = header[:SETUP_HEADER_MAX]
    page[TYPE_OF_LOADER] = LOADER_UNDEFINED
    # There is no real-mode heap, and the segments are ours.
    page[LOADFLAGS] &= ~(CAN_USE_HEAP | KEEP_SEGMENTS) & 0xFF
    page[LOADFLAGS] |= LOADED_HIGH
    struct.pack_into("<I", page, CODE32_START, code32_start)
    address, size = initrd
    struct.pack_into("<II", page, RAMDISK_IMAGE, address & 0xFFFFFFFF, size & 0xFFFFFFFF)
    struct.pack_into("<II", page, EXT_RAMDISK_IMAGE, address >> 32, size >> 32)
    struct.pack_into("<I", page, CMD_LINE_PTR, layout.COMMAND_LINE)
    struct.pack_into("<Q", page, ACPI_RSDP_ADDR, rsdp)
    if len(table) > E820_MAX_ENTRIES:
        raise ConfigError("memory", f"{len(table)} e820 entries do not fit the {E820_MAX_ENTRIES} of the zero page")
    page[E820_ENTRIES] = len(table)
    for index, entry in enumerate(table):
        E820_ENTRY.pack_into(page, E820_TABLE + index * E820_ENTRY.size, *entry)
    struct.pack_into("<Q", page, SETUP_DATA, _write_setup_data(memory, rng))
    memory.write(layout.ZERO_PAGE, page)
    return layout.ZERO_PAGE


def _write_setup_data(memory: GuestMemory, rng: Callable[[int], bytes] | None) -> int:
    if rng is None:
        return 0
    seed = rng(RNG_SEED_SIZE)
    memory.write(layout.SETUP_DATA, _SETUP_DATA_HEADER.pack(0, SETUP_RNG_SEED, len(seed)) + seed)
    return layout.SETUP_DATA
