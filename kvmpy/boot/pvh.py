"""PVH: the direct boot ABI that Xen, FreeBSD, Linux and others have, of an ELF file with a note that names its entry.

Xen's docs/misc/pvh.pandoc, and `start_info.h` of its public headers for the structures.
"""

from __future__ import annotations

import struct

from kvmpy.boot.elf import Elf
from kvmpy.boot.entry import PROTECTED, Entry
from kvmpy.boot.place import (
    BOOT_INFO_MAX,
    BootInfo,
    Module,
    check_free,
    encode_cmdline,
    load_segments,
    low_ram_end,
    place_high,
)
from kvmpy.boot.recognise import pvh_entry
from kvmpy.errors import ImageError
from kvmpy.x86 import layout
from kvmpy.x86.bootparams import e820
from kvmpy.x86.gdt import write_gdt
from kvmpy.x86.mptable import write_mp_tables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvmpy.memory import GuestMemory

XEN_HVM_START_MAGIC_VALUE = 0x336EC578
START_INFO_VERSION = 1

# magic, version, flags, nr_modules, modlist_paddr, cmdline_paddr, rsdp_paddr, memmap_paddr, memmap_entries, reserved
START_INFO = struct.Struct("<IIIIQQQQII")
# paddr, size, cmdline_paddr, reserved
MODLIST_ENTRY = struct.Struct("<QQQQ")
# addr, size, type as in e820, reserved
MEMMAP_ENTRY = struct.Struct("<QQII")


def load_pvh(
    memory: GuestMemory,
    kernel: memoryview,
    *,
    modules: Sequence[Module] = (),
    cmdline: str = "",
    vcpus: int = 1,
    rsdp: int = 0,
) -> Entry:
    """Loads an ELF file, its modules (the first is Linux' initrd) and the start info into `memory`, which is fresh.

    `rsdp` is where ACPI's root pointer is, 0 when there is none.  Raises `ImageError` for a file that cannot be
    used, and `ConfigError` for a command line that is too long or a machine that has too little memory.
    """
    file = Elf(kernel)
    rip = pvh_entry(file)
    if rip is None:
        raise ImageError("it has no PVH entry, which an ELF note (Xen, 18) would name")
    if not any(segment.paddr <= rip < segment.end for segment in file.loads):
        raise ImageError(f"its PVH entry {rip:#x} lies outside of what it loads")
    for segment in file.loads:
        check_free(memory, segment.paddr, segment.end)
    load_segments(memory, file)
    info = BootInfo(memory)
    # The structure comes first, and has in it where the others are.
    start_info = info.put(bytes(START_INFO.size))
    line = info.put(encode_cmdline(cmdline, BOOT_INFO_MAX))
    table = e820(memory.regions)
    memmap = info.put(b"".join(MEMMAP_ENTRY.pack(start, size, kind, 0) for start, size, kind in table))
    modlist = _put_modules(memory, info, modules, file.end)
    fields = (len(modules), modlist, line, rsdp, memmap, len(table), 0)
    memory.write(start_info, START_INFO.pack(XEN_HVM_START_MAGIC_VALUE, START_INFO_VERSION, 0, *fields))
    write_mp_tables(memory, vcpus)
    base, limit = write_gdt(memory, 32)
    return Entry(
        PROTECTED,
        rip,
        rsp=layout.BOOT_STACK_TOP,
        registers={"rbx": start_info},
        gdt_base=base,
        gdt_limit=limit,
        description=f"PVH, {file.bits}-bit ELF, entry at {rip:#x}",
    )


def _put_modules(memory: GuestMemory, info: BootInfo, modules: Sequence[Module], floor: int) -> int:
    """Copies the modules to the end of RAM, the first one highest; the address of their list, 0 when it is empty."""
    if not modules:
        return 0
    ceiling = low_ram_end(memory)
    entries = []
    for module in modules:
        ceiling = place_high(memory, module.data, max(floor, layout.HIGH_MEMORY), ceiling)
        text = info.put(encode_cmdline(module.text, BOOT_INFO_MAX)) if module.text else 0
        entries.append(MODLIST_ENTRY.pack(ceiling, len(module.data), text, 0))
    return info.put(b"".join(entries))
