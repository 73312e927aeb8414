"""Multiboot 1, the protocol of GRUB: kernels of hobby operating systems and bare-metal test suites.

The Multiboot Specification 0.6.96.  ELF files of 32 bits, files of any kind whose header says where they load (the
"a.out kludge"), and ELF files of 64 bits, entered in 32-bit mode like the others: GRUB takes these, QEMU does not.
Command line and modules are as QEMU has them: the file's name comes before the rest of its text.
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
    place_after,
)
from kvmpy.boot.recognise import MULTIBOOT_HEADER, MULTIBOOT_SEARCH, find_header
from kvmpy.errors import ImageError
from kvmpy.units import KIB
from kvmpy.x86 import layout
from kvmpy.x86.bootparams import e820
from kvmpy.x86.gdt import write_gdt
from kvmpy.x86.mptable import write_mp_tables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvmpy.memory import GuestMemory

MULTIBOOT_BOOTLOADER_MAGIC = 0x2BADB002

# Flags of the header.  A loader refuses a file with one of the lower 16 that it does not know.
MULTIBOOT_PAGE_ALIGN = 1 << 0
MULTIBOOT_MEMORY_INFO = 1 << 1
MULTIBOOT_VIDEO_MODE = 1 << 2
MULTIBOOT_AOUT_KLUDGE = 1 << 16
_REQUIREMENTS = 0xFFFF
_KNOWN = MULTIBOOT_PAGE_ALIGN | MULTIBOOT_MEMORY_INFO | MULTIBOOT_VIDEO_MODE

MULTIBOOT_INFO_MEMORY = 1 << 0
MULTIBOOT_INFO_CMDLINE = 1 << 2
MULTIBOOT_INFO_MODS = 1 << 3
MULTIBOOT_INFO_MEM_MAP = 1 << 6
MULTIBOOT_INFO_BOOT_LOADER_NAME = 1 << 9

BOOT_LOADER_NAME = b"kvmpy\0"

# flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, syms, mmap_length, mmap_addr, drives,
# config_table, boot_loader_name, apm_table, VBE and the frame buffer
INFO = struct.Struct("<7I16x7I44x")
# mod_start, mod_end, string, reserved
MODULE = struct.Struct("<IIII")
# size (of what follows it), base_addr, length, type as in e820
MMAP_ENTRY = struct.Struct("<IQQI")

# header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr
_ADDRESSES = struct.Struct("<IIIII")

_NO_VIDEO = "The kernel asks for a video mode; this machine has no video, and it is told so."


def load_multiboot(
    memory: GuestMemory,
    kernel: memoryview,
    *,
    name: str = "kernel",
    modules: Sequence[Module] = (),
    cmdline: str = "",
    vcpus: int = 1,
) -> Entry:
    """Loads a multiboot image, its modules and the boot information into `memory`, which is fresh.

    `name` is what the command line begins with.  Raises `ImageError` for a file that cannot be used, and
    `ConfigError` for a command line that is too long or a machine that has too little memory.
    """
    offset = find_header(kernel)
    if offset is None:
        raise ImageError("it has no multiboot header in its first 8 KiB")
    flags = MULTIBOOT_HEADER.unpack_from(kernel, offset)[1]
    unknown = flags & _REQUIREMENTS & ~_KNOWN
    if unknown:
        raise ImageError(f"its multiboot header requires features that nobody knows (flags {unknown:#x})")
    if flags & MULTIBOOT_AOUT_KLUDGE:
        rip, end, what = _load_by_header(memory, kernel, offset)
    else:
        rip, end, what = _load_elf(memory, Elf(kernel))
    # Behind the kernel, where kernels that map little memory look for them.
    placed = place_after(memory, modules, max(end, layout.HIGH_MEMORY))
    info = _write_info(memory, f"{name} {cmdline}".rstrip(), modules, placed)
    write_mp_tables(memory, vcpus)
    base, limit = write_gdt(memory, 32)
    return Entry(
        PROTECTED,
        rip,
        rsp=layout.BOOT_STACK_TOP,
        registers={"rax": MULTIBOOT_BOOTLOADER_MAGIC, "rbx": info},
        gdt_base=base,
        gdt_limit=limit,
        description=f"multiboot, {what}, entry at {rip:#x}",
        notes=(_NO_VIDEO,) if flags & MULTIBOOT_VIDEO_MODE else (),
    )


def _load_elf(memory: GuestMemory, file: Elf) -> tuple[int, int, str]:
    """Entry, first address behind it, and what it is."""
    rip = file.physical_entry
    for segment in file.loads:
        check_free(memory, segment.paddr, segment.end)
    load_segments(memory, file)
    return rip, file.end, f"{file.bits}-bit ELF"


def _load_by_header(memory: GuestMemory, kernel: memoryview, offset: int) -> tuple[int, int, str]:
    """As `_load_elf`, by the header's own address fields (3.1.3)."""
    if offset + MULTIBOOT_HEADER.size + _ADDRESSES.size > min(len(kernel), MULTIBOOT_SEARCH):
        raise ImageError("its multiboot header is cut short")
    header_addr, start, load_end, bss_end, rip = _ADDRESSES.unpack_from(kernel, offset + MULTIBOOT_HEADER.size)
    first = offset - (header_addr - start)
    if start > header_addr or first < 0:
        raise ImageError(f"its multiboot header loads from before the file's start ({start:#x} to {header_addr:#x})")
    size = load_end - start if load_end else len(kernel) - first
    if size <= 0 or first + size > len(kernel):
        raise ImageError(f"its multiboot header loads {start:#x} to {load_end:#x}, which the file does not have")
    end = max(start + size, bss_end)
    if bss_end and bss_end < start + size:
        raise ImageError(f"its multiboot header ends the zeroed data at {bss_end:#x}, before the loaded data's end")
    if not start <= rip < start + size:
        raise ImageError(f"its entry point {rip:#x} lies outside of what its multiboot header loads")
    check_free(memory, start, end)
    memory.write(start, kernel[first : first + size])
    return rip, end, "addresses in its header"


def _write_info(memory: GuestMemory, line: str, modules: Sequence[Module], placed: Sequence[int]) -> int:
    """Writes the boot information and what it points to; its address."""
    info = BootInfo(memory)
    # The structure comes first, and has in it where the others are.
    address = info.put(bytes(INFO.size))
    cmdline = info.put(encode_cmdline(line, BOOT_INFO_MAX))
    loader = info.put(BOOT_LOADER_NAME)
    mmap = b"".join(MMAP_ENTRY.pack(MMAP_ENTRY.size - 4, *entry) for entry in e820(memory.regions))
    mmap_addr = info.put(mmap)
    entries = []
    for module, start in zip(modules, placed, strict=True):
        text = info.put(encode_cmdline(module.text, BOOT_INFO_MAX))
        entries.append(MODULE.pack(start, start + len(module.data), text, 0))
    mods_addr = info.put(b"".join(entries))
    flags = (
        MULTIBOOT_INFO_MEMORY
        | MULTIBOOT_INFO_CMDLINE
        | MULTIBOOT_INFO_MODS
        | MULTIBOOT_INFO_MEM_MAP
        | MULTIBOOT_INFO_BOOT_LOADER_NAME
    )
    end = low_ram_end(memory)
    lower, upper = min(end, layout.EBDA) // KIB, max(end - layout.HIGH_MEMORY, 0) // KIB
    fields = (flags, lower, upper, 0, cmdline, len(modules), mods_addr, len(mmap), mmap_addr, 0, 0, 0, loader, 0)
    memory.write(address, INFO.pack(*fields))
    return address
